/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the daemon keeps of files that workers have read. */
#include "digests.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static FileDigest *digest(uint64_t inode)
{
	FileDigest *d = message_new(&upgraded__v1__file_digest__descriptor);

	assert_non_null(d);
	d->inode = inode;
	assert_true(message_set_string(&d->sha256, "00ff") >= 0);
	return d;
}

static bool knows(const struct digests *d, uint64_t inode)
{
	for (size_t i = 0; i < d->n; i++)
		if (d->v[i]->inode == inode)
			return true;
	return false;
}

static void what_is_learned_is_taken_over(void **state)
{
	FileDigest *read[] = { digest(1), digest(2) };
	struct digests d = { 0 };

	digests_learn(&d, read, ARRAY_SIZE(read));
	assert_null(read[0]);
	assert_null(read[1]);
	assert_int_equal(d.n, 2);
	assert_true(knows(&d, 1) && knows(&d, 2));
	digests_clear(&d);
	assert_int_equal(d.n, 0);
}

static void the_oldest_goes_first(void **state)
{
	struct digests d = { 0 };

	for (uint64_t i = 0; i < 3 * DIGESTS_MAX + 1; i++) {
		FileDigest *read = digest(i);

		digests_learn(&d, &read, 1);
		assert_true(knows(&d, i));
		if (i >= DIGESTS_MAX) {
			assert_int_equal(d.n, DIGESTS_MAX);
			assert_false(knows(&d, i - DIGESTS_MAX));
			assert_true(knows(&d, i - DIGESTS_MAX + 1));
		}
	}
	digests_clear(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_learned_is_taken_over),
		cmocka_unit_test(the_oldest_goes_first),
	};

	return cmocka_run_group_tests_name("digests", tests, NULL, NULL);
}
