/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What /proc says of a VMM process: see vmm_process.c. */
#ifndef UPGRADED_VMM_PROCESS_H
#define UPGRADED_VMM_PROCESS_H

#include "error.h"
#include "process.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process_facts {
	pid_t pid;
	uint64_t start_time; /* clock ticks since boot */
	uint64_t since_us;   /* the same as CLOCK_REALTIME */
	uid_t uid;
	gid_t gid;
	char *binary; /* "(deleted)" cut off */
	char **argv;
};

#define PROCESS_FACTS_INIT { 0 }

/* -ESRCH: no such process. */
int process_read(pid_t pid, struct process_facts *ret_facts, struct error *err);
/* What is known of one that cannot be read now: no argv, no user. */
int process_facts_make(pid_t pid, uint64_t start_time, const char *binary,
		       struct process_facts *ret_facts);
void process_facts_clear(struct process_facts *facts);
#define _cleanup_process_facts_ _cleanup_(process_facts_clear)

/*
 * A pidfd of the process that had @pid and was started at @start_time; -ESRCH
 * if it is gone or the pid is someone else's by now.
 */
int process_open(pid_t pid, uint64_t start_time, int *ret_pidfd);

/*
 * A pidfd of a process that has ended, for telling somebody who is to be told
 * with a pidfd that a process is gone. 0 or a negative errno.
 */
int process_open_dead(int *ret_pidfd);

/* The file that the process runs is no longer the one at @binary. */
bool process_outdated(pid_t pid, const char *binary);

/* The value of -name (its guest= part), malloc()ed; NULL: none. */
char *process_guest_name(char **argv);

#endif
