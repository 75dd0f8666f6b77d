/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Telling systemd something on behalf of another process: see notify.c. */
#ifndef UPGRADED_NOTIFY_H
#define UPGRADED_NOTIFY_H

#include <sys/types.h>

/*
 * Sends @state ("READY=1") to PID 1 as if @pid had. 0; -ENOENT: no systemd
 * runs here; -EPERM: not privileged; -ESRCH: no process @pid; or another one.
 */
int notify_as(pid_t pid, const char *state);

#endif
