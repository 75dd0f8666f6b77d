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
 * Owns the file. What if it is not as it should be?
 *
 *   torn tail           that record was never acknowledged to anyone: cut off
 *   bad checksum        the same, from there on
 *   full disk           a record is written whole or not at all. INTENT: refused.
 *                       COMMIT: rolled back. An END is owed: it is written before
 *                       the next INTENT, or that is refused; until then a restart
 *                       would only undo or finish once more what is undone or done.
 *                       Without memory to note that: nothing begins until it has been
 *                       compacted, which leaves out what has ended
 *   sync fails          the record is taken back, and the answer is no
 *   ... nor can it be   nothing is written behind it, where nobody would read it,
 *   taken back          until it could be
 *   read-only           what was running is taken up and ended; nothing new begins
 *   the one before us   its records say version 1, and are understood
 *   a newer one         is not touched, nothing is taken up, nothing begins
 *
 * What if the daemon dies right now? In an append: the tail is torn. While what
 * has ended is left out of it (journal_compact): before the rename the old file is
 * whole and the new one is a name that nobody reads; after it the new one is.
 */
#include "journal.h"

#include "clock.h"
#include "frames.h"
#include "log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define COMPACT_BYTES (256 * 1024)

#define KIND(x) UPGRADED__V1__JOURNAL_RECORD__KIND__##x

struct journal {
	int dir;
	int fd; /* -EBADF: read-only, and there is none */
	bool newer;
	bool read_only;
	uint64_t *owed; /* upgrades whose END could not be written */
	size_t n_owed;
	bool end_lost; /* one more, which there was no memory to note */
	off_t torn_at; /* what is there from here on could not be cut off; -1: nothing */
};

/* The oldest version that understands a record of this kind. */
static uint32_t version_of(Upgraded__V1__JournalRecord__Kind kind)
{
	return kind == KIND(REBUILD) ? 2 : 1;
}

static int note_version(const void *data, size_t len, void *userdata)
{
	_cleanup_message_ JournalRecord *record = NULL;
	struct journal *j = userdata;

	record = upgraded__v1__journal_record__unpack(NULL, len, data);
	if (!record || record->version > JOURNAL_VERSION)
		j->newer = true;
	return 0;
}

