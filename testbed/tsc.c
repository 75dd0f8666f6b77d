/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Prints the frequency of this machine's time stamp counter in kHz.
 *
 * Run by testbed/run before each boot. Under TCG the emulated host's TSC is this one, but a kernel that
 * measures it against the emulated timers of a busy machine is wrong by percents, or declares it unstable
 * later; the clocks of the guests inside then stand still and jump. So the host is told. Owns nothing.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct sample {
	uint64_t tsc, ns;
};

/* The time and the counter at the same moment: of several tries the one that took shortest. */
static struct sample sample(void)
{
	struct sample best = { 0 };
	uint64_t shortest = UINT64_MAX;

	for (int i = 0; i < 50; i++) {
		struct timespec ts;
		uint64_t before = __rdtsc(), after;

		clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
		after = __rdtsc();
		if (after - before >= shortest)
			continue;
		shortest = after - before;
		best.tsc = before + shortest / 2;
		best.ns = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
	}
	return best;
}

int main(void)
{
	const struct timespec while_ = { .tv_nsec = 100000000 };
	struct sample a = sample(), b;

	nanosleep(&while_, NULL);
	b = sample();
	printf("%.0f\n", (double)(b.tsc - a.tsc) * 1e6 / (double)(b.ns - a.ns));
	return 0;
}
