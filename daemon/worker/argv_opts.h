/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arguments of QEMU's options, in both of its spellings: see argv_opts.c. */
#ifndef UPGRADED_ARGV_OPTS_H
#define UPGRADED_ARGV_OPTS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

struct opt {
	char *key;
	char *value;  /* NULL: the bare word @key */
	bool implied; /* written without "key=" */
};

/* One argument. Keys of the JSON form are reached as "addr.path". */
struct opts {
	struct opt *v;
	size_t n;
	struct json_object *json; /* not NULL: the JSON form; v is empty */
};

/*
 * Parses @text. A first word without '=' is the value of @implied, which may
 * be NULL. 0, -ENOMEM, or -EINVAL for JSON that is none.
 */
int opts_parse(const char *text, const char *implied, struct opts **ret_opts);

/* The value of @key, the last one if it is there twice; "on" for a bare word. */
const char *opts_get(const struct opts *o, const char *key);

/* Whether @key is on; the legacy spelling "nokey" is understood. */
bool opts_on(const struct opts *o, const char *key, bool missing);

/* Replaces every @key by one of that value, in its place or at the end. 0 or -ENOMEM. */
int opts_set(struct opts *o, const char *key, const char *value);

/* Adds one more, whether or not @key is there. 0 or -ENOMEM. */
int opts_add(struct opts *o, const char *key, const char *value);

/* Takes out every @key, its bare and its "nokey" form too. Says whether there was one. */
bool opts_del(struct opts *o, const char *key);

/* Writes it as an argument again. 0 or -ENOMEM. */
int opts_print(const struct opts *o, char **ret_text);

void opts_freep(struct opts **o);
#define _cleanup_opts_ _cleanup_(opts_freep)

#endif
