/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/history.c to its word: reports come back newest first, across
 * restarts and a rotation, and a damaged file costs only what is damaged.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "history.h"
#include "temp_dir.h"

#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

struct fixture {
	char dir[TEMP_DIR];
	char path[80];
	char old[80];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	temp_dir_make(f->dir);
	snprintf(f->path, sizeof(f->path), "%s/history", f->dir);
	snprintf(f->old, sizeof(f->old), "%s/history.1", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	/* Of a test that failed in between. */
	(void)umount2(f->dir, MNT_DETACH);
	temp_dir_remove(f->dir);
	free(f);
	return 0;
}

static struct history *open_history(struct fixture *f, off_t rotate, uint64_t expected_last)
{
	struct history *h = NULL;
	uint64_t last;

	assert_int_equal(history_open(f->dir, rotate, &h, &last, NULL), 0);
	assert_int_equal(last, expected_last);
	return h;
}

static void append(struct history *h, uint64_t id, const char *vm)
{
	Report report = UPGRADED__V1__REPORT__INIT;

	report.upgrade_id = id;
	report.vm = (char *)vm;
	history_append(h, &report);
}

static void assert_reads(struct history *h, const char *name, uint32_t limit, const char *expected)
{
	char log[1024] = "";
	Report **reports;
	size_t n;

	assert_int_equal(history_read(h, name, limit, &reports, &n), 0);
	for (size_t i = 0; i < n; i++)
		sprintf(log + strlen(log), "%s:%d ", reports[i]->vm, (int)reports[i]->upgrade_id);
	history_free_reports(reports, n);
	assert_string_equal(log, expected);
}

static void reports_come_newest_first_with_filter_and_limit(void **state)
{
	_cleanup_(history_freep) struct history *h = open_history(*state, 1 << 20, 0);

	assert_reads(h, "", 0, "");
	append(h, 1, "a");
	append(h, 2, "b");
	append(h, 3, "a");
	assert_reads(h, "", 0, "a:3 b:2 a:1 ");
	assert_reads(h, "a", 0, "a:3 a:1 ");
	assert_reads(h, "a", 1, "a:3 ");
	assert_reads(h, "", 2, "a:3 b:2 ");
	assert_reads(h, "c", 0, "");
}

static void history_and_last_id_survive_a_restart(void **state)
{
	_cleanup_(history_freep) struct history *h = open_history(*state, 1 << 20, 0);

	append(h, 41, "a");
	append(h, 42, "b");
	history_freep(&h);
	h = open_history(*state, 1 << 20, 42);
	assert_reads(h, "", 0, "b:42 a:41 ");
}

static void torn_tail_costs_one_report(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = open_history(f, 1 << 20, 0);
	struct stat st;

	append(h, 1, "a");
	append(h, 2, "a");
	history_freep(&h);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(truncate(f->path, st.st_size - 1), 0);
	h = open_history(f, 1 << 20, 1);
	append(h, 3, "a");
	assert_reads(h, "", 0, "a:3 a:1 ");
}

static void zeros_at_the_end_are_no_reports(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = open_history(f, 1 << 20, 0);
	struct stat st;

	append(h, 1, "a");
	history_freep(&h);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(truncate(f->path, st.st_size + 800), 0);
	h = open_history(f, 1 << 20, 1);
	append(h, 2, "a");
	assert_reads(h, "", 0, "a:2 a:1 ");
}

static void rotation_keeps_the_newest_and_bounds_the_size(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = open_history(f, 200, 0);
	struct stat st;

	for (uint64_t id = 1; id <= 100; id++) {
		append(h, id, "a");
		assert_int_equal(stat(f->path, &st), 0);
		assert_true(st.st_size < 250);
	}
	assert_reads(h, "", 2, "a:100 a:99 ");
	history_freep(&h);
	h = open_history(f, 200, 100);
	/* Right after a rotation the newest report is in the older file. */
	unlink(f->path);
	history_freep(&h);
	assert_int_equal(stat(f->old, &st), 0);
	assert_true(st.st_size < 250);
}

static void file_that_is_no_history_is_not_believed(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = NULL;
	FILE *file = fopen(f->path, "w");

	for (int i = 0; i < 1000; i++)
		fputs("not a history ", file);
	fclose(file);
	h = open_history(f, 1 << 20, 0);
	append(h, 1, "a");
	assert_reads(h, "", 0, "a:1 ");
}

static void history_that_cannot_be_opened_keeps_no_daemon_from_starting(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = NULL;
	Report **reports;
	size_t n;

	assert_int_equal(mkdir(f->path, 0700), 0);
	h = open_history(f, 1 << 20, 0);
	assert_true(history_read(h, "", 0, &reports, &n) < 0);
	append(h, 1, "a");
	assert_int_equal(rmdir(f->path), 0);
	/* As soon as it can be. */
	append(h, 2, "a");
	assert_reads(h, "", 0, "a:2 ");
}

/* As /var after an error of its disk. */
static void history_on_a_read_only_file_system_is_read(void **state)
{
	struct fixture *f = *state;
	_cleanup_(history_freep) struct history *h = NULL;

	if (geteuid() || mount("none", f->dir, "tmpfs", 0, "size=1m"))
		skip();
	h = open_history(f, 1 << 20, 0);
	append(h, 1, "a");
	history_freep(&h);
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=1m"), 0);
	h = open_history(f, 1 << 20, 1);
	append(h, 2, "a");
	assert_reads(h, "", 0, "a:1 ");
	history_freep(&h);
	assert_int_equal(umount(f->dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(reports_come_newest_first_with_filter_and_limit),
		TEST(history_and_last_id_survive_a_restart),
		TEST(torn_tail_costs_one_report),
		TEST(zeros_at_the_end_are_no_reports),
		TEST(rotation_keeps_the_newest_and_bounds_the_size),
		TEST(file_that_is_no_history_is_not_believed),
		TEST(history_that_cannot_be_opened_keeps_no_daemon_from_starting),
		TEST(history_on_a_read_only_file_system_is_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
