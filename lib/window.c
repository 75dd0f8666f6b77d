/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hours of a day in which upgrades may begin, by the clock on the wall: a window
 * may go over midnight. One that has begun is not ended by the window's end: that would
 * make a rollback of what works. Pure but for the time zone.
 */
#include "window.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DAY (24 * 60)

/* "06:00", two digits each; -EINVAL or the minutes, and *rest behind it. */
static int minutes(const char *text, const char **rest)
{
	int hour, minute, len = 0;

	/* sscanf() alone would take "+6: 0". */
	if (strspn(text, "0123456789") != 2 || text[2] != ':' ||
	    strspn(text + 3, "0123456789") != 2)
		return -EINVAL;
	if (sscanf(text, "%2d:%2d%n", &hour, &minute, &len) != 2 || hour > 23 || minute > 59)
		return -EINVAL;
	*rest = text + len;
	return hour * 60 + minute;
}

int window_parse(const char *text, struct window *ret)
{
	const char *rest;
	int from = minutes(text, &rest), to;

	if (from < 0 || *rest != '-')
		return -EINVAL;
	to = minutes(rest + 1, &rest);
	if (to < 0 || *rest || from == to)
		return -EINVAL;
	*ret = (struct window){ from, to };
	return 0;
}

time_t window_opens_in(const struct window *w, time_t now)
{
	struct tm tm;
	int at;

	if (w->from == w->to)
		return 0;
	localtime_r(&now, &tm);
	at = tm.tm_hour * 60 + tm.tm_min;
	if (w->from < w->to ? at >= w->from && at < w->to : at >= w->from || at < w->to)
		return 0;
	return (time_t)((w->from - at + DAY) % DAY) * 60 - tm.tm_sec;
}
