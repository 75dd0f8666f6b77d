/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The answers of loadwatch: one JSON object for one command.
 *
 * Called by control.c for its clients and by main.c for the last word. It owns nothing. Times are
 * milliseconds of the host's CLOCK_MONOTONIC, so that a test can compare them with its own. A
 * silence that still lasts counts as a gap up to now: a guest that is dead must not look good.
 */
#include <stdio.h>
#include <string.h>

#include "watch.h"

static void put(struct json_object *o, const char *key, struct json_object *v)
{
	json_object_object_add(o, key, v);
}

static struct json_object *number(uint64_t v)
{
	return json_object_new_int64((int64_t)v);
}

static struct json_object *fixed(double v)
{
	char text[64];

	snprintf(text, sizeof(text), "%.3f", v);
	return json_object_new_double_s(v, text);
}

static struct json_object *ms(uint64_t ns)
{
	return fixed((double)ns / 1e6);
}

static struct json_object *error(const char *text, const char *what)
{
	struct json_object *o = json_object_new_object();
	char buf[256];

	snprintf(buf, sizeof(buf), "%s%s", text, what);
	put(o, "error", json_object_new_string(buf));
	return o;
}

static struct json_object *gap_object(const struct gap *g, bool open)
{
	struct json_object *o = json_object_new_object();

	put(o, "ms", ms(gap_ns(g)));
	put(o, "start_ms", ms(g->start_ns));
	put(o, "end_ms", ms(g->end_ns));
	put(o, "tick", number(g->tick));
	put(o, "open", json_object_new_boolean(open));
	return o;
}

/* The longest gap, the silence of now included. */
static struct json_object *longest_object(struct watch *w, struct gap longest, bool to_now,
					  uint64_t now_ns)
{
	struct gap silence = { .start_ns = w->ticks.last_ns,
			       .end_ns = now_ns,
			       .tick = w->ticks.counts.seen };
	struct json_object *state;
	/* After the load's last report the silence is what was asked for. */
	bool done = w->report && json_object_object_get_ex(w->report, "state", &state) &&
		    !strcmp(json_object_get_string(state), "done");
	bool open = to_now && !done && w->ticks.last_ns && gap_ns(&silence) > gap_ns(&longest);

	return gap_object(open ? &silence : &longest, open);
}

static struct json_object *ticks_object(const struct tick_counts *from,
					const struct tick_counts *to, uint64_t ns)
{
	struct json_object *o = json_object_new_object();
	uint64_t seen = to->seen - from->seen;

	put(o, "seen", number(seen));
	put(o, "lost", number(to->lost - from->lost));
	put(o, "duplicated", number(to->duplicated - from->duplicated));
	put(o, "reordered", number(to->reordered - from->reordered));
	put(o, "rate_hz", fixed(ns ? (double)seen * 1e9 / (double)ns : 0));
	return o;
}

static struct json_object *status(struct watch *w, uint64_t now_ns)
{
	static const struct tick_counts none;
	struct json_object *o = json_object_new_object(), *reports = json_object_new_object(),
			   *ticks, *v;

	put(o, "now_ms", ms(now_ns));
	put(o, "uptime_ms", ms(now_ns - w->start_ns));
	put(o, "state",
	    json_object_new_string(w->report && json_object_object_get_ex(w->report, "state", &v)
					   ? json_object_get_string(v)
					   : "silent"));
	put(o, "errors",
	    w->report && json_object_object_get_ex(w->report, "errors", &v) ? json_object_get(v)
									    : NULL);
	ticks = ticks_object(&none, &w->ticks.counts, w->ticks.last_ns - w->ticks.first_ns);
	put(ticks, "silent_ms", w->ticks.last_ns ? ms(now_ns - w->ticks.last_ns) : NULL);
	put(o, "ticks", ticks);
	put(o, "longest_gap", longest_object(w, w->longest, true, now_ns));
	put(o, "gaps", number(w->n_gaps));
	put(o, "window", json_object_new_string(watch_current(w)->name));
	put(reports, "seen", number(w->reports));
	put(reports, "garbled", number(w->garbled));
	put(reports, "age_ms", w->report ? ms(now_ns - w->report_ns) : NULL);
	put(o, "reports", reports);
	put(o, "guest", json_object_get(w->report));
	return o;
}

static struct json_object *work_object(const struct watch *w, const struct gap *gap)
{
	struct json_object *o;
	struct brownout b;

	if (gap_ns(gap) == 0 || !work_around(&w->work, gap, w->span_ns, &b))
		return NULL;
	o = json_object_new_object();
	put(o, "span_ms", ms(w->span_ns));
	put(o, "guest_advance_ms", fixed(b.guest_advance_ms));
	put(o, "before_pages_per_s", fixed(b.before));
	put(o, "after_pages_per_s", fixed(b.after));
	put(o, "ratio", b.before > 0 ? fixed(b.after / b.before) : NULL);
	put(o, "lost_ms", fixed(b.lost_ms));
	put(o, "recovery_ms", b.recovery_ms >= 0 ? fixed(b.recovery_ms) : NULL);
	put(o, "complete", json_object_new_boolean(b.complete));
	return o;
}

