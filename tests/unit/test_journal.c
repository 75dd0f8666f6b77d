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

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <signal.h>

struct fixture {
	char dir[64];
	char path[80];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->dir, "/tmp/upgraded-journal-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/journal", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	unlink(f->path);
	rmdir(f->dir);
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
		journal_compact(j);
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

static void compact_empties_only_what_has_grown(void **state)
{
	struct fixture *f = *state;

	write_three(f);
	{
		_cleanup_(journal_freep) struct journal *j = open_journal(f);

		journal_compact(j);
		assert_true(size_of(f) > 0);
		while (size_of(f) < 256 * 1024)
			assert_int_equal(append(j, 2, 7), 0);
		journal_compact(j);
		assert_int_equal(size_of(f), 0);
		assert_int_equal(append(j, 1, 8), 0);
	}
	assert_holds(f, "1:8 ");
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
		TEST(compact_empties_only_what_has_grown),
		TEST(symlink_in_place_of_the_journal_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
