/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Outputs compared with files of the tree: see golden.c. */
#ifndef UPGRADED_TESTS_GOLDEN_H
#define UPGRADED_TESTS_GOLDEN_H

/*
 * Fails the test with both texts if @text is not the content of @file below
 * @dir. With UPDATE_GOLDEN=1 in the environment it writes the file instead,
 * for a reader to look at in the diff.
 */
void assert_golden(const char *dir, const char *file, const char *text);

#endif
