/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tables that align and fit: see table.c. */
#ifndef UPGRADED_TABLE_H
#define UPGRADED_TABLE_H

#include "print.h"

struct column {
	const char *title;
	bool right;    /* numbers: aligned to the right */
	size_t min;    /* may be cut in the middle to this width; 0: never cut */
	unsigned drop; /* left out if there is no room, the highest first; 0: never */
};

struct table {
	const struct cli *cli;
	const struct column *column;
	size_t columns;
	size_t cells;
	struct cell *cell; /* row by row */
	size_t indent;
};

void table_init(struct table *t, const struct cli *cli, const struct column *column,
		size_t columns);

/* Adds the next cell of the current row; a copy is made. */
void table_add(struct table *t, enum style style, const char *text);
void table_addf(struct table *t, enum style style, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

void table_print(const struct table *t, FILE *f);

void table_free(struct table *t);
#define _cleanup_table_ __attribute__((cleanup(table_free)))

#endif
