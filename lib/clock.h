/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What time it is, as the messages have it. */
#ifndef UPGRADED_CLOCK_H
#define UPGRADED_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* CLOCK_MONOTONIC */
static inline uint64_t now_us(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

static inline int64_t now_ms(void)
{
	return (int64_t)(now_us() / 1000);
}

/* CLOCK_REALTIME */
static inline uint64_t realtime_us(void)
{
	return clock_us(CLOCK_REALTIME);
}

#endif
