/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The report of one upgrade, as text: see report.c. */
#ifndef UPGRADED_REPORT_H
#define UPGRADED_REPORT_H

#include "print.h"

void report_print(const struct cli *cli, const Upgraded__V1__Report *report);

/* The exit code of an upgrade that ended like this. */
int report_exit_code(const Upgraded__V1__Report *report);

#endif
