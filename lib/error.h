/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors as values. A function that can fail for a reason a user should read
 * takes a `struct error *err` last and returns a negative errno; the sentence
 * is attached where the reason is known and printed once, at the top.
 */
#ifndef UPGRADED_ERROR_H
#define UPGRADED_ERROR_H

#include "cleanup.h"

struct error {
	int code;   /* negative errno; 0: no error */
	char *text; /* one sentence, without a full stop at its end */
	char *hint; /* what to do or type next; may be NULL */
};

#define ERROR_INIT { 0 }

/*
 * Sets @err, unless it is NULL or holds an earlier (nearer to the cause)
 * error. Returns @code, which is negative.
 */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As error_set(), and adds ": " and the message of @code. */
int error_errno(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Attaches what to do about it. Returns err->code. */
int error_hint(struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the text, to say on which object it happened. */
int error_prefix(struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Moves @src into @dst (which must be clean). */
void error_move(struct error *dst, struct error *src);

void error_clear(struct error *err);

#define _cleanup_error_ _cleanup_(error_clear)

#endif
