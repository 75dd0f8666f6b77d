/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for processes that we know nothing of but what is to be seen:
 * started by hand, by a script, or as a systemd unit of somebody else's, made known with
 * `adopt` or by themselves. Only of such a unit systemd is told that it has another main
 * process. Owns nothing. Also where a driver is found by its name.
 */
#include "libvirt.h"
#include "manager.h"
#include "systemd.h"

#include <string.h>

static int none_begin(struct context *ctx, struct vm *vm, struct error *err)
{
	return 0;
}

/* Whose main process it is, the worker has found out: worker/unit.c. */
static void none_commit(struct context *ctx, struct vm *vm, const CustodyPut *target, pid_t source)
{
	const char *unit = target->plan ? target->plan->unit : "";

	if (*unit)
		systemd_set_main_process(vm->pb->name, unit, target->target->pid, source);
}

static int none_finish(struct context *ctx, struct vm *vm)
{
	return 0;
}

static void none_done(struct context *ctx, struct vm *vm, const Report *report)
{
}

static void none_gone(struct context *ctx, struct vm *vm)
{
}

/* Where systemd boots it anew by itself, the two would meet on the same disks. */
static int none_place(struct context *ctx, struct vm *vm, const CustodyPut *start,
		      Process *ret_process)
{
	return start && start->plan && start->plan->unit_restarts ? -ENOENT : 0;
}

const struct manager_driver manager_none = {
	.name = "none",
	.place = none_place,
	.begin = none_begin,
	.commit = none_commit,
	.finish = none_finish,
	.done = none_done,
	.gone = none_gone,
};

const struct manager_driver *manager_of(const struct vm *vm)
{
	static const struct manager_driver *const drivers[] = { &manager_systemd,
								&manager_libvirt };

	for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
		if (!strcmp(vm->pb->manager, drivers[i]->name))
			return drivers[i];
	return &manager_none;
}

bool manager_may_begin(struct context *ctx, const struct vm *vm)
{
	const struct manager_driver *manager = manager_of(vm);

	return !manager->may_begin || manager->may_begin(ctx);
}
