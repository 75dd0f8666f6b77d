/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection to the daemon, seen from the side that asks: see client.c. */
#ifndef UPGRADED_CLIENT_H
#define UPGRADED_CLIENT_H

#include "wire.h"

#define CLIENT_CONTROL_SOCKET "/run/upgraded/control.sock"

struct client {
	int sock;
	int protocol;     /* the version both sides speak */
	uint64_t last_id; /* of the request sent last */
	Envelope *error;  /* the daemon's typed error, if one ended the last call */
};

#define CLIENT_INIT { .sock = -EBADF }

/*
 * Connects to @path and exchanges Hellos. Returns 0 or, with the sentence and
 * what to do about it in @err:
 * -ECONNREFUSED if nobody listens there, -EACCES if this user may not connect,
 * -EPROTONOSUPPORT without a common protocol version, or as client_recv().
 */
int client_connect(struct client *c, const char *path, const char *program, struct error *err);

/* Sends a request under a new id, which is set in @request and c->last_id. */
int client_send(struct client *c, Envelope *request, struct error *err);

/*
 * Receives the next message, of whatever kind. @timeout_ms as in poll().
 * Returns 0; -ETIMEDOUT; -ECONNRESET if the daemon went away; -EPROTO if it
 * sent what no daemon may send. For an Error message, the errno that
 * client_errno() gives; the message itself stays in c->error.
 */
int client_recv(struct client *c, int timeout_ms, Envelope **ret_message, struct error *err);

/*
 * Sends @request and waits for the answer to it, which must be of kind
 * @expected; Events that come first are dropped, and a list that came in
 * several packets is put together.
 */
int client_call(struct client *c, Envelope *request, Upgraded__V1__Envelope__BodyCase expected,
		int timeout_ms, Envelope **ret_answer, struct error *err);

/* The errno for a typed error of the daemon:
 * BAD_REQUEST -EINVAL, PROTOCOL -EPROTO, NO_SUCH_VM -ENOENT, BUSY -EBUSY, REFUSED -ECANCELED,
 * DENIED -EACCES, UNSUPPORTED -EOPNOTSUPP, EXISTS -EEXIST, NOT_RUNNING -ESRCH, others -EIO. */
int client_errno(Upgraded__V1__ErrorCode code);

void client_close(struct client *c);
#define _cleanup_client_ __attribute__((cleanup(client_close)))

#endif
