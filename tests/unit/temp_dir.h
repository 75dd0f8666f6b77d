/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A directory of a test's own. */
#ifndef UPGRADED_TEMP_DIR_H
#define UPGRADED_TEMP_DIR_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEMP_DIR sizeof("/tmp/upgraded-test-XXXXXX")

static inline void temp_dir_make(char dir[TEMP_DIR])
{
	strcpy(dir, "/tmp/upgraded-test-XXXXXX");
	assert_non_null(mkdtemp(dir));
}

static inline int temp_dir_remove_one(const char *path, const struct stat *st, int type,
				      struct FTW *at)
{
	return remove(path);
}

/* With all that is in it. */
static inline void temp_dir_remove(const char *dir)
{
	assert_int_equal(nftw(dir, temp_dir_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

#endif
