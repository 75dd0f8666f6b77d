/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The worker's side of its socket to the daemon. Called by the phases of an
 * upgrade; owns nothing. The daemon answers CustodyPut and CommitRequest, in
 * order, and may send WorkerAbort at any time in between.
 *
 * If this process dies here, the daemon sees the end of the socket. If the
 * daemon dies, every call fails and the worker undoes the upgrade by itself,
 * with one exception: a CommitRequest that got no answer (see link_commit()).
 */
#include "link.h"

#include "fault_point.h"
#include "wire.h"

#include <poll.h>

/* Leaves room for the plan, which goes with some of what is put. */
#define PAYLOAD_MAX (32 * 1024)

int link_receive_start(int sock, Envelope **ret_env, Upgraded__V1__WorkerStart **ret_start,
		       struct scm_fds *ret_fds, struct error *err)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	int r;

	r = wire_recv(sock, &env, &fds);
	if (r < 0)
		return error_errno(err, r, "no order from the daemon");
	if (env->body_case != UPGRADED__V1__ENVELOPE__BODY_WORKER_START || fds.n < 1)
		return error_set(err, -EBADMSG, "the daemon sent %s where an order was due",
				 envelope_name(env));
	*ret_start = env->worker_start;
	*ret_env = TAKE_PTR(env);
	*ret_fds = fds;
	fds.n = 0;
	return 0;
}

void link_event(struct waiter *w, Upgraded__V1__Event *event)
{
	Envelope env = ENVELOPE_INIT;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_EVENT;
	env.event = event;
	(void)wire_send(w->daemon, &env, NULL, 0);
}

/* Waits for the answer to the last request: see ask(). */
static int wait_for_answer(struct waiter *w, const char *what, int *ret_fd, struct error *err)
{
	int r;

	for (;;) {
		_cleanup_scm_fds_ struct scm_fds got = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *answer = NULL;

		w->what = what;
		r = wait_for(w, w->daemon, POLLIN, err);
		if (r < 0)
			return r;
		r = wire_recv(w->daemon, &answer, &got);
		if (r < 0) {
			w->orphaned = true;
			return error_set(err, -EOWNERDEAD, "the daemon died before it answered: %s",
					 what);
		}
		/* The late answer to what this side has given up waiting for. */
		if (answer->body_case != UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT &&
		    answer->id != w->asked)
			continue;
		switch (answer->body_case) {
		case UPGRADED__V1__ENVELOPE__BODY_ACK:
			if (!ret_fd)
				return 0;
			return error_set(err, -EBADMSG, "the daemon only acknowledged %s", what);
		case UPGRADED__V1__ENVELOPE__BODY_VMM_LENT:
			if (!ret_fd || got.n != 1)
				return error_set(err, -EBADMSG,
						 "the daemon answered %s with vmm_lent", what);
			*ret_fd = scm_fds_take(&got, 0);
			return 0;
		case UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT:
			w->aborted = true;
			continue;
		case UPGRADED__V1__ENVELOPE__BODY_ERROR:
			return error_set(err, -EIO, "%s", answer->error->text);
		default:
			return error_set(err, -EBADMSG, "the daemon answered %s with %s", what,
					 envelope_name(answer));
		}
	}
}

/*
 * Sends a request and waits for its Ack, or for a VmmLent with one fd, which is
 * the caller's. -EOWNERDEAD: sent, but never answered.
 */
static int ask(struct waiter *w, Envelope *request, const char *what, int *ret_fd,
	       struct error *err)
{
	int r;

	request->id = ++w->asked;
	r = wire_send(w->daemon, request, NULL, 0);
	if (r < 0)
		return error_errno(err, r, "cannot tell the daemon: %s", what);
	return wait_for_answer(w, what, ret_fd, err);
}

/* In as many packets as its payload and its fds need; only the last one is answered. */
int link_put(struct waiter *w, Upgraded__V1__CustodyPut *put, const int *fds, size_t n,
	     struct error *err)
{
	static const char what[] = "custody of state and fds";
	Upgraded__V1__CustodyPut part = *put;
	size_t bytes = put->payload.len, sent = 0, sent_fds = 0, now_fds, packets;
	Envelope env = ENVELOPE_INIT;
	int r;

	packets = (bytes + PAYLOAD_MAX - 1) / PAYLOAD_MAX;
	if ((n + SCM_RIGHTS_MAX - 1) / SCM_RIGHTS_MAX > packets)
		packets = (n + SCM_RIGHTS_MAX - 1) / SCM_RIGHTS_MAX;
	packets = packets ?: 1;
	env.id = ++w->asked;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_CUSTODY_PUT;
	env.custody_put = &part;
	while (packets--) {
		part.payload.data = put->payload.data ? put->payload.data + sent : NULL;
		part.payload.len = bytes - sent < PAYLOAD_MAX ? bytes - sent : PAYLOAD_MAX;
		now_fds = n - sent_fds < SCM_RIGHTS_MAX ? n - sent_fds : SCM_RIGHTS_MAX;
		env.batches_left = (uint32_t)packets;
		r = wire_send(w->daemon, &env, fds ? fds + sent_fds : NULL, now_fds);
		if (r < 0)
			return error_errno(err, r, "cannot tell the daemon: %s", what);
		sent += part.payload.len;
		sent_fds += now_fds;
	}
	fault_point(FAULT_PUT_SENT);
	r = wait_for_answer(w, what, NULL, err);
	fault_point(FAULT_PUT_ACKNOWLEDGED);
	return r;
}

