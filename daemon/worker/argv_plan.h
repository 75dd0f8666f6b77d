/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How the target's command line follows from the source's: see argv_plan.c. */
#ifndef UPGRADED_ARGV_PLAN_H
#define UPGRADED_ARGV_PLAN_H

#include "error.h"
#include "findings.h"

#include <stdbool.h>
#include <stdint.h>

/* One open fd of the source, as /proc and getsockopt() describe it. */
struct source_fd {
	int fd;
	char *link;     /* what /proc/PID/fd/N points to: "/dev/net/tun", "socket:[7]" */
	char *tap;      /* the interface, if it is a tap fd; else NULL */
	char *listen;   /* if it is a listening socket: "unix:/path", "tcp:0.0.0.0:5900",
			   "tcp6:[::]:4444"; else NULL */
	bool cloexec;
};

/* One fd that query-fdsets showed on the source. */
struct source_fdset {
	int64_t set;
	int fd;         /* its number in the source */
	char *opaque;   /* may be NULL */
};

/* All that the plan is made from; nothing else is looked at. */
struct plan_input {
	char **argv;                /* the source's, NULL-terminated, argv[0] included */
	const char *target_binary;  /* becomes argv[0] */
	const char *machine;        /* what the source runs: "pc-q35-10.0"; NULL: unknown */
	const char *cpu;            /* the -cpu value that names what the source's vCPUs
				       really are ("EPYC-v1,svm=off"); NULL: keep as it is */
	const char *qmp;            /* the source's QMP socket that upgraded uses */
	const char *suffix;         /* makes names unique: ".upgraded-17" */
	const char *incoming_main;  /* paths of the two incoming channels */
	const char *incoming_cpr;
	struct source_fd *fds;
	size_t n_fds;
	struct source_fdset *fdsets;
	size_t n_fdsets;
	bool no_guest_memfd;        /* the target's QEMU does not know guest-memfd=on */
};

#define PLAN_NEW_VHOST -1 /* /dev/vhost-net, opened for the target alone */

/*
 * Duplicate @source of the source process to @target in the target process.
 * A tap shares its settings with the source, and QEMU resets them when it opens
 * one: see tap.c.
 */
struct plan_fd {
	int source; /* PLAN_NEW_VHOST: none of its own */
	int target;
	bool tap;
};

/* A path that the target may only get once the source is dead: rename from -> to. */
struct plan_rename {
	char *from;
	char *to;
};

struct argv_plan {
	char **argv;                /* NULL-terminated */
	struct plan_fd *fds;
	size_t n_fds;
	struct plan_rename *renames;
	size_t n_renames;
	char **pidfiles;            /* NULL-terminated; may be NULL */
	char **commands;            /* QMP commands (JSON) for the target, in this order, once
				       the source is dead; NULL-terminated; may be NULL */
	char *qmp;                  /* the target's QMP socket for upgraded, before renames */
	struct findings findings;
};

/*
 * Plans the target's command line. Blockers are findings, all of them, not
 * errors. Returns 0 or -ENOMEM / -EINVAL (an argv that is not QEMU's).
 * *ret_plan is freed with argv_plan_freep().
 */
int argv_plan_make(const struct plan_input *in, struct argv_plan **ret_plan, struct error *err);

void argv_plan_freep(struct argv_plan **plan);

#endif
