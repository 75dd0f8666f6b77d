/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Is there room for a second VMM beside the source? See headroom.c. */
#ifndef UPGRADED_HEADROOM_H
#define UPGRADED_HEADROOM_H

#include "findings.h"

#include <sys/types.h>

/*
 * Adds what is too small for a second VMM like @pid: host.memory, host.descriptors,
 * cgroup.memory, cgroup.memory-high, cgroup.pids, source.descriptors. @root stands
 * before every path that is read: "", but for tests. What is not known is no finding.
 * 0 or -ENOMEM.
 */
int headroom_check(const char *root, pid_t pid, struct findings *f);

#endif
