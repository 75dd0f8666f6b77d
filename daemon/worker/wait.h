/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The one place where a worker waits: see wait.c. */
#ifndef UPGRADED_WAIT_H
#define UPGRADED_WAIT_H

#include "clock.h"
#include "error.h"

#include <stdbool.h>
#include <stdint.h>

/* Who must stay alive while the worker waits, and until when it may. */
struct waiter {
	int daemon;            /* socket; readable means WorkerAbort, or that the daemon died */
	int source;            /* pidfd, -EBADF: none yet */
	int target;            /* pidfd, -EBADF: none yet */
	uint64_t deadline_us;  /* CLOCK_MONOTONIC; UINT64_MAX: none */
	const char *what;      /* what is waited for, to say so when it fails */
	uint64_t asked;        /* id of the last request to the daemon */
	bool aborted;          /* a WorkerAbort came */
	bool orphaned;         /* the daemon is gone */
	bool uninterruptible;  /* after COMMIT: neither abort nor orphaning stops it */
	/* Called once, by a wait that still lasts at overdue_us; NULL: nobody is. */
	void (*overdue)(struct waiter *w, void *userdata);
	void *overdue_userdata;
	uint64_t overdue_us;
	uint64_t pulse_us;     /* when the daemon is to hear of us next */
};

#define WAITER_INIT \
	{ .daemon = -EBADF, .source = -EBADF, .target = -EBADF, .deadline_us = UINT64_MAX }


/*
 * Waits until @fd has @events (poll bits). Returns the revents (> 0), or
 * -ECANCELED: aborted or orphaned; -ETIMEDOUT: the deadline passed;
 * -ESRCH: source or target died (when @fd became ready as well, that wins).
 */
int wait_for(struct waiter *w, int fd, short events, struct error *err);

/*
 * Tells the daemon that this is no worker that hangs, if that is due. Every wait here
 * does; whoever waits elsewhere, and for more than a moment, calls it once a second.
 */
void wait_pulse(struct waiter *w);

/* For who is never made to wait, by a peer that never stops: 0, or -ETIMEDOUT. */
int wait_time_left(const struct waiter *w, struct error *err);

/* Sleeps @us, with the same exits. 0 or as wait_for(). */
int wait_sleep(struct waiter *w, uint64_t us, struct error *err);

#endif
