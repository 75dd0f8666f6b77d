/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a member of the group may ask for: upgrades to binaries that only root can have
 * put where they are, now and at any time later.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "access.h"

#include "message.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Neither root nor the user of this test. */
static const struct peer member = { .uid = 54321, .gid = 54321, .pid = 1 };

static char dir[TEMP_DIR];

static int setup(void **state)
{
	temp_dir_make(dir);
	return 0;
}

static int teardown(void **state)
{
	temp_dir_remove(dir);
	return 0;
}

static int ask(const char *binary)
{
	Upgraded__V1__UpgradeRequest upgrade = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	Envelope request = ENVELOPE_INIT;

	upgrade.binary = (char *)binary;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_UPGRADE;
	request.upgrade = &upgrade;
	return access_check(&member, &request, &err);
}

static void members_may_name_what_only_root_could_have_put_there(void **state)
{
	assert_int_equal(ask(""), 0);
	assert_int_equal(ask("/usr/bin/env"), 0);
	/* By way of a link of root's, on most systems. */
	assert_int_equal(ask("/bin/sh"), 0);
	assert_int_equal(ask("/usr/bin/../bin/env"), 0);
}

static void a_file_of_another_user_is_denied(void **state)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/qemu", dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(ask(path), -EACCES);
	assert_int_equal(ask("/usr/bin/there-is-no-such-file"), -EACCES);
	assert_int_equal(ask("usr/bin/env"), -EACCES);
}

/* When it is executed, it may lead elsewhere. */
static void a_link_that_others_could_change_is_denied(void **state)
{
	char link[64], below[96];

	snprintf(link, sizeof(link), "%s/link", dir);
	assert_int_equal(symlink("/usr/bin/env", link), 0);
	assert_int_equal(ask(link), -EACCES);
	snprintf(link, sizeof(link), "%s/usr", dir);
	assert_int_equal(symlink("/usr", link), 0);
	snprintf(below, sizeof(below), "%s/bin/env", link);
	assert_int_equal(ask(below), -EACCES);
}

static void links_without_an_end_are_denied(void **state)
{
	char path[4000] = "";

	/* All of them are root's. */
	while (strlen(path) + 32 < sizeof(path))
		strcat(path, "/proc/self/root");
	strcat(path, "/usr/bin/env");
	assert_int_equal(ask(path), -EACCES);
}

static void processes_are_roots_to_choose(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	Upgraded__V1__RunRequest run = UPGRADED__V1__RUN_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_RUN;
	request.run = &run;
	assert_int_equal(access_check(&member, &request, &err), -EACCES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(members_may_name_what_only_root_could_have_put_there),
		cmocka_unit_test(a_file_of_another_user_is_denied),
		cmocka_unit_test(a_link_that_others_could_change_is_denied),
		cmocka_unit_test(links_without_an_end_are_denied),
		cmocka_unit_test(processes_are_roots_to_choose),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
