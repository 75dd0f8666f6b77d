/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loadpeer: the host's end of the TCP stream of the test load.
 *
 *	loadpeer --listen 10.77.0.1:7777
 *
 * A test starts it before the guest. It accepts any number of connections (a second one from the
 *same guest is already a fault of what is tested), checks and echoes, and prints its totals as one
 *JSON line on SIGUSR1 and at its end (SIGTERM, SIGINT). It owns its sockets. If it dies, the
 *guest's stream is broken and the guest reports that as its own error.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/now.h"
#include "../load/options.h"
#include "echo.h"

#define MAX_CONNECTIONS 64

struct peer {
	int epoll, listener, signals;
	struct echo_totals totals;
	struct echo *echo[MAX_CONNECTIONS];
};

static void print_totals(struct peer *p)
{
	const struct echo_totals *t = &p->totals;

	for (int i = 0; i < MAX_CONNECTIONS; i++)
		if (p->echo[i])
			echo_silence(p->echo[i], now_ns(), &p->totals);
	printf("{\"connections\":%lu,\"open\":%lu,\"closed\":%lu,\"resets\":%lu,\"bytes_in\":%lu,"
	       "\"bytes_out\":%lu,"
	       "\"sequence_errors\":%lu,\"bad_hellos\":%lu,\"longest_stall_ms\":%lu.%03lu}\n",
	       t->connections, t->open, t->closed, t->resets, t->bytes_in, t->bytes_out,
	       t->sequence_errors, t->bad_hellos, t->longest_stall_us / 1000,
	       t->longest_stall_us % 1000);
	fflush(stdout);
}

static int listen_on(const char *address)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	int fd, one = 1, r;
	uint64_t port;

	r = options_split_address(address, ':', &at.sin_addr.s_addr, &port);
	if (r < 0)
		return r;
	at.sin_port = htons((uint16_t)port);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	/* The tap that carries the address may come up only with the guest. */
	setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, 8) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

static int watch(struct peer *p, int op, int fd, uint32_t events, int slot)
{
	struct epoll_event ev = { .events = events, .data.u32 = (uint32_t)slot };

	return epoll_ctl(p->epoll, op, fd, &ev) < 0 ? -errno : 0;
}

/* Slots of the epoll set: connections by their number, then these two. */
enum { SLOT_LISTENER = MAX_CONNECTIONS, SLOT_SIGNALS };

static void accept_one(struct peer *p)
{
	int fd = accept4(p->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1, slot;

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (slot = 0; slot < MAX_CONNECTIONS && p->echo[slot]; slot++)
		;
	if (slot == MAX_CONNECTIONS || watch(p, EPOLL_CTL_ADD, fd, EPOLLIN, slot) < 0) {
		close(fd);
		return;
	}
	p->echo[slot] = echo_new(fd, now_ns(), &p->totals);
	if (!p->echo[slot])
		close(fd);
}

static void serve(struct peer *p, int slot)
{
	struct echo *e = p->echo[slot];
	bool in, out;
	int r;

	if (!e)
		return;
	r = echo_step(e, now_ns(), &p->totals, &in, &out);
	if (r != 0) {
		echo_end(e, r, &p->totals);
		p->echo[slot] = NULL;
		return;
	}
	watch(p, EPOLL_CTL_MOD, e->fd, (in ? EPOLLIN : 0U) | (out ? EPOLLOUT : 0U), slot);
}

static int loop(struct peer *p)
{
	for (;;) {
		struct epoll_event ev[16];
		int n = epoll_wait(p->epoll, ev, 16, -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			struct signalfd_siginfo si;

			switch (ev[i].data.u32) {
			case SLOT_LISTENER:
				accept_one(p);
				break;
			case SLOT_SIGNALS:
				if (read(p->signals, &si, sizeof(si)) != sizeof(si))
					break;
				if (si.ssi_signo != SIGUSR1)
					return 0;
				print_totals(p);
				break;
			default:
				serve(p, (int)ev[i].data.u32);
			}
		}
	}
}

int main(int argc, char **argv)
{
	struct peer p = { 0 };
	sigset_t set;
	int r;

	if (argc != 3 || strcmp(argv[1], "--listen")) {
		fprintf(stderr, "usage: loadpeer --listen ADDRESS:PORT\n");
		return 2;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);

	p.listener = listen_on(argv[2]);
	if (p.listener < 0) {
		fprintf(stderr, "loadpeer: listening on %s: %s\n", argv[2], strerror(-p.listener));
		return 1;
	}
	p.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	p.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (p.signals < 0 || p.epoll < 0 ||
	    watch(&p, EPOLL_CTL_ADD, p.listener, EPOLLIN, SLOT_LISTENER) < 0 ||
	    watch(&p, EPOLL_CTL_ADD, p.signals, EPOLLIN, SLOT_SIGNALS) < 0) {
		fprintf(stderr, "loadpeer: setting up: %s\n", strerror(errno));
		return 1;
	}

	r = loop(&p);
	print_totals(&p);
	for (int i = 0; i < MAX_CONNECTIONS; i++)
		if (p.echo[i])
			echo_end(p.echo[i], 0, &p.totals);
	return r < 0 || p.totals.sequence_errors || p.totals.bad_hellos || p.totals.resets ? 1 : 0;
}
