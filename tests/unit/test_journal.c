/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/journal.c to its word: what was acknowledged is there after a
 * death, what was cut short is not, and a newer version's journal is left
 * alone. Each test has a directory of its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "frames.h"
#include "journal.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <signal.h>

struct fixture {
	char dir[TEMP_DIR];
	char path[80];
};

/* In place of libc's, for what no limit brings about. */
static bool cannot_cut, cannot_sync, no_memory;

int ftruncate(int fd, off_t length)
{
	if (!cannot_cut)
		return (int)syscall(SYS_ftruncate, fd, length);
	errno = EIO;
	return -1;
}

int fdatasync(int fd)
{
	if (!cannot_sync)
		return (int)syscall(SYS_fdatasync, fd);
	errno = EIO;
	return -1;
}

void *reallocarray(void *p, size_t n, size_t size)
{
	if (!no_memory)
		return realloc(p, n * size);
	errno = ENOMEM;
	return NULL;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	temp_dir_make(f->dir);
	snprintf(f->path, sizeof(f->path), "%s/journal", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	/* Of a test that failed in between. */
	cannot_cut = cannot_sync = no_memory = false;
	(void)umount2(f->dir, MNT_DETACH);
	temp_dir_remove(f->dir);
	free(f);
	return 0;
}

static struct journal *open_journal(struct fixture *f)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct journal *j = NULL;

	if (journal_open(f->dir, &j, &err) < 0)
		fail_msg("journal_open: %s", err.text);
	return j;
}

static int append(struct journal *j, int kind, uint64_t id)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;

	record.kind = (Upgraded__V1__JournalRecord__Kind)kind;
	record.upgrade_id = id;
	return journal_append(j, &record, NULL);
}

/* Writes "kind:id " for every record. */
static int note(const JournalRecord *record, void *userdata)
{
	char *log = userdata;

	sprintf(log + strlen(log), "%d:%d ", (int)record->kind, (int)record->upgrade_id);
	return 0;
}

static void assert_holds(struct fixture *f, const char *expected)
{
	_cleanup_(journal_freep) struct journal *j = open_journal(f);
	char log[256] = "";

	assert_int_equal(journal_replay(j, note, log, NULL), 0);
	assert_string_equal(log, expected);
}

static off_t size_of(struct fixture *f)
{
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	return st.st_size;
}

static void write_three(struct fixture *f)
{
	_cleanup_(journal_freep) struct journal *j = open_journal(f);

	assert_int_equal(append(j, 1, 7), 0);
	assert_int_equal(append(j, 4, 7), 0);
	assert_int_equal(append(j, 5, 7), 0);
}

static void crc32c_is_castagnoli(void **state)
{
	assert_int_equal(crc32c("123456789", 9), 0xe3069283);
}

static void records_come_back_in_order_after_a_restart(void **state)
{
	write_three(*state);
	assert_holds(*state, "1:7 4:7 5:7 ");
	assert_holds(*state, "1:7 4:7 5:7 ");
}

static void torn_tail_is_cut_at_every_length(void **state)
{
	struct fixture *f = *state;
	off_t full;

	write_three(f);
	full = size_of(f);
	/* Records of one size, so a cut at any byte leaves this many whole ones. */
	assert_int_equal(full % 3, 0);
	for (off_t cut = full - 1; cut > 0; cut--) {
		off_t whole = cut / (full / 3);

		unlink(f->path);
		write_three(f);
		assert_int_equal(truncate(f->path, cut), 0);
		assert_holds(f, whole == 2 ? "1:7 4:7 " : whole == 1 ? "1:7 " : "");
		assert_int_equal(size_of(f), whole * (full / 3));
	}
}

static void flipped_bit_ends_the_journal_there(void **state)
{
	struct fixture *f = *state;
	int fd, third;
	char c;

	write_three(f);
	third = (int)(size_of(f) / 3);
	fd = open(f->path, O_RDWR);
	assert_int_equal(pread(fd, &c, 1, third + 9), 1);
	c ^= 0x10;
	assert_int_equal(pwrite(fd, &c, 1, third + 9), 1);
	close(fd);
	assert_holds(f, "1:7 ");
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		assert_int_equal(append(j, 1, 8), 0);
	}
	assert_holds(f, "1:7 1:8 ");
}

