/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An upgrade as it happens: see progress.c. */
#ifndef UPGRADED_PROGRESS_H
#define UPGRADED_PROGRESS_H

#include "print.h"

struct progress {
	const struct cli *cli;
	bool drawn; /* an unfinished line stands on the terminal */
	Upgraded__V1__Phase phase;
	uint64_t entered_us; /* since the upgrade began */
	uint64_t seen_us;    /* when that was heard, CLOCK_MONOTONIC */
	char *text;
};

/* How often progress_tick() wants to be called on a terminal. */
#define PROGRESS_TICK_MS 100

void progress_event(struct progress *p, const Upgraded__V1__Event *event);
void progress_tick(struct progress *p);

/* Finishes the line, so that something else can be printed. */
void progress_end(struct progress *p);

void progress_free(struct progress *p);
#define _cleanup_progress_ __attribute__((cleanup(progress_free)))

/* One event as one line: "12:18:29  vm1  load  0.412 s  text". */
void progress_line(const struct cli *cli, const Upgraded__V1__Event *event);

#endif
