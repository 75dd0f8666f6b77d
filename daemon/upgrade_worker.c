/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The worker of an upgrade: what it is given, what its messages lead to, and what is
 * believed when it ends. The order of things is the point here: what it puts into
 * custody is held and named in the journal before it hears so, and COMMIT is synced
 * before it may let the target run. upgrade.c says what becomes of each step if the
 * daemon dies at it; a worker that dies is upgrade_recovery.c's.
 */
#include "upgrade_state.h"

#include "fault_point.h"
#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "native.h"
#include "process.h"
#include "source_watch.h"
#include "standstill.h"
#include "worker/deadlines.h"
#include "worker/device_state.h"

#include <fcntl.h>
#include <string.h>

static int note_phase(struct upgrade *u, const Event *event)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	Upgraded__V1__PhaseTime *p, **v;
	uint64_t now = now_us() - u->began_us;

	u->phase = event->phase;
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__PHASE;
	record.phase = event->phase;
	upgrade_journal_or_log(u, &record);

	if (u->n_phases)
		u->phases[u->n_phases - 1]->duration_us =
			now - u->phases[u->n_phases - 1]->start_us;
	v = reallocarray(u->phases, u->n_phases + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	u->phases = v;
	p = message_new(&upgraded__v1__phase_time__descriptor);
	if (!p)
		return -ENOMEM;
	p->phase = event->phase;
	p->start_us = now;
	u->phases[u->n_phases++] = p;
	return 0;
}

static int on_event(struct upgrade *u, Event *event)
{
	char *vm = event->vm;

	/* Each of those that try again goes through the same phases. */
	if (u->puts_off)
		return 0;
	log_vm(LOG_INFO, u->vm->pb->name, u->start->upgrade_id, "%s%s%s", phase_name(event->phase),
	       event->text[0] ? ": " : "", event->text);
	if (event->phase != u->phase)
		(void)note_phase(u, event);
	/* tell() borrows the registry's name; give the message its own string back. */
	upgrade_tell(u, event);
	event->vm = vm;
	return 0;
}

static int on_custody(struct upgrade *u, const Envelope *env, struct scm_fds *fds)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	const CustodyPut *put = env->custody_put;
	int r;

	if (!strcmp(put->name, "target") &&
	    (!put->target || put->target->pid <= 0 || fds->n < 1 || env->batches_left))
		r = error_set(&err, -EINVAL, "a target is put with its process and its pidfd");
	else
		r = custody_put(&u->custody, put, env->batches_left > 0, fds, &err);
	if (r >= 0 && env->batches_left)
		return 0;
	if (r >= 0) {
		record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__CUSTODY;
		record.custody = custody_find(&u->custody, put->name)->put;
		/* A target that no record names would be left running by a recovery. */
		r = upgrade_journal(u, &record, &err);
		fault_point(FAULT_CUSTODY_JOURNALED);
	}
	return r < 0 ? worker_process_refuse(u->worker, env->id, &err)
		     : worker_process_ack(u->worker, env->id);
}

const CustodyPut *upgrade_start_order(const struct upgrade *u)
{
	const struct custody_item *start = custody_find(&u->custody, "start");

	return start ? start->put : NULL;
}

/* Dead or alive; from when it was reaped on, its pid may be somebody else's. */
static bool is_there(const Process *p)
{
	uint64_t start_time;

	return process_start_time(p->pid, &start_time) >= 0 && start_time == p->start_time;
}

void upgrade_tell_manager(struct upgrade *u)
{
	const struct custody_item *target = custody_find(&u->custody, "target");
	pid_t from = is_there(u->start->vm->process) ? u->start->vm->process->pid : 0;

	if (!target)
		return;
	if (u->rebuilds && manager_of(u->vm)->place(u->ctx, u->vm, upgrade_start_order(u),
						    &u->place) >= 0)
		from = u->place.pid;
	manager_of(u->vm)->commit(u->ctx, u->vm, target->put, from);
}

/* There is one that could run, and no kernel that keeps it from running. */
static bool source_may_run(const struct upgrade *u, bool parked)
{
	return !parked && !process_has_ended(u->source_pidfd);
}

void upgrade_watch_source(struct upgrade *u)
{
	if (u->watch || !source_may_run(u, u->parked))
		return;
	if (source_watch_new(u->ctx->event, u->vm->pb->name, u->start->upgrade_id,
			     u->start->vm->process->pid, u->source_pidfd, &u->watch) < 0)
		log_vm(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id,
		       "the source cannot be watched");
}

/* The worker has seen to that, but a worker may be wrong. */
static bool source_stands_still(const struct upgrade *u)
{
	pid_t pid = u->start->vm->process->pid;

	return process_has_ended(u->source_pidfd) || process_is_stopped(pid) == 1 ||
	       process_is_dying(pid);
}

