/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The directory of one worker's run: see work_dir.c. */
#ifndef UPGRADED_WORK_DIR_H
#define UPGRADED_WORK_DIR_H

#include "error.h"

#include <stdint.h>
#include <sys/types.h>

/* runtime-dir/work/@name, which belongs to the user that process @pid runs as. */
int work_dir_make(const char *runtime_dir, const char *name, pid_t pid, char **ret_path,
		  struct error *err);
char *work_dir_path(const char *runtime_dir, const char *name);

/* Removes it with all files in it. A failure is logged. */
void work_dir_remove(const char *path);

/* Which worker runs in it, for a daemon that is started later. */
int work_dir_write_worker(const char *path, pid_t pid);

/* A pidfd of that worker; -ESRCH: it is gone. */
int work_dir_open_worker(const char *path, int *ret_pidfd);

#endif
