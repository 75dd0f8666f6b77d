/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counts what a monitoring system wants to know, from upgrade_end.c and
 * upgrade_recovery.c, for the request Metrics. In memory only: it begins at zero with
 * every daemon, as such systems expect of a counter; history has the upgrades one by
 * one. Needs no memory that it does not have from the start.
 */
#include "metrics.h"

#include "cleanup.h"
#include "clock.h"

/* A guest that answers within a frame, a ping, a probe's time-out, ... */
static uint64_t up_to_us[METRICS_BUCKETS] = { 10000,   25000,	 50000,	   100000,
					      250000,  500000,	 1000000,  2500000,
					      5000000, 10000000, 30000000, 60000000 };

void metrics_init(struct metrics *m)
{
	*m = (struct metrics){ 0 };
	upgraded__v1__metrics__init(&m->pb);
	m->pb.started_at_us = realtime_us();
	for (size_t i = 0; i < ARRAY_SIZE(m->upgrade); i++) {
		upgraded__v1__upgrade_count__init(&m->upgrade[i]);
		m->upgrade[i].outcome = (Upgraded__V1__Outcome)(i / METRICS_TIERS + 1);
		m->upgrade[i].tier = (Upgraded__V1__Tier)(i % METRICS_TIERS);
		m->upgrades[i] = &m->upgrade[i];
	}
	m->pb.upgrades = m->upgrades;
	m->pb.n_upgrades = ARRAY_SIZE(m->upgrades);
	for (size_t i = 0; i < ARRAY_SIZE(m->phase); i++) {
		upgraded__v1__phase_sum__init(&m->phase[i]);
		m->phase[i].phase = (Phase)(i + 1);
		m->phases[i] = &m->phase[i];
	}
	m->pb.phases = m->phases;
	m->pb.n_phases = ARRAY_SIZE(m->phases);
	upgraded__v1__histogram__init(&m->blackout);
	m->blackout.up_to_us = up_to_us;
	m->blackout.counts = m->counts;
	m->blackout.n_up_to_us = m->blackout.n_counts = METRICS_BUCKETS;
	m->pb.blackout = &m->blackout;
}

void metrics_report(struct metrics *m, const Report *report)
{
	size_t outcome = (size_t)report->outcome - 1, tier = (size_t)report->tier;

	if (outcome < METRICS_OUTCOMES && tier < METRICS_TIERS)
		m->upgrade[outcome * METRICS_TIERS + tier].upgrades++;
	for (size_t i = 0; i < report->n_phases; i++) {
		size_t phase = (size_t)report->phases[i]->phase - 1;

		if (phase >= METRICS_PHASES)
			continue;
		m->phase[phase].count++;
		m->phase[phase].sum_us += report->phases[i]->duration_us;
	}
	if (report->outcome != OUTCOME(COMMITTED))
		return;
	for (size_t i = 0; i < METRICS_BUCKETS; i++)
		m->counts[i] += report->blackout_us <= up_to_us[i];
	m->blackout.count++;
	m->blackout.sum_us += report->blackout_us;
}
