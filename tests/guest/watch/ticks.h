/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef WATCH_TICKS_H
#define WATCH_TICKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gap {
	uint64_t start_ns, end_ns; /* host's CLOCK_MONOTONIC: last tick before, first tick after */
	uint64_t tick;		   /* how many ticks had been seen at its start */
};

struct tick_counts {
	uint64_t seen;
	uint64_t lost;	     /* numbers that were passed over */
	uint64_t duplicated; /* the same number again */
	uint64_t reordered;  /* a number from before */
};

struct ticks {
	uint64_t period_ns;
	struct tick_counts counts;
	uint64_t first_ns, last_ns; /* last_ns 0: none seen yet */
	uint8_t next;
};

static inline uint64_t gap_ns(const struct gap *g)
{
	return g->end_ns - g->start_ns;
}

bool ticks_feed(struct ticks *t, const uint8_t *bytes, size_t n, uint64_t now_ns,
		struct gap *ret_gap);

#endif