/* The plan's tier does not say whether it is @parked: it may not have come to that. */
static int commit(struct upgrade *u, bool parked, struct error *err)
{
	const struct custody_item *target = custody_find(&u->custody, "target");
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	int r;

	if (u->committed)
		return 0;
	if (u->aborted && !u->rebuilds)
		return error_set(err, -ECANCELED, "aborted by the operator");
	if (!target)
		return error_set(err, -EINVAL, "there is no target in custody");
	if (source_may_run(u, parked) && !source_stands_still(u))
		return error_set(err, -EBUSY,
				 "the VMM of %s (process %d) does not stand still, so the target "
				 "may not run",
				 u->vm->pb->name, u->start->vm->process->pid);
	/* The source can go on still. */
	if (upgrade_target_has_ended(u))
		return error_set(err, -ESRCH, "the target has ended");
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__COMMIT;
	record.parked = parked;
	fault_point(FAULT_COMMIT_DUE);
	r = upgrade_journal(u, &record, err);
	if (r < 0)
		return r;
	fault_point(FAULT_COMMIT_JOURNALED);
	u->committed = true;
	u->parked = parked;
	/* The worker tells of its phases later, when the guest runs. */
	if (u->phase < PHASE(SWITCH))
		u->phase = PHASE(SWITCH);
	upgrade_tell_manager(u);
	upgrade_watch_source(u);
	fault_point(FAULT_COMMIT_TOLD);
	return 0;
}

/* No record of it: a name in the journal says what was held, not that it still is. */
static int on_drop(struct upgrade *u, const Envelope *env)
{
	custody_drop(&u->custody, env->custody_drop->name);
	return worker_process_ack(u->worker, env->id);
}

static int on_commit(struct upgrade *u, const Envelope *env)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	if (u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_ROLLBACK)
		return -EPROTO;
	if (commit(u, env->commit->parked, &err) >= 0)
		return worker_process_ack(u->worker, env->id);
	log_error(LOG_ERR, u->vm->pb->name, u->start->upgrade_id, &err, "no commit");
	return worker_process_refuse(u->worker, env->id, &err);
}

static int on_finish(struct upgrade *u, Envelope *env)
{
	if (!u->committed)
		return -EPROTO;
	message_free(u->finish);
	u->finish = TAKE_PTR(env->finish);
	return worker_process_ack(u->worker, env->id);
}

const FinishRequest *upgrade_target_finish(const struct upgrade *u)
{
	return u->finish;
}

bool upgrade_sets_emulator(const struct upgrade *u)
{
	return u->start->set_emulator;
}

static int on_done(struct upgrade *u, Envelope *env)
{
	WorkerDone *done = env->worker_done;

	if (!done->report || !done->report->outcome)
		return -EPROTO;
	/* The journal has the last word on what can be true. */
	if (u->committed && (done->report->outcome == OUTCOME(ROLLED_BACK) ||
			     done->report->outcome == OUTCOME(REFUSED)))
		return -EPROTO;
	if (!u->committed && done->report->outcome == OUTCOME(COMMITTED))
		return -EPROTO;
	message_free(u->report);
	message_free(u->found);
	fault_point(FAULT_REPORT_RECEIVED);
	digests_learn(&u->ctx->digests, done->read, done->n_read);
	u->report = TAKE_PTR(done->report);
	u->found = TAKE_PTR(done->vm);
	worker_process_expect_end(u->worker, WORKER_END_US);
	return 0;
}

static int on_message(Envelope *env, struct scm_fds *fds, void *userdata)
{
	struct upgrade *u = userdata;

	switch (env->body_case) {
	case BODY(EVENT):
		return on_event(u, env->event);
	case BODY(CUSTODY_PUT):
		return on_custody(u, env, fds);
	case BODY(CUSTODY_DROP):
		return on_drop(u, env);
	case BODY(COMMIT):
		return on_commit(u, env);
	case BODY(WORKER_DONE):
		return on_done(u, env);
	case BODY(FINISH):
		return on_finish(u, env);
	case BODY(VMM_BORROW):
		return native_borrow(u->ctx, u->worker, env);
	default:
		return -EPROTO;
	}
}

/* The guest is not lost while it is in custody. */
static void on_lost(struct upgrade *u)
{
	_cleanup_message_ Report *report = TAKE_PTR(u->report);

	message_free(u->found);
	u->found = NULL;
	if (!u->rebuilds)
		u->tries = 0;
	upgrade_recover(u, report->error);
}

/*
 * Who manages the VM may have to let go of the source first. If the daemon dies while
 * that is waited for, the next one has another worker look at it, and waits again.
 */
static void finish(struct upgrade *u)
{
	u->finishing = u->finish && u->report->outcome == OUTCOME(COMMITTED);
	if (!u->finishing || manager_of(u->vm)->finish(u->ctx, u->vm) == 0)
		upgrade_end(u);
}

static const char *last_words(const Report *r)
{
	return r->error[0] ? r->error : r->n_findings ? r->findings[r->n_findings - 1]->text : "";
}

static bool puts_off(struct upgrade *u)
{
	_cleanup_message_ Report *report = TAKE_PTR(u->report);

	if (!upgrade_puts_off(u, last_words(report))) {
		u->report = TAKE_PTR(report);
		return false;
	}
	if (report->outcome == OUTCOME(COMMITTED) && !u->ran)
		u->ran = TAKE_PTR(report);
	return true;
}

