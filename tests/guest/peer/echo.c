/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection of the TCP peer: checks every byte against what it must be and sends it back.
 *
 * Called by the peer's main loop whenever the socket is ready; also by the unit tests over a socket
 * pair. A struct echo owns its socket. The data that is echoed is what was received, so a fault on
 * the way to the host is counted here and, echoed, by the guest as well; a fault on the way back
 * only by the guest. That tells the two directions apart.
 */
#include "echo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../load/stream.h"

_Static_assert(sizeof(struct stream_hello) == sizeof(((struct echo *)0)->hello),
	       "room for the hello");

/* Takes the socket, which must be non-blocking. */
struct echo *echo_new(int fd, uint64_t now_ns, struct echo_totals *totals)
{
	struct echo *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->fd = fd;
	e->last_rx_ns = now_ns;
	totals->connections++;
	totals->open++;
	return e;
}

void echo_end(struct echo *e, int result, struct echo_totals *totals)
{
	if (result < 0)
		totals->resets++;
	else
		totals->closed++;
	totals->open--;
	close(e->fd);
	free(e);
}

/* The silence so far, for a reader who asks in the middle of one. */
void echo_silence(struct echo *e, uint64_t now_ns, struct echo_totals *totals)
{
	uint64_t us = (now_ns - e->last_rx_ns) / 1000;

	if (!e->eof && us > totals->longest_stall_us)
		totals->longest_stall_us = us;
}

static void take_hello(struct echo *e, struct echo_totals *totals)
{
	struct stream_hello hello;

	memcpy(&hello, e->hello, sizeof(hello));
	if (hello.magic == STREAM_MAGIC) {
		e->seed = hello.seed;
		e->hello_done = true;
	} else {
		totals->bad_hellos++;
		e->broken = true;
	}
}

static int receive(struct echo *e, uint64_t now_ns, struct echo_totals *totals)
{
	uint8_t *to = e->buf + e->start + e->len;
	size_t room = ECHO_BUFFER - e->start - e->len, right;
	ssize_t n;

	if (!e->hello_done && !e->broken)
		n = recv(e->fd, e->hello + e->hello_len, sizeof(e->hello) - e->hello_len, 0);
	else
		n = recv(e->fd, to, room, 0);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0) {
		e->eof = true;
		return 0;
	}
	echo_silence(e, now_ns, totals);
	e->last_rx_ns = now_ns;
	if (e->broken)
		return 0;
	if (!e->hello_done) {
		e->hello_len += (size_t)n;
		if (e->hello_len == sizeof(e->hello))
			take_hello(e, totals);
		return 0;
	}

	totals->bytes_in += (uint64_t)n;
	right = stream_check(e->seed, e->received, to, (size_t)n);
	if (right < (size_t)n) {
		/* What follows the first wrong byte can not be judged: one fault, one error. */
		totals->sequence_errors++;
		e->broken = true;
	}
	/* The wrong part goes back too: the guest must see it. */
	e->received += (uint64_t)n;
	e->len += (size_t)n;
	return 0;
}

static int transmit(struct echo *e, struct echo_totals *totals)
{
	ssize_t n = send(e->fd, e->buf + e->start, e->len, MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	totals->bytes_out += (uint64_t)n;
	e->start += (size_t)n;
	e->len -= (size_t)n;
	if (e->len == 0)
		e->start = 0;
	return 0;
}

/* Returns 1 when the connection is over in good order, 0 when it goes on, negative when it broke.
 */
int echo_step(struct echo *e, uint64_t now_ns, struct echo_totals *totals, bool *ret_want_in,
	      bool *ret_want_out)
{
	int r;

	if (!e->eof && e->start + e->len < ECHO_BUFFER) {
		r = receive(e, now_ns, totals);
		if (r < 0)
			return r;
	}
	if (e->len > 0) {
		r = transmit(e, totals);
		if (r < 0)
			return r;
	}
	if (e->eof && e->len == 0)
		return 1;
	*ret_want_in = !e->eof && e->start + e->len < ECHO_BUFFER;
	*ret_want_out = e->len > 0;
	return 0;
}
