/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How fast the guest worked before and after a gap: the brownout.
 *
 * Called by watch.c with what each report of the guest says, and by the unit tests. It owns a
 * history of bounded size, nothing else.
 *
 * The guest counts its work in slices of its own clock; the gap is known in the host's clock. Each
 * report says what the guest's clock was when it was made, so its arrival gives the offset of the
 * two, plus the time it was on the way; the least of a few is the best guess. The offset is taken
 * on both sides of the gap apart, since a guest's clock may stand still in between.
 */
#include "work.h"

#define NEAR 8 /* reports on either side from which the offset is taken */

void work_report(struct work *w, uint64_t arrival_ns, uint64_t guest_ns)
{
	unsigned at = w->n_reports++ % WORK_REPORTS;

	w->report[at].arrival_ns = arrival_ns;
	w->report[at].offset_ns = (int64_t)(arrival_ns - guest_ns);
}

void work_slice(struct work *w, uint64_t number, uint64_t pages)
{
	unsigned at = number % WORK_SLICES;

	w->slice[at].number = number;
	w->slice[at].pages = pages;
	if (number > w->newest)
		w->newest = number;
}

static bool offset_before(const struct work *w, uint64_t ns, int64_t *ret)
{
	uint64_t oldest = w->n_reports > WORK_REPORTS ? w->n_reports - WORK_REPORTS : 0;
	unsigned found = 0;

	for (uint64_t i = w->n_reports; i > oldest && found < NEAR; i--) {
		unsigned at = (i - 1) % WORK_REPORTS;

		if (w->report[at].arrival_ns > ns)
			continue;
		if (!found++ || w->report[at].offset_ns < *ret)
			*ret = w->report[at].offset_ns;
	}
	return found;
}

static bool offset_after(const struct work *w, uint64_t ns, int64_t *ret)
{
	uint64_t i = w->n_reports > WORK_REPORTS ? w->n_reports - WORK_REPORTS : 0;
	unsigned found = 0;

	for (; i < w->n_reports && found < NEAR; i++) {
		unsigned at = i % WORK_REPORTS;

		if (w->report[at].arrival_ns < ns)
			continue;
		if (!found++ || w->report[at].offset_ns < *ret)
			*ret = w->report[at].offset_ns;
	}
	return found;
}

static bool slice_known(const struct work *w, uint64_t number, uint64_t *ret_pages)
{
	unsigned at = number % WORK_SLICES;

	if (number == 0 || w->slice[at].number != number)
		return false;
	*ret_pages = w->slice[at].pages;
	return true;
}

/* False when there is nothing known on one of the sides. */
bool work_around(const struct work *w, const struct gap *gap, uint64_t span_ns,
		 struct brownout *ret)
{
	uint64_t end_before, first_after, n = w->slice_ns ? span_ns / w->slice_ns : 0, sum, pages,
					  known;
	struct brownout b = { .recovery_ms = -1, .complete = true };
	int64_t before = 0, after = 0, end_guest;
	double slice_s = (double)w->slice_ns / 1e9, usual;

	if (n == 0 || !offset_before(w, gap->start_ns, &before) ||
	    !offset_after(w, gap->end_ns, &after))
		return false;
	/* Only slices that lie wholly on one side. */
	end_before = (uint64_t)((int64_t)gap->start_ns - before) / w->slice_ns;
	end_guest = (int64_t)gap->end_ns - after;
	if (end_guest < 0)
		return false;
	first_after = (uint64_t)end_guest / w->slice_ns + 1;
	b.guest_advance_ms = (double)(end_guest - ((int64_t)gap->start_ns - before)) / 1e6;

	sum = known = 0;
	for (uint64_t i = 1; i <= n && i < end_before; i++)
		if (slice_known(w, end_before - i, &pages)) {
			sum += pages;
			known++;
		}
	if (!known)
		return false;
	usual = (double)sum / (double)known;
	b.before = usual / slice_s;

	sum = known = 0;
	for (uint64_t i = first_after; i < first_after + n; i++) {
		if (!slice_known(w, i, &pages)) {
			b.complete = false;
			continue;
		}
		sum += pages;
		known++;
		if (usual > 0)
			b.lost_ms += (usual - (double)pages) / usual * slice_s * 1e3;
	}
	if (!known)
		return false;
	b.after = (double)sum / (double)known / slice_s;

	for (uint64_t i = first_after; i <= w->newest && i < first_after + WORK_SLICES; i++)
		if (slice_known(w, i, &pages) && (double)pages >= 0.9 * usual) {
			b.recovery_ms =
				(double)((int64_t)((i + 1) * w->slice_ns) - end_guest) / 1e6;
			break;
		}
	*ret = b;
	return true;
}
