/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Outputs compared with files of the tree. Used by several tests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "golden.h"

#include "cleanup.h"

#include <string.h>

static char *read_all(const char *path)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char *text = NULL;
	size_t size = 0;
	ssize_t n;

	if (!f)
		return NULL;
	n = getdelim(&text, &size, '\0', f);
	if (n < 0) {
		free(text);
		return strdup("");
	}
	return text;
}

void assert_golden(const char *dir, const char *file, const char *text)
{
	_cleanup_free_ char *path = NULL, *expected = NULL;

	assert_true(asprintf(&path, "%s/%s", dir, file) > 0);
	if (getenv("UPDATE_GOLDEN")) {
		_cleanup_fclose_ FILE *f = fopen(path, "we");

		assert_non_null(f);
		assert_true(fputs(text, f) >= 0);
		return;
	}
	expected = read_all(path);
	if (!expected)
		fail_msg("%s: %s", path, strerror(errno));
	if (strcmp(expected, text))
		fail_msg("%s differs.\n--- expected\n%s--- got\n%s", path, expected, text);
}
