/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The hours in which upgrades may begin: see window.c. */
#ifndef UPGRADED_WINDOW_H
#define UPGRADED_WINDOW_H

#include <time.h>

/* Minutes after midnight, local time, 0 to 1439; from == to: always open. */
struct window {
	int from, to;
};

/* "22:00-06:00"; -EINVAL: it is none, or an empty one. */
int window_parse(const char *text, struct window *ret);

/* Seconds until it opens; 0: it is open. */
time_t window_opens_in(const struct window *w, time_t now);

#endif
