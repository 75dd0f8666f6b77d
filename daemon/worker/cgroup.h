/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where the cgroups of another process are: see cgroup.c. */
#ifndef UPGRADED_CGROUP_H
#define UPGRADED_CGROUP_H

#include "error.h"

#include <sys/types.h>

/* v1 has one hierarchy per controller; Linux has 14 of them, and named ones. */
#define CGROUPS_MAX 24

/* The open cgroup.procs of every cgroup that a process is in and we are not. */
struct cgroups {
	int procs[CGROUPS_MAX];
	size_t n;
};

#define CGROUPS_INIT   \
	{              \
		.n = 0 \
	}

/*
 * Opens them, v2 and v1 alike. Who writes "0" to each of them is where @pid
 * is. Freed with cgroups_close().
 */
int cgroups_open(pid_t pid, struct cgroups *ret_cgroups, struct error *err);

void cgroups_close(struct cgroups *c);
#define _cleanup_cgroups_ __attribute__((cleanup(cgroups_close)))

#endif
