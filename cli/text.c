/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Strings, numbers and times as people read them. Used by everything in the
 * command that prints. What comes from a VM's name, path or message is never
 * trusted to be harmless on a terminal: it passes text_printable() first.
 * Owns nothing.
 */
#include "text.h"

#include "cleanup.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

/* The bytes of the UTF-8 character at @s, 0 if there is none. */
static size_t character(const char *s, uint32_t *ret_code)
{
	const unsigned char *u = (const unsigned char *)s;
	uint32_t code, least;
	size_t n;

	if (u[0] < 0x80) {
		*ret_code = u[0];
		return 1;
	}
	if ((u[0] & 0xe0) == 0xc0) {
		n = 2;
		code = u[0] & 0x1f;
		least = 0x80;
	} else if ((u[0] & 0xf0) == 0xe0) {
		n = 3;
		code = u[0] & 0x0f;
		least = 0x800;
	} else if ((u[0] & 0xf8) == 0xf0) {
		n = 4;
		code = u[0] & 0x07;
		least = 0x10000;
	} else {
		return 0;
	}
	for (size_t i = 1; i < n; i++) {
		if ((u[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (u[i] & 0x3f);
	}
	if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
		return 0;
	*ret_code = code;
	return n;
}

static bool is_control(uint32_t code)
{
	/* C0, C1, and the marks that change the direction of what follows. */
	return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x202a && code <= 0x202e) ||
	       (code >= 0x2066 && code <= 0x2069);
}

static char *copy(const char *s, bool keep_controls)
{
	char *out = malloc(3 * strlen(s) + 1), *p = out;

	if (!out)
		return NULL;
	while (*s) {
		uint32_t code;
		size_t n = character(s, &code);

		if (!n) {
			memcpy(p, "\xef\xbf\xbd", 3);
			p += 3;
			s++;
		} else if (!keep_controls && is_control(code)) {
			*p++ = '?';
			s += n;
		} else {
			memcpy(p, s, n);
			p += n;
			s += n;
		}
	}
	*p = '\0';
	return out;
}

char *text_utf8(const char *s)
{
	return copy(s, true);
}

char *text_printable(const char *s)
{
	return copy(s, false);
}

size_t text_width(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

/* The byte at which character @n begins. */
static size_t offset_of(const char *s, size_t n)
{
	size_t i;

	for (i = 0; s[i]; i++)
		if (((unsigned char)s[i] & 0xc0) != 0x80 && !n--)
			break;
	return i;
}

char *text_cut_middle(const char *s, size_t width)
{
	static const char dots[] = "...";
	size_t have = text_width(s), head, tail;
	char *out;

	if (have <= width)
		return strdup(s);
	if (width <= strlen(dots))
		return strndup(s, offset_of(s, width));
	/* The end of a path says more than its beginning. */
	head = (width - strlen(dots)) / 3;
	tail = width - strlen(dots) - head;
	if (asprintf(&out, "%.*s%s%s", (int)offset_of(s, head), s, dots,
		     s + offset_of(s, have - tail)) < 0)
		return NULL;
	return out;
}

const char *text_duration(char buf[static TEXT_NUMBER], uint64_t us)
{
	if (us < 1000 * 1000)
		snprintf(buf, TEXT_NUMBER, "%" PRIu64 ".%03u ms", us / 1000, (unsigned)(us % 1000));
	else if (us < 100 * 1000 * 1000)
		snprintf(buf, TEXT_NUMBER, "%" PRIu64 ".%03u s", us / 1000000,
			 (unsigned)(us / 1000 % 1000));
	else
		snprintf(buf, TEXT_NUMBER, "%" PRIu64 " min %u s", us / 60000000,
			 (unsigned)(us / 1000000 % 60));
	return buf;
}

const char *text_bytes(char buf[static TEXT_NUMBER], uint64_t bytes)
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	uint64_t whole = bytes, rest = 0;
	size_t u = 0;

	while (whole >= 1024) {
		rest = whole % 1024;
		whole /= 1024;
		u++;
	}
	if (rest * 10 / 1024)
		snprintf(buf, TEXT_NUMBER, "%" PRIu64 ".%u %s", whole, (unsigned)(rest * 10 / 1024),
			 unit[u]);
	else
		snprintf(buf, TEXT_NUMBER, "%" PRIu64 " %s", whole, unit[u]);
	return buf;
}

const char *text_time(char buf[static TEXT_NUMBER], uint64_t at_us)
{
	time_t t = (time_t)(at_us / 1000000);
	struct tm tm;

	if (!at_us || !localtime_r(&t, &tm) || !strftime(buf, TEXT_NUMBER, "%F %T", &tm))
		snprintf(buf, TEXT_NUMBER, "-");
	return buf;
}
