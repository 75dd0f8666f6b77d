/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One upgrade as the daemon holds it, for the files that carry it through its life:
 *
 *   upgrade.c           asked for, queued, begun, aborted, freed
 *   upgrade_worker.c    its worker: started, heard, believed
 *   upgrade_recovery.c  what comes after a worker that ended before it was done, and
 *                       after a restart of the daemon
 *   upgrade_end.c       the report, and the end
 *
 * Nobody else includes this.
 */
#ifndef UPGRADED_UPGRADE_STATE_H
#define UPGRADED_UPGRADE_STATE_H

#include "clock.h"
#include "control.h"
#include "custody.h"
#include "registry.h"
#include "server.h"
#include "upgrade.h"
#include "worker_process.h"

#include <systemd/sd-event.h>

struct upgrade {
	struct upgrade *next;
	struct context *ctx;
	struct vm *vm; /* cannot be forgotten while vm->upgrade is set */
	struct requester from;
	WorkerStart *start; /* the order as first given, the VM as it was */
	struct custody custody;
	int source_pidfd; /* stays ours when the source has ended */
	struct worker_process *worker;
	uint64_t next_worker_mode;  /* enum WorkerMode of the worker that runs or comes next */
	sd_event_source *later;	    /* calls on_recovery(); there from the beginning */
	sd_event_source *past_exit; /* of a past worker */
	int past_worker;	    /* pidfd of a worker of the daemon before us */
	sd_event_source *past_limit;
	struct source_watch *watch; /* after COMMIT */
	unsigned tries;
	int short_of;  /* errno: why no worker could be started the last time */
	Process place; /* pid 0: of the source, or of nobody */
	uint64_t place_until_us;
	bool no_place;	   /* there will be none */
	unsigned lost;	   /* how many targets from custody failed */
	unsigned rebuilds; /* begun; then "committed" is about the last of their targets */
	bool rebuild_due;  /* the last of them had no worker yet */
	bool begun;	   /* INTENT is in the journal */
	bool committed;
	bool parked; /* then: the kernel keeps the source from running */
	bool aborted;
	Phase phase;
	Phase failed_phase;
	char *failure;			  /* why there is a recovery */
	uint64_t began_us;		  /* CLOCK_MONOTONIC */
	uint64_t started_at_us;		  /* CLOCK_REALTIME */
	Upgraded__V1__PhaseTime **phases; /* as seen from here, for when the worker's are lost */
	size_t n_phases;
	Report *report;
	Report *spare; /* so that there is always one to end with */
	Vm *found;     /* the VM as the worker left it */
	FinishRequest *finish; /* of the last worker; NULL: it came to no such thing */
	bool finishing;	       /* the manager's finish() has been asked */
	bool puts_off;	       /* told of a target that does not answer (upgrade_puts_off()) */
	Report *ran; /* then: of the first worker that saw it run, all the same; NULL: none did */
	bool decided;	       /* END is in the journal */
};

/* ---- upgrade.c ---- */

int upgrade_new(struct context *ctx, struct vm *vm, struct upgrade **ret_upgrade);
void upgrade_freep(struct upgrade **up);
/* Appends it to the context's list, which owns it from here on. */
void upgrade_append(struct context *ctx, struct upgrade *u);
int upgrade_journal(struct upgrade *u, JournalRecord *record, struct error *err);
/* For records whose loss does not change what a recovery does. */
void upgrade_journal_or_log(struct upgrade *u, JournalRecord *record);
void upgrade_tell(struct upgrade *u, Event *event);
void upgrade_tell_text(struct upgrade *u, const char *text);

/* ---- upgrade_worker.c ---- */

int upgrade_run_worker(struct upgrade *u, Upgraded__V1__WorkerMode mode, struct error *err);
/* For how long its worker may say nothing from now on, or not even wait; of struct worker_ops. */
uint64_t upgrade_silence_us(void *userdata);
uint64_t upgrade_stuck_us(void *userdata);
/* Or there is none. */
bool upgrade_target_has_ended(struct upgrade *u);
/* How the target was started, as custody has it; NULL: it was not. */
const CustodyPut *upgrade_start_order(const struct upgrade *u);
/* Who the target takes over from, as the manager sees it. */
void upgrade_tell_manager(struct upgrade *u);
/* Without a watch the worker alone is trusted, as it is with everything before COMMIT. */
void upgrade_watch_source(struct upgrade *u);
/* The target's pidfd: from custody, or found again; -EBADF: there is none. */
int upgrade_open_target(struct upgrade *u, int *ret_fd);

/* ---- upgrade_recovery.c ---- */

/* The worker is gone before it was done: have another one undo or finish. */
void upgrade_recover(struct upgrade *u, const char *why);
bool upgrade_can_rebuild(struct upgrade *u);
/*
 * Its manager needs to know more than the workers so far could find out of a target that
 * is there, but hangs: then another one tries later, and true comes back. @why: what the
 * last one said.
 */
bool upgrade_puts_off(struct upgrade *u, const char *why);
/* sd_event_time_handler_t of u->later */
int upgrade_on_recovery(sd_event_source *s, uint64_t usec, void *userdata);

/* ---- upgrade_end.c ---- */

/* Ends it with a report made here, because no worker can make one. Frees @u. */
void upgrade_end_with(struct upgrade *u, Upgraded__V1__Outcome outcome, const char *why);

#endif
