/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The settings of the test load, from the kernel command line (load.KEY=VALUE) or from the
 * program's own arguments (--KEY=VALUE).
 *
 * Called by main() only. It owns nothing. A word of the kernel command line that is not ours is
 * passed over; one of ours that can not be understood is an error, because a test that silently
 * runs without the part it asked for would pass for the wrong reason.
 */
#include "options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void options_default(struct load_options *o, bool init)
{
	*o = (struct load_options){
		.mem_mb = 64,
		.disk_mb = 16,
		.disk_pause_ms = 10,
		.net_pause_us = 2000,
		.clock = true,
		.hb = true,
		/* An ordinary process must not write to an I/O port of its host unasked. */
		.hb_port = init ? 0xe9 : 0,
		.hb_us = 1000,
		.report_ms = 250,
		.inject_ms = 1000,
	};
	strcpy(o->report, init ? "auto" : "stdout");
}

static int parse_number(const char *text, uint64_t max, uint64_t *ret)
{
	char *end;
	unsigned long long v;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 0);
	if (errno || *end || v > max)
		return -EINVAL;
	*ret = v;
	return 0;
}

static int parse_string(const char *text, char *buf, size_t size)
{
	if (strlen(text) >= size)
		return -ENAMETOOLONG;
	strcpy(buf, text);
	return 0;
}

static bool is_off(const char *text)
{
	return !strcmp(text, "off") || !strcmp(text, "none") || !strcmp(text, "0");
}

static int parse_inject(const char *text, unsigned *ret)
{
	static const char *const names[] = { "mem", "disk", "net", "clock", "hb" };
	unsigned mask = 0;

	while (*text) {
		size_t n = strcspn(text, ",");
		unsigned i;

		for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			if (strlen(names[i]) == n && !strncmp(names[i], text, n))
				break;
		if (i == sizeof(names) / sizeof(names[0]))
			return -EINVAL;
		mask |= 1U << i;
		text += n;
		if (*text == ',')
			text++;
	}
	*ret = mask;
	return 0;
}

/* Splits "10.77.0.2/24" or "10.77.0.1:7777"; the address is returned in network order. */
int options_split_address(const char *text, char separator, uint32_t *ret_address,
			  uint64_t *ret_number)
{
	char buf[INET_ADDRSTRLEN];
	const char *sep = strchr(text, separator);
	struct in_addr address;
	uint64_t number;
	int r;

	if (!sep || (size_t)(sep - text) >= sizeof(buf))
		return -EINVAL;
	memcpy(buf, text, (size_t)(sep - text));
	buf[sep - text] = 0;
	if (inet_pton(AF_INET, buf, &address) != 1)
		return -EINVAL;
	r = parse_number(sep + 1, separator == '/' ? 32 : 65535, &number);
	if (r < 0)
		return r;
	if (number == 0)
		return -EINVAL;
	*ret_address = address.s_addr;
	*ret_number = number;
	return 0;
}

static int parse_address(const char *text, char separator, char *buf, size_t size)
{
	uint32_t address;
	uint64_t number;
	int r;

	if (is_off(text)) {
		buf[0] = 0;
		return 0;
	}
	r = options_split_address(text, separator, &address, &number);
	return r < 0 ? r : parse_string(text, buf, size);
}

int options_set(struct load_options *o, const char *key, const char *value)
{
	uint64_t v;
	int r;

	if (!strcmp(key, "mem"))
		return parse_number(value, 1 << 24, &o->mem_mb);
	if (!strcmp(key, "mem_rate"))
		return parse_number(value, 1 << 30, &o->mem_rate);
	if (!strcmp(key, "disk")) {
		if (is_off(value))
			value = "";
		return parse_string(value, o->disk, sizeof(o->disk));
	}
	if (!strcmp(key, "disk_mb")) {
		r = parse_number(value, 1 << 16, &v);
		if (r < 0)
			return r;
		if (v == 0)
			return -EINVAL;
		o->disk_mb = v;
		return 0;
	}
	if (!strcmp(key, "disk_pause_ms"))
		return parse_number(value, 60000, &o->disk_pause_ms);
	if (!strcmp(key, "net"))
		return parse_address(value, '/', o->net, sizeof(o->net));
	if (!strcmp(key, "peer"))
		return parse_address(value, ':', o->peer, sizeof(o->peer));
	if (!strcmp(key, "net_pause_us"))
		return parse_number(value, 60000000, &o->net_pause_us);
	if (!strcmp(key, "clock")) {
		r = parse_number(value, 1, &v);
		if (r < 0)
			return r;
		o->clock = v;
		return 0;
	}
	if (!strcmp(key, "hb")) {
		if (!strcmp(value, "off")) {
			o->hb = false;
			return 0;
		}
		r = parse_number(value, 0xffff, &v);
		if (r < 0)
			return r;
		o->hb = true;
		o->hb_port = v;
		return 0;
	}
	if (!strcmp(key, "hb_us")) {
		r = parse_number(value, 1000000, &v);
		if (r < 0)
			return r;
		if (v < 100)
			return -EINVAL;
		o->hb_us = v;
		return 0;
	}
	if (!strcmp(key, "report"))
		return parse_string(value, o->report, sizeof(o->report));
	if (!strcmp(key, "report_ms")) {
		r = parse_number(value, 60000, &v);
		if (r < 0)
			return r;
		if (v < 10)
			return -EINVAL;
		o->report_ms = v;
		return 0;
	}
	if (!strcmp(key, "seconds"))
		return parse_number(value, 1U << 31, &o->seconds);
	if (!strcmp(key, "inject"))
		return parse_inject(value, &o->inject);
	if (!strcmp(key, "inject_ms"))
		return parse_number(value, 1U << 31, &o->inject_ms);
	return -ENOENT;
}

static int set_word(struct load_options *o, const char *word)
{
	char key[32];
	const char *eq = strchr(word, '=');

	if (!eq || (size_t)(eq - word) >= sizeof(key))
		return -EINVAL;
	memcpy(key, word, (size_t)(eq - word));
	key[eq - word] = 0;
	return options_set(o, key, eq + 1);
}

/* On an error ret_bad is the word that was not understood; all others are applied still. */
int options_parse_cmdline(struct load_options *o, const char *cmdline, char *ret_bad,
			  unsigned bad_size)
{
	int ret = 0;

	while (*cmdline) {
		size_t n = strcspn(cmdline, " \t\r\n");
		char word[256];
		int r;

		if (n > 5 && !strncmp(cmdline, "load.", 5)) {
			if (n < sizeof(word)) {
				memcpy(word, cmdline + 5, n - 5);
				word[n - 5] = 0;
				r = set_word(o, word);
			} else {
				r = -ENAMETOOLONG;
			}
			if (r < 0 && ret == 0) {
				snprintf(ret_bad, bad_size, "%.*s", (int)n, cmdline);
				ret = r;
			}
		}
		cmdline += n;
		cmdline += strspn(cmdline, " \t\r\n");
	}
	return ret;
}

/* Returns 0, or the negative number of the argument that was not understood. */
int options_parse_argv(struct load_options *o, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strncmp(argv[i], "--", 2) || set_word(o, argv[i] + 2) < 0)
			return -i;
	return 0;
}
