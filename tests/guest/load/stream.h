/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_STREAM_H
#define LOAD_STREAM_H

#include <stddef.h>
#include <stdint.h>

#define STREAM_MAGIC 0x315f64616f6c7075ULL /* "upload_1" in memory */

/* What the guest sends first; what follows is the stream of that seed, from offset 0. Little
 * endian. */
struct stream_hello {
	uint64_t magic;
	uint64_t seed;
};

void stream_fill(uint64_t seed, uint64_t offset, void *buf, size_t len);
size_t stream_check(uint64_t seed, uint64_t offset, const void *buf, size_t len);

#endif
