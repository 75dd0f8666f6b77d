/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The one place where a worker waits. A worker is straight-line code, so every
 * wait of it must also end when the daemon wants it to stop, when the daemon
 * is gone, when the source or the target dies, and when time is up. Used by
 * the QMP client, the relay and the phases. Owns nothing: the fds belong to
 * the worker. If the worker dies here, the daemon sees its socket close and
 * starts another one that reads the journal.
 */
#include "wait.h"

#include "deadlines.h"
#include "wire.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

static const char *what(const struct waiter *w)
{
	return w->what ?: "an answer";
}

static int cancelled(const struct waiter *w, struct error *err)
{
	return error_set(err, -ECANCELED, "%s while waiting for %s",
			 w->aborted ? "the upgrade was aborted" : "the daemon went away", what(w));
}

/* The daemon's socket is readable. 0: nothing that ends the wait. */
static int hear_daemon(struct waiter *w, struct error *err)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	int r;

	r = wire_recv(w->daemon, &env, &fds);
	if (r == -EAGAIN)
		return 0;
	if (r == -EBADMSG && !w->uninterruptible)
		return error_set(err, -EPROTO,
				 "the daemon sent an undecodable packet while waiting for %s",
				 what(w));
	if (r == -EBADMSG)
		return 0;
	if (r < 0)
		w->orphaned = true;
	else if (env->body_case == UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT)
		w->aborted = true;
	else if (!w->uninterruptible)
		return error_set(
			err, -EPROTO,
			"the daemon sent '%s', which nobody asked for, while waiting for %s",
			envelope_name(env), what(w));
	return w->uninterruptible ? 0 : cancelled(w, err);
}

/* Not how long: a wait for something that is polled for is many short ones. */
static int timed_out(const struct waiter *w, struct error *err)
{
	return error_set(err, -ETIMEDOUT, "time ran out while waiting for %s", what(w));
}

/* Calls whoever wants to know that it takes long. */
static void call_overdue(struct waiter *w)
{
	void (*overdue)(struct waiter * w, void *userdata) = w->overdue;

	if (!overdue || now_us() < w->overdue_us)
		return;
	w->overdue = NULL;
	overdue(w, w->overdue_userdata);
}

static bool has_daemon(const struct waiter *w)
{
	return w->daemon >= 0 && !w->orphaned;
}

void wait_pulse(struct waiter *w)
{
	Upgraded__V1__WorkerWaits msg = UPGRADED__V1__WORKER_WAITS__INIT;
	uint64_t now = now_us();
	Envelope env = ENVELOPE_INIT;
	int unread;

	if (!has_daemon(w) || now < w->pulse_us)
		return;
	w->pulse_us = now + PULSE_US;
	/* A daemon that stands still is sent no more: a full socket would hold us up. */
	if (ioctl(w->daemon, SIOCOUTQ, &unread) < 0 || unread)
		return;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_WORKER_WAITS;
	env.worker_waits = &msg;
	(void)wire_send(w->daemon, &env, NULL, 0);
}

/* When a wait is to look up in between. */
static uint64_t next_call(const struct waiter *w)
{
	uint64_t at = w->overdue ? w->overdue_us : UINT64_MAX;

	return has_daemon(w) && w->pulse_us < at ? w->pulse_us : at;
}

/* As wait_for(); 0 when @until passes and is no deadline. */
static int wait_until(struct waiter *w, int fd, short events, uint64_t until, struct error *err)
{
	if (!w->uninterruptible && (w->aborted || w->orphaned))
		return cancelled(w, err);
	w->pulse_us = w->pulse_us ?: now_us() + PULSE_US;

	for (;;) {
		/* Once orphaned, the socket would be readable for ever. */
		bool listen = has_daemon(w) && w->daemon != fd;
		uint64_t end = until < w->deadline_us ? until : w->deadline_us;
		struct pollfd p[] = {
			{ .fd = fd, .events = events },
			{ .fd = listen ? w->daemon : -1, .events = POLLIN },
			{ .fd = w->source, .events = POLLIN },
			{ .fd = w->target, .events = POLLIN },
		};
		uint64_t call = next_call(w);
		bool early = call < end;
		struct timespec timeout;
		uint64_t now = now_us(), left;
		int n, r;

		if (early)
			end = call;
		left = end > now ? end - now : 0;
		timeout.tv_sec = (time_t)(left / 1000000);
		timeout.tv_nsec = (long)(left % 1000000) * 1000;
		n = ppoll(p, ARRAY_SIZE(p), end == UINT64_MAX ? NULL : &timeout, NULL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, -errno, "cannot wait for %s", what(w));
		call_overdue(w);
		wait_pulse(w);
		if (n == 0 && early)
			continue;
		if (n == 0)
			return until < w->deadline_us ? 0 : timed_out(w, err);
		if (p[1].revents) {
			r = hear_daemon(w, err);
			if (r < 0)
				return r;
		}
		if (p[0].revents & POLLNVAL)
			return error_set(err, -EBADF, "no open fd to wait for %s on", what(w));
		if (p[0].revents)
			return p[0].revents;
		if (p[2].revents)
			return error_set(err, -ESRCH, "the source died while waiting for %s",
					 what(w));
		if (p[3].revents)
			return error_set(err, -ESRCH, "the target died while waiting for %s",
					 what(w));
	}
}

int wait_for(struct waiter *w, int fd, short events, struct error *err)
{
	return wait_until(w, fd, events, UINT64_MAX, err);
}

int wait_time_left(const struct waiter *w, struct error *err)
{
	return now_us() < w->deadline_us ? 0 : timed_out(w, err);
}

int wait_sleep(struct waiter *w, uint64_t us, struct error *err)
{
	return wait_until(w, -1, 0, now_us() + us, err);
}
