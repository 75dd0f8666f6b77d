/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One upgrade, from top to bottom: see upgrade.c. */
#ifndef UPGRADED_UPGRADE_H
#define UPGRADED_UPGRADE_H

#include "error.h"
#include "executable.h"
#include "findings.h"
#include "inherited.h"
#include "timeline.h"
#include "upgraded.pb-c.h"
#include "wait.h"

#include <sys/types.h>

struct driver;

/* What the phases share. Made in main.c, one for the process. */
struct upgrade {
	const Upgraded__V1__WorkerStart *start; /* borrowed */
	const struct driver *driver;
	void *vmm;              /* the driver's own */

	struct waiter wait;     /* borrows the pidfds below */
	struct timeline timeline;
	struct findings findings;

	int source_pidfd;
	int target_pidfd;       /* -EBADF: none was started */
	Upgraded__V1__Process target; /* pid 0: none */
	int source_exe, target_exe;   /* see executable.c; -EBADF: unknown */
	char source_sha256[SHA256_TEXT], target_sha256[SHA256_TEXT];
	Upgraded__V1__FileDigest read[2]; /* of those what the daemon did not know */
	size_t n_read;
	Upgraded__V1__TargetPlan *plan; /* owned by the driver; NULL before PREPARE */
	char *unit;             /* of systemd's, whose main process the source is; NULL: none */
	bool unit_restarts;     /* it would start another VMM when both have ended */
	pid_t libvirt_daemon;	/* whose connections are in custody */
	struct inherited inherited; /* what a worker before this one put into custody */
	int state;              /* the device state: see device_state.c; -EBADF: none */

	bool confined;		/* can execute nothing any more */
	bool quiet;             /* events are held back: the guest stands still */
	Upgraded__V1__Event held[4];
	size_t n_held;

	bool committed;
	bool parked;            /* the kernel keeps the source from running */
	Upgraded__V1__Tier tier;
	Upgraded__V1__Handover *handover; /* owned by the driver; NULL: none */
	uint64_t state_bytes;
	uint32_t fds;
	uint64_t stopped_at_us; /* CLOCK_REALTIME of the source's last instruction, 0: never */
	uint64_t running_at_us; /* of the first one after it, in whichever VMM */
	char *target_version;
};

/* Reads which programs source and target are, if that is not known yet. */
void upgrade_identify(struct upgrade *u);

/*
 * How to talk to one kind of VMM. Every function is called in this order, at
 * most once; each may fail, and then undo() brings the source back. Between
 * freeze() and run() the guest stands still: no work that can be done before
 * or after belongs there.
 */
struct driver {
	const char *name;
	/* Reads the source, probes the target's binary, plans; adds findings. */
	int (*examine)(struct upgrade *u, struct error *err);
	/* Starts the target, paused; it maps the memory. Custody gets the fds. */
	int (*prepare)(struct upgrade *u, struct error *err);
	/* Looks at the finished target; adds findings. */
	int (*verify)(struct upgrade *u, struct error *err);
	/* Stops the source and carries its device state. */
	int (*freeze)(struct upgrade *u, struct error *err);
	/* Returns when the target says that it has loaded the state. */
	int (*load)(struct upgrade *u, struct error *err);
	/* Makes sure that the source cannot run, in a way that undo() can undo. */
	int (*hold)(struct upgrade *u, struct error *err);
	/* After COMMIT: the target's first instruction. */
	int (*run)(struct upgrade *u, struct error *err);
	/* After COMMIT: the source ends, the target takes its names. */
	int (*finish)(struct upgrade *u, struct error *err);
	/*
	 * Before COMMIT: the target ends, the source goes on. -ECHILD: this process is
	 * confined, and one that is not is needed for the rest; it may be called there.
	 */
	int (*undo)(struct upgrade *u, struct error *err);
	/*
	 * In place of examine() and prepare(), when both VMMs are dead, or the target is
	 * and the source may not run any more: starts a target from what is in custody.
	 * verify(), load(), hold() and all after COMMIT follow, without a source.
	 */
	int (*rebuild)(struct upgrade *u, struct error *err);
	/* A step failed with @err: if that is because a VMM ended, says so, and how it did. */
	void (*explain)(struct upgrade *u, struct error *err);
	/* Fills what is known of the VM into @vm; strings are borrowed from the driver. */
	void (*describe)(struct upgrade *u, bool target, Upgraded__V1__Vm *vm);
	/* The planned command line, NULL-terminated, borrowed; NULL: no plan. */
	char **(*planned_argv)(struct upgrade *u);
	void (*free)(struct upgrade *u);
};

extern const struct driver driver_qemu;
extern const struct driver driver_native;

/* Runs it, whatever comes. The outcome; *err says why it is not COMMITTED. */
Upgraded__V1__Outcome upgrade_run(struct upgrade *u, struct error *err);

/* What another worker left behind. */
Upgraded__V1__Outcome upgrade_undo(struct upgrade *u, struct error *err);
Upgraded__V1__Outcome upgrade_forward(struct upgrade *u, struct error *err);

/* Both VMMs are dead, the guest is in custody. */
Upgraded__V1__Outcome upgrade_rebuild(struct upgrade *u, struct error *err);

/* Only looks. 0 or a negative errno; findings tell the rest. */
int upgrade_check(struct upgrade *u, struct error *err);

#endif
