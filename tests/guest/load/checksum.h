/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_CHECKSUM_H
#define LOAD_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* One step of a generator whose every step is a bijection: cheap under emulation, never stuck. */
static inline uint64_t sequence_next(uint64_t x)
{
	return x * 6364136223846793005ULL + 1442695040888963407ULL;
}

/* A bijection that spreads each input bit over all output bits. */
static inline uint64_t mix64(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15ULL;
	x ^= x >> 29;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 32;
	return x;
}

uint64_t checksum64(const uint64_t *words, size_t n);

#endif
