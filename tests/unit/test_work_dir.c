/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The directory of a worker's run, with what the source's user may have put into it. */
#include "work_dir.h"
#include "temp_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* Deeper than a path can say. */
#define DEPTH 2000

struct place {
	char root[TEMP_DIR];
	char *work;
};

static void put_file(int dir, const char *name)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_return_code(fd, errno);
	close(fd);
}

static int set_up(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	char work[64];
	struct error err = ERROR_INIT;

	assert_non_null(p);
	temp_dir_make(p->root);
	snprintf(work, sizeof(work), "%s/work", p->root);
	assert_return_code(mkdir(work, 0711), errno);
	assert_int_equal(work_dir_make(p->root, "check-1", getpid(), &p->work, &err), 0);
	*state = p;
	return 0;
}

static int tear_down(void **state)
{
	struct place *p = *state;
	char path[64];

	snprintf(path, sizeof(path), "%s/work", p->root);
	assert_return_code(rmdir(path), errno);
	assert_return_code(rmdir(p->root), errno);
	free(p->work);
	free(p);
	return 0;
}

static void is_gone(const struct place *p)
{
	assert_int_equal(access(p->work, F_OK), -1);
	assert_int_equal(errno, ENOENT);
}

static void sockets_and_notes_are_removed(void **state)
{
	struct place *p = *state;
	char note[80];

	assert_int_equal(work_dir_write_worker(p->work, getpid()), 0);
	snprintf(note, sizeof(note), "%s.worker", p->work);
	assert_int_equal(access(note, F_OK), 0);
	work_dir_remove(p->work);
	is_gone(p);
	assert_int_equal(access(note, F_OK), -1);
}

/* The next check of this VM would find its directory taken, the package an upgrade under way. */
static void directories_of_the_sources_are_removed_however_deep(void **state)
{
	struct place *p = *state;
	int at = open(p->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (int i = 0; i < DEPTH; i++) {
		int next;

		assert_return_code(mkdirat(at, "d", 0700), errno);
		assert_return_code(mkdirat(at, ".removed-1", 0700), errno);
		put_file(at, "f");
		next = openat(at, "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		assert_return_code(next, errno);
		close(at);
		at = next;
	}
	close(at);
	work_dir_remove(p->work);
	is_gone(p);
}

static void where_links_lead_nothing_is_removed(void **state)
{
	struct place *p = *state;
	int dir = open(p->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int root = open(p->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC), sub;

	assert_return_code(mkdirat(root, "other", 0700), errno);
	sub = openat(root, "other", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	put_file(sub, "kept");
	close(sub);
	assert_return_code(symlinkat("../../other", dir, "link"), errno);
	assert_return_code(mkdirat(dir, "d", 0700), errno);
	assert_return_code(symlinkat("../../../other", dir, "d/link"), errno);
	close(dir);
	work_dir_remove(p->work);
	is_gone(p);
	assert_return_code(unlinkat(root, "other/kept", 0), errno);
	assert_return_code(unlinkat(root, "other", AT_REMOVEDIR), errno);
	close(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(sockets_and_notes_are_removed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(directories_of_the_sources_are_removed_however_deep,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(where_links_lead_nothing_is_removed, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