static int open_file(struct journal *j)
{
	j->fd = openat(j->dir, "journal", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd >= 0)
		return 0;
	if (errno != EROFS)
		return -errno;
	j->read_only = true;
	j->fd = openat(j->dir, "journal", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	return j->fd < 0 && errno != ENOENT ? -errno : 0;
}

/* Every record, oldest first, as frame_read(). */
static int read_all(struct journal *j, frame_fn fn, void *userdata, off_t *ret_end, off_t *ret_torn)
{
	*ret_end = *ret_torn = 0;
	return j->fd < 0 ? 0 : frame_read(j->fd, fn, userdata, ret_end, ret_torn);
}

int journal_open(const char *dir, struct journal **ret_journal, struct error *err)
{
	struct journal *j = NULL;
	off_t end, torn;
	int r;

	j = calloc(1, sizeof(*j));
	if (!j)
		return error_set(err, -ENOMEM, "out of memory");
	j->fd = -EBADF;
	j->torn_at = -1;
	j->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = j->dir < 0 ? -errno : open_file(j);
	if (r < 0) {
		error_errno(err, r, "cannot open the journal %s/journal", dir);
		goto fail;
	}
	r = read_all(j, note_version, j, &end, &torn);
	if (r < 0) {
		error_errno(err, r, "cannot read the journal %s/journal", dir);
		goto fail;
	}
	if (j->newer) {
		log_line(LOG_ERR, "%s/journal was written by a newer upgraded; no upgrade can start",
			 dir);
	} else if (j->read_only) {
		log_line(LOG_ERR, "%s/journal is on a read-only file system; no upgrade can start",
			 dir);
	} else if (torn > 0) {
		log_line(LOG_WARNING, "%s/journal: %lld bytes at its end are no whole record, cut off",
			 dir, (long long)torn);
		if (ftruncate(j->fd, end) < 0) {
			r = error_errno(err, -errno, "cannot cut the journal %s/journal", dir);
			goto fail;
		}
	}
	*ret_journal = j;
	return 0;
fail:
	journal_freep(&j);
	return r;
}

bool journal_readable(const struct journal *j)
{
	return !j->newer;
}

int journal_writable(struct journal *j, struct error *err)
{
	if (j->newer) {
		error_set(err, -EPROTONOSUPPORT,
			  "the journal has records of a newer upgraded than this one");
		error_hint(err, "start the newer upgraded again and let it finish");
		return -EPROTONOSUPPORT;
	}
	if (!j->read_only)
		return 0;
	error_set(err, -EROFS, "the journal is on a read-only file system");
	error_hint(err, "make the runtime directory writable, and restart upgraded");
	return -EROFS;
}

/* What could not be taken back hides all that is behind it from the reader. */
static int cut(struct journal *j)
{
	if (j->torn_at >= 0 && ftruncate(j->fd, j->torn_at) < 0)
		return -errno;
	j->torn_at = -1;
	return 0;
}

/*
 * A record that may not have reached the disk is as good as not written: whoever
 * reads the journal later must find the same that the caller is told now.
 */
static void retract(struct journal *j, off_t at)
{
	static const uint8_t nothing[8];

	j->torn_at = at;
	if (cut(j) >= 0 || pwrite(j->fd, nothing, sizeof(nothing), at) == sizeof(nothing))
		return;
	log_line(LOG_CRIT, "the journal holds a record that failed to sync, and it cannot be taken "
			   "back: do not restart upgraded before all upgrades have ended");
}

static int append(struct journal *j, JournalRecord *record, struct error *err)
{
	_cleanup_free_ uint8_t *data = NULL;
	struct stat st;
	size_t len;
	int r;

	record->version = version_of(record->kind);
	record->at_us = realtime_us();
	r = message_pack(record, &data, &len);
	if (r < 0)
		return error_set(err, r, "out of memory");
	r = cut(j);
	if (r >= 0 && fstat(j->fd, &st) < 0)
		r = -errno;
	if (r < 0)
		return error_errno(err, r, "cannot write the journal");
	r = frame_append(j->fd, data, len);
	if (r < 0) {
		j->torn_at = st.st_size;
		(void)cut(j);
		return error_errno(err, r, "cannot write the journal");
	}
	if (record->kind != KIND(INTENT) && record->kind != KIND(COMMIT) &&
	    record->kind != KIND(REBUILD))
		return 0;
	if (fdatasync(j->fd) < 0) {
		r = -errno;
		retract(j, st.st_size);
		return error_errno(err, r, "cannot sync the journal");
	}
	return 0;
}

/* Without its END an upgrade would be taken up again: after a restart, and maybe after others of its VM. */
static int pay(struct journal *j, struct error *err)
{
	if (j->end_lost) {
		error_set(err, -ENOMEM,
			  "the journal lacks the end of an upgrade, for want of memory");
		error_hint(err, "try again when an upgrade that runs has ended");
		return -ENOMEM;
	}
	while (j->n_owed) {
		JournalRecord end = UPGRADED__V1__JOURNAL_RECORD__INIT;
		int r;

		end.kind = KIND(END);
		end.upgrade_id = j->owed[j->n_owed - 1];
		r = append(j, &end, err);
		if (r < 0)
			return r;
		j->n_owed--;
	}
	return 0;
}

static void owe(struct journal *j, uint64_t id)
{
	uint64_t *owed = reallocarray(j->owed, j->n_owed + 1, sizeof(*owed));

	if (!owed) {
		j->end_lost = true;
		return;
	}
	j->owed = owed;
	owed[j->n_owed++] = id;
}

int journal_append(struct journal *j, JournalRecord *record, struct error *err)
{
	int r;

	r = journal_writable(j, err);
	if (r >= 0 && record->kind == KIND(INTENT))
		r = pay(j, err);
	if (r >= 0)
		r = append(j, record, err);
	if (r < 0 && record->kind == KIND(END) && !j->newer && !j->read_only)
		owe(j, record->upgrade_id);
	return r;
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

	if (!journal_readable(j))
		return journal_writable(j, err);
	r = read_all(j, replay_one, &replay, &end, &torn);
	return r < 0 ? error_errno(err, r, "cannot replay the journal") : 0;
}

struct compaction {
	journal_keep_fn keep;
	void *userdata;
	int fd;
};

static int keep_one(const void *data, size_t len, void *userdata)
{
	_cleanup_message_ JournalRecord *record = NULL;
	struct compaction *c = userdata;

	record = upgraded__v1__journal_record__unpack(NULL, len, data);
	if (!record)
		return -EBADMSG;
	return c->keep(record->upgrade_id, c->userdata) ? frame_append(c->fd, data, len) : 0;
}

/* What was left out needs no END; what was kept does still. */
static void forget_owed(struct journal *j, journal_keep_fn keep, void *userdata)
{
	size_t n = 0;

	for (size_t i = 0; i < j->n_owed; i++)
		if (keep(j->owed[i], userdata))
			j->owed[n++] = j->owed[i];
	j->n_owed = n;
	j->end_lost = false;
}

static int leave_out_ended(struct journal *j, journal_keep_fn keep, void *userdata)
{
	_cleanup_close_ int fd = openat(j->dir, "journal.new",
					O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct compaction c = { keep, userdata, fd };
	off_t end, torn;
	int r;

	if (fd < 0)
		return -errno;
	r = cut(j);
	if (r >= 0)
		r = frame_read(j->fd, keep_one, &c, &end, &torn);
	if (r >= 0 && (fdatasync(fd) < 0 || renameat(j->dir, "journal.new", j->dir, "journal") < 0))
		r = -errno;
	if (r < 0) {
		(void)unlinkat(j->dir, "journal.new", 0);
		return r;
	}
	closep(&j->fd);
	j->fd = TAKE_FD(fd);
	forget_owed(j, keep, userdata);
	/* The name must be on disk before a record in it is acknowledged. */
	return fsync(j->dir) < 0 ? -errno : 0;
}

void journal_compact(struct journal *j, journal_keep_fn keep, void *userdata)
{
	struct stat st;
	int r;

	if (journal_writable(j, NULL) < 0 || fstat(j->fd, &st) < 0 || !st.st_size)
		return;
	if (!keep) {
		r = ftruncate(j->fd, 0) < 0 ? -errno : 0;
		if (r >= 0) {
			j->n_owed = 0;
			j->end_lost = false;
			j->torn_at = -1;
		}
	} else {
		r = st.st_size < COMPACT_BYTES && !j->end_lost ? 0
							       : leave_out_ended(j, keep, userdata);
	}
	if (r < 0)
		log_line(LOG_WARNING, "the journal could not be made smaller: %s", strerror(-r));
}

void journal_freep(struct journal **j)
{
	if (*j) {
		closep(&(*j)->fd);
		closep(&(*j)->dir);
		free((*j)->owed);
	}
	free(*j);
	*j = NULL;
}
