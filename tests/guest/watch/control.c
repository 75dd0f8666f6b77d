/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket of loadwatch: a UNIX stream on which a line is a command and a line is its
 * answer.
 *
 * Called by main.c, as the server and as the client (--ctl). Descriptors belong to the caller.
 */
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SEND_BUFFER (1 << 20) /* the longest answer, a full list of gaps, fits */
#define ANSWER_MS   10000
#define ANSWER_MAX  (1 << 20)

static int set_path(const char *path, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret->sun_path))
		return -ENAMETOOLONG;
	strcpy(ret->sun_path, path);
	return 0;
}

int control_listen(const char *path)
{
	struct sockaddr_un at;
	int fd, size = SEND_BUFFER, r = set_path(path, &at);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* Inherited by what is accepted; the kernel may grant less. */
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	unlink(path);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, 8) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

int control_connect(const char *path)
{
	struct sockaddr_un to;
	int fd, r = set_path(path, &to);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

/* A client that does not take its answer in 100 ms goes without: the ticks must be read. */
int control_send_all(int fd, const char *buf, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		if (n < 0 && errno == EAGAIN && poll(&p, 1, 100) > 0)
			continue;
		if (n < 0)
			return -errno;
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Sends one command and waits for its line; the caller frees it. */
int control_ask(int fd, const char *command, char **ret_answer)
{
	size_t len = 0;
	char *buf;
	int r = control_send_all(fd, command, strlen(command));

	if (r == 0)
		r = control_send_all(fd, "\n", 1);
	if (r < 0)
		return r;
	buf = malloc(ANSWER_MAX);
	if (!buf)
		return -ENOMEM;
	while (len < ANSWER_MAX - 1) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t n = poll(&p, 1, ANSWER_MS) > 0
				    ? recv(fd, buf + len, ANSWER_MAX - 1 - len, 0)
				    : -1;

		if (n <= 0)
			break;
		len += (size_t)n;
		if (buf[len - 1] == '\n') {
			buf[len - 1] = 0;
			*ret_answer = buf;
			return 0;
		}
	}
	free(buf);
	return -ETIMEDOUT;
}
