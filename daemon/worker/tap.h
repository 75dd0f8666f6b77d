/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The settings of taps that source and target share: see tap.c. */
#ifndef UPGRADED_TAP_H
#define UPGRADED_TAP_H

#include "argv_plan.h"
#include "error.h"
#include "upgraded.pb-c.h"

/*
 * Notes the settings of the taps among @fds in plan->taps, before the target
 * gets them. 0 or a negative errno. Freed with taps_free().
 */
int taps_note(int source_pidfd, const struct plan_fd *fds, size_t n_fds,
	      Upgraded__V1__TargetPlan *plan, struct error *err);

/*
 * Gives the taps their headers back, without which no packet gets through; no
 * system call is made that changes a tap which has the right one. Tries all;
 * the first failure is returned. A tap that the source has closed is left out.
 */
int taps_restore_headers(int source_pidfd, const Upgraded__V1__TargetPlan *plan, struct error *err);

/* Headers and offloads. */
int taps_restore(int source_pidfd, const Upgraded__V1__TargetPlan *plan, struct error *err);

void taps_free(Upgraded__V1__TargetPlan *plan);

#endif
