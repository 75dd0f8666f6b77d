/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Many upgrades at once, on a terminal: see watch_view.c. */
#ifndef UPGRADED_WATCH_VIEW_H
#define UPGRADED_WATCH_VIEW_H

#include "print.h"

struct watch_row;

struct watch_view {
	const struct cli *cli;
	struct watch_row *row; /* in the order in which they were first heard of */
	size_t n;
	size_t drawn; /* lines on the terminal */
};

/* 0 or -ENOMEM. */
int watch_view_event(struct watch_view *v, const Upgraded__V1__Event *event);

/* Draws it over what it drew before, with the times that it has now. */
void watch_view_draw(struct watch_view *v);

/* Whether anything on it moves. */
bool watch_view_is_busy(const struct watch_view *v);

void watch_view_free(struct watch_view *v);
#define _cleanup_watch_view_ __attribute__((cleanup(watch_view_free)))

#endif
