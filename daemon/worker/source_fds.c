/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The open fds of the source, for the argv plan: which are taps, and which
 * sockets it listens on, whatever option opened them. Called by source_read().
 * An fd is copied with pidfd_getfd() to be asked, and only if it is a tun
 * device or a socket: to close a copy of a file would drop locks of ours on it.
 * Owns no fd when it returns; leaves nothing behind.
 */
#include "source_fds.h"

#include "cleanup.h"
#include "procfs.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

static char *tap_name(int fd)
{
	struct ifreq ifr = { 0 };

	/* Fails while no interface is attached to it. */
	if (ioctl(fd, TUNGETIFF, &ifr) < 0)
		return NULL;
	return strndup(ifr.ifr_name, sizeof(ifr.ifr_name));
}

static char *format_address(const struct sockaddr_storage *addr, socklen_t len)
{
	const struct sockaddr_un *un = (const void *)addr;
	const struct sockaddr_in *in = (const void *)addr;
	const struct sockaddr_in6 *in6 = (const void *)addr;
	char text[INET6_ADDRSTRLEN];
	char *s = NULL;
	int n = -1, path = (int)(len - offsetof(struct sockaddr_un, sun_path));

	switch (addr->ss_family) {
	case AF_UNIX:
		if (path > 1 && !un->sun_path[0])
			n = asprintf(&s, "unix:@%.*s", path - 1, un->sun_path + 1);
		else
			n = asprintf(&s, "unix:%.*s", path > 0 ? path : 0, un->sun_path);
		break;
	case AF_INET:
		inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
		n = asprintf(&s, "tcp:%s:%u", text, ntohs(in->sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof(text));
		n = asprintf(&s, "tcp6:[%s]:%u", text, ntohs(in6->sin6_port));
		break;
	default:
		n = asprintf(&s, "family:%u", addr->ss_family);
	}
	return n < 0 ? NULL : s;
}

static char *listen_address(int fd)
{
	struct sockaddr_storage addr = { 0 };
	socklen_t len = sizeof(int);
	int listens = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
		return NULL;
	len = sizeof(addr);
	if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
		return NULL;
	return format_address(&addr, len);
}

/* O_CLOEXEC is shown among the flags in fdinfo, in octal. */
static bool is_cloexec(pid_t pid, int fd)
{
	_cleanup_free_ char *text = NULL;
	const char *flags;
	char name[32];

	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	if (proc_read(pid, name, &text, NULL) < 0)
		return false;
	flags = strstr(text, "flags:");
	return flags && (strtoul(flags + strlen("flags:"), NULL, 8) & O_CLOEXEC);
}

/* 0; 1: it was closed meanwhile; or a negative errno. */
static int describe(pid_t pid, int pidfd, int number, struct source_fd *fd, struct error *err)
{
	_cleanup_close_ int copy = -EBADF;
	char name[32];
	bool tun;
	int r;

	*fd = (struct source_fd){ .fd = number };
	snprintf(name, sizeof(name), "fd/%d", number);
	r = proc_readlink(pid, name, &fd->link);
	if (r == -ENOENT)
		return 1;
	if (r < 0)
		return error_errno(err, r, "cannot read fd %d of the source", number);
	fd->cloexec = is_cloexec(pid, number);
	tun = !strcmp(fd->link, "/dev/net/tun");
	if (!tun && strncmp(fd->link, "socket:", 7))
		return 0;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	if (copy < 0 && errno == EBADF)
		return 0;
	if (copy < 0)
		return error_errno(err, -errno, "cannot look at fd %d of the source", number);
	if (tun)
		fd->tap = tap_name(copy);
	else
		fd->listen = listen_address(copy);
	return 0;
}

static void clear(struct source_fd *fd)
{
	free(fd->link);
	free(fd->tap);
	free(fd->listen);
}

static int by_number(const void *a, const void *b)
{
	const struct source_fd *x = a, *y = b;

	return x->fd - y->fd;
}

int source_fds_read(pid_t pid, int pidfd, struct source_fd **ret_fds, size_t *ret_n,
		    struct error *err)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct source_fd *fds = NULL, *more;
	struct dirent *entry;
	size_t n = 0;
	int fd, r;

	fd = proc_open(pid, "fd", O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return error_errno(err, fd, "cannot list the fds of the source");
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		more = reallocarray(fds, n + 1, sizeof(*fds));
		if (!more) {
			source_fds_free(fds, n);
			return -ENOMEM;
		}
		fds = more;
		r = describe(pid, pidfd, atoi(entry->d_name), &fds[n], err);
		if (r == 0) {
			n++;
			continue;
		}
		clear(&fds[n]);
		if (r < 0) {
			source_fds_free(fds, n);
			return r;
		}
	}
	if (n)
		qsort(fds, n, sizeof(*fds), by_number);
	*ret_fds = fds;
	*ret_n = n;
	return 0;
}

void source_fds_free(struct source_fd *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		clear(&fds[i]);
	free(fds);
}
