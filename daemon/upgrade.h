/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Supervision of the running upgrades: see upgrade.c. */
#ifndef UPGRADED_UPGRADE_SUPERVISION_H
#define UPGRADED_UPGRADE_SUPERVISION_H

#include "context.h"
#include "custody.h"
#include "registry.h"
#include "server.h"

/* How long a worker may take to end after its last message. */
#define WORKER_END_US (10 * 1000000ULL)

struct upgrade;

/* Queues one. The answer, the events and the report go to @from. */
int upgrade_request(struct context *ctx, struct vm *vm, const Upgraded__V1__UpgradeRequest *request,
		    const struct requester *from, struct error *err);

/* Asks for a rollback; one that has not begun ends now, and is freed. -EALREADY: committed. */
int upgrade_abort(struct upgrade *u, struct error *err);

/* Starts the oldest that may run, for schedule(). False: there is none. */
bool upgrade_start_next(struct context *ctx);

/* What the journal says of an upgrade that has no END. */
struct unfinished {
	WorkerStart *start;
	CustodyPut *target; /* NULL: none was started */
	Phase phase;
	bool committed;
	bool parked; /* the kernel keeps the source from running */
	unsigned rebuilds; /* that were begun; COMMIT is about the last one's target */
	uint64_t at_us;
};

/* An error that is about this machine at this moment: who tries again may have more luck. */
bool upgrade_may_pass(int r);

/* Goes on with it: waits for the worker of the daemon before us, then starts another. */
int upgrade_resume(struct context *ctx, struct vm *vm, const struct unfinished *unfinished,
		   struct error *err);

Phase upgrade_phase(const struct upgrade *u);

/* A worker has been started for it. */
bool upgrade_has_begun(const struct upgrade *u);
/* Nothing is left to do but what the manager waits for: its finish(), see manager.h. */
bool upgrade_is_finishing(const struct upgrade *u);
/* Its target hangs, and it waits for that to end: see upgrade_puts_off(). */
bool upgrade_is_put_off(const struct upgrade *u);
/* Its END is in the journal. */
bool upgrade_is_decided(const struct upgrade *u);
/* Tells the manager and writes END; the rest is upgrade_end()'s, which does it if need be. */
void upgrade_decide(struct upgrade *u);
/* Everything has been said and done. Frees @u, and may begin another one. */
void upgrade_end(struct upgrade *u);
/* What the worker has said of the target's vCPUs and terminals; NULL: nothing. */
const FinishRequest *upgrade_target_finish(const struct upgrade *u);
/* The manager is to start the VM with the target's binary from now on. */
bool upgrade_sets_emulator(const struct upgrade *u);
uint64_t upgrade_id(const struct upgrade *u);
/* The target's process; NULL: none was started yet. */
const Process *upgrade_target(const struct upgrade *u);
const struct custody *upgrade_custody(const struct upgrade *u);

/* Before that: a request for COMMIT without an answer would leave a guest standing still. */
void upgrade_hear_out_all(struct context *ctx);

/* Lets go of all, on the way out: the workers see the end of their socket. */
void upgrade_free_all(struct context *ctx);

#endif
