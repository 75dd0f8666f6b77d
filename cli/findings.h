/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What stands in the way of an upgrade, as text: see findings.c. */
#ifndef UPGRADED_CLI_FINDINGS_H
#define UPGRADED_CLI_FINDINGS_H

#include "print.h"

/* Blockers first, then warnings, then (with @notes) notes. */
void findings_print(const struct cli *cli, FILE *f, Upgraded__V1__Finding **findings, size_t n,
		    bool notes);

size_t findings_count(Upgraded__V1__Finding **findings, size_t n, Upgraded__V1__Severity severity);

#endif
