/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef WATCH_WATCH_H
#define WATCH_WATCH_H

#include <json-c/json.h>

#include "ticks.h"
#include "work.h"

#define WATCH_GAPS    16384
#define WATCH_WINDOWS 256
#define WATCH_NAME    64
#define WATCH_LINE    8192

/* From one mark to the next. A gap belongs to the window in which it ends. */
struct window {
	char name[WATCH_NAME];
	uint64_t start_ns, end_ns; /* end_ns 0: still open */
	struct tick_counts at_start, at_end;
	struct gap longest;
	uint64_t errors_at_start;
	struct json_object *report; /* the last one that came in it */
};

struct watch {
	uint64_t start_ns, gap_threshold_ns, span_ns;
	struct ticks ticks;
	struct gap longest;
	uint64_t n_gaps; /* above the threshold; the last WATCH_GAPS are kept */
	struct gap gaps[WATCH_GAPS];
	uint64_t n_windows; /* the last WATCH_WINDOWS are kept */
	struct window windows[WATCH_WINDOWS];
	uint64_t reports, garbled, report_ns;
	struct json_object *report; /* the last one */
	size_t line_len;
	bool line_too_long;
	char line[WATCH_LINE];
	struct work work;
};

int watch_new(uint64_t now_ns, struct watch **ret);
void watch_free(struct watch *w);
void watch_ticks(struct watch *w, const uint8_t *bytes, size_t n, uint64_t now_ns);
void watch_report_bytes(struct watch *w, const char *bytes, size_t n, uint64_t now_ns);
void watch_mark(struct watch *w, const char *name, uint64_t now_ns);
struct window *watch_window(struct watch *w, const char *name);
struct window *watch_current(struct watch *w);

/* answer.c: a new object for the caller to put. */
struct json_object *answer(struct watch *w, const char *command, uint64_t now_ns);

#endif
