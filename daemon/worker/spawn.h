/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Starting a process with the identity of another: see spawn.c. */
#ifndef UPGRADED_SPAWN_H
#define UPGRADED_SPAWN_H

#include "argv_plan.h"
#include "error.h"

#include <sys/types.h>

struct spawn {
	pid_t source;                /* whose identity */
	int source_pidfd;            /* borrowed */
	char **argv;                 /* argv[0] is the binary's absolute path */
	const struct plan_fd *fds;   /* duplicated from the source with pidfd_getfd() */
	size_t n_fds;
	int stdio[3];                /* borrowed; -EBADF: the source's own */
	const char *setenv;          /* "NAME=VALUE" in place of the source's; may be NULL */
	bool keep_cgroup;            /* stay in the caller's cgroup (probes) */
	bool *ret_no_exec;           /* may be NULL; set if all worked but exec itself */
};

struct spawn_order;

/* All that starting it takes of the source; *ret_order is freed with spawn_order_freep(). */
int spawn_order_make(const struct spawn *s, struct spawn_order **ret_order, struct error *err);

/*
 * Forks a process with the source's uids, gids, groups, capabilities, no_new_privs,
 * namespaces, root, working directory, umask, rlimits, environment, cgroup,
 * LSM label, oom score, niceness and CPU affinity, in a session of its own, as a child
 * of init's. It has all that when this returns, and waits with exec for spawn_let_go();
 * it ends by itself when *ret_gate is closed before, so with this process.
 * *ret_pidfd and *ret_gate are the caller's. On failure nothing is left running and
 * @err says which step failed. The source may be dead. As often as you like.
 */
int spawn_order_ready(const struct spawn_order *o, pid_t *ret_pid, int *ret_pidfd, int *ret_gate,
		      struct error *err);

/* Lets it go on to exec; @gate, borrowed here and below, is readable once it has been tried. */
int spawn_let_go(const char *name, int gate, struct error *err);

/*
 * Whether exec has succeeded; waits for it for 30 s. What is left is the caller's to kill.
 * *ret_no_exec (may be NULL) is set if it was exec itself that failed.
 */
int spawn_started(const char *name, int gate, bool *ret_no_exec, struct error *err);

/*
 * All at once, for a short-lived process that is to end when this one does: a child
 * of ours. On failure nothing is left running.
 */
int spawn_probe(const struct spawn *s, pid_t *ret_pid, int *ret_pidfd, struct error *err);

/*
 * Runs @work(@data) in a child with the identity of process @like, as above but
 * for the cgroups and the label, and waits for its end. @work only makes system
 * calls and returns 0 or a negative errno; @what says what it does, after
 * "cannot". Paths in it are those that @like sees.
 */
int spawn_work(pid_t like, int like_pidfd, const char *what, int (*work)(const void *data),
	       const void *data, struct error *err);

/* Kills what was started by its pidfd (borrowed) and waits for its end. */
void spawn_kill(int pidfd);

#endif
