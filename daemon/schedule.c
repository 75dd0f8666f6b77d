/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whose turn it is. Checks and upgrades that were asked for wait until a
 * worker may be started for them: at most so many at once as configured,
 * and one per VM, because a monitor serves one client. First come, first
 * served, checks before upgrades. What waits has touched nothing yet and is
 * lost with the daemon; whoever asked sees the end of the connection.
 */
#include "schedule.h"

#include "check.h"
#include "registry.h"
#include "settings.h"
#include "upgrade.h"

static size_t count_working(struct context *ctx)
{
	size_t n = 0;

	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		n += vm->working;
	return n;
}

void schedule(struct context *ctx)
{
	while (count_working(ctx) < settings_max_running(ctx))
		if (!check_start_next(ctx) && !upgrade_start_next(ctx))
			break;
}
