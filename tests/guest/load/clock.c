/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The clock watcher: time must never go backwards, on no CPU and not from one CPU to another.
 *
 * One thread, started by main(), which starts the watchers: as many as there are CPUs (at most 4),
 * each pinned to one CPU after the other. All publish the latest time that any of them saw; a
 * watcher first loads that and then reads the clock, so what it reads can only be the same or
 * later, on whatever CPU it runs. The TSC is compared per CPU: between CPUs no one promises that it
 * is equal.
 *
 * Jumps forward are no errors (a stopped guest may see one) but are recorded, as is the largest
 * step of CLOCK_REALTIME against CLOCK_MONOTONIC: nobody sets the clock in this guest.
 */
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

#include "load.h"
#include "now.h"

#define MAX_WATCHERS	4
#define MAX_CPUS	256
#define SAMPLE_US	1000
#define SAMPLES_PER_CPU 16

struct clock_shared {
	struct load *load;
	unsigned cpus;
	counter mono, real, tsc[MAX_CPUS]; /* the latest that anyone saw */
};

struct watcher {
	struct clock_shared *shared;
	unsigned first_cpu;
};

static inline uint64_t read_tsc(void)
{
#ifdef __x86_64__
	_mm_lfence();
	return __rdtsc();
#else
	return 0;
#endif
}

static void backwards(struct load *l, enum load_error kind, unsigned cpu, uint64_t before,
		      uint64_t now)
{
	load_error(l, kind, "from %lu back to %lu on CPU %u", before, now, cpu);
}

static uint64_t latest(const counter *c)
{
	return atomic_load_explicit(c, memory_order_acquire);
}

static void sample(struct clock_shared *s, unsigned cpu, uint64_t last[4])
{
	struct load *l = s->load;
	uint64_t before_mono = latest(&s->mono), before_real = latest(&s->real),
		 before_tsc = latest(&s->tsc[cpu]);
	uint64_t tsc = read_tsc(), mono = now_ns(), real = clock_ns(CLOCK_REALTIME),
		 after = now_ns();
	int64_t offset = (int64_t)(real - mono);

	if (mono < before_mono)
		backwards(l, ERROR_CLOCK_MONO, cpu, before_mono, mono);
	if (after < mono)
		backwards(l, ERROR_CLOCK_MONO, cpu, mono, after);
	if (real < before_real)
		backwards(l, ERROR_CLOCK_REAL, cpu, before_real, real);
	if (tsc < before_tsc)
		backwards(l, ERROR_CLOCK_TSC, cpu, before_tsc, tsc);
	count_max(&s->mono, after);
	count_max(&s->real, real);
	count_max(&s->tsc[cpu], tsc);
	/* After an error start over, or every later sample would repeat it. */
	if (mono < before_mono)
		count_set(&s->mono, after);
	if (real < before_real)
		count_set(&s->real, real);
	if (tsc < before_tsc)
		count_set(&s->tsc[cpu], tsc);

	if (last[0]) {
		if (mono > last[0])
			count_max(&l->clock.mono_jump_us, (mono - last[0]) / NSEC_PER_USEC);
		if (real > last[1])
			count_max(&l->clock.real_jump_us, (real - last[1]) / NSEC_PER_USEC);
		if (tsc > before_tsc && before_tsc)
			count_max(&l->clock.tsc_jump, tsc - before_tsc);
		/* The two reads are not one: only what the time between them can not explain is a
		 * step. */
		if (after - mono < 50 * NSEC_PER_USEC && last[3])
			count_max(&l->clock.step_us,
				  (uint64_t)llabs(offset - (int64_t)last[2]) / NSEC_PER_USEC);
	}
	last[0] = mono;
	last[1] = real;
	last[3] = after - mono < 50 * NSEC_PER_USEC;
	if (last[3])
		last[2] = (uint64_t)offset;
	count_add(&l->clock.samples, 1);
}

static void *watcher_thread(void *arg)
{
	struct watcher *w = arg;
	struct clock_shared *s = w->shared;
	struct load *l = s->load;
	uint64_t last[4] = { 0 };

	for (unsigned k = w->first_cpu; !load_stopping(l); k++) {
		unsigned cpu = k % s->cpus;
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof(set), &set) < 0)
			continue; /* not ours, or taken offline: the next one */
		for (unsigned i = 0; i < SAMPLES_PER_CPU && !load_stopping(l); i++) {
			sample(s, cpu, last);
			if (inject_now(l, INJECT_CLOCK))
				count_max(&s->mono, now_ns() + NSEC_PER_SEC);
			sleep_ns(SAMPLE_US * NSEC_PER_USEC);
		}
		if (k - w->first_cpu + 1 >= s->cpus)
			part_set(l, PART_CLOCK, STATE_GOING);
	}
	return NULL;
}

void *clock_thread(void *arg)
{
	struct load *l = arg;
	struct clock_shared s = { .load = l };
	struct watcher w[MAX_WATCHERS];
	pthread_t thread[MAX_WATCHERS];
	unsigned started = 0;
	pthread_attr_t attr;
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	s.cpus = n < 1 ? 1 : n > MAX_CPUS ? MAX_CPUS : (unsigned)n;
	count_set(&l->clock.cpus, s.cpus);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	for (unsigned i = 0; i < MAX_WATCHERS && i < s.cpus; i++) {
		struct sched_param rt = { .sched_priority = 10 };

		w[i] = (struct watcher){ .shared = &s, .first_cpu = i };
		if (pthread_create(&thread[i], &attr, watcher_thread, &w[i]) != 0)
			break;
		/* Best effort: without it the jumps include the wait for a CPU. */
		pthread_setschedparam(thread[i], SCHED_FIFO, &rt);
		started++;
	}
	pthread_attr_destroy(&attr);
	if (started == 0) {
		part_set(l, PART_CLOCK, STATE_FAILED);
		load_error(l, ERROR_SETUP, "no clock watcher could be started");
	}
	for (unsigned i = 0; i < started; i++)
		pthread_join(thread[i], NULL);
	return NULL;
}
