/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every running upgrade has got to: see journal.c. */
#ifndef UPGRADED_JOURNAL_H
#define UPGRADED_JOURNAL_H

#include "error.h"
#include "message.h"

#include <stdbool.h>

/* The newest record that this understands. */
#define JOURNAL_VERSION 2

struct journal;

/*
 * Opens or makes @dir/journal; a torn tail is cut off and logged. A journal
 * with records of a newer version or on a read-only file system opens, but takes no record.
 */
int journal_open(const char *dir, struct journal **ret_journal, struct error *err);

/*
 * Appends @record (sets its version and time); INTENT, COMMIT and REBUILD are
 * synced. When this fails the record is not in the journal; an END is then
 * written later, before anything else begins.
 */
int journal_append(struct journal *j, JournalRecord *record, struct error *err);

typedef int (*journal_fn)(const JournalRecord *record, void *userdata);

/* Calls @fn for every record, oldest first. 0 or what @fn returned < 0. */
int journal_replay(struct journal *j, journal_fn fn, void *userdata, struct error *err);

/* Is upgrade @id still running? */
typedef bool (*journal_keep_fn)(uint64_t id, void *userdata);

/*
 * Empties it when nothing is running (@keep is NULL), or leaves out what has ended
 * when it has grown. A failure is logged: then it stays as it is.
 */
void journal_compact(struct journal *j, journal_keep_fn keep, void *userdata);

/* May it be replayed, and what it says be acted upon? Not when a newer upgraded wrote it. */
bool journal_readable(const struct journal *j);

/* 0, or why nothing may begin: -EPROTONOSUPPORT, -EROFS. */
int journal_writable(struct journal *j, struct error *err);

void journal_freep(struct journal **j);

#endif
