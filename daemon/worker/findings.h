/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What `check` found: notes, warnings, blockers. */
#ifndef UPGRADED_FINDINGS_H
#define UPGRADED_FINDINGS_H

#include "upgraded.pb-c.h"

#include <stdbool.h>
#include <stddef.h>

typedef Upgraded__V1__Finding Finding;

struct findings {
	Finding **v;
	size_t n;
};

#define FINDINGS_INIT { 0 }

/*
 * Adds one. @code is stable and for machines, @subject names the option or
 * device, @remedy may be NULL; @fmt makes the sentence. 0 or -ENOMEM.
 */
int findings_add(struct findings *f, Upgraded__V1__Severity severity, const char *code,
		 const char *subject, const char *remedy, const char *fmt, ...)
	__attribute__((format(printf, 6, 7)));

size_t findings_count(const struct findings *f, Upgraded__V1__Severity severity);

/* Appends all of @from to @to; @from is empty afterwards. 0 or -ENOMEM. */
int findings_move(struct findings *to, struct findings *from);

void findings_clear(struct findings *f);

#endif
