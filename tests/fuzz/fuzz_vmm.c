/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes libupgraded with what a daemon might ask, in any order. The first byte:
 * bit 0, the VMM is a target; bit 1, its callbacks answer later. Then packets:
 * how many fds, two bytes of length, the bytes. What must hold: no guest is run
 * twice or while it is frozen, and no fd is left.
 */
#include "vmm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FDS_MAX 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct guest {
	bool runs, later;
};

static int answer(struct guest *g)
{
	return g->later ? UPGRADED_LATER : 0;
}

static int on_freeze(struct upgraded *u, int state, void *userdata)
{
	struct guest *g = userdata;

	if (!g->runs || fcntl(state, F_GETFD) < 0)
		abort();
	g->runs = false;
	return answer(g);
}

static int on_thaw(struct upgraded *u, void *userdata)
{
	struct guest *g = userdata;

	if (g->runs)
		abort();
	g->runs = true;
	return 0;
}

static int on_accept(struct upgraded *u, void *userdata)
{
	struct guest *g = userdata;
	enum upgraded_kind kind;
	const char *name;
	int fd;

	if (g->runs)
		abort();
	for (size_t i = 0; upgraded_received(u, i, &name, &kind) == 0; i += 2)
		if (upgraded_take(u, name, kind, &fd) == 0)
			close(fd);
	return answer(g);
}

static int on_load(struct upgraded *u, int state, void *userdata)
{
	if (fcntl(state, F_GETFD) < 0)
		abort();
	return answer(userdata);
}

static int on_run(struct upgraded *u, void *userdata)
{
	struct guest *g = userdata;

	if (g->runs || upgraded_state(u) != UPGRADED_OWNER)
		abort();
	g->runs = true;
	return 0;
}

static const struct upgraded_ops ops = {
	.size = sizeof(ops),
	.freeze = on_freeze,
	.thaw = on_thaw,
	.accept = on_accept,
	.load = on_load,
	.run = on_run,
};

/* A connection that has been greeted. */
static int bring_up(struct upgraded *u)
{
	struct epoll_event event = { .events = EPOLLIN };
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	u->sock = pair[0];
	u->link = VMM_LINK_UP;
	u->connection++;
	epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->sock, &event);
	return pair[1];
}

static void drain(int sock)
{
	struct scm_fds fds;
	Envelope *env;
	int r;

	while ((r = wire_recv(sock, &env, &fds)) != -EAGAIN && r != -ENOTCONN) {
		if (r < 0)
			abort();
		envelope_freep(&env);
		scm_fds_close(&fds);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest g = { 0 };
	struct upgraded *u;
	int fds[FDS_MAX], before, daemon;

	if (!size)
		return 0;
	before = dup(0);
	close(before);
	g.runs = !(data[0] & 1);
	g.later = data[0] & 2;
	if (data[0] & 1)
		setenv("UPGRADED_TARGET", "17", 1);
	else
		unsetenv("UPGRADED_TARGET");
	if (upgraded_new("vm1", &ops, &g, &u) < 0)
		abort();
	u->path = strdup("/nonexistent");
	upgraded_offer(u, "ram", UPGRADED_MEMFD, 0);
	daemon = bring_up(u);
	data++;
	size--;
	while (size >= 3) {
		size_t n = data[0] % (FDS_MAX + 1), len = (size_t)data[1] | (size_t)data[2] << 8;

		if (len > size - 3)
			len = size - 3;
		for (size_t i = 0; i < n; i++)
			fds[i] = memfd_create("x", MFD_CLOEXEC);
		if (len)
			(void)scm_send(daemon, data + 3, len, fds, n);
		for (size_t i = 0; i < n; i++)
			close(fds[i]);
		while (upgraded_dispatch(u) > 0)
			;
		if (u->later)
			upgraded_complete(u, 0);
		drain(daemon);
		if (u->link != VMM_LINK_UP) {
			close(daemon);
			closep(&u->sock);
			daemon = bring_up(u);
		}
		data += 3 + len;
		size -= 3 + len;
	}
	close(daemon);
	upgraded_free(u);
	/* The lowest free number is what it was: nothing was left below it. */
	if (dup(0) != before)
		abort();
	close(before);
	return 0;
}
