/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM that is the main process of somebody's systemd unit: see unit.c. */
#ifndef UPGRADED_UNIT_H
#define UPGRADED_UNIT_H

#include "upgrade.h"

#include <stdbool.h>

/*
 * The service that the process is in, by its /proc/PID/cgroup: *ret_unit is NULL if it
 * is in none, *ret_user whether its manager is a user's own systemd. 0 or -ENOMEM.
 */
int unit_of_cgroup(const char *cgroup, char **ret_unit, bool *ret_user);

/* Finds out, and says so in u->unit, u->unit_restarts and as findings: unit.main, unit.user,
 * unit.unknown. */
int unit_examine(struct upgrade *u, struct error *err);

/* Sees to it that systemd will take MAINPID= from the source. */
int unit_prepare(struct upgrade *u, struct error *err);

#endif
