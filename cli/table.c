/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tables that align, and fit a terminal of 80 to 200 columns: first the
 * columns that one can do without are left out, then long cells are cut in
 * the middle, the widest column first. Without a terminal nothing is left out
 * or cut. Used by list, history, show and the report. Owns copies of its
 * cells until table_free().
 */
#include "table.h"

#include "text.h"

#include <stdarg.h>
#include <string.h>

#define GAP 2

struct cell {
	char *text;
	enum style style;
};

void table_init(struct table *t, const struct cli *cli, const struct column *column, size_t columns)
{
	*t = (struct table){ .cli = cli, .column = column, .columns = columns };
}

void table_add(struct table *t, enum style style, const char *text)
{
	struct cell *grown = reallocarray(t->cell, t->cells + 1, sizeof(*grown));

	if (!grown)
		return;
	t->cell = grown;
	t->cell[t->cells++] = (struct cell){ text_printable(text[0] ? text : "-"), style };
}

void table_addf(struct table *t, enum style style, const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	table_add(t, style, text ?: "?");
}

static size_t total(const struct table *t, const size_t *width, bool at_least)
{
	size_t sum = t->indent, shown = 0;

	for (size_t c = 0; c < t->columns; c++) {
		size_t min = t->column[c].min;

		if (!width[c])
			continue;
		sum += at_least && min && width[c] > min ? min : width[c];
		shown++;
	}
	return sum + (shown ? (shown - 1) * GAP : 0);
}

/* Sets the width of each column; 0: left out. */
static void fit(const struct table *t, size_t *width)
{
	size_t room = t->cli->width;

	for (size_t c = 0; c < t->columns; c++)
		width[c] = text_width(t->column[c].title);
	for (size_t i = 0; i < t->cells; i++) {
		size_t w = text_width(t->cell[i].text ?: "?");

		if (w > width[i % t->columns])
			width[i % t->columns] = w;
	}
	while (room && total(t, width, true) > room) {
		size_t worst = t->columns;

		for (size_t c = 0; c < t->columns; c++)
			if (width[c] && t->column[c].drop &&
			    (worst == t->columns || t->column[c].drop > t->column[worst].drop))
				worst = c;
		if (worst == t->columns)
			break;
		width[worst] = 0;
	}
	while (room && total(t, width, false) > room) {
		size_t widest = t->columns;

		for (size_t c = 0; c < t->columns; c++)
			if (t->column[c].min && width[c] > t->column[c].min &&
			    (widest == t->columns || width[c] > width[widest]))
				widest = c;
		if (widest == t->columns)
			break;
		width[widest]--;
	}
}

static void print_cell(const struct table *t, FILE *f, size_t c, const size_t *width,
		       const char *text, enum style style, bool last)
{
	_cleanup_free_ char *cut = text_cut_middle(text, width[c]);
	const char *shown = cut ?: "?";
	size_t pad = width[c] - text_width(shown);

	if (t->column[c].right)
		fprintf(f, "%*s", (int)pad, "");
	print_text(t->cli, f, style, 0, shown);
	if (!last)
		fprintf(f, "%*s", (int)((t->column[c].right ? 0 : pad) + GAP), "");
}

static void print_row(const struct table *t, FILE *f, const size_t *width, const struct cell *cell)
{
	size_t last = t->columns;

	while (last && !width[last - 1])
		last--;
	fprintf(f, "%*s", (int)t->indent, "");
	for (size_t c = 0; c < last; c++) {
		if (!width[c])
			continue;
		print_cell(t, f, c, width, cell ? cell[c].text ?: "?" : t->column[c].title,
			   cell ? cell[c].style : STYLE_DIM, c == last - 1);
	}
	fputc('\n', f);
}

void table_print(const struct table *t, FILE *f)
{
	_cleanup_free_ size_t *width = calloc(t->columns, sizeof(*width));
	bool titles = false;

	if (!width)
		return;
	fit(t, width);
	for (size_t c = 0; c < t->columns; c++)
		titles |= t->column[c].title[0];
	if (titles)
		print_row(t, f, width, NULL);
	for (size_t i = 0; i + t->columns <= t->cells; i += t->columns)
		print_row(t, f, width, t->cell + i);
}

void table_free(struct table *t)
{
	for (size_t i = 0; i < t->cells; i++)
		free(t->cell[i].text);
	free(t->cell);
	t->cell = NULL;
	t->cells = 0;
}
