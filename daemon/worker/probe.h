/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the target binary can do, asked of the binary itself: see probe.c. */
#ifndef UPGRADED_PROBE_H
#define UPGRADED_PROBE_H

#include "findings.h"
#include "source.h"

/*
 * Starts @binary once without a guest (-machine none, with the source's
 * identity), asks its monitor for version, machine types, device types and
 * CPU model, compares with the source and adds findings for all that does not
 * fit: not there, not executable, not a QEMU, too old for cpr-transfer (10.0),
 * machine type or device missing, CPU features missing. The process is gone
 * when this returns. *ret_version is malloc()ed, NULL if it did not answer.
 */
int probe_target(const char *binary, struct source *s, int source_pidfd, struct waiter *w,
		 struct findings *f, char **ret_version, struct error *err);

#endif
