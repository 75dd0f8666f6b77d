/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Holds lib/error.c to its word: the reason nearest to the cause survives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "error.h"

#include <string.h>

static void the_first_reason_stays(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	assert_int_equal(error_set(&err, -ENOENT, "no file %s", "x"), -ENOENT);
	assert_int_equal(error_set(&err, -EIO, "later"), -EIO);
	assert_int_equal(err.code, -ENOENT);
	assert_string_equal(err.text, "no file x");
	assert_null(err.hint);
}

static void nobody_has_to_listen(void **state)
{
	assert_int_equal(error_set(NULL, -EIO, "x"), -EIO);
	assert_int_equal(error_errno(NULL, -EIO, "x"), -EIO);
	assert_int_equal(error_hint(NULL, "x"), 0);
	assert_int_equal(error_prefix(NULL, "x"), 0);
}

static void an_errno_is_spelled_out(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	assert_int_equal(error_errno(&err, -ENOENT, "cannot open %d", 5), -ENOENT);
	assert_string_equal(err.text, "cannot open 5: No such file or directory");
}

static void a_hint_is_attached_once(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	error_set(&err, -EBUSY, "busy");
	assert_int_equal(error_hint(&err, "wait %d s", 3), -EBUSY);
	assert_int_equal(error_hint(&err, "another"), -EBUSY);
	assert_string_equal(err.hint, "wait 3 s");
}

static void a_prefix_names_the_object(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	assert_int_equal(error_prefix(&err, "vm1"), 0);
	assert_null(err.text);
	error_set(&err, -EIO, "disk gone");
	assert_int_equal(error_prefix(&err, "vm%d", 1), -EIO);
	assert_string_equal(err.text, "vm1: disk gone");
	assert_int_equal(err.code, -EIO);
}

static void moving_leaves_the_source_clean(void **state)
{
	_cleanup_error_ struct error from = ERROR_INIT, to = ERROR_INIT;

	error_set(&from, -EIO, "text");
	error_hint(&from, "hint");
	error_move(&to, &from);
	assert_int_equal(from.code, 0);
	assert_null(from.text);
	assert_null(from.hint);
	assert_int_equal(to.code, -EIO);
	assert_string_equal(to.text, "text");
	assert_string_equal(to.hint, "hint");
	error_clear(&to);
	assert_int_equal(to.code, 0);
	assert_null(to.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_reason_stays),
		cmocka_unit_test(nobody_has_to_listen),
		cmocka_unit_test(an_errno_is_spelled_out),
		cmocka_unit_test(a_hint_is_attached_once),
		cmocka_unit_test(a_prefix_names_the_object),
		cmocka_unit_test(moving_leaves_the_source_clean),
	};

	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
