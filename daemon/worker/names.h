/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the target takes over from the dead source by name: see names.c. */
#ifndef UPGRADED_NAMES_H
#define UPGRADED_NAMES_H

#include "error.h"
#include "upgraded.pb-c.h"

#include <sys/types.h>

/*
 * Renames the target's sockets to the source's names and writes the target's
 * pid into the pidfiles. Each stands alone: all are tried, the first failure is
 * returned.
 */
int names_take_over(const Upgraded__V1__TargetPlan *plan, pid_t target, int target_pidfd,
		    struct error *err);

#endif