static void newer_version_is_refused_and_left_as_it_is(void **state)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ uint8_t *data = NULL;
	struct fixture *f = *state;
	off_t before;
	size_t len;
	int fd;

	write_three(f);
	record.version = JOURNAL_VERSION + 1;
	assert_int_equal(message_pack(&record, &data, &len), 0);
	fd = open(f->path, O_RDWR);
	assert_int_equal(frame_append(fd, data, len), 0);
	assert_int_equal(pwrite(fd, "torn", 4, lseek(fd, 0, SEEK_END)), 4);
	close(fd);
	before = size_of(f);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		assert_int_equal(journal_writable(j, &err), -EPROTONOSUPPORT);
		assert_non_null(err.hint);
		assert_int_equal(append(j, 1, 9), -EPROTONOSUPPORT);
		journal_compact(j, NULL, NULL);
	}
	assert_int_equal(size_of(f), before);
}

static void full_disk_leaves_no_half_record(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, small;
	off_t before;

	write_three(f);
	before = size_of(f);
	/* A file size limit in the middle of the next record is a disk that is full there. */
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = (rlim_t)before + 5;
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
		assert_true(append(j, 4, 9) < 0);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
		assert_int_equal(size_of(f), before);
		assert_int_equal(append(j, 4, 10), 0);
	}
	assert_holds(f, "1:7 4:7 5:7 4:10 ");
}

/* A file size limit in the middle of the next record is a disk that is full there. */
static struct rlimit limit_size(off_t bytes)
{
	struct rlimit old, small;

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = (rlim_t)bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	return old;
}

/* Half a record is written, and cannot be taken back at once. */
static void tear(struct fixture *f, struct journal *j, off_t size)
{
	struct rlimit old = limit_size(size + 5);

	cannot_cut = true;
	assert_true(append(j, 4, 10) < 0);
	cannot_cut = false;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_true(size_of(f) > size);
}

static bool is_eight(uint64_t id, void *userdata)
{
	return id == 8;
}

static void journal_of_nothing_that_runs_is_emptied(void **state)
{
	struct fixture *f = *state;

	write_three(f);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		journal_compact(j, NULL, NULL);
		assert_int_equal(size_of(f), 0);
		assert_int_equal(append(j, 1, 8), 0);
	}
	assert_holds(f, "1:8 ");
}

static void journal_that_has_grown_keeps_what_runs(void **state)
{
	struct fixture *f = *state;

	write_three(f);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);
		off_t before;

		assert_int_equal(append(j, 1, 8), 0);
		before = size_of(f);
		journal_compact(j, is_eight, NULL);
		assert_int_equal(size_of(f), before);
		while (size_of(f) < 256 * 1024)
			assert_int_equal(append(j, 2, 7), 0);
		assert_int_equal(append(j, 4, 8), 0);
		journal_compact(j, is_eight, NULL);
		assert_true(size_of(f) < 1024);
		assert_int_equal(append(j, 5, 8), 0);
	}
	assert_holds(f, "1:8 4:8 5:8 ");
}

/* As it is left when the daemon dies before the rename. */
static void unfinished_compaction_changes_nothing(void **state)
{
	struct fixture *f = *state;
	char fresh[96];
	int fd;

	write_three(f);
	snprintf(fresh, sizeof(fresh), "%s.new", f->path);
	fd = open(fresh, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(write(fd, "half a record", 13), 13);
	close(fd);
	assert_holds(f, "1:7 4:7 5:7 ");
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		while (size_of(f) < 256 * 1024)
			assert_int_equal(append(j, 2, 7), 0);
		assert_int_equal(append(j, 1, 8), 0);
		journal_compact(j, is_eight, NULL);
	}
	assert_holds(f, "1:8 ");
	assert_int_equal(access(fresh, F_OK), -1);
}

