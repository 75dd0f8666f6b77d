/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the daemon counts: see metrics.c. */
#ifndef UPGRADED_METRICS_H
#define UPGRADED_METRICS_H

#include "message.h"

enum { METRICS_OUTCOMES = 4, METRICS_TIERS = 4, METRICS_PHASES = 8, METRICS_BUCKETS = 12 };

/* Points into itself: not to be copied or moved once metrics_init() was called. */
struct metrics {
	Metrics pb;
	Upgraded__V1__UpgradeCount upgrade[METRICS_OUTCOMES * METRICS_TIERS];
	Upgraded__V1__UpgradeCount *upgrades[METRICS_OUTCOMES * METRICS_TIERS];
	Upgraded__V1__PhaseSum phase[METRICS_PHASES];
	Upgraded__V1__PhaseSum *phases[METRICS_PHASES];
	Upgraded__V1__Histogram blackout;
	uint64_t counts[METRICS_BUCKETS];
};

void metrics_init(struct metrics *m);

/* An upgrade has ended. */
void metrics_report(struct metrics *m, const Report *report);

#endif
