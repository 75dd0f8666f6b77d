/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Styled words, names of enum values, and JSON. Every string that came from
 * outside is printed through here (or a table), so that no name of a VM can
 * steer the terminal. Owns nothing.
 */
#include "print.h"

#include "proto_json.h"
#include "text.h"

#include <string.h>

static const char *const escape[] = {
	[STYLE_PLAIN] = "",	     [STYLE_BOLD] = "\033[1m",	[STYLE_DIM] = "\033[2m",
	[STYLE_GOOD] = "\033[1;32m", [STYLE_WARN] = "\033[33m", [STYLE_BAD] = "\033[1;31m",
};

void print_text(const struct cli *cli, FILE *f, enum style style, size_t width, const char *text)
{
	_cleanup_free_ char *safe = text_printable(text);
	size_t have = safe ? text_width(safe) : 1;
	bool styled = cli->color && style != STYLE_PLAIN;

	fprintf(f, "%s%s%s", styled ? escape[style] : "", safe ?: "?", styled ? "\033[0m" : "");
	for (; have < width; have++)
		fputc(' ', f);
}

void print_wrapped(const struct cli *cli, FILE *f, size_t indent, const char *text)
{
	_cleanup_free_ char *safe = text_printable(text);
	size_t room = cli->width > indent ? cli->width - indent : SIZE_MAX, column = 0;
	char *word, *save;

	word = safe ? strtok_r(safe, " ", &save) : NULL;
	for (; word; word = strtok_r(NULL, " ", &save)) {
		size_t n = text_width(word);

		if (column && column + 1 + n > room) {
			fprintf(f, "\n%*s", (int)indent, "");
			column = 0;
		} else if (column) {
			fputc(' ', f);
			column++;
		}
		fputs(word, f);
		column += n;
	}
	fputc('\n', f);
}

static int print_as(const ProtobufCMessage *message, const char *(*format)(json_object *))
{
	json_object *object = proto_json(message);
	int r = CLI_DONE;

	if (!object || puts(format(object)) < 0 || fflush(stdout)) {
		fprintf(stderr, "upgradectl: cannot write the output: %m\n");
		r = CLI_FAILED;
	}
	json_object_put(object);
	return r;
}

int print_json(const ProtobufCMessage *message)
{
	return print_as(message, proto_json_document);
}

int print_json_line(const ProtobufCMessage *message)
{
	return print_as(message, proto_json_line);
}

const char *phase_name(Upgraded__V1__Phase phase)
{
	static const char *const name[] = { "idle",   "prepare", "check", "freeze",  "load",
					    "switch", "run",	 "done",  "rollback" };

	return (unsigned)phase < ARRAY_SIZE(name) ? name[phase] : "unknown";
}

const char *tier_name(Upgraded__V1__Tier tier)
{
	static const char *const name[] = { "-", "memfd", "gmem", "stage2" };

	return (unsigned)tier < ARRAY_SIZE(name) ? name[tier] : "unknown";
}

const char *outcome_name(Upgraded__V1__Outcome outcome)
{
	static const char *const name[] = { "unknown", "committed", "rolled back", "refused",
					    "lost" };

	return (unsigned)outcome < ARRAY_SIZE(name) ? name[outcome] : "unknown";
}

enum style outcome_style(Upgraded__V1__Outcome outcome)
{
	switch ((int)outcome) {
	case UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED:
		return STYLE_GOOD;
	case UPGRADED__V1__OUTCOME__OUTCOME_ROLLED_BACK:
	case UPGRADED__V1__OUTCOME__OUTCOME_REFUSED:
		return STYLE_WARN;
	default:
		return STYLE_BAD;
	}
}
