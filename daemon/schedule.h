/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whose turn it is: see schedule.c. */
#ifndef UPGRADED_SCHEDULE_H
#define UPGRADED_SCHEDULE_H

#include "context.h"

/* Starts what may start now. Called when something was asked for or has ended. */
void schedule(struct context *ctx);

#endif
