/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The monitor of a libvirt domain: see libvirt.c. */
#ifndef UPGRADED_WORKER_LIBVIRT_H
#define UPGRADED_WORKER_LIBVIRT_H

#include "findings.h"
#include "qmp.h"

#include <stdbool.h>

/* Its daemon runs, and so has the monitors of its domains. */
bool libvirt_is_there(void);

/* As qmp_connect(), of the domain @uuid, through libvirt. */
int libvirt_connect(const char *uuid, const char *name, struct waiter *w, struct qmp **ret_qmp,
		    struct error *err);

/*
 * What keeps the domain from being upgraded behind libvirt's back, as blockers: those of
 * libvirt_status_check(), libvirt.status, libvirt.process. 0 or -ENOMEM.
 */
int libvirt_check(const Upgraded__V1__Vm *vm, struct findings *findings);

struct upgrade;
struct source_fd;

/*
 * Puts the source's ends of its connections with libvirt's daemon into custody, as
 * "libvirt": that daemon does not see them close when the source dies, or is ended.
 * -ENOTCONN: there are none, and it would.
 */
int libvirt_hold_connections(struct upgrade *u, const struct source_fd *fds, size_t n,
			     struct error *err);

/*
 * -ENOTCONN: libvirt's daemon is not the one any more whose connections are in custody. To
 * be asked when the daemon has heard of FREEZE: one that starts after that waits.
 */
int libvirt_is_same(const struct upgrade *u, struct error *err);

/* Tells the daemon who the target's vCPUs are, for when libvirt's daemon is restarted. */
int libvirt_part(struct upgrade *u, struct qmp *target, struct error *err);

#endif
