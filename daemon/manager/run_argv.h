/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A command line that can be upgraded: see run_argv.c. */
#ifndef UPGRADED_RUN_ARGV_H
#define UPGRADED_RUN_ARGV_H

#include "error.h"

/*
 * The command line that `upgradectl run @name -- @argv` starts, with @qmp as
 * the path of upgraded's own monitor. *ret_argv is NULL-terminated, *ret_notes
 * says what was changed, one sentence each. -EINVAL with the reason.
 */
int run_argv_make(char **argv, size_t n, const char *name, const char *qmp, char ***ret_argv,
		  char ***ret_notes, struct error *err);

#endif
