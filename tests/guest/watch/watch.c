/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What loadwatch knows: the ticks, the gaps, the windows between marks and the guest's reports.
 *
 * Called by main.c with every byte that arrives and by answer.c to be read. A struct watch owns its
 * history, all of bounded size: a test that runs for days must not grow. It is all in memory; if
 * loadwatch dies it is gone, and the guest's ticks pile up in the FIFO until QEMU waits for a
 * reader.
 */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int watch_new(uint64_t now_ns, struct watch **ret)
{
	struct watch *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->start_ns = now_ns;
	w->gap_threshold_ns = 20000000;
	w->span_ns = 1000000000;
	w->ticks.period_ns = 1000000;
	watch_mark(w, "start", now_ns);
	*ret = w;
	return 0;
}

void watch_free(struct watch *w)
{
	if (!w)
		return;
	for (unsigned i = 0; i < WATCH_WINDOWS; i++)
		json_object_put(w->windows[i].report);
	json_object_put(w->report);
	free(w);
}

struct window *watch_current(struct watch *w)
{
	return &w->windows[(w->n_windows - 1) % WATCH_WINDOWS];
}

/* The newest of that name, or NULL. */
struct window *watch_window(struct watch *w, const char *name)
{
	for (uint64_t i = w->n_windows; i > 0 && i + WATCH_WINDOWS > w->n_windows; i--) {
		struct window *win = &w->windows[(i - 1) % WATCH_WINDOWS];

		if (!strcmp(win->name, name))
			return win;
	}
	return NULL;
}

static uint64_t errors_of(struct json_object *report)
{
	struct json_object *v;

	if (!report || !json_object_object_get_ex(report, "errors", &v))
		return 0;
	return (uint64_t)json_object_get_int64(v);
}

void watch_mark(struct watch *w, const char *name, uint64_t now_ns)
{
	struct window *win;

	if (w->n_windows) {
		win = watch_current(w);
		win->end_ns = now_ns;
		win->at_end = w->ticks.counts;
	}
	win = &w->windows[w->n_windows++ % WATCH_WINDOWS];
	json_object_put(win->report);
	*win = (struct window){
		.start_ns = now_ns,
		.at_start = w->ticks.counts,
		.errors_at_start = errors_of(w->report),
	};
	strncpy(win->name, name, sizeof(win->name) - 1);
}

void watch_ticks(struct watch *w, const uint8_t *bytes, size_t n, uint64_t now_ns)
{
	struct window *win = watch_current(w);
	struct gap gap;

	if (!ticks_feed(&w->ticks, bytes, n, now_ns, &gap))
		return;
	if (gap_ns(&gap) > gap_ns(&w->longest))
		w->longest = gap;
	if (gap_ns(&gap) > gap_ns(&win->longest))
		win->longest = gap;
	if (gap_ns(&gap) >= w->gap_threshold_ns)
		w->gaps[w->n_gaps++ % WATCH_GAPS] = gap;
}

static void take_slices(struct watch *w, struct json_object *report)
{
	struct json_object *slices, *ms, *first, *pages;

	if (!json_object_object_get_ex(report, "slices", &slices) ||
	    !json_object_object_get_ex(slices, "ms", &ms) ||
	    !json_object_object_get_ex(slices, "first", &first) ||
	    !json_object_object_get_ex(slices, "pages", &pages) ||
	    !json_object_is_type(pages, json_type_array))
		return;
	w->work.slice_ns = (uint64_t)json_object_get_int64(ms) * 1000000;
	for (size_t i = 0; i < json_object_array_length(pages); i++)
		work_slice(&w->work, (uint64_t)json_object_get_int64(first) + i,
			   (uint64_t)json_object_get_int64(json_object_array_get_idx(pages, i)));
}

static void take_line(struct watch *w, uint64_t now_ns)
{
	struct window *win = watch_current(w);
	struct json_object *report, *v;

	if (w->line_len == 0)
		return; /* the guest clears its serial line with an empty one */
	w->line[w->line_len] = 0;
	report = json_tokener_parse(w->line);
	if (!report || !json_object_object_get_ex(report, "load", &v)) {
		w->garbled++;
		json_object_put(report);
		return;
	}
	w->reports++;
	w->report_ns = now_ns;
	if (json_object_object_get_ex(report, "guest_ms", &v))
		work_report(&w->work, now_ns, (uint64_t)(json_object_get_double(v) * 1e6));
	take_slices(w, report);
	json_object_put(w->report);
	w->report = report;
	json_object_put(win->report);
	win->report = json_object_get(report);
}

void watch_report_bytes(struct watch *w, const char *bytes, size_t n, uint64_t now_ns)
{
	for (size_t i = 0; i < n; i++) {
		if (bytes[i] == '\n' || bytes[i] == '\r') {
			if (w->line_too_long)
				w->garbled++;
			else
				take_line(w, now_ns);
			w->line_len = 0;
			w->line_too_long = false;
		} else if (w->line_len < sizeof(w->line) - 1) {
			w->line[w->line_len++] = bytes[i];
		} else {
			w->line_too_long = true;
		}
	}
}
