/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory writer: goes round and round over its pages, verifies each one against what the last
 * pass wrote, and writes it anew.
 *
 * One thread, started by main(). It owns its pages. Which generation a page must have follows from
 * the pass and the position alone, so no table of expectations has to be kept (and could be damaged
 * along with the pages). How much work was done in each 100 ms of the guest's clock is kept for the
 * reporter: the loss of speed after an upgrade is read off it.
 *
 * It never exits before the load stops: a wrong page is counted and written anew.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "load.h"
#include "now.h"
#include "page.h"

/* What must stay free for the kernel and the other parts. */
#define SPARE_KB (48 * 1024)

static uint64_t mem_available_kb(void)
{
	char line[128];
	uint64_t kb = 0;
	FILE *f = fopen("/proc/meminfo", "re");

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %lu kB", &kb) == 1)
			break;
	fclose(f);
	return kb;
}

/* Counts pages into the slice of `now`; slices that passed without any work get a zero of their
 * own. */
static void account(struct mem_stats *s, uint64_t slice, uint64_t pages)
{
	uint64_t at = count_get(&s->slice_now);

	if (slice > at + N_SLICES)
		at = slice - N_SLICES;
	while (at < slice) {
		at++;
		count_set(&s->slice[at % N_SLICES], 0);
	}
	count_add(&s->slice[slice % N_SLICES], pages);
	atomic_store_explicit(&s->slice_now, slice, memory_order_release);
}

/* Holds the writer back to mem_rate: sleeps when this slice's share is used up. */
static void hold_rate(struct load *l, uint64_t now, uint64_t slice)
{
	uint64_t share = l->options.mem_rate * SLICE_MS / 1000;

	if (!l->options.mem_rate || count_get(&l->mem.slice[slice % N_SLICES]) < share)
		return;
	sleep_ns((slice + 1) * SLICE_MS * NSEC_PER_MSEC - now);
}

void *mem_thread(void *arg)
{
	struct load *l = arg;
	struct mem_stats *s = &l->mem;
	uint64_t mb = l->options.mem_mb, available = mem_available_kb(), n, pass;
	struct load_page *pages;

	/* A guest that runs out of memory tests nothing; the report says how much it is in truth.
	 */
	if (available && available < mb * 1024 + SPARE_KB)
		mb = available > 2 * SPARE_KB ? (available - SPARE_KB) / 1024 : available / 2048;
	n = mb << 20 >> 12;
	pages = mmap(NULL, n * LOAD_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		     -1, 0);
	if (n == 0 || pages == MAP_FAILED) {
		part_set(l, PART_MEM, STATE_FAILED);
		load_error(l, ERROR_SETUP, "no %lu MiB for the memory writer: %s", mb,
			   strerror(errno));
		return NULL;
	}
	count_set(&s->mb, mb);
	count_set(&s->locked, mlock(pages, n * LOAD_PAGE_SIZE) == 0);

	for (uint64_t i = 0; i < n && !load_stopping(l); i++)
		page_write(&pages[i], i, 0);

	count_set(&s->slice_first, now_ns() / (SLICE_MS * NSEC_PER_MSEC) + 1);
	count_set(&s->slice_now, count_get(&s->slice_first));
	for (pass = 1; !load_stopping(l); pass++) {
		for (uint64_t i = 0; i < n && !load_stopping(l); i++) {
			enum page_verdict v = page_check(&pages[i], i, pass - 1);

			if (v != PAGE_OK)
				load_error(l, ERROR_MEM,
					   "page %lu in pass %lu is %s (says page %lu, pass %lu)",
					   i, pass, page_verdict_name(v), pages[i].index,
					   pages[i].generation);
			page_write(&pages[i], i, pass);
			count_add(&s->verified, 1);

			/* Asking for the time costs as much as a good part of a page: every fourth
			 * one. */
			if (i % 4 == 3 || i == n - 1) {
				uint64_t now = now_ns(), slice = now / (SLICE_MS * NSEC_PER_MSEC);

				if (slice >= count_get(&s->slice_now)) {
					account(s, slice, i % 4 + 1);
					hold_rate(l, now, slice);
				}
			}
			if (inject_now(l, INJECT_MEM))
				pages[(i + 1) % n].fill[77] ^= 1ULL << 13;
		}
		count_set(&s->passes, pass);
		if (pass == 1)
			part_set(l, PART_MEM, STATE_GOING);
	}
	munmap(pages, n * LOAD_PAGE_SIZE);
	return NULL;
}
