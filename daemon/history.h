/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The reports of past upgrades: see history.c. */
#ifndef UPGRADED_HISTORY_H
#define UPGRADED_HISTORY_H

#include "error.h"
#include "message.h"

struct history;

#define HISTORY_ROTATE_BYTES (4 * 1024 * 1024)

/* Opens @dir/history. *ret_last_id is the greatest upgrade id in it, 0: none. */
int history_open(const char *dir, off_t rotate_bytes, struct history **ret_history,
		 uint64_t *ret_last_id, struct error *err);

/* Appends; a failure is logged and lost, it never fails an upgrade. */
void history_append(struct history *h, const Report *report);

/*
 * The newest @limit (0: all) reports of the VM @name (empty: every VM), newest
 * first; *ret_reports and its entries are freed with history_free_reports().
 */
int history_read(struct history *h, const char *name, uint32_t limit, Report ***ret_reports,
		 size_t *ret_n);

void history_free_reports(Report **reports, size_t n);

void history_freep(struct history **h);

#endif
