/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every running upgrade has got to: see journal.c. */
#ifndef UPGRADED_JOURNAL_H
#define UPGRADED_JOURNAL_H

#include "error.h"
#include "message.h"

#include <stdbool.h>

#define JOURNAL_VERSION 1

struct journal;

/*
 * Opens or makes @dir/journal; a torn tail is cut off and logged. A journal
 * with records of a newer version opens, but takes no record.
 */
int journal_open(const char *dir, struct journal **ret_journal, struct error *err);

/*
 * Appends @record (sets its version and time); INTENT and COMMIT are synced.
 * When this fails the record is not in the journal.
 */
int journal_append(struct journal *j, JournalRecord *record, struct error *err);

typedef int (*journal_fn)(const JournalRecord *record, void *userdata);

/* Calls @fn for every record, oldest first. 0 or what @fn returned < 0. */
int journal_replay(struct journal *j, journal_fn fn, void *userdata, struct error *err);

/* Empties it if it has grown; only while no upgrade is running. */
void journal_compact(struct journal *j);

/* 0, or -EPROTONOSUPPORT: a newer upgraded wrote it, start nothing. */
int journal_writable(struct journal *j, struct error *err);

void journal_freep(struct journal **j);

#endif