/* Else a restart would undo 7 once more, after 8 of the same VM has committed. */
static void end_that_found_no_room_is_written_before_anything_begins(void **state)
{
	_cleanup_(journal_freep) struct journal *j = NULL;
	struct rlimit old, small;
	struct fixture *f = *state;

	signal(SIGXFSZ, SIG_IGN);
	j = open_journal(f);
	assert_int_equal(append(j, 1, 7), 0);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = (rlim_t)size_of(f) + 5;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_true(append(j, 5, 7) < 0);
	assert_true(append(j, 1, 8) < 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_holds(f, "1:7 ");
	assert_int_equal(append(j, 1, 8), 0);
	assert_int_equal(append(j, 1, 9), 0);
	assert_holds(f, "1:7 5:7 1:8 1:9 ");
}

/* As of one that is told of, and ends a moment later: its records are still kept. */
static void end_that_is_owed_outlives_a_compaction(void **state)
{
	_cleanup_(journal_freep) struct journal *j = NULL;
	struct fixture *f = *state;
	struct rlimit old;

	j = open_journal(f);
	assert_int_equal(append(j, 1, 8), 0);
	while (size_of(f) < 256 * 1024)
		assert_int_equal(append(j, 2, 7), 0);
	old = limit_size(size_of(f) + 5);
	assert_true(append(j, 5, 7) < 0);
	assert_true(append(j, 5, 8) < 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	journal_compact(j, is_eight, NULL);
	assert_holds(f, "1:8 ");
	assert_int_equal(append(j, 1, 9), 0);
	assert_holds(f, "1:8 5:8 1:9 ");
}

/* What was written behind it would not be read. */
static void nothing_is_written_behind_what_cannot_be_taken_back(void **state)
{
	_cleanup_(journal_freep) struct journal *j = NULL;
	struct fixture *f = *state;

	write_three(f);
	j = open_journal(f);
	cannot_cut = cannot_sync = true;
	assert_int_equal(append(j, 4, 9), -EIO);
	cannot_sync = false;
	assert_true(append(j, 1, 8) < 0);
	assert_true(append(j, 5, 9) < 0);
	cannot_cut = false;
	assert_int_equal(append(j, 1, 8), 0);
	assert_holds(f, "1:7 4:7 5:7 5:9 1:8 ");
	/* Nor behind half a record. */
	tear(f, j, size_of(f));
	assert_int_equal(append(j, 4, 8), 0);
	assert_holds(f, "1:7 4:7 5:7 5:9 1:8 4:8 ");
}

static void nothing_begins_while_an_end_is_lost_for_want_of_memory(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	JournalRecord intent = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_(journal_freep) struct journal *j = NULL;
	struct fixture *f = *state;
	struct rlimit old;

	j = open_journal(f);
	assert_int_equal(append(j, 1, 7), 0);
	old = limit_size(size_of(f) + 5);
	no_memory = true;
	assert_true(append(j, 5, 7) < 0);
	no_memory = false;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	intent.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__INTENT;
	intent.upgrade_id = 8;
	assert_int_equal(journal_append(j, &intent, &err), -ENOMEM);
	assert_non_null(err.hint);
	/* Another one that runs is still written down, and kept. */
	assert_int_equal(append(j, 4, 8), 0);
	journal_compact(j, is_eight, NULL);
	assert_holds(f, "4:8 ");
	assert_int_equal(append(j, 1, 9), 0);
}

static void full_file_system_is_said_and_leaves_no_half_record(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	struct fixture *f = *state;
	char filler[96], block[4096] = { 1 };
	off_t before;
	int fd;

	if (geteuid() || mount("none", f->dir, "tmpfs", 0, "size=64k"))
		skip();
	snprintf(filler, sizeof(filler), "%s/filler", f->dir);
	write_three(f);
	before = size_of(f);
	fd = open(filler, O_WRONLY | O_CREAT, 0600);
	while (write(fd, block, sizeof(block)) > 0)
		;
	close(fd);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);
		off_t last;

		/* What is left of its last page. */
		record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__COMMIT;
		record.upgrade_id = 9;
		do
			last = size_of(f);
		while (journal_append(j, &record, &err) >= 0);
		assert_int_equal(err.code, -ENOSPC);
		assert_non_null(strstr(err.text, "cannot write the journal"));
		assert_int_equal(size_of(f), last);
		assert_true(last >= before);
		unlink(filler);
		assert_int_equal(append(j, 5, 9), 0);
	}
	umount(f->dir);
}

