/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl watch on a terminal: a table with a row for each VM, drawn again in its
 * place when something happens and ten times a second while an upgrade is under way. A VM
 * that is upgraded once more gets its row anew. What has no room are those that ended
 * first; the last line says how many. Owns its rows.
 */
#include "watch_view.h"

#include "clock.h"
#include "table.h"
#include "text.h"

#include <string.h>
#include <sys/ioctl.h>

#define DEFAULT_LINES 24

struct watch_row {
	char *vm;
	uint64_t id;
	Upgraded__V1__Phase phase;
	uint64_t elapsed_us; /* when the last event was sent */
	uint64_t heard_us;   /* of that event, CLOCK_MONOTONIC */
	bool ended;
	Upgraded__V1__Outcome outcome;
	uint64_t blackout_us;
	char *why;
};

static void clear(struct watch_row *row)
{
	free(row->vm);
	free(row->why);
}

/* The row of the event's VM; if that is of another upgrade, or there is none, one at the end. */
static struct watch_row *row_of(struct watch_view *v, const Upgraded__V1__Event *event)
{
	struct watch_row *grown;
	size_t i = 0;

	while (i < v->n && strcmp(v->row[i].vm, event->vm) != 0)
		i++;
	if (i < v->n && v->row[i].id == event->upgrade_id)
		return &v->row[i];
	if (i < v->n) {
		clear(&v->row[i]);
		memmove(&v->row[i], &v->row[i + 1], (--v->n - i) * sizeof(*v->row));
	}
	grown = reallocarray(v->row, v->n + 1, sizeof(*grown));
	if (!grown)
		return NULL;
	v->row = grown;
	v->row[v->n] = (struct watch_row){ .vm = strdup(event->vm), .id = event->upgrade_id };
	return v->row[v->n].vm ? &v->row[v->n++] : NULL;
}

int watch_view_event(struct watch_view *v, const Upgraded__V1__Event *event)
{
	struct watch_row *row = row_of(v, event);
	const Upgraded__V1__Report *report = event->report;

	if (!row)
		return -ENOMEM;
	row->phase = event->phase;
	row->elapsed_us = event->elapsed_us;
	row->heard_us = now_us();
	if (!report)
		return 0;
	row->ended = true;
	row->outcome = report->outcome;
	row->blackout_us = report->blackout_us;
	row->elapsed_us = report->total_us;
	row->why = strdup(report->error);
	return row->why ? 0 : -ENOMEM;
}

bool watch_view_is_busy(const struct watch_view *v)
{
	for (size_t i = 0; i < v->n; i++)
		if (!v->row[i].ended)
			return true;
	return false;
}

static void add_row(struct table *t, const struct watch_row *row)
{
	uint64_t elapsed = row->elapsed_us;
	char number[TEXT_NUMBER];

	table_add(t, STYLE_BOLD, row->vm);
	table_addf(t, STYLE_DIM, "%llu", (unsigned long long)row->id);
	if (row->ended) {
		table_add(t, outcome_style(row->outcome), outcome_name(row->outcome));
		table_add(t, STYLE_PLAIN, text_duration(number, elapsed));
		table_add(t, STYLE_PLAIN, text_duration(number, row->blackout_us));
		table_add(t, STYLE_PLAIN, row->why);
		return;
	}
	/* While it runs, more than tenths of a second would only flicker. */
	elapsed += now_us() - row->heard_us;
	table_add(t, STYLE_PLAIN, phase_name(row->phase));
	table_addf(t, STYLE_PLAIN, "%llu.%llu s", (unsigned long long)elapsed / 1000000,
		   (unsigned long long)elapsed / 100000 % 10);
	table_add(t, STYLE_PLAIN, "");
	table_add(t, STYLE_PLAIN, "");
}

/* How many rows have room, beside the titles, the last line, and the cursor's. */
static size_t room(void)
{
	struct winsize size;
	size_t lines = !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_row ? size.ws_row
									       : DEFAULT_LINES;

	return lines > 4 ? lines - 3 : 1;
}

void watch_view_draw(struct watch_view *v)
{
	static const struct column column[] = {
		{ .title = "VM", .min = 16 },
		{ .title = "ID", .right = true, .drop = 1 },
		{ .title = "STATE" },
		{ .title = "ELAPSED", .right = true },
		{ .title = "BLACKOUT", .right = true },
		{ .title = "WHY", .min = 16, .drop = 2 },
	};
	size_t left_out = v->n > room() ? v->n - room() : 0, skipped = 0, shown = 0;
	_cleanup_table_ struct table t;

	table_init(&t, v->cli, column, ARRAY_SIZE(column));
	for (size_t i = 0; i < v->n; i++) {
		if (v->row[i].ended && skipped < left_out) {
			skipped++;
			continue;
		}
		if (shown == room())
			continue;
		add_row(&t, &v->row[i]);
		shown++;
	}
	if (v->drawn)
		printf("\033[%zuA", v->drawn);
	fputs("\r\033[J", stdout);
	if (shown)
		table_print(&t, stdout);
	v->drawn = shown ? shown + 1 : 0;
	if (shown < v->n) {
		printf("... and %zu more\n", v->n - shown);
		v->drawn++;
	}
	fflush(stdout);
}

void watch_view_free(struct watch_view *v)
{
	for (size_t i = 0; i < v->n; i++)
		clear(&v->row[i]);
	free(v->row);
	*v = (struct watch_view){ 0 };
}
