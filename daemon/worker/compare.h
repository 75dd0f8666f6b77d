/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Is the finished target the same machine as the source? See compare.c. */
#ifndef UPGRADED_COMPARE_H
#define UPGRADED_COMPARE_H

#include "findings.h"
#include "qmp.h"

/*
 * Asks both monitors the same questions and adds a blocker for every answer
 * that differs. 0, or a negative errno if one of them does not answer.
 */
int compare_machines(struct qmp *source, struct qmp *target, struct findings *f,
		     struct error *err);

#endif
