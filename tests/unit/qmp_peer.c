/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A scripted QEMU at the other end of a monitor, for the tests of what talks to
 * one: a child with the other end of a socket pair; what it waits for and says
 * is a list of steps. Owns the child, which close_peer() ends.
 */
#include "qmp_peer.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

void say(int fd, const char *text, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = send(fd, text + done, len - done, MSG_NOSIGNAL);

		if (n < 0)
			_exit(0);
		done += (size_t)n;
	}
}

void hear(int fd, const char *word)
{
	static char heard[1 << 16];
	size_t len = 0;

	for (;;) {
		ssize_t n = read(fd, heard + len, sizeof(heard) - len - 1);

		if (n <= 0)
			_exit(0);
		len += (size_t)n;
		heard[len] = '\0';
		if (strstr(heard, word))
			return;
		if (len > sizeof(heard) / 2)
			len = 0;
	}
}

void linger(int fd)
{
	char c;

	while (read(fd, &c, 1) > 0)
		;
	_exit(0);
}

void open_peer(struct peer *p, void (*play)(int fd, const void *), const void *data)
{
	int pair[2];

	*p = (struct peer){ .w = WAITER_INIT };
	p->w.what = "a test";
	p->w.deadline_us = now_us() + 10000000;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	p->pid = fork();
	if (!p->pid) {
		close(pair[0]);
		alarm(60);
		play(pair[1], data);
		linger(pair[1]);
	}
	close(pair[1]);
	p->r = qmp_open(pair[0], pair[0], "the source", &p->w, &p->q, &p->err);
}

void close_peer(struct peer *p)
{
	qmp_freep(&p->q);
	error_clear(&p->err);
	kill(p->pid, SIGKILL);
	assert_int_equal(waitpid(p->pid, NULL, 0), p->pid);
}

void play_steps(int fd, const void *data)
{
	for (const struct step *s = data; s->heard || s->says; s++) {
		if (s->heard)
			hear(fd, s->heard);
		if (s->says)
			say(fd, s->says, strlen(s->says));
		usleep(5000); /* so that it is read before the next comes */
	}
}
