/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk writer: batches of blocks at random places, an fsync, and read-back of what is promised.
 *
 * One thread, started by main(); it owns the struct disk. Every round also re-reads older blocks,
 * so a write that an earlier QEMU acknowledged and a later one does not have is found within
 * seconds, and when the load stops the whole area is read once more.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "checksum.h"
#include "disk.h"
#include "load.h"
#include "now.h"

#define OPEN_DEADLINE_MS 10000

static void verify(struct load *l, struct disk *d, uint64_t number)
{
	enum disk_verdict verdict;
	uint64_t sequence;
	int r = disk_verify(d, number, &verdict, &sequence);

	if (r < 0) {
		load_error(l, ERROR_DISK_IO, "reading block %lu: %s", number, strerror(-r));
		return;
	}
	if (sequence == 0 && verdict == DISK_OK)
		return;
	count_add(&l->disk.verified, 1);
	if (verdict == DISK_OK)
		return;
	load_error(l, verdict == DISK_LOST ? ERROR_DISK_LOST : ERROR_DISK_WRONG,
		   "block %lu has sequence %lu, fsync promised %lu", number, sequence,
		   d->durable[number]);
	/* One fault is one error: the block is judged again when it has been written again. */
	d->durable[number] = 0;
}

/* Puts an old version of a block back behind the writer's knowledge, as a lost fsync would. */
static void inject_lost_write(struct disk *d, uint64_t number)
{
	struct disk_block *b = d->buf;

	if (disk_write(d, number) < 0 || disk_sync(d) < 0)
		return;
	/* disk_write() left the new version in the buffer; with a lower number it is a good older
	 * one. */
	b->sequence--;
	b->checksum = checksum64(&b->run, DISK_BLOCK / 8 - 1);
	if (pwrite(d->fd, b, DISK_BLOCK, (off_t)(number * DISK_BLOCK)) != DISK_BLOCK)
		return;
}

static void round_trip(struct load *l, struct disk *d, uint64_t *random)
{
	uint64_t at[DISK_BATCH], t;
	int r;

	for (unsigned i = 0; i < DISK_BATCH; i++) {
		*random = sequence_next(*random);
		at[i] = mix64(*random) % d->blocks;
		r = disk_write(d, at[i]);
		if (r < 0)
			load_error(l, ERROR_DISK_IO, "writing block %lu: %s", at[i], strerror(-r));
		else
			count_add(&l->disk.written, 1);
	}
	t = now_ns();
	r = disk_sync(d);
	if (r < 0) {
		load_error(l, ERROR_DISK_IO, "fsync: %s", strerror(-r));
		return;
	}
	count_max(&l->disk.longest_fsync_us, (now_ns() - t) / NSEC_PER_USEC);
	count_add(&l->disk.fsyncs, 1);
	if (inject_now(l, INJECT_DISK))
		inject_lost_write(d, at[0]);

	for (unsigned i = 0; i < DISK_BATCH; i += 2) {
		verify(l, d, at[i]);
		*random = sequence_next(*random);
		verify(l, d, mix64(*random) % d->blocks);
	}
}

void *disk_thread(void *arg)
{
	struct load *l = arg;
	uint64_t random = clock_ns(CLOCK_REALTIME) ^ now_ns() << 20,
		 deadline = now_ns() + OPEN_DEADLINE_MS * NSEC_PER_MSEC;
	struct disk d;
	int r;

	/* No udev here: the driver may need a moment to find the device. */
	for (;;) {
		r = disk_open(l->options.disk, l->options.disk_mb, random | 1, &d);
		if ((r != -ENOENT && r != -ENXIO) || now_ns() > deadline || load_stopping(l))
			break;
		sleep_ns(50 * NSEC_PER_MSEC);
	}
	if (r < 0) {
		part_set(l, PART_DISK, STATE_FAILED);
		load_error(l, ERROR_SETUP, "opening %s: %s", l->options.disk, strerror(-r));
		return NULL;
	}
	count_set(&l->disk.blocks, d.blocks);
	count_set(&l->disk.direct, d.direct);

	while (!load_stopping(l)) {
		round_trip(l, &d, &random);
		if (count_get(&l->disk.fsyncs) && count_get(&l->disk.verified))
			part_set(l, PART_DISK, STATE_GOING);
		sleep_ns(l->options.disk_pause_ms * NSEC_PER_MSEC);
	}

	for (uint64_t i = 0; i < d.blocks; i++)
		verify(l, &d, i);
	disk_close(&d);
	return NULL;
}
