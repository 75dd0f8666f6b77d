/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes the monitor's client with what a QEMU that was broken into might answer:
 * the input is all that it ever says, after a good greeting unless the first byte
 * is odd. What must hold: each call ends, with an answer or with an error that has
 * a text.
 */
#include "qmp_peer.h"

#include "cleanup.h"

#include <string.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SOON_US 20000

/* As much as the socket takes; a QEMU that says more than nobody reads blocks. */
static void say_all(int fd, const void *text, size_t len)
{
	(void)!send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void must_say_why(int r, const struct error *err)
{
	if (r < 0 && (!err->text || !err->text[0]))
		abort();
}

static void talk(int fd)
{
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct json_object *value = NULL;
	struct qmp_call calls[2] = { { .command = "query-cpus-fast" }, { .command = "query-block" } };
	struct qmp_event event;
	struct qmp *q;
	int r;

	w.deadline_us = now_us() + SOON_US;
	r = qmp_open(fd, fd, "the fuzzer", &w, &q, &err);
	must_say_why(r, &err);
	if (r < 0)
		return;
	r = qmp_execute(q, "query-status", NULL, &value, &err);
	must_say_why(r, &err);
	if (r >= 0)
		json_object_put(value);
	error_clear(&err);
	r = qmp_next_event(q, &event, &err);
	must_say_why(r, &err);
	if (r >= 0 && !event.name)
		abort();
	error_clear(&err);
	r = qmp_execute_all(q, calls, ARRAY_SIZE(calls), &err);
	must_say_why(r, &err);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].r >= 0)
			json_object_put(calls[i].value);
	qmp_freep(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int sv[2];

	if (!size || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return 0;
	if (!(data[0] & 1)) {
		say_all(sv[1], GREETING, strlen(GREETING));
		say_all(sv[1], CAPS, strlen(CAPS));
	}
	say_all(sv[1], data + 1, size - 1);
	/* What the client sends can still be sent; nothing more comes. */
	shutdown(sv[1], SHUT_WR);
	talk(sv[0]);
	close(sv[1]);
	return 0;
}
