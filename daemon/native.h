/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VMMs that speak libupgraded, on vmm.sock: see native.c. */
#ifndef UPGRADED_NATIVE_H
#define UPGRADED_NATIVE_H

#include "context.h"
#include "server.h"
#include "worker_process.h"

struct native;

int native_new(struct native **ret_native, struct error *err);
void native_freep(struct native **native);

/* A request on vmm.sock. */
void native_request(struct context *ctx, const struct requester *from, const Envelope *request);

/* The server_closed_fn; @userdata is the struct context. */
void native_closed(uint64_t client, void *userdata);

/*
 * @worker asks for a VMM's connection (VmmBorrow). It is answered now or when
 * the VMM connects. Negative: the worker broke the contract.
 */
int native_borrow(struct context *ctx, struct worker_process *worker, const Envelope *env);

/*
 * The upgrade @id has ended, and its VM is @now. A process that registered as its
 * target and is not (its worker died before it said who it had started) is sent
 * away: it connects again, is told that the upgrade is over, and ends.
 */
void native_upgrade_ended(struct context *ctx, uint64_t id, const Process *now);

/* @worker (may be NULL) has ended: what it borrowed is the daemon's again. */
void native_take_back(struct context *ctx, struct worker_process *worker);

#endif
