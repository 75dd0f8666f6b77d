/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors that cannot be had from outside of a process: a disk that is full or breaks
 * under a file that is open, memory that cannot be had. Preloaded into the daemon and
 * all that it starts (LD_PRELOAD), it does nothing until the test writes a pid and an
 * errno to the file that UPGRADED_INJECT names, which all of them have mapped. From
 * then on that process gets the error: ENOMEM from every allocation, any other
 * from every call that changes a regular file. EMFILE the kernel gives by itself; it is
 * only counted here. How often the process got it is in the file, so that a test knows
 * whether anything happened at all; and what the process that is watched has allocated.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* As cell.py writes and reads it. */
struct control {
	atomic_int pid;
	atomic_int error;
	atomic_int hits;
	atomic_int watched;
	atomic_long heap; /* of the process that is watched, in bytes */
};

enum what { FILES, MEMORY, DESCRIPTORS };

static struct control *control;
static atomic_long heap;

__attribute__((constructor)) static void map_control(void)
{
	const char *path = getenv("UPGRADED_INJECT");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p;

	if (fd < 0)
		return;
	p = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p != MAP_FAILED)
		control = p;
}

static bool is_me(atomic_int *pid)
{
	int n = atomic_load(pid);

	return n && n == getpid();
}

static bool is_short_of(enum what what)
{
	int error;

	if (!control || !is_me(&control->pid))
		return false;
	error = atomic_load(&control->error);
	return error && what == (error == ENOMEM ? MEMORY : error == EMFILE ? DESCRIPTORS : FILES);
}

static bool is_hit(enum what what)
{
	if (!is_short_of(what))
		return false;
	atomic_fetch_add(&control->hits, 1);
	errno = atomic_load(&control->error);
	return true;
}

/* ---- files ---- */

static bool breaks(int fd)
{
	struct stat st;

	return is_short_of(FILES) && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && is_hit(FILES);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* What changes a file by its descriptor. */
#define BREAKS(type, name, parameters, ...)                       \
	type name parameters                                      \
	{                                                         \
		return breaks(fd) ? -1 : NEXT(name)(__VA_ARGS__); \
	}

BREAKS(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
BREAKS(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
BREAKS(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
BREAKS(ssize_t, writev, (int fd, const struct iovec *iov, int n), fd, iov, n)
BREAKS(ssize_t, pwritev, (int fd, const struct iovec *iov, int n, off_t at), fd, iov, n, at)
BREAKS(ssize_t, pwritev64, (int fd, const struct iovec *iov, int n, off64_t at), fd, iov, n, at)
BREAKS(int, fdatasync, (int fd), fd)
BREAKS(int, fsync, (int fd), fd)
BREAKS(int, ftruncate, (int fd, off_t size), fd, size)
BREAKS(int, ftruncate64, (int fd, off64_t size), fd, size)

/* ---- descriptors ---- */

/* By whatever prototype: no ABI of Linux minds a few words too many. */
#define COUNTS(name)                                                                \
	long counted_##name(long a, long b, long c, long d, long e, long f,         \
			    long g) __asm__(#name);                                 \
	long counted_##name(long a, long b, long c, long d, long e, long f, long g) \
	{                                                                           \
		static __typeof__(&counted_##name) next;                            \
		int before = errno;                                                 \
		long r;                                                             \
                                                                                    \
		if (!next)                                                          \
			next = (__typeof__(next))dlsym(RTLD_NEXT, #name);           \
		errno = 0;                                                          \
		r = next(a, b, c, d, e, f, g);                                      \
		if (errno == EMFILE)                                                \
			is_hit(DESCRIPTORS);                                        \
		if (!errno)                                                         \
			errno = before;                                             \
		return r;                                                           \
	}

COUNTS(accept4)
COUNTS(dup)
COUNTS(epoll_create1)
COUNTS(fcntl64)
COUNTS(fopen64)
COUNTS(ioctl)
COUNTS(memfd_create)
COUNTS(open64)
COUNTS(openat64)
COUNTS(opendir)
COUNTS(pidfd_open)
COUNTS(pipe2)
COUNTS(signalfd)
COUNTS(socket)
COUNTS(socketpair)
COUNTS(syscall)
COUNTS(timerfd_create)

/* The rest of the descriptors of a message is lost without an error. */
ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
	ssize_t n = NEXT(recvmsg)(fd, msg, flags);

	if (n >= 0 && msg->msg_flags & MSG_CTRUNC)
		is_hit(DESCRIPTORS);
	return n;
}

/* ---- memory ---- */

/* dlsym() allocates: the C library's own names for what comes after us. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void __libc_free(void *p);

static void account(long bytes)
{
	long now = atomic_fetch_add(&heap, bytes) + bytes;

	if (control && is_me(&control->watched))
		atomic_store(&control->heap, now);
}

static void *had(void *p)
{
	if (p)
		account((long)malloc_usable_size(p));
	return p;
}

void *malloc(size_t size)
{
	return is_hit(MEMORY) ? NULL : had(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
	return is_hit(MEMORY) ? NULL : had(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
	long before = p ? (long)malloc_usable_size(p) : 0;
	void *now;

	if (is_hit(MEMORY))
		return NULL;
	now = __libc_realloc(p, size);
	if (now || !size)
		account(-before);
	return had(now);
}

void free(void *p)
{
	if (p)
		account(-(long)malloc_usable_size(p));
	__libc_free(p);
}
