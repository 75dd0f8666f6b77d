/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end of an upgrade: its report, the registry, what the manager must know whoever
 * dies, END in the journal; then custody emptied, the history, the manager and whoever
 * asked told, in this order. Called by upgrade_worker.c and upgrade_recovery.c when
 * nothing is left to do, by upgrade.c for one that never began, and by a manager that
 * had to be waited for: with the first half first (upgrade_decide()) where somebody
 * waits for that.
 *
 * What if the daemon dies right now? Before END the next daemon has a worker undo or
 * finish what is undone or finished, and comes here again. After END the next daemon
 * drops what is left in the fd store (recover.c) and has the report from the journal.
 */
#include "upgrade_state.h"

#include "audit.h"
#include "fault_point.h"
#include "history.h"
#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "native.h"
#include "schedule.h"
#include "work_dir.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>

/* What went wrong first; of a guest that is lost, also why nothing helped. */
static void explain_failure(const struct upgrade *u, Report *r)
{
	_cleanup_free_ char *both = NULL;

	if (r->outcome == OUTCOME(LOST) && r->error[0] && strcmp(r->error, u->failure) != 0 &&
	    asprintf(&both, "%s; then: %s", u->failure, r->error) < 0)
		both = NULL;
	message_set_string(&r->error, both ?: u->failure);
}

static void fill_report(struct upgrade *u)
{
	Report *r = u->report;

	r->upgrade_id = u->start->upgrade_id;
	r->requested_by = u->from.peer.uid;
	/* What the first worker knew of the beginning died with it. */
	if (u->failure) {
		r->started_at_us = 0;
		if (r->outcome != OUTCOME(COMMITTED) && u->failed_phase)
			r->failed_phase = u->failed_phase;
		if (r->outcome != OUTCOME(COMMITTED))
			explain_failure(u, r);
		for (size_t i = 0; i < r->n_phases; i++)
			message_free(r->phases[i]);
		free(r->phases);
		r->phases = TAKE_PTR(u->phases);
		r->n_phases = u->n_phases;
		u->n_phases = 0;
	}
	message_set_string(&r->vm, u->vm->pb->name);
	if (!r->source_binary[0])
		message_set_string(&r->source_binary, u->start->vm->binary);
	if (!r->source_version[0])
		message_set_string(&r->source_version, u->start->vm->version);
	if (!r->target_binary[0])
		message_set_string(&r->target_binary, u->start->target_binary);
	if (!r->source && u->start->vm->process)
		r->source = message_copy(u->start->vm->process);
	if (!r->started_at_us) {
		r->started_at_us = u->started_at_us ?: realtime_us();
		/* It may never have begun. */
		r->total_us = u->began_us ? now_us() - u->began_us : 0;
	}
}

/* The registry learns what the VM is now. */
static void update_vm(struct upgrade *u)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	const Report *r = u->report;
	Process *now = r->target;
	int k;

	if (r->outcome != OUTCOME(COMMITTED)) {
		if (u->found && r->outcome != OUTCOME(LOST))
			registry_learn(u->vm, u->found);
		return;
	}
	if (u->found && u->found->process && u->found->process->pid)
		now = u->found->process;
	u->vm->pb->generation++;
	k = now ? process_read(now->pid, &facts, &err) : -ESRCH;
	/* It runs, though this machine is too short of something for a look. */
	if (upgrade_may_pass(k))
		k = process_facts_make(now->pid, now->start_time, r->target_binary, &facts);
	if (k >= 0 && facts.start_time == now->start_time)
		k = registry_set_process(u->vm, &facts, &err);
	if (u->found)
		registry_learn(u->vm, u->found);
	if (k < 0)
		log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
		       "the upgraded VM's process is gone");
}

static const char *outcome_text(const Report *r)
{
	switch (r->outcome) {
	case OUTCOME(COMMITTED):
		return "the guest runs in the target";
	case OUTCOME(ROLLED_BACK):
		return "rolled back, the guest runs on in the source";
	case OUTCOME(REFUSED):
		return "refused, nothing was touched";
	default:
		return "the guest is lost";
	}
}

/* Also one that waits: it has no records, and harms none. */
static bool is_running(uint64_t id, void *userdata)
{
	const struct context *ctx = userdata;

	for (const struct upgrade *u = ctx->upgrades; u; u = u->next)
		if (u->start->upgrade_id == id)
			return true;
	return false;
}

void upgrade_decide(struct upgrade *u)
{
	JournalRecord end = UPGRADED__V1__JOURNAL_RECORD__INIT;
	const struct manager_driver *manager = manager_of(u->vm);
	Report *r = u->report;

	if (u->decided)
		return;
	u->decided = true;
	fill_report(u);
	update_vm(u);
	/* The guest has ended: nobody needs the place of a source that was kept (manager.h). */
	if (r->outcome == OUTCOME(LOST) && (u->committed || u->rebuilds) &&
	    upgrade_target_has_ended(u))
		(void)pidfd_send_signal(u->source_pidfd, SIGKILL, NULL, 0);
	if (manager->tell)
		manager->tell(u->ctx, u->vm, r);
	audit_report(r, outcome_text(r));
	metrics_report(&u->ctx->metrics, r);
	if (!u->begun)
		return;
	end.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__END;
	end.report = r;
	fault_point(FAULT_END_DUE);
	upgrade_journal_or_log(u, &end);
	fault_point(FAULT_END_JOURNALED);
}

void upgrade_end(struct upgrade *u)
{
	Event event = UPGRADED__V1__EVENT__INIT;
	struct context *ctx = u->ctx;
	struct upgrade **at = &ctx->upgrades;
	Envelope env = ENVELOPE_INIT;
	struct vm *vm = u->vm;
	Report *r = u->report;
	bool worked = u->begun;

	upgrade_decide(u);
	custody_clear(&u->custody);
	fault_point(FAULT_CUSTODY_CLEARED);
	history_append(ctx->history, r);
	manager_of(vm)->done(ctx, vm, r);

	u->phase = r->outcome == OUTCOME(COMMITTED) ? PHASE(DONE) : PHASE(IDLE);
	event.phase = u->phase;
	event.text = (char *)outcome_text(r);
	event.report = r;
	upgrade_tell(u, &event);
	env.body_case = BODY(REPORT);
	env.report = r;
	server_reply(ctx->server, &u->from, &env);

	while (*at != u)
		at = &(*at)->next;
	*at = u->next;
	vm->upgrade = NULL;
	native_upgrade_ended(ctx, u->start->upgrade_id, vm_has_ended(vm) ? NULL : vm->pb->process);
	if (worked) {
		vm->working = false;
		work_dir_remove(u->start->work_dir);
	}
	upgrade_freep(&u);
	journal_compact(ctx->journal, ctx->upgrades ? is_running : NULL, ctx);
	schedule(ctx);
}

void upgrade_end_with(struct upgrade *u, Upgraded__V1__Outcome outcome, const char *why)
{
	message_free(u->report);
	u->report = TAKE_PTR(u->spare);
	u->report->outcome = outcome;
	u->report->failed_phase = u->failed_phase ?: u->phase;
	message_set_string(&u->report->error, why);
	upgrade_end(u);
}