int link_drop(struct waiter *w, const char *name, struct error *err)
{
	Upgraded__V1__CustodyDrop drop = UPGRADED__V1__CUSTODY_DROP__INIT;
	Envelope env = ENVELOPE_INIT;

	drop.name = (char *)name;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_CUSTODY_DROP;
	env.custody_drop = &drop;
	return ask(w, &env, "the end of custody", NULL, err);
}

int link_borrow(struct waiter *w, const Upgraded__V1__Process *process, int *ret_fd,
		struct error *err)
{
	Upgraded__V1__VmmBorrow borrow = UPGRADED__V1__VMM_BORROW__INIT;
	Envelope env = ENVELOPE_INIT;

	borrow.process = (Upgraded__V1__Process *)process;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_VMM_BORROW;
	env.vmm_borrow = &borrow;
	return ask(w, &env, "the VMM to connect to vmm.sock", ret_fd, err);
}

/*
 * Nothing but the answer ends this wait, no deadline and no death: once the
 * request is out, the record may be written, and who does not know must
 * neither go back nor forward. A daemon that hangs is ended by its watchdog,
 * and then the socket does.
 */
static int wait_for_verdict(struct waiter *w, struct error *err)
{
	for (;;) {
		_cleanup_scm_fds_ struct scm_fds none = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *answer = NULL;
		int r;

		r = wire_wait(w->daemon, -1);
		if (r == 0)
			r = wire_recv(w->daemon, &answer, &none);
		if (r == -EAGAIN)
			continue;
		if (r < 0) {
			w->orphaned = true;
			return error_set(
				err, -EOWNERDEAD,
				"the daemon died before it said whether COMMIT is written");
		}
		if (answer->id != w->asked)
			continue;
		if (answer->body_case == UPGRADED__V1__ENVELOPE__BODY_ACK)
			return 0;
		if (answer->body_case == UPGRADED__V1__ENVELOPE__BODY_ERROR)
			return error_set(err, -EIO, "%s", answer->error->text);
		/* An abort that crossed the request on its way comes too late. */
	}
}

int link_commit(struct waiter *w, bool parked, struct error *err)
{
	Upgraded__V1__CommitRequest commit = UPGRADED__V1__COMMIT_REQUEST__INIT;
	Envelope env = ENVELOPE_INIT;
	int r;

	if (w->aborted)
		return error_set(err, -ECANCELED, "the upgrade was aborted");
	env.id = ++w->asked;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_COMMIT;
	env.commit = &commit;
	commit.parked = parked;
	r = wire_send(w->daemon, &env, NULL, 0);
	if (r < 0)
		return error_errno(err, r, "cannot ask the daemon for the COMMIT record");
	fault_point(FAULT_COMMIT_ASKED);
	return wait_for_verdict(w, err);
}

int link_finish(struct waiter *w, Upgraded__V1__FinishRequest *request, struct error *err)
{
	Envelope env = ENVELOPE_INIT;
	int r;

	env.id = ++w->asked;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_FINISH;
	env.finish = request;
	r = wire_send(w->daemon, &env, NULL, 0);
	if (r < 0)
		return error_errno(err, -EOWNERDEAD, "cannot ask the daemon for the end");
	return wait_for_verdict(w, err);
}

static int send_done(struct waiter *w, Upgraded__V1__WorkerDone *done)
{
	Envelope env = ENVELOPE_INIT;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_WORKER_DONE;
	env.worker_done = done;
	return wire_send(w->daemon, &env, NULL, 0);
}

/* The gravest first, each kind in its order. */
static void sort_findings(Upgraded__V1__Finding **v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		Upgraded__V1__Finding *f = v[i];
		size_t k = i;

		for (; k && v[k - 1]->severity < f->severity; k--)
			v[k] = v[k - 1];
		v[k] = f;
	}
}

/* What does not fit into a packet is left out: the command line, then what weighs least. */
int link_done(struct waiter *w, Upgraded__V1__WorkerDone *done)
{
	Upgraded__V1__Report *report = done->report;
	Upgraded__V1__CheckReport *check = done->check;
	int r = send_done(w, done);

	if (r == -EMSGSIZE && check) {
		check->n_argv = 0;
		r = send_done(w, done);
	}
	if (r != -EMSGSIZE)
		return r;
	sort_findings(report->findings, report->n_findings);
	if (check)
		sort_findings(check->findings, check->n_findings);
	while (r == -EMSGSIZE && (report->n_findings || (check && check->n_findings))) {
		report->n_findings /= 2;
		if (check)
			check->n_findings /= 2;
		r = send_done(w, done);
	}
	return r;
}
