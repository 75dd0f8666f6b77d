/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Strings, numbers and times as people read them: see text.c. */
#ifndef UPGRADED_TEXT_H
#define UPGRADED_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* A copy in which what is not UTF-8 became U+FFFD; NULL without memory. */
char *text_utf8(const char *s);

/* As text_utf8(), and control characters became '?': safe on a terminal. */
char *text_printable(const char *s);

/* Columns that @s takes on a terminal (one per character). */
size_t text_width(const char *s);

/* A copy of at most @width columns, cut in the middle; NULL without memory. */
char *text_cut_middle(const char *s, size_t width);

#define TEXT_NUMBER 32
/* "38.214 ms", "12.4 s", "3 min 20 s". */
const char *text_duration(char buf[static TEXT_NUMBER], uint64_t us);
/* "512 B", "1.5 MiB", "4 GiB". */
const char *text_bytes(char buf[static TEXT_NUMBER], uint64_t bytes);
/* "2026-11-20 12:18:29" in local time; "-" for 0. */
const char *text_time(char buf[static TEXT_NUMBER], uint64_t at_us);

#endif
