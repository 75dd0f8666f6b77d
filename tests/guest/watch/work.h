/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef WATCH_WORK_H
#define WATCH_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "ticks.h"

#define WORK_SLICES  16384 /* of 100 ms: 27 minutes */
#define WORK_REPORTS 4096

struct work {
	uint64_t slice_ns;
	uint64_t newest; /* slice number, 0: none */
	struct {
		uint64_t number, pages;
	} slice[WORK_SLICES];
	uint64_t n_reports;
	struct {
		uint64_t arrival_ns;
		int64_t offset_ns;
	} report[WORK_REPORTS];
};

struct brownout {
	double guest_advance_ms; /* of the guest's clock over the gap */
	double before, after;	 /* pages per second */
	double lost_ms;		 /* work missing after the gap, in time at the speed of before */
	double recovery_ms;	 /* until a slice had 90 % of that speed, < 0: not yet */
	bool complete;		 /* all slices of the time after the gap are in */
};

void work_report(struct work *w, uint64_t arrival_ns, uint64_t guest_ns);
void work_slice(struct work *w, uint64_t number, uint64_t pages);
bool work_around(const struct work *w, const struct gap *gap, uint64_t span_ns,
		 struct brownout *ret);

#endif
