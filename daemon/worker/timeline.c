/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When each phase of an upgrade was entered and left, for the report. Filled
 * by upgrade.c, a plain value: nothing is lost with it but figures.
 */
#include "timeline.h"

#include "wait.h"

void timeline_begin(struct timeline *t)
{
	*t = (struct timeline){ .begin_us = now_us(), .begin_at_us = realtime_us() };
}

uint64_t timeline_end(struct timeline *t)
{
	uint64_t elapsed = now_us() - t->begin_us;

	if (t->n && !t->phase[t->n - 1].duration_us)
		t->phase[t->n - 1].duration_us = elapsed - t->phase[t->n - 1].start_us;
	return elapsed;
}

uint64_t timeline_enter(struct timeline *t, Upgraded__V1__Phase phase)
{
	uint64_t elapsed = timeline_end(t);

	if (t->n < TIMELINE_MAX) {
		Upgraded__V1__PhaseTime *p = &t->phase[t->n++];

		upgraded__v1__phase_time__init(p);
		p->phase = phase;
		p->start_us = elapsed;
	}
	return elapsed;
}

Upgraded__V1__Phase timeline_phase(const struct timeline *t)
{
	return t->n ? t->phase[t->n - 1].phase : UPGRADED__V1__PHASE__PHASE_IDLE;
}
