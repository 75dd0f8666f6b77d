/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VMs that are units of systemd: see systemd.c. */
#ifndef UPGRADED_MANAGER_SYSTEMD_H
#define UPGRADED_MANAGER_SYSTEMD_H

#include "context.h"
#include "error.h"
#include "server.h"

struct systemd;

int systemd_new(struct context *ctx, struct systemd **ret_systemd, struct error *err);

/* Starts a VM as vmm@NAME.service and answers @from with the Vm later. */
int systemd_run(struct systemd *s, const struct requester *from,
		const Upgraded__V1__RunRequest *request, struct error *err);

/* The target is @unit's main process from now on, says the source, which is still. */
void systemd_set_main_process(const char *vm, const char *unit, pid_t target, pid_t source);

/* At the start, when all that goes on is known: no other VM is kept from starting. */
void systemd_release(struct context *ctx);

/* Asks for it, and does not wait. */
int systemd_restart(struct systemd *s, const char *unit, struct error *err);

void systemd_freep(struct systemd **s);

#endif
