/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The TCP stream: one connection to the peer on the host, which echoes; both directions are
 * checked.
 *
 * One thread, started by main(); it owns the socket. It keeps a bounded amount in flight at all
 * times, so that there always is something on the way when the guest is stopped. The connection
 * must live through everything: a break is an error of its own, after which a new connection is
 * made, so that the load goes on and a second fault can be seen too. Before the first connection
 * the peer is merely not there yet, which is no error (and the load not READY).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "checksum.h"
#include "load.h"
#include "now.h"
#include "stream.h"

#define CHUNK	   4096
#define WINDOW	   (16 * CHUNK)
#define CONNECT_MS 3000
#define RETRY_MS   200
#define DRAIN_MS   3000

struct connection {
	int fd;
	uint64_t seed, sent, received;
	uint64_t last_rx_ns; /* or when something got into flight after nothing was */
	uint64_t next_tx_ns;
};

static int wait_for(int fd, short events, uint64_t ns)
{
	struct pollfd p = { .fd = fd, .events = events };
	struct timespec ts = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};
	int r = ppoll(&p, 1, &ts, NULL);

	return r < 0 && errno != EINTR ? -errno : p.revents;
}

static int peer_connect(struct load *l, struct connection *ret)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct connection c = { .fd = -1 };
	struct stream_hello hello;
	int r, one = 1, err = 0;
	socklen_t len = sizeof(err);
	uint64_t port;

	r = options_split_address(l->options.peer, ':', &to.sin_addr.s_addr, &port);
	if (r < 0)
		return r;
	to.sin_port = htons((uint16_t)port);
	c.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c.fd < 0)
		return -errno;
	setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(c.fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		if (errno != EINPROGRESS)
			goto fail_errno;
		r = wait_for(c.fd, POLLOUT, CONNECT_MS * NSEC_PER_MSEC);
		if (r <= 0) {
			r = r ?: -ETIMEDOUT;
			goto fail;
		}
		if (getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
			goto fail_errno;
		if (err) {
			r = -err;
			goto fail;
		}
	}
	c.seed = mix64(clock_ns(CLOCK_REALTIME) ^ now_ns());
	hello = (struct stream_hello){ .magic = STREAM_MAGIC, .seed = c.seed };
	/* A fresh socket's buffer is empty: 16 bytes go whole or not at all. */
	if (send(c.fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
		goto fail_errno;
	c.last_rx_ns = c.next_tx_ns = now_ns();
	*ret = c;
	return 0;

fail_errno:
	r = -errno;
fail:
	close(c.fd);
	return r;
}

/* Reads what is there. -EILSEQ: not what was sent; -ECONNRESET: the peer closed. */
static int receive(struct load *l, struct connection *c)
{
	uint8_t buf[2 * CHUNK];
	ssize_t n = recv(c->fd, buf, sizeof(buf), 0);
	uint64_t now;
	size_t right;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	now = now_ns();
	count_max(&l->net.longest_stall_us, (now - c->last_rx_ns) / NSEC_PER_USEC);
	c->last_rx_ns = now;

	right = stream_check(c->seed, c->received, buf, (size_t)n);
	c->received += right;
	count_add(&l->net.received, right);
	if (right < (size_t)n || c->received > c->sent)
		return -EILSEQ;
	part_set(l, PART_NET, STATE_GOING);
	return 0;
}

static int transmit(struct load *l, struct connection *c)
{
	uint8_t buf[CHUNK];
	uint64_t now = now_ns();
	ssize_t n;

	if (c->sent == c->received)
		c->last_rx_ns = now; /* silence counts from here: before, nothing was due */
	stream_fill(c->seed, c->sent, buf, sizeof(buf));
	if (inject_now(l, INJECT_NET))
		stream_fill(c->seed, c->sent + 1, buf, sizeof(buf));
	n = send(c->fd, buf, sizeof(buf), MSG_NOSIGNAL);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	c->sent += (uint64_t)n;
	c->next_tx_ns = now + l->options.net_pause_us * NSEC_PER_USEC;
	count_add(&l->net.sent, (uint64_t)n);
	return 0;
}

static int converse(struct load *l, struct connection *c)
{
	while (!load_stopping(l)) {
		bool room = c->sent - c->received + CHUNK <= WINDOW;
		uint64_t now = now_ns(), wait = 100 * NSEC_PER_MSEC;
		bool due = room && now >= c->next_tx_ns;
		int r;

		if (c->sent > c->received)
			count_max(&l->net.longest_stall_us, (now - c->last_rx_ns) / NSEC_PER_USEC);
		if (room && !due && c->next_tx_ns - now < wait)
			wait = c->next_tx_ns - now;
		r = wait_for(c->fd, (short)(POLLIN | (due ? POLLOUT : 0)), wait);
		if (r < 0)
			return r;
		if (r & (POLLIN | POLLERR | POLLHUP)) {
			int k = receive(l, c);

			if (k < 0)
				return k;
		}
		if (r & POLLOUT && due) {
			int k = transmit(l, c);

			if (k < 0)
				return k;
		}
	}
	return 0;
}

/* The orderly end: nothing that was sent may be missing when the peer closes. */
static int drain(struct load *l, struct connection *c)
{
	uint64_t deadline = now_ns() + DRAIN_MS * NSEC_PER_MSEC;

	shutdown(c->fd, SHUT_WR);
	while (c->received < c->sent) {
		uint64_t now = now_ns();
		int r;

		if (now >= deadline)
			return -ETIMEDOUT;
		r = wait_for(c->fd, POLLIN, deadline - now);
		if (r > 0)
			r = receive(l, c);
		if (r < 0)
			return r;
	}
	return 0;
}

void *net_thread(void *arg)
{
	struct load *l = arg;

	while (!load_stopping(l)) {
		struct connection c;
		int r = peer_connect(l, &c);

		if (r < 0) {
			if (r == -EINVAL) {
				part_set(l, PART_NET, STATE_FAILED);
				load_error(l, ERROR_SETUP, "bad peer address %s", l->options.peer);
				return NULL;
			}
			sleep_ns(RETRY_MS * NSEC_PER_MSEC);
			continue;
		}
		count_add(&l->net.connects, 1);
		r = converse(l, &c);
		if (r == 0)
			r = drain(l, &c);
		if (r < 0)
			load_error(l, r == -EILSEQ ? ERROR_NET_SEQUENCE : ERROR_NET_RESET,
				   "after %lu bytes sent, %lu received: %s", c.sent, c.received,
				   r == -EILSEQ ? "wrong byte" : strerror(-r));
		close(c.fd);
	}
	return NULL;
}
