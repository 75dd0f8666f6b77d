/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Numbered, checksummed blocks on a disk, and the memory of what a completed fsync promised.
 *
 * Called by diskload.c, and by the unit tests with an ordinary file. A struct disk owns its
 * descriptor and its tables. The promise that is checked: after disk_sync() returned 0, every block
 * written before reads back with the sequence number of its last write. Reads go past the page
 * cache (O_DIRECT), so that they see what the device holds and not what this kernel remembers.
 *
 * The knowledge is in memory only: a block that this run has not written yet is not judged.
 */
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checksum.h"

#define CHECKED_WORDS (DISK_BLOCK / 8 - 1)

/* Opens a block device, or a file that is made as large as needed. ret_->blocks is what fits. */
int disk_open(const char *path, uint64_t mb, uint64_t run, struct disk *ret)
{
	struct disk d = { .fd = -1, .direct = true, .run = run };
	uint64_t size = mb << 20;
	struct stat st;
	int r, flags = O_RDWR | O_CLOEXEC;

	/* A device that is missing must stay missing, not become a file in memory. */
	if (strncmp(path, "/dev/", 5))
		flags |= O_CREAT;
	d.fd = open(path, flags | O_DIRECT, 0600);
	if (d.fd < 0 && errno == EINVAL) {
		/* a file system without O_DIRECT: fit for a test on a host, and reported */
		d.direct = false;
		d.fd = open(path, flags, 0600);
	}
	if (d.fd < 0)
		return -errno;

	if (fstat(d.fd, &st) < 0)
		goto fail_errno;
	if (S_ISBLK(st.st_mode)) {
		uint64_t device_size;

		if (ioctl(d.fd, BLKGETSIZE64, &device_size) < 0)
			goto fail_errno;
		if (size > device_size)
			size = device_size;
	} else if ((uint64_t)st.st_size < size && ftruncate(d.fd, (off_t)size) < 0) {
		goto fail_errno;
	}
	d.blocks = size / DISK_BLOCK;
	if (d.blocks == 0) {
		r = -ENOSPC;
		goto fail;
	}
	d.durable = calloc(d.blocks, sizeof(*d.durable));
	d.buf = aligned_alloc(DISK_BLOCK, DISK_BLOCK);
	if (!d.durable || !d.buf) {
		r = -ENOMEM;
		goto fail;
	}
	*ret = d;
	return 0;

fail_errno:
	r = -errno;
fail:
	disk_close(&d);
	return r;
}

void disk_close(struct disk *d)
{
	if (d->fd >= 0)
		close(d->fd);
	free(d->durable);
	free(d->buf);
	*d = (struct disk){ .fd = -1 };
}

static uint64_t block_checksum(const struct disk_block *b)
{
	return checksum64(&b->run, CHECKED_WORDS);
}

static int io_result(ssize_t n)
{
	if (n < 0)
		return -errno;
	return n == DISK_BLOCK ? 0 : -EIO;
}

/* Writes the next version of a block; it counts once disk_sync() has succeeded. */
int disk_write(struct disk *d, uint64_t number)
{
	struct disk_block *b = d->buf;
	uint64_t sequence = d->sequence + 1, x = mix64(sequence);
	int r;

	if (number >= d->blocks)
		return -EINVAL;
	if (d->n_pending == DISK_BATCH)
		return -ENOBUFS;

	b->run = d->run;
	b->number = number;
	b->sequence = sequence;
	for (unsigned i = 0; i < sizeof(b->fill) / 8; i++)
		b->fill[i] = x = sequence_next(x);
	b->checksum = block_checksum(b);

	/*
	 * From here the old content is no longer sure, even when the write fails: it is on the list
	 * of what may be there in either version, which is: not judged until a sync succeeds.
	 */
	d->sequence = sequence;
	d->durable[number] = 0;
	r = io_result(pwrite(d->fd, b, DISK_BLOCK, (off_t)(number * DISK_BLOCK)));
	if (r < 0)
		return r;
	d->pending[d->n_pending].number = number;
	d->pending[d->n_pending++].sequence = sequence;
	return 0;
}

int disk_sync(struct disk *d)
{
	unsigned n = d->n_pending;

	d->n_pending = 0;
	if (fsync(d->fd) < 0)
		return -errno;
	for (unsigned i = 0; i < n; i++)
		if (d->durable[d->pending[i].number] < d->pending[i].sequence)
			d->durable[d->pending[i].number] = d->pending[i].sequence;
	return 0;
}

/* Reads a block back and judges it; one without a promise is DISK_OK unread, with *ret_sequence 0.
 */
int disk_verify(struct disk *d, uint64_t number, enum disk_verdict *ret_verdict,
		uint64_t *ret_sequence)
{
	struct disk_block *b = d->buf;
	uint64_t want;
	int r;

	if (number >= d->blocks)
		return -EINVAL;
	want = d->durable[number];
	if (want == 0) {
		*ret_verdict = DISK_OK;
		*ret_sequence = 0;
		return 0;
	}
	memset(b, 0, DISK_BLOCK);
	r = io_result(pread(d->fd, b, DISK_BLOCK, (off_t)(number * DISK_BLOCK)));
	if (r < 0)
		return r;

	*ret_sequence = b->sequence;
	if (b->checksum == block_checksum(b) && b->run == d->run && b->number == number)
		*ret_verdict = b->sequence == want  ? DISK_OK
			       : b->sequence < want ? DISK_LOST
						    : DISK_WRONG;
	else if (b->checksum == block_checksum(b) && b->number == number)
		*ret_verdict = DISK_LOST; /* what an earlier run had left there */
	else
		*ret_verdict = DISK_WRONG;
	return 0;
}
