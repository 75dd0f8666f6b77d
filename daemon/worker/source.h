/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the running source is, read from /proc and its monitor: see source.c. */
#ifndef UPGRADED_SOURCE_H
#define UPGRADED_SOURCE_H

#include "gmem.h"
#include "argv_plan.h"
#include "qmp.h"
#include "virtio_rings.h"

#include <sys/types.h>

struct source {
	pid_t pid;
	char **argv;
	char *binary;      /* /proc/PID/exe, "(deleted)" cut off */
	bool outdated;     /* that file is gone or another one now */
	char *version;
	char *arch;        /* of the guest: "x86_64" */
	char *machine;     /* resolved: "pc-q35-10.0" */
	char *cpu;         /* resolved -cpu value, NULL: keep the command line's; made by
			      probe_target(), which knows what a target would add */
	char *cpu_model;   /* "max" or "host": means something else in another QEMU; else NULL */
	char *cpu_options; /* the non-boolean options behind it: "hv-spinlocks=0x1fff" */
	struct json_object *cpu_props; /* with cpu_model: what the vCPUs really have */
	struct json_object *cpu_names; /* with cpu_model: its keys are what CPUID shows */
	char *accel;       /* "kvm", "tcg", ... */
	char **devices;    /* QOM types of the devices in use, sorted, unique, NULL-terminated */
	char **onboard;    /* the same, of the machine's own devices */
	uint64_t memory;   /* bytes of guest RAM */
	bool running;      /* guest runs now (a paused guest stays paused) */
	char *status;      /* query-status */
	struct source_fd *fds;
	size_t n_fds;
	struct source_fdset *fdsets;
	size_t n_fdsets;
	struct gmem gmem;  /* its RAM, if that is in guest_memfds; .target by probe_target() */
	struct virtio_rings rings; /* larger ones than its devices ask for */
};

/* Fills all of it. *ret_source is freed with source_freep(). */
int source_read(pid_t pid, int pidfd, struct qmp *qmp, struct source **ret_source,
		struct error *err);

/*
 * What of the source's state (not its command line) stands in the way: RAM
 * that is not shared, a migration, a block job or a snapshot under way,
 * migration blockers (query-migrate's blocked-reasons), a guest that is not
 * in a state to be moved. Adds findings. 0 or a negative errno.
 */
int source_check(struct source *s, struct qmp *qmp, struct findings *f, struct error *err);

/* Its part about what was changed by QMP since the start: see source_drift.c. */
int source_check_drift(struct source *s, struct qmp *qmp, struct findings *f, struct error *err);

void source_freep(struct source **s);

/* Finds a QMP UNIX socket in a QEMU command line; NULL: none. malloc()ed. */
char *source_find_qmp(char **argv);

#endif
