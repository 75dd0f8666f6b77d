/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The one context of the test load. main() makes it; every part is a thread that gets it as its
 * argument. A part writes its own statistics, the reporter reads them all; every number that two
 * threads touch is atomic, and none of them orders anything else, so relaxed access is enough.
 */
#ifndef LOAD_LOAD_H
#define LOAD_LOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"

typedef _Atomic uint64_t counter;

static inline void count_add(counter *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static inline uint64_t count_get(const counter *c)
{
	return atomic_load_explicit(c, memory_order_relaxed);
}

static inline void count_set(counter *c, uint64_t v)
{
	atomic_store_explicit(c, v, memory_order_relaxed);
}

/* Returns whether v is the new maximum. */
static inline bool count_max(counter *c, uint64_t v)
{
	uint64_t old = count_get(c);

	while (old < v)
		if (atomic_compare_exchange_weak_explicit(c, &old, v, memory_order_relaxed,
							  memory_order_relaxed))
			return true;
	return false;
}

enum load_error {
	ERROR_SETUP,	    /* a part that was asked for could not start */
	ERROR_MEM,	    /* a page was not as it was written */
	ERROR_DISK_WRONG,   /* a block has damaged or foreign content */
	ERROR_DISK_LOST,    /* a block is older than the last fsync that covered it */
	ERROR_DISK_IO,	    /* a read, write or fsync failed */
	ERROR_NET_SEQUENCE, /* the echoed stream is not what was sent */
	ERROR_NET_RESET,    /* the connection broke */
	ERROR_CLOCK_MONO,   /* CLOCK_MONOTONIC went backwards */
	ERROR_CLOCK_REAL,   /* CLOCK_REALTIME went backwards */
	ERROR_CLOCK_TSC,    /* the TSC of one CPU went backwards */
	N_LOAD_ERRORS
};

enum load_part { PART_MEM, PART_DISK, PART_NET, PART_CLOCK, PART_HB, N_LOAD_PARTS };

enum part_state { STATE_OFF, STATE_STARTING, STATE_GOING, STATE_FAILED };

#define SLICE_MS 100
#define N_SLICES 64

struct mem_stats {
	counter mb, passes, verified, locked;
	counter slice[N_SLICES]; /* pages done in slice s, at s % N_SLICES */
	counter slice_now;	 /* the slice being filled; older ones are final */
	counter slice_first;
};

struct disk_stats {
	counter blocks, direct, written, fsyncs, verified, longest_fsync_us;
};

struct net_stats {
	counter sent, received, connects, longest_stall_us;
};

struct clock_stats {
	counter samples, cpus, mono_jump_us, real_jump_us, tsc_jump, step_us;
};

/* Where the ticks go, best first. */
enum hb_out { HB_NONE, HB_PORT, HB_DEV_PORT, HB_VIRTIO };

struct hb_stats {
	counter out, ticks, late, unsent, longest_gap_us, longest_gap_at_ms;
};

struct load {
	struct load_options options;
	bool init; /* we are PID 1 of a guest */
	uint64_t start_ns;
	atomic_bool stop;	 /* the parts are to end */
	atomic_bool finished;	 /* they have ended: the reporter's last line */
	_Atomic unsigned inject; /* faults still to be made, enum load_inject */
	atomic_bool ready;

	_Atomic int part[N_LOAD_PARTS]; /* enum part_state */
	counter errors[N_LOAD_ERRORS];

	pthread_mutex_t first_error_lock;
	char first_error[160];

	struct mem_stats mem;
	struct disk_stats disk;
	struct net_stats net;
	struct clock_stats clock;
	struct hb_stats hb;
};

static inline bool load_stopping(struct load *l)
{
	return atomic_load_explicit(&l->stop, memory_order_relaxed);
}

static inline void part_set(struct load *l, enum load_part part, enum part_state state)
{
	atomic_store(&l->part[part], (int)state);
}

static inline enum part_state part_get(struct load *l, enum load_part part)
{
	return (enum part_state)atomic_load(&l->part[part]);
}

/* True once for each fault that was asked for, when its time has come. */
static inline bool inject_now(struct load *l, enum load_inject what)
{
	unsigned mask = atomic_load_explicit(&l->inject, memory_order_relaxed);

	return (mask & what) && (atomic_fetch_and(&l->inject, ~(unsigned)what) & what);
}

/* errors.c */
void load_error(struct load *l, enum load_error kind, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint64_t load_errors_total(const struct load *l);
const char *load_error_name(enum load_error kind);
const char *load_part_name(enum load_part part);
const char *part_state_name(enum part_state state);

/* boot.c */
void boot_mount(void);
/* What stands in /modules, in the order of the names: for kernels that have no drivers built in. */
void boot_modules(struct load *l);
int boot_cmdline(char *buf, unsigned size);
void boot_end(void) __attribute__((noreturn));

/* vport.c */
int vport_find(const char *name, char *ret_path, size_t size);

/* heartbeat.c */
const char *hb_out_name(enum hb_out out);

/* netif.c */
int netif_up(const char *address, char *ret_name, unsigned name_size);

/* The parts; each returns when load_stopping(). */
void *mem_thread(void *load);
void *disk_thread(void *load);
void *net_thread(void *load);
void *clock_thread(void *load);
void *heartbeat_thread(void *load);

/* Returns when load.finished. */
void *report_thread(void *load);

#endif
