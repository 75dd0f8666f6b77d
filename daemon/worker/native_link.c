/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Asking a VMM that speaks libupgraded: one request, its answer. Used by
 * driver_native.c. Owns the worker's duplicate of the connection; the daemon has
 * the other one. If this process dies between a request and its answer, the
 * answer is still sent: the daemon drops it, and so does the next worker, by
 * its id. The VMM is not trusted to be well-behaved: what it sends that
 * is not the answer ends the upgrade, and descriptors that nobody wants are closed.
 */
#include "native_link.h"

#include <poll.h>

void native_link_open(struct native_link *l, int sock)
{
	closep(&l->sock);
	l->sock = sock;
	/* The clock goes on between two workers; ids of one request each do not catch up. */
	if (!l->id)
		l->id = now_us();
}

void native_link_close(struct native_link *l)
{
	closep(&l->sock);
}

static int gone(const struct native_link *l, struct error *err)
{
	return error_set(err, -ECONNRESET, "%s closed its connection", l->who);
}

int native_tell(struct native_link *l, Envelope *request, const int *fds, size_t n,
		struct error *err)
{
	int r;

	request->id = ++l->id;
	r = wire_send(l->sock, request, fds, n);
	if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN || r == -EBADF)
		return gone(l, err);
	if (r < 0)
		return error_errno(err, r, "cannot send %s to %s", envelope_name(request), l->who);
	return 0;
}

/* What came: 1 the answer, 0 nothing that matters. */
static int look_at(const struct native_link *l, const Envelope *request, const Envelope *answer,
		   size_t n_fds, Upgraded__V1__Envelope__BodyCase expected, bool fds_due,
		   struct error *err)
{
	if (answer->id != request->id)
		return 0;
	if (answer->body_case == UPGRADED__V1__ENVELOPE__BODY_ERROR)
		return error_set(
			err, -EREMOTEIO, "%s could not do %s: %s", l->who, envelope_name(request),
			answer->error->text[0] ? answer->error->text : "it does not say why");
	if (answer->body_case != expected || (n_fds && !fds_due) || answer->batches_left)
		return error_set(err, -EPROTO, "%s answered %s with %s and %zu descriptors", l->who,
				 envelope_name(request), envelope_name(answer), n_fds);
	return 1;
}

int native_ask(struct native_link *l, struct waiter *w, Envelope *request, const int *fds, size_t n,
	       Upgraded__V1__Envelope__BodyCase expected, Envelope **ret_answer,
	       struct scm_fds *ret_fds, struct error *err)
{
	int r;

	r = native_tell(l, request, fds, n, err);
	if (r < 0)
		return r;
	for (;;) {
		_cleanup_scm_fds_ struct scm_fds got = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *answer = NULL;

		r = wait_for(w, l->sock, POLLIN, err);
		if (r < 0)
			return r;
		r = wire_recv(l->sock, &answer, &got);
		if (r == -EAGAIN)
			continue;
		if (r == -ENOTCONN)
			return gone(l, err);
		if (r < 0)
			return error_errno(err, r, "cannot read what %s answered", l->who);
		r = look_at(l, request, answer, got.n, expected, ret_fds, err);
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		*ret_answer = TAKE_PTR(answer);
		if (ret_fds) {
			*ret_fds = got;
			got.n = 0;
		}
		return 0;
	}
}
