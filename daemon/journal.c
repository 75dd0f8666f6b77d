/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The journal: what every running upgrade has got to. upgrade.c appends,
 * recover.c replays it after the daemon was restarted and decides by one
 * rule: no COMMIT record, roll back; COMMIT record, roll forward.
 *
 * It lives in the runtime directory (a tmpfs), on purpose: it speaks of
 * processes and of memory behind file descriptors, and must not outlive them.
 * When the host goes down, all guests go with it and there is nothing to
 * recover; a journal that was still there after a boot would speak of pids
 * that are someone else's. So fdatasync() costs nothing there, and is done all
 * the same for those who put the runtime directory on a disk.
 *
 * Owns the file. When the daemon dies inside an append, the tail is torn: that
 * record was never acknowledged to anyone, and is cut off at the next start.
 */
#include "journal.h"

#include "frames.h"
#include "log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#define COMPACT_BYTES (256 * 1024)

struct journal {
	int fd;
	bool newer;
};

static int note_version(const void *data, size_t len, void *userdata)
{
	_cleanup_message_ JournalRecord *record = NULL;
	struct journal *j = userdata;

	record = upgraded__v1__journal_record__unpack(NULL, len, data);
	if (!record || record->version > JOURNAL_VERSION)
		j->newer = true;
	return 0;
}

int journal_open(const char *dir, struct journal **ret_journal, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	struct journal *j = NULL;
	off_t end, torn;
	int r;

	if (asprintf(&path, "%s/journal", dir) < 0) {
		path = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	j = calloc(1, sizeof(*j));
	if (!j)
		return error_set(err, -ENOMEM, "out of memory");
	j->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd < 0) {
		r = error_errno(err, -errno, "cannot open the journal %s", path);
		goto fail;
	}
	r = frame_read(j->fd, note_version, j, &end, &torn);
	if (r < 0) {
		error_errno(err, r, "cannot read the journal %s", path);
		goto fail;
	}
	if (j->newer) {
		log_line(LOG_ERR, "%s was written by a newer upgraded; no upgrade can start", path);
	} else if (torn > 0) {
		log_line(LOG_WARNING, "%s: %lld bytes at its end are no whole record, cut off",
			 path, (long long)torn);
		if (ftruncate(j->fd, end) < 0) {
			r = error_errno(err, -errno, "cannot cut the journal %s", path);
			goto fail;
		}
	}
	*ret_journal = j;
	return 0;
fail:
	journal_freep(&j);
	return r;
}

int journal_writable(struct journal *j, struct error *err)
{
	if (!j->newer)
		return 0;
	error_set(err, -EPROTONOSUPPORT,
		  "the journal has records of a newer upgraded than this one");
	error_hint(err, "start the newer upgraded again and let it finish");
	return -EPROTONOSUPPORT;
}

int journal_append(struct journal *j, JournalRecord *record, struct error *err)
{
	_cleanup_free_ uint8_t *data = NULL;
	struct timespec now;
	struct stat st;
	size_t len;
	int r;

	r = journal_writable(j, err);
	if (r < 0)
		return r;
	clock_gettime(CLOCK_REALTIME, &now);
	record->version = JOURNAL_VERSION;
	record->at_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
	r = message_pack(record, &data, &len);
	if (r < 0)
		return error_set(err, r, "out of memory");
	if (fstat(j->fd, &st) < 0)
		return error_errno(err, -errno, "cannot write the journal");
	r = frame_append(j->fd, data, len);
	if (r < 0)
		return error_errno(err, r, "cannot write the journal");
	if (record->kind != UPGRADED__V1__JOURNAL_RECORD__KIND__INTENT &&
	    record->kind != UPGRADED__V1__JOURNAL_RECORD__KIND__COMMIT)
		return 0;
	if (fdatasync(j->fd) < 0) {
		r = -errno;
		/* Not on disk for sure is as good as not written: say the same thing twice. */
		if (ftruncate(j->fd, st.st_size) < 0)
			log_line(LOG_CRIT, "the journal holds a record that failed to sync");
		return error_errno(err, r, "cannot sync the journal");
	}
	return 0;
}

struct replay {
	journal_fn fn;
	void *userdata;
};

static int replay_one(const void *data, size_t len, void *userdata)
{
	_cleanup_message_ JournalRecord *record = NULL;
	struct replay *replay = userdata;

	record = upgraded__v1__journal_record__unpack(NULL, len, data);
	if (!record)
		return -EBADMSG;
	return replay->fn(record, replay->userdata);
}

int journal_replay(struct journal *j, journal_fn fn, void *userdata, struct error *err)
{
	struct replay replay = { fn, userdata };
	off_t end, torn;
	int r;

	r = journal_writable(j, err);
	if (r < 0)
		return r;
	r = frame_read(j->fd, replay_one, &replay, &end, &torn);
	return r < 0 ? error_errno(err, r, "cannot replay the journal") : 0;
}

void journal_compact(struct journal *j)
{
	struct stat st;

	if (j->newer || fstat(j->fd, &st) < 0 || st.st_size < COMPACT_BYTES)
		return;
	if (ftruncate(j->fd, 0) < 0)
		log_line(LOG_WARNING, "cannot empty the journal: %m");
}

void journal_freep(struct journal **j)
{
	if (*j)
		closep(&(*j)->fd);
	free(*j);
	*j = NULL;
}
