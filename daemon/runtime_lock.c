/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One daemon for each runtime directory. Taken by upgraded.c before anything in there
 * is opened: who only reads the journal while another one writes it would take half a
 * record for a torn tail, and cut it off. Owns nothing; the lock lives as long as the
 * fd that it hands out.
 *
 * If the daemon dies, the kernel lets go of it. A worker, which outlives the daemon, has
 * no copy: the fd is close-on-exec. Who was killed between fork and exec of one leaves
 * a copy for a moment, which is waited for.
 */
#include "runtime_lock.h"

#include "clock.h"

#include <fcntl.h>
#include <sys/file.h>

#define WAIT_US	    (1000 * 1000ULL)
#define INTERVAL_US (20 * 1000)

static int wait_for_lock(int fd)
{
	uint64_t end = now_us() + WAIT_US;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK || now_us() >= end)
			return -errno;
		usleep(INTERVAL_US);
	}
	return 0;
}

int runtime_lock(const char *dir, int *ret_fd, struct error *err)
{
	_cleanup_close_ int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -EBADF;
	int r;

	if (dir_fd < 0)
		return error_errno(err, -errno, "cannot open %s", dir);
	/* Not the directory: who may list it could lock it. */
	fd = openat(dir_fd, "lock", O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 && errno == EROFS)
		fd = openat(dir_fd, "lock", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	/* A second one cannot cut what is read-only, and finds the sockets of the first. */
	if (fd < 0 && errno == ENOENT) {
		*ret_fd = -EBADF;
		return 0;
	}
	if (fd < 0)
		return error_errno(err, -errno, "cannot open %s/lock", dir);
	r = wait_for_lock(fd);
	if (r == -EWOULDBLOCK) {
		error_set(err, r, "another upgraded runs with the runtime directory %s", dir);
		error_hint(err, "stop it, or use another --runtime-dir");
		return r;
	}
	if (r < 0)
		return error_errno(err, r, "cannot lock %s/lock", dir);
	*ret_fd = TAKE_FD(fd);
	return 0;
}
