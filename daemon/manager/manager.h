/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who must learn that a VM's process changed: see systemd.c, none.c. */
#ifndef UPGRADED_MANAGER_H
#define UPGRADED_MANAGER_H

#include "context.h"
#include "registry.h"

struct manager_driver {
	const char *name;
	/*
	 * Only beside the source is there a place for a target from custody: so it is
	 * kept for that, standing still, when it may not run any more.
	 */
	bool needs_source;
	/*
	 * It ends a VM that it cannot find in the target: so an upgrade of a target that
	 * runs does not end before the worker could say what the manager must know.
	 */
	bool needs_finish;
	/* Before anything is touched: 0, or why it could not be told later. */
	int (*begin)(struct context *ctx, struct vm *vm, struct error *err);
	/*
	 * COMMIT is in the journal, the worker has not been told yet: the guest
	 * stands still, both processes exist. Must not wait for anybody. Called
	 * again when a restarted daemon finds the COMMIT. @target: as custody has it.
	 */
	void (*commit)(struct context *ctx, struct vm *vm, const CustodyPut *target,
		       pid_t source);
	/* May a check or an upgrade begin now? NULL: at any time. schedule() asks again. */
	bool (*may_begin)(struct context *ctx);
	/*
	 * The target runs and has the source's names; source and worker have ended. 0: that
	 * may be seen; 1: not yet, and upgrade_end() is the driver's to call.
	 */
	int (*finish)(struct context *ctx, struct vm *vm);
	/*
	 * The upgrade is about to have its END in the journal: what must be told whoever
	 * dies. Called again when the daemon died before that. NULL: nothing.
	 */
	void (*tell)(struct context *ctx, struct vm *vm, const Report *report);
	/* The upgrade has ended and @vm is what it is from now on. */
	void (*done)(struct context *ctx, struct vm *vm, const Report *report);
	/*
	 * Both VMMs are dead, or only the target (needs_source). 0: another may be
	 * started, in the cgroups and in the place of *ret_process (pid 0: of nobody).
	 * -EAGAIN: not yet. May be called again and again; @ret_process is then what
	 * commit() gets as the source. @start: how the target was started, as custody has
	 * it. Other errors: none may be.
	 */
	int (*place)(struct context *ctx, struct vm *vm, const CustodyPut *start,
		     Process *ret_process);
	/* The process ended, by no upgrade. */
	void (*gone)(struct context *ctx, struct vm *vm);
};

extern const struct manager_driver manager_systemd;
extern const struct manager_driver manager_none;

/* The driver of @vm; an unknown name is handled as "none". */
const struct manager_driver *manager_of(const struct vm *vm);

/* As may_begin() of the driver of @vm, if it has one. */
bool manager_may_begin(struct context *ctx, const struct vm *vm);

#endif
