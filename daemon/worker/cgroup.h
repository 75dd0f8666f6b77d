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

/*
 * The directory of the v2 cgroup of a process, by its /proc/PID/cgroup and our
 * mountinfo; *ret_root_len of its bytes are where the hierarchy is mounted.
 * -ENOENT: it is in none, or in one that is not to be seen here.
 */
int cgroup_find_v2(const char *cgroup, const char *mountinfo, char **ret_dir, size_t *ret_root_len);

void cgroups_close(struct cgroups *c);
#define _cleanup_cgroups_ __attribute__((cleanup(cgroups_close)))

#endif
