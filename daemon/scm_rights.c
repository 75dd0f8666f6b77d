/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/*
 * All passing of file descriptors in the project: packets of our own sockets
 * (lib/wire.c) and bytes of QEMU's cpr channel (daemon/worker/channel.c). The
 * library links it too, hence the second licence.
 *
 * What arrives is owned by the receiver from the moment recvmsg() returns,
 * even when the message is bad: nothing leaves this file half-owned. The
 * kernel installs as many fds as fit and then sets MSG_CTRUNC, so the ones
 * that made it are closed here. If this process dies, the kernel closes all.
 */
#include "scm_rights.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

void scm_fds_close(struct scm_fds *fds)
{
	int saved = errno;

	for (size_t i = 0; i < fds->n; i++)
		if (fds->fd[i] >= 0)
			close(fds->fd[i]);
	fds->n = 0;
	errno = saved;
}

int scm_fds_take(struct scm_fds *fds, size_t i)
{
	int fd;

	if (i >= fds->n)
		return -EBADF;
	fd = fds->fd[i];
	fds->fd[i] = -EBADF;
	return fd;
}

/* Also what SO_PASSCRED and SO_PASSPIDFD add, before the fds. */
union control {
	char buf[CMSG_SPACE(sizeof(int) * SCM_RIGHTS_MAX) + CMSG_SPACE(sizeof(struct ucred)) +
		 CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

ssize_t scm_send(int sock, const void *buf, size_t len, const int *fds, size_t n)
{
	union control control;
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *cmsg;
	ssize_t sent;

	if (n > SCM_RIGHTS_MAX)
		return -EMSGSIZE;
	if (n && !len)
		return -EINVAL;
	if (n) {
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		memset(control.buf, 0, msg.msg_controllen);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n);
	}
	do
		sent = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : sent;
}

/* A truncated list means a full fd table here, or a peer that sent too many. */
static int why_truncated(const struct scm_fds *fds)
{
	struct rlimit limit;
	int probe;

	if (fds->n >= SCM_RIGHTS_MAX)
		return -EBADMSG;
	probe = dup(STDERR_FILENO);
	if (probe >= 0) {
		close(probe);
		if (!getrlimit(RLIMIT_NOFILE, &limit) && (rlim_t)probe + 1 < limit.rlim_cur)
			return -EBADMSG;
	}
	return -EMFILE;
}

/* Moves the fds of one control message into @fds; false if they did not all fit. */
static bool collect(const struct cmsghdr *cmsg, struct scm_fds *fds)
{
	size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	bool whole = true;

	if (cmsg->cmsg_level != SOL_SOCKET)
		return true;
	for (size_t i = 0; i < n; i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
		if (cmsg->cmsg_type == SCM_RIGHTS && fds->n < SCM_RIGHTS_MAX) {
			fds->fd[fds->n++] = fd;
		} else if (cmsg->cmsg_type == SCM_RIGHTS) {
			close(fd);
			whole = false;
		} else if (cmsg->cmsg_type == SCM_PIDFD && fd >= 0) {
			close(fd); /* of the sender; nobody here asked for it */
		}
	}
	return whole;
}

ssize_t scm_recv(int sock, void *buf, size_t size, struct scm_fds *ret_fds)
{
	union control control;
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	struct cmsghdr *cmsg;
	bool whole = true;
	ssize_t got;

	ret_fds->n = 0;
	do
		got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;

	for (cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg))
		whole &= collect(cmsg, &fds);
	if (msg.msg_flags & MSG_CTRUNC)
		return why_truncated(&fds);
	if (msg.msg_flags & MSG_TRUNC || !whole)
		return -EBADMSG;
	/* An empty packet reads like the end of the stream, which has no fds. */
	if (!got && fds.n)
		return -EBADMSG;
	*ret_fds = fds;
	fds.n = 0;
	return got;
}
