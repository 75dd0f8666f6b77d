/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors that cannot be had from outside of a process: a disk that is full or breaks
 * under a file that is open, memory that cannot be had. Preloaded into the daemon and
 * all that it starts (LD_PRELOAD), it does nothing until the test writes a pid and an
 * errno to the file that UPGRADED_INJECT names, which all of them have mapped. From
 * then on that process gets the error: ENOMEM from every allocation, anything else
 * from every call that changes a regular file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* As matrix.py writes it. */
struct control {
	atomic_int pid;
	atomic_int error;
	atomic_int hits;
};

static struct control *control;

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

static bool is_ours(bool memory)
{
	int error;

	if (!control || atomic_load(&control->pid) != getpid())
		return false;
	error = atomic_load(&control->error);
	if (error == 0 || (error == ENOMEM) != memory)
		return false;
	atomic_fetch_add(&control->hits, 1);
	errno = error;
	return true;
}

static bool breaks(int fd)
{
	struct stat st;

	if (!control || atomic_load(&control->pid) == 0)
		return false;
	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && is_ours(false);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size)
{
	return breaks(fd) ? -1 : NEXT(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
	return breaks(fd) ? -1 : NEXT(pwrite)(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	return breaks(fd) ? -1 : NEXT(pwrite64)(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
	return breaks(fd) ? -1 : NEXT(writev)(fd, iov, n);
}

int fdatasync(int fd)
{
	return breaks(fd) ? -1 : NEXT(fdatasync)(fd);
}

int fsync(int fd)
{
	return breaks(fd) ? -1 : NEXT(fsync)(fd);
}

int ftruncate(int fd, off_t size)
{
	return breaks(fd) ? -1 : NEXT(ftruncate)(fd, size);
}

/* dlsym() allocates: the C library's own names for what comes after us. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
	return is_ours(true) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	return is_ours(true) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	return is_ours(true) ? NULL : __libc_realloc(p, size);
}
