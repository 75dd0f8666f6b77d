/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest got done, over time: see work_rate.c. */
#ifndef UPGRADED_WORK_RATE_H
#define UPGRADED_WORK_RATE_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

struct work_sample {
	uint64_t at_us; /* CLOCK_REALTIME of the host */
	double done;	/* in units of the guest's own, since whenever; never falls */
};

struct work_rate {
	struct work_sample *sample; /* by time */
	size_t n;
};

/* -EINVAL: a line is not as it should be; -errno: the file cannot be read. */
int work_rate_read(const char *path, struct work_rate *ret, struct error *err);

void work_rate_free(struct work_rate *w);
#define _cleanup_work_rate_ __attribute__((cleanup(work_rate_free)))

/* Done by @at_us, between two samples by proportion; outside of them as at the nearest. */
double work_done_by(const struct work_rate *w, uint64_t at_us);

/*
 * The work from @from_us to @to_us in relation to that of an equally long time that
 * ended at @before_us: 1.0 is as much. Negative: there are no samples of both.
 */
double work_relative(const struct work_rate *w, uint64_t from_us, uint64_t to_us,
		     uint64_t before_us);

#endif
