/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/* All passing of file descriptors in the project: see scm_rights.c. */
#ifndef UPGRADED_SCM_RIGHTS_H
#define UPGRADED_SCM_RIGHTS_H

#include <stddef.h>
#include <sys/types.h>

/* SCM_MAX_FD of the kernel (include/net/scm.h): more in one message is EINVAL. */
#define SCM_RIGHTS_MAX 253

/* The fds of one received message; owns them until they are taken. */
struct scm_fds {
	size_t n;
	int fd[SCM_RIGHTS_MAX];
};

#define SCM_FDS_INIT { .n = 0 }

/* Closes what was not taken. */
void scm_fds_close(struct scm_fds *fds);
#define _cleanup_scm_fds_ __attribute__((cleanup(scm_fds_close)))

/* Hands fds->fd[i] to the caller; -EBADF if there is none. */
int scm_fds_take(struct scm_fds *fds, size_t i);

/*
 * Sends one message with @n borrowed fds (0..253). On a stream socket it may
 * send fewer bytes; the fds went with the first one.
 * Returns the bytes sent, -EAGAIN if the socket is full, -EMSGSIZE if n is too
 * large or a packet too long, -EINVAL if fds come without a byte to carry
 * them, or another negative errno. Never raises SIGPIPE (-EPIPE).
 */
ssize_t scm_send(int sock, const void *buf, size_t len, const int *fds, size_t n);

/*
 * Receives one message into @buf and its fds, all O_CLOEXEC, into @ret_fds
 * (which need not be initialized). Returns the bytes received, 0 at the end
 * of the stream.
 * -EBADMSG: fds were truncated or came without a byte, or a packet did not
 * fit; -EMFILE: truncated because this process has no room for
 * more fds. On every error all fds that arrived are closed.
 */
ssize_t scm_recv(int sock, void *buf, size_t size, struct scm_fds *ret_fds);

#endif
