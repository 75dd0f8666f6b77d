/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Telling one process from a later one with the same pid: see process.c. */
#ifndef UPGRADED_PROCESS_H
#define UPGRADED_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

/*
 * When @pid was started, in clock ticks since boot (proc_pid_stat(5), field
 * 22). 0, or -ESRCH if there is no such process.
 */
int process_start_time(pid_t pid, uint64_t *ret_ticks);

#endif
