/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Styled words, names of enum values, and JSON on stdout: see print.c. */
#ifndef UPGRADED_PRINT_H
#define UPGRADED_PRINT_H

#include "cli.h"

enum style { STYLE_PLAIN, STYLE_BOLD, STYLE_DIM, STYLE_GOOD, STYLE_WARN, STYLE_BAD };

/* Prints @text made printable, padded to @width columns (0: not), in @style. */
void print_text(const struct cli *cli, FILE *f, enum style style, size_t width, const char *text);

/*
 * Prints @text made printable and broken at blanks to the terminal's width,
 * every line after the first indented by @indent; the first begins at @indent.
 */
void print_wrapped(const struct cli *cli, FILE *f, size_t indent, const char *text);

/* --json: one document, or one line of a stream (flushed at once). */
int print_json(const ProtobufCMessage *message);
int print_json_line(const ProtobufCMessage *message);

/* "load", "memfd", "committed"; static strings, "unknown" for others. */
const char *phase_name(Upgraded__V1__Phase phase);
const char *tier_name(Upgraded__V1__Tier tier);
const char *outcome_name(Upgraded__V1__Outcome outcome);
enum style outcome_style(Upgraded__V1__Outcome outcome);

#endif
