/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checksum of the memory pages and the disk blocks of the test load.
 *
 * Called by page.c and disk.c, with whole pages at a time. It owns nothing and has no state.
 *
 * It is not cryptographic: it must be cheap enough that the writer is bound by memory, also when
 * the guest's instructions are emulated, and it must see every damage to a single word for certain.
 * Each word goes through a bijection of its lane, and the lanes are folded by a bijection each, so
 * two inputs that differ in one word can not have the same sum; other damage is missed once in
 * 2^64.
 */
#include "checksum.h"

static inline uint64_t lane_step(uint64_t lane, uint64_t word)
{
	lane ^= word;
	lane = lane << 29 | lane >> 35;
	return lane * 0x9e3779b185ebca87ULL;
}

uint64_t checksum64(const uint64_t *words, size_t n)
{
	/* Four lanes: the multiplications of neighbouring words do not wait for each other. */
	uint64_t a = 0x243f6a8885a308d3ULL, b = 0x13198a2e03707344ULL;
	uint64_t c = 0xa4093822299f31d0ULL, d = 0x082efa98ec4e6c89ULL;
	uint64_t sum = n;
	size_t i = 0;

	for (; i + 4 <= n; i += 4) {
		a = lane_step(a, words[i]);
		b = lane_step(b, words[i + 1]);
		c = lane_step(c, words[i + 2]);
		d = lane_step(d, words[i + 3]);
	}
	for (; i < n; i++)
		a = lane_step(a, words[i]);

	sum = mix64(sum ^ a);
	sum = mix64(sum ^ b);
	sum = mix64(sum ^ c);
	return mix64(sum ^ d);
}
