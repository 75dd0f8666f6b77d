/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything a process inherits and a QEMU cannot tell us: see identity.c. */
#ifndef UPGRADED_IDENTITY_H
#define UPGRADED_IDENTITY_H

#include "cgroup.h"
#include "error.h"

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
	NS_NET,
	NS_IPC,
	NS_UTS,
	NS_TIME,
	NS_CGROUP,
	NS_MNT, /* after it the paths are others */
	NS_COUNT_IN_CHILD,
	NS_PID = NS_COUNT_IN_CHILD, /* entered by the parent: it counts for children */
	NS_USER,		    /* refused */
	NS_COUNT
};

extern const char *const ns_names[NS_COUNT];

struct identity {
	char **env;
	uid_t uid[3]; /* real, effective, saved */
	gid_t gid[3];
	gid_t *groups;
	size_t n_groups;
	uint64_t cap_inheritable, cap_permitted, cap_effective, cap_bounding, cap_ambient;
	bool no_new_privs;
	mode_t umask;
	struct rlimit limits[RLIM_NLIMITS];
	char *oom_score_adj; /* NULL: as ours */
	int nice;
	cpu_set_t *cpus;
	size_t cpus_size;
	const char *label_file; /* of /proc/self/attr; NULL: no label to set */
	char *label;		/* what to write to it */
	int cwd;		/* O_PATH */
	int root;		/* O_PATH; -EBADF: as ours */
	int ns[NS_COUNT];	/* -EBADF: as ours */
	struct cgroups cgroups; /* empty: as ours */
};

/*
 * Reads what @pid is. With @keep_cgroup its cgroups are left out.
 * *ret_identity is freed with identity_freep().
 */
int identity_read(pid_t pid, int pidfd, bool keep_cgroup, struct identity **ret_identity,
		  struct error *err);

/* An empty one, with no fds. */
int identity_new(struct identity **ret_identity);

void identity_freep(struct identity **id);

#endif