static struct json_object *window(struct watch *w, const struct window *win, uint64_t now_ns)
{
	bool open = win->end_ns == 0;
	uint64_t end_ns = open ? now_ns : win->end_ns, errors = 0;
	struct json_object *o = json_object_new_object(), *v;

	put(o, "window", json_object_new_string(win->name));
	put(o, "start_ms", ms(win->start_ns));
	put(o, "end_ms", open ? NULL : ms(end_ns));
	put(o, "ticks",
	    ticks_object(&win->at_start, open ? &w->ticks.counts : &win->at_end,
			 end_ns - win->start_ns));
	put(o, "longest_gap", longest_object(w, win->longest, open, now_ns));
	if (win->report && json_object_object_get_ex(win->report, "errors", &v)) {
		errors = (uint64_t)json_object_get_int64(v);
		put(o, "errors", number(errors));
		put(o, "errors_new", number(errors - win->errors_at_start));
	} else {
		/* Not a zero: no report came, so nothing is known. */
		put(o, "errors", NULL);
		put(o, "errors_new", NULL);
	}
	put(o, "work", work_object(w, &win->longest));
	put(o, "guest", json_object_get(win->report));
	return o;
}

static struct json_object *windows(struct watch *w)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();
	uint64_t i = w->n_windows > WATCH_WINDOWS ? w->n_windows - WATCH_WINDOWS : 0;

	for (; i < w->n_windows; i++)
		json_object_array_add(list,
				      json_object_new_string(w->windows[i % WATCH_WINDOWS].name));
	put(o, "windows", list);
	return o;
}

static struct json_object *gaps(struct watch *w, const struct window *win)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();
	uint64_t i = w->n_gaps > WATCH_GAPS ? w->n_gaps - WATCH_GAPS : 0;

	for (; i < w->n_gaps; i++) {
		const struct gap *g = &w->gaps[i % WATCH_GAPS];

		if (win && (g->end_ns < win->start_ns || (win->end_ns && g->end_ns >= win->end_ns)))
			continue;
		json_object_array_add(list, gap_object(g, false));
	}
	put(o, "threshold_ms", ms(w->gap_threshold_ns));
	put(o, "total", number(w->n_gaps));
	put(o, "gaps", list);
	return o;
}

/* The longest known one that overlaps "FROM_MS TO_MS", and the work around it. */
static struct json_object *longest_within(struct watch *w, const char *span)
{
	double from_ms, to_ms;
	struct gap found = { 0 };
	struct json_object *o;
	char rest;

	if (sscanf(span, "%lf %lf%c", &from_ms, &to_ms, &rest) != 2)
		return error("not two times in ms: ", span);
	for (uint64_t i = w->n_gaps > WATCH_GAPS ? w->n_gaps - WATCH_GAPS : 0; i < w->n_gaps; i++) {
		const struct gap *g = &w->gaps[i % WATCH_GAPS];

		if ((double)g->start_ns <= to_ms * 1e6 && (double)g->end_ns >= from_ms * 1e6 &&
		    gap_ns(g) > gap_ns(&found))
			found = *g;
	}
	if (!gap_ns(&found))
		return error("no gap overlaps ", span);
	o = gap_object(&found, false);
	put(o, "work", work_object(w, &found));
	return o;
}

static struct json_object *mark(struct watch *w, const char *name, uint64_t now_ns)
{
	struct json_object *o = json_object_new_object();

	watch_mark(w, name, now_ns);
	put(o, "window", json_object_new_string(watch_current(w)->name));
	put(o, "start_ms", ms(now_ns));
	return o;
}

struct json_object *answer(struct watch *w, const char *command, uint64_t now_ns)
{
	const char *space = strchr(command, ' '), *arg = space ? space + 1 : "";
	size_t n = space ? (size_t)(space - command) : strlen(command);
	struct window *win = *arg ? watch_window(w, arg) : NULL;

	if (n == 6 && !strncmp(command, "status", n) && !*arg)
		return status(w, now_ns);
	if (n == 4 && !strncmp(command, "mark", n)) {
		if (!*arg || strlen(arg) >= WATCH_NAME)
			return error("a mark needs a name of at most 63 bytes", "");
		return mark(w, arg, now_ns);
	}
	if (n == 7 && !strncmp(command, "windows", n) && !*arg)
		return windows(w);
	if (n == 6 && !strncmp(command, "window", n)) {
		if (*arg && !win)
			return error("there is no window called ", arg);
		return window(w, win ? win : watch_current(w), now_ns);
	}
	if (n == 4 && !strncmp(command, "gaps", n)) {
		if (*arg && !win)
			return error("there is no window called ", arg);
		return gaps(w, win);
	}
	if (n == 3 && !strncmp(command, "gap", n))
		return longest_within(w, arg);
	return error("not a command: ", command);
}
