/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When each phase of an upgrade was entered and left: see timeline.c. */
#ifndef UPGRADED_TIMELINE_H
#define UPGRADED_TIMELINE_H

#include "upgraded.pb-c.h"

#include <stdint.h>

#define TIMELINE_MAX 16

struct timeline {
	uint64_t begin_us;    /* CLOCK_MONOTONIC */
	uint64_t begin_at_us; /* CLOCK_REALTIME */
	size_t n;
	Upgraded__V1__PhaseTime phase[TIMELINE_MAX];
};

void timeline_begin(struct timeline *t);

/* Ends the phase under way, begins @phase. Returns how long after the beginning. */
uint64_t timeline_enter(struct timeline *t, Upgraded__V1__Phase phase);

/* Ends the phase under way. Returns the whole duration. */
uint64_t timeline_end(struct timeline *t);

Upgraded__V1__Phase timeline_phase(const struct timeline *t);

#endif
