/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for processes that nobody manages: started by hand or by
 * a script, made known with `adopt`. There is nobody to tell, so it does
 * nothing and owns nothing. Also where a driver is found by its name.
 */
#include "libvirt.h"
#include "manager.h"

#include <string.h>

static int none_begin(struct context *ctx, struct vm *vm, struct error *err)
{
	return 0;
}

static void none_commit(struct context *ctx, struct vm *vm, pid_t source, pid_t target)
{
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

static int none_place(struct context *ctx, struct vm *vm, Process *ret_process)
{
	return 0;
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
