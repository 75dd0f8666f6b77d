/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arithmetic of the heartbeat: from bytes and their time of arrival to lost ticks and gaps.
 *
 * Called by main.c with every read of the heartbeat FIFO, and by the unit tests. No state but the
 * caller's struct.
 *
 * A read may bring several ticks, when this process was late or many were under way. All of them
 * have the same time of arrival, but the guest makes no ticks in a burst: n of them took it at
 * least n - 2 periods (the first may have been late, the last in time). So the first of them was
 * there that much earlier, and what is called the gap stays an upper bound of how long the guest
 * was silent, without adding this process' own lateness to it.
 */
#include "ticks.h"

/* Returns whether there is a tick before these, and so a gap between. */
bool ticks_feed(struct ticks *t, const uint8_t *bytes, size_t n, uint64_t now_ns,
		struct gap *ret_gap)
{
	uint64_t first_ns = now_ns, seen = t->counts.seen, last_ns = t->last_ns;

	if (n == 0)
		return false;
	if (!last_ns)
		t->next = bytes[0];

	for (size_t i = 0; i < n; i++) {
		uint8_t ahead = (uint8_t)(bytes[i] - t->next);

		t->counts.seen++;
		if (ahead == 255) {
			t->counts.duplicated++;
			continue;
		}
		if (ahead >= 128)
			t->counts.reordered++;
		else
			t->counts.lost += ahead;
		/* Also after a step back: the rest is judged by the new numbers, one fault is one
		 * error. */
		t->next = (uint8_t)(bytes[i] + 1);
	}

	t->last_ns = now_ns;
	if (!last_ns) {
		t->first_ns = now_ns;
		return false;
	}
	if (n > 2)
		first_ns -= (n - 2) * t->period_ns;
	if (first_ns < last_ns || first_ns > now_ns)
		first_ns = last_ns;
	*ret_gap = (struct gap){ .start_ns = last_ns, .end_ns = first_ns, .tick = seen };
	return true;
}
