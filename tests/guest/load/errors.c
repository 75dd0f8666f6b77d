/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where every part of the test load hands in what it found wrong.
 *
 * Called from all threads. It owns the counters by kind and the text of the first error in the
 * context: the first one is the one worth reading, the rest is usually its consequence.
 */
#include <stdarg.h>
#include <stdio.h>

#include "load.h"

void load_error(struct load *l, enum load_error kind, const char *fmt, ...)
{
	va_list ap;

	count_add(&l->errors[kind], 1);

	pthread_mutex_lock(&l->first_error_lock);
	if (!l->first_error[0]) {
		int n = snprintf(l->first_error, sizeof(l->first_error),
				 "%s: ", load_error_name(kind));

		va_start(ap, fmt);
		vsnprintf(l->first_error + n, sizeof(l->first_error) - (size_t)n, fmt, ap);
		va_end(ap);
	}
	pthread_mutex_unlock(&l->first_error_lock);
}

uint64_t load_errors_total(const struct load *l)
{
	uint64_t sum = 0;

	for (int i = 0; i < N_LOAD_ERRORS; i++)
		sum += count_get(&l->errors[i]);
	return sum;
}

const char *load_error_name(enum load_error kind)
{
	static const char *const names[N_LOAD_ERRORS] = {
		[ERROR_SETUP] = "setup",	   [ERROR_MEM] = "mem",
		[ERROR_DISK_WRONG] = "disk_wrong", [ERROR_DISK_LOST] = "disk_lost",
		[ERROR_DISK_IO] = "disk_io",	   [ERROR_NET_SEQUENCE] = "net_sequence",
		[ERROR_NET_RESET] = "net_reset",   [ERROR_CLOCK_MONO] = "clock_mono",
		[ERROR_CLOCK_REAL] = "clock_real", [ERROR_CLOCK_TSC] = "clock_tsc",
	};

	return names[kind];
}

const char *load_part_name(enum load_part part)
{
	static const char *const names[N_LOAD_PARTS] = {
		[PART_MEM] = "mem",	[PART_DISK] = "disk", [PART_NET] = "net",
		[PART_CLOCK] = "clock", [PART_HB] = "hb",
	};

	return names[part];
}

const char *part_state_name(enum part_state state)
{
	switch (state) {
	case STATE_OFF:
		return "off";
	case STATE_STARTING:
		return "starting";
	case STATE_GOING:
		return "going";
	case STATE_FAILED:
		return "failed";
	}
	return "?";
}
