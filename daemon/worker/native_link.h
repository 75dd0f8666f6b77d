/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking a VMM that speaks libupgraded: see native_link.c. */
#ifndef UPGRADED_NATIVE_LINK_H
#define UPGRADED_NATIVE_LINK_H

#include "wait.h"
#include "wire.h"

/* A connection to one VMM. */
struct native_link {
	int sock;	 /* owned; -EBADF: none */
	const char *who; /* "the source", for sentences; borrowed */
	uint64_t id;	 /* of the last request */
};

#define NATIVE_LINK_INIT(name)                \
	{                                     \
		.sock = -EBADF, .who = (name) \
	}

/*
 * Takes @sock. Answers to an earlier worker may still arrive on it: requests
 * from here on have ids that it did not use.
 */
void native_link_open(struct native_link *l, int sock);
void native_link_close(struct native_link *l);

/*
 * Sends @request with @n borrowed fds, without waiting for the answer. 0,
 * -ECONNRESET: it has closed the connection, or another negative errno.
 */
int native_tell(struct native_link *l, Envelope *request, const int *fds, size_t n,
		struct error *err);

/*
 * Sends @request and waits for the answer to it, of kind @expected. *ret_answer
 * is freed with envelope_freep(); what fds come with it are in @ret_fds, which
 * may be NULL where none are due. 0; -ECONNRESET: it has closed the connection;
 * -EREMOTEIO: it answered with an Error, whose text is in @err; -EPROTO: with
 * something else; or as wait_for().
 */
int native_ask(struct native_link *l, struct waiter *w, Envelope *request, const int *fds, size_t n,
	       Upgraded__V1__Envelope__BodyCase expected, Envelope **ret_answer,
	       struct scm_fds *ret_fds, struct error *err);

#endif
