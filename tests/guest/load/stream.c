/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The byte stream of the TCP test: what the byte at each offset must be.
 *
 * Called by net.c in the guest and by the peer on the host, which must agree. No state: the content
 * is a function of seed and offset, so either end can check any part, and a lost, doubled, swapped
 * or changed byte anywhere makes what follows differ.
 */
#include "stream.h"

#include <string.h>

#include "checksum.h"

static inline uint64_t stream_word(uint64_t seed, uint64_t index)
{
	return mix64(seed + index * 0x9e3779b97f4a7c15ULL);
}

void stream_fill(uint64_t seed, uint64_t offset, void *buf, size_t len)
{
	uint8_t *to = buf;

	while (len > 0) {
		uint64_t word = stream_word(seed, offset / 8);
		size_t skip = offset % 8, n = 8 - skip;

		if (n > len)
			n = len;
		memcpy(to, (uint8_t *)&word + skip, n);
		to += n;
		offset += n;
		len -= n;
	}
}

/* Returns how many bytes from the start are right: len when all are. */
size_t stream_check(uint64_t seed, uint64_t offset, const void *buf, size_t len)
{
	const uint8_t *from = buf;
	size_t done = 0;

	while (done < len) {
		uint64_t word = stream_word(seed, (offset + done) / 8);
		size_t skip = (offset + done) % 8, n = 8 - skip;
		const uint8_t *want = (uint8_t *)&word + skip;

		if (n > len - done)
			n = len - done;
		if (memcmp(from + done, want, n) != 0) {
			while (from[done] == *want)
				done++, want++;
			return done;
		}
		done += n;
	}
	return len;
}
