/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading files and links of /proc/PID: see procfs.c. */
#ifndef UPGRADED_PROCFS_H
#define UPGRADED_PROCFS_H

#include <stddef.h>
#include <sys/types.h>

/* The caller itself, where a pid is asked for. */
#define PROC_SELF 0

/* Opens /proc/PID/@name. Returns the fd (O_CLOEXEC) or a negative errno. */
int proc_open(pid_t pid, const char *name, int flags);

/*
 * Reads /proc/PID/@name to its end. *ret_text is malloc()ed and ends with a
 * NUL that *ret_len (may be NULL) does not count. -E2BIG: it has no end.
 */
int proc_read(pid_t pid, const char *name, char **ret_text, size_t *ret_len);

/* As proc_read(), of a file of the kernel's that is no process's. */
int proc_read_path(const char *path, char **ret_text, size_t *ret_len);

/* As proc_read(), for lists of NUL-terminated strings: "cmdline", "environ". */
int proc_read_strv(pid_t pid, const char *name, char ***ret_v);

/* What /proc/PID/@name links to; malloc()ed. */
int proc_readlink(pid_t pid, const char *name, char **ret_target);

/* The path that it executes, without the " (deleted)" of a file that is gone. */
int proc_read_exe(pid_t pid, char **ret_path);

/* Fields of /proc/PID/stat, by their numbers in proc_pid_stat(5). */
enum proc_stat {
	PROC_STAT_STATE = 3,
	PROC_STAT_FLAGS = 9,
	PROC_STAT_START_TIME = 22,
	PROC_STAT_EXIT_CODE = 52,
};

/* Where that field begins in the text @stat; NULL: it has none. */
const char *proc_stat_field(const char *stat, enum proc_stat field);

#endif