static void read_only_journal_is_read_and_takes_no_record(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	if (geteuid() || mount("none", f->dir, "tmpfs", 0, "size=64k"))
		skip();
	/* First without a journal, then with one that is torn. */
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64k"), 0);
	assert_holds(f, "");
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT, "size=64k"), 0);
	write_three(f);
	assert_int_equal(truncate(f->path, size_of(f) - 1), 0);
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64k"), 0);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		assert_true(journal_readable(j));
		assert_int_equal(journal_writable(j, &err), -EROFS);
		assert_non_null(err.hint);
		assert_int_equal(append(j, 1, 9), -EROFS);
		assert_int_equal(append(j, 5, 7), -EROFS);
		journal_compact(j, NULL, NULL);
	}
	assert_holds(f, "1:7 4:7 ");
	umount(f->dir);
}

/* INTENT and COMMIT of upgrade 7 as the version before wrote them, byte by byte. */
static void journal_of_the_version_before_is_understood(void **state)
{
	static const uint8_t intent[] = { 0x08, 1, 0x10, 1, 0x18, 7, 0x20, 5, 0x2a, 2, 0x10, 7 };
	static const uint8_t commit[] = { 0x08, 1, 0x10, 4, 0x18, 7, 0x20, 6 };
	struct fixture *f = *state;
	int fd = open(f->path, O_RDWR | O_CREAT, 0600);

	assert_int_equal(frame_append(fd, intent, sizeof(intent)), 0);
	assert_int_equal(frame_append(fd, commit, sizeof(commit)), 0);
	close(fd);
	assert_holds(f, "1:7 4:7 ");
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		assert_int_equal(append(j, 5, 7), 0);
	}
	assert_holds(f, "1:7 4:7 5:7 ");
}

static int note_version(const JournalRecord *record, void *userdata)
{
	char *log = userdata;

	sprintf(log + strlen(log), "%u", record->version);
	return 0;
}

/* So that it can be gone back to, unless there is something in it that it would get wrong. */
static void version_before_can_read_all_but_a_rebuild(void **state)
{
	_cleanup_(journal_freep) struct journal *j = open_journal(*state);
	char log[16] = "";

	for (int kind = 1; kind <= 6; kind++)
		assert_int_equal(append(j, kind, 7), 0);
	assert_int_equal(journal_replay(j, note_version, log, NULL), 0);
	assert_string_equal(log, "111112");
}

static void symlink_in_place_of_the_journal_is_refused(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;
	struct journal *j = NULL;

	assert_int_equal(symlink("/etc/passwd", f->path), 0);
	assert_int_equal(journal_open(f->dir, &j, &err), -ELOOP);
	assert_null(j);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crc32c_is_castagnoli),
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(records_come_back_in_order_after_a_restart),
		TEST(torn_tail_is_cut_at_every_length),
		TEST(flipped_bit_ends_the_journal_there),
		TEST(newer_version_is_refused_and_left_as_it_is),
		TEST(full_disk_leaves_no_half_record),
		TEST(journal_of_nothing_that_runs_is_emptied),
		TEST(journal_that_has_grown_keeps_what_runs),
		TEST(unfinished_compaction_changes_nothing),
		TEST(end_that_found_no_room_is_written_before_anything_begins),
		TEST(end_that_is_owed_outlives_a_compaction),
		TEST(nothing_is_written_behind_what_cannot_be_taken_back),
		TEST(nothing_begins_while_an_end_is_lost_for_want_of_memory),
		TEST(full_file_system_is_said_and_leaves_no_half_record),
		TEST(read_only_journal_is_read_and_takes_no_record),
		TEST(journal_of_the_version_before_is_understood),
		TEST(version_before_can_read_all_but_a_rebuild),
		TEST(symlink_in_place_of_the_journal_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