/* A guest that was seen to run and has ended since, of itself for all one knows, is not lost. */
static void remember_that_it_ran(struct upgrade *u)
{
	if (!u->ran)
		return;
	if (u->report->outcome == OUTCOME(LOST) && upgrade_target_has_ended(u)) {
		message_free(u->report);
		u->report = TAKE_PTR(u->ran);
	} else if (!u->report->blackout_us) {
		u->report->blackout_us = u->ran->blackout_us;
	}
}

static void on_ended(const char *how, void *userdata)
{
	struct upgrade *u = userdata;
	char why[160];

	native_take_back(u->ctx, u->worker);
	worker_process_freep(&u->worker);
	if (u->report && u->report->outcome == OUTCOME(LOST) &&
	    u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_REBUILD)
		u->lost++;
	if (u->report && u->report->outcome == OUTCOME(LOST) && upgrade_can_rebuild(u)) {
		on_lost(u);
		return;
	}
	if (u->report) {
		if (puts_off(u))
			return;
		remember_that_it_ran(u);
		finish(u);
		return;
	}
	snprintf(why, sizeof(why), "its worker %s in phase %s", how, phase_name(u->phase));
	upgrade_recover(u, why);
}

uint64_t upgrade_silence_us(void *userdata)
{
	const struct upgrade *u = userdata;
	bool first = u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE;

	return worker_silence_us(u->start, !first || u->committed || u->phase == PHASE(ROLLBACK));
}

/* From the first worker's FREEZE on the guest stands still, or may, until it runs: DONE. */
uint64_t upgrade_stuck_us(void *userdata)
{
	const struct upgrade *u = userdata;
	bool first = u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE;

	return (first && u->phase < PHASE(FREEZE)) || u->phase == PHASE(DONE) ? UINT64_MAX
									      : STUCK_US;
}

static const struct worker_ops upgrade_ops = { on_message, on_ended, upgrade_silence_us,
					      upgrade_stuck_us };

int upgrade_open_target(struct upgrade *u, int *ret_fd)
{
	const struct custody_item *t = custody_find(&u->custody, "target");
	int r;

	if (!t) {
		*ret_fd = -EBADF;
		return 0;
	}
	if (t->n_fds) {
		*ret_fd = fcntl(t->fds[0], F_DUPFD_CLOEXEC, 0);
		return *ret_fd < 0 ? -errno : 0;
	}
	r = process_open(t->put->target->pid, t->put->target->start_time, ret_fd);
	return r == -ESRCH ? process_open_dead(ret_fd) : r;
}

/* To undo or to finish takes the marks of the state; to rebuild takes all. */
static bool is_given(const struct custody_item *item, Upgraded__V1__WorkerMode mode)
{
	const char *name = item->put->name;

	if (item->open || mode == UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE)
		return false;
	if (mode == UPGRADED__V1__WORKER_MODE__WORKER_REBUILD)
		return strcmp(name, "target") && strcmp(name, "target-vm");
	return !strcmp(name, DEVICE_STATE) || !strcmp(name, "target-vm");
}

static void give_custody(struct upgrade *u, Upgraded__V1__WorkerMode mode)
{
	for (size_t i = 0; i < u->custody.n; i++) {
		const struct custody_item *item = u->custody.items[i];

		/* A worker that does not take it is killed, and seen to end. */
		if (is_given(item, mode) &&
		    worker_process_give(u->worker, item->whole, item->fds, item->n_fds) < 0)
			return;
	}
}

int upgrade_run_worker(struct upgrade *u, Upgraded__V1__WorkerMode mode, struct error *err)
{
	const struct custody_item *t = custody_find(&u->custody, "target");
	_cleanup_close_ int target = -EBADF;
	WorkerStart start = *u->start;
	struct worker_order order;
	int r;

	start.mode = mode;
	if (mode != UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE) {
		r = upgrade_open_target(u, &target);
		if (r < 0)
			return error_errno(err, r, "the target cannot be watched");
		if (t)
			start.target = t->put->target;
		/* The plan is as old as the order to start, the process is not. */
		t = t ?: custody_find(&u->custody, "start");
		if (t) {
			start.target_qmp = t->put->target_qmp;
			start.plan = t->put->plan;
		}
	}
	start.place = &u->place;
	start.known = u->ctx->digests.v;
	start.n_known = u->ctx->digests.n;
	for (size_t i = 0; i < u->custody.n; i++)
		start.custody += is_given(u->custody.items[i], mode);
	order = (struct worker_order){
		.program = u->ctx->options.worker,
		.start = &start,
		.source_pidfd = u->source_pidfd,
		.target_pidfd = target,
		.noted = true,
		.ops = &upgrade_ops,
		.userdata = u,
	};
	u->next_worker_mode = mode;
	message_free(u->finish);
	u->finish = NULL;
	r = worker_process_start(u->ctx->event, &order, &u->worker, err);
	if (r < 0)
		return r;
	fault_point(FAULT_WORKER_STARTED);
	give_custody(u, mode);
	return 0;
}
