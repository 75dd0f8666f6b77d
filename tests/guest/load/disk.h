/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_DISK_H
#define LOAD_DISK_H

#include <stdbool.h>
#include <stdint.h>

#define DISK_BLOCK 4096
#define DISK_BATCH 8

struct disk_block {
	uint64_t checksum; /* of all that follows */
	uint64_t run;	   /* which run of the load wrote it: an image may be used again */
	uint64_t number;
	uint64_t sequence; /* of the write, over all blocks; never the same twice */
	uint64_t fill[DISK_BLOCK / 8 - 4];
};

_Static_assert(sizeof(struct disk_block) == DISK_BLOCK, "a block has no padding");

enum disk_verdict {
	DISK_OK,
	DISK_WRONG, /* damaged, or not a block of this place and run, or newer than written */
	DISK_LOST,  /* a right block of an earlier write: a completed fsync was lost */
};

struct disk {
	int fd;
	bool direct;
	uint64_t run, blocks, sequence;
	uint64_t *durable;	/* per block: sequence that the last fsync covered, 0: none yet */
	struct disk_block *buf; /* one block, aligned for O_DIRECT */
	unsigned n_pending;
	struct {
		uint64_t number, sequence;
	} pending[DISK_BATCH];
};

int disk_open(const char *path, uint64_t mb, uint64_t run, struct disk *ret);
void disk_close(struct disk *d);
int disk_write(struct disk *d, uint64_t number);
int disk_sync(struct disk *d);
int disk_verify(struct disk *d, uint64_t number, enum disk_verdict *ret_verdict,
		uint64_t *ret_sequence);

#endif
