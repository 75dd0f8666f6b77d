/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Supervision of the running upgrades. Asked for by control.c, taken up again
 * after a restart by recover.c. A worker does the work; here is what must be
 * right even when the worker is killed:
 *
 *   INTENT is in the journal before a worker is started.
 *   What a worker puts into custody is held, and named in the journal, before
 *   the worker is told that it is.
 *   COMMIT is in the journal, synced, before the worker is told that it may let
 *   the target run; when it cannot be written, the worker is told so and undoes.
 *   A worker that ends without WorkerDone is followed by another one: before
 *   COMMIT to roll back, after it to roll forward.
 *   When both VMMs are dead, and the guest's state is in custody, whole, and
 *   nobody was told to run from it, another target is started from custody: that
 *   is REBUILD, and COMMIT is then asked for again.
 *   END is written when nothing is left to do; custody is emptied after it.
 *
 * Owns, per upgrade: the order, the custody, the worker, the source's pidfd.
 *
 * What if the daemon dies right now?
 *   before INTENT      nothing was begun
 *   after INTENT       the worker sees the end of its socket and undoes; the next
 *                      daemon waits for it and has another one undo, which finds
 *                      nothing to do or the rest
 *   after COMMIT       the worker finishes, the next daemon has another one finish
 *   in between         a worker that asked for COMMIT and got no answer does nothing
 *                      more: the journal knows, and the next daemon goes by it
 *   after END          what is left in the fd store is removed by the next daemon
 *   both VMMs as well  the next daemon finds them dead, and custody in the fd store
 */
#include "upgrade.h"

#include "control.h"
#include "fault_point.h"
#include "history.h"
#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "native.h"
#include "oneshot.h"
#include "schedule.h"
#include "source_watch.h"
#include "work_dir.h"
#include "worker/device_state.h"
#include "worker_process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <time.h>

#define RECOVERY_TRIES 3
/* A target that dies of this state twice will die of it again. */
#define REBUILD_TRIES 2
/* And if daemons or workers die of it, there is an end to that as well. */
#define REBUILDS_MAX 10
/* systemd waits before it starts a unit anew: RestartSec=, and its own work. */
#define PLACE_US	     (30 * 1000000ULL)
#define PLACE_INTERVAL_US    (100 * 1000ULL)
#define SHORTAGE_INTERVAL_US (1000 * 1000ULL)
#define SOURCE_END_US	     (10 * 1000ULL)

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
	bool begun;	   /* INTENT is in the journal */
	bool committed;
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
};

static uint64_t clock_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

Phase upgrade_phase(const struct upgrade *u)
{
	return u->phase;
}

uint64_t upgrade_id(const struct upgrade *u)
{
	return u->start->upgrade_id;
}

const Process *upgrade_target(const struct upgrade *u)
{
	const struct custody_item *target = custody_find(&u->custody, "target");

	return target ? target->put->target : NULL;
}

const struct custody *upgrade_custody(const struct upgrade *u)
{
	return &u->custody;
}

static void upgrade_freep(struct upgrade **up)
{
	struct upgrade *u = *up;

	if (!u)
		return;
	native_take_back(u->ctx, u->worker);
	worker_process_freep(&u->worker);
	sd_event_source_disable_unref(u->later);
	sd_event_source_disable_unref(u->past_exit);
	sd_event_source_disable_unref(u->past_limit);
	source_watch_freep(&u->watch);
	closep(&u->past_worker);
	closep(&u->source_pidfd);
	custody_leave(&u->custody);
	for (size_t i = 0; i < u->n_phases; i++)
		message_free(u->phases[i]);
	free(u->phases);
	free(u->failure);
	message_free(u->report);
	message_free(u->spare);
	message_free(u->found);
	message_free(u->start);
	free(u);
	*up = NULL;
}

static void append(struct context *ctx, struct upgrade *u)
{
	struct upgrade **at = &ctx->upgrades;

	while (*at)
		at = &(*at)->next;
	*at = u;
	u->vm->upgrade = u;
}

static int journal(struct upgrade *u, JournalRecord *record, struct error *err)
{
	record->upgrade_id = u->start->upgrade_id;
	return journal_append(u->ctx->journal, record, err);
}

/* For records whose loss does not change what a recovery does. */
static void journal_or_log(struct upgrade *u, JournalRecord *record)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	if (journal(u, record, &err) < 0)
		log_error(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id, &err,
			  "a record is missing in the journal");
}

static void tell(struct upgrade *u, Event *event)
{
	event->upgrade_id = u->start->upgrade_id;
	event->vm = u->vm->pb->name;
	if (!event->at_us)
		event->at_us = clock_us(CLOCK_REALTIME);
	if (!event->elapsed_us && u->began_us)
		event->elapsed_us = clock_us(CLOCK_MONOTONIC) - u->began_us;
	server_event(u->ctx->server, event, &u->from);
}

static void tell_text(struct upgrade *u, const char *text)
{
	Event event = UPGRADED__V1__EVENT__INIT;

	event.phase = u->phase;
	event.text = (char *)text;
	tell(u, &event);
}

/* ---- the end ---- */

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
		r->started_at_us = u->started_at_us;
		r->total_us = clock_us(CLOCK_MONOTONIC) - u->began_us;
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
	if (u->found)
		registry_learn(u->vm, u->found);
	k = now ? process_read(now->pid, &facts, &err) : -ESRCH;
	if (k >= 0 && facts.start_time == now->start_time)
		k = registry_set_process(u->vm, &facts, &err);
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

/* Everything has been said and done: u->report is set. Frees @u. */
static void upgrade_end(struct upgrade *u)
{
	JournalRecord end = UPGRADED__V1__JOURNAL_RECORD__INIT;
	Event event = UPGRADED__V1__EVENT__INIT;
	struct context *ctx = u->ctx;
	struct upgrade **at = &ctx->upgrades;
	Envelope env = ENVELOPE_INIT;
	struct vm *vm = u->vm;
	Report *r = u->report;
	bool worked = u->begun;

	fill_report(u);
	update_vm(u);
	log_vm(r->outcome == OUTCOME(LOST)	  ? LOG_CRIT
	       : r->outcome == OUTCOME(COMMITTED) ? LOG_NOTICE
						  : LOG_WARNING,
	       vm->pb->name, r->upgrade_id,
	       "upgrade %" PRIu64 " to %s %s: %s%s%s (%" PRIu64 " ms, blackout %" PRIu64 " ms)",
	       r->upgrade_id, r->target_binary, r->target_version, outcome_text(r),
	       r->error[0] ? ": " : "", r->error, r->total_us / 1000, r->blackout_us / 1000);
	if (u->begun) {
		end.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__END;
		end.report = r;
		fault_point(FAULT_END_DUE);
		journal_or_log(u, &end);
		fault_point(FAULT_END_JOURNALED);
	}
	custody_clear(&u->custody);
	fault_point(FAULT_CUSTODY_CLEARED);
	history_append(ctx->history, r);
	manager_of(vm)->done(ctx, vm, r);

	u->phase = r->outcome == OUTCOME(COMMITTED) ? PHASE(DONE) : PHASE(IDLE);
	event.phase = u->phase;
	event.text = (char *)outcome_text(r);
	event.report = r;
	tell(u, &event);
	env.body_case = BODY(REPORT);
	env.report = r;
	server_reply(ctx->server, &u->from, &env);

	while (*at != u)
		at = &(*at)->next;
	*at = u->next;
	vm->upgrade = NULL;
	native_upgrade_ended(ctx, u->start->upgrade_id, vm->pidfd >= 0 ? vm->pb->process : NULL);
	if (worked) {
		vm->working = false;
		work_dir_remove(u->start->work_dir);
	}
	upgrade_freep(&u);
	journal_compact(ctx->journal, ctx->upgrades ? is_running : NULL, ctx);
	schedule(ctx);
}

/* Ends it with a report made here, because no worker can make one. */
static void upgrade_end_with(struct upgrade *u, Upgraded__V1__Outcome outcome, const char *why)
{
	message_free(u->report);
	u->report = TAKE_PTR(u->spare);
	u->report->outcome = outcome;
	u->report->failed_phase = u->failed_phase ?: u->phase;
	message_set_string(&u->report->error, why);
	upgrade_end(u);
}

/* ---- messages of the worker ---- */

static int note_phase(struct upgrade *u, const Event *event)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	Upgraded__V1__PhaseTime *p, **v;
	uint64_t now = clock_us(CLOCK_MONOTONIC) - u->began_us;

	u->phase = event->phase;
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__PHASE;
	record.phase = event->phase;
	journal_or_log(u, &record);

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

	log_vm(LOG_INFO, u->vm->pb->name, u->start->upgrade_id, "%s%s%s", phase_name(event->phase),
	       event->text[0] ? ": " : "", event->text);
	if (event->phase != u->phase)
		(void)note_phase(u, event);
	/* tell() borrows the registry's name; give the message its own string back. */
	tell(u, event);
	event->vm = vm;
	return 0;
}

static int on_custody(struct upgrade *u, const Envelope *env, struct scm_fds *fds)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	const CustodyPut *put = env->custody_put;
	int r;

	r = custody_put(&u->custody, put, env->batches_left > 0, fds, &err);
	if (r >= 0 && !strcmp(put->name, "target") &&
	    (!put->target || put->target->pid <= 0 || !custody_find(&u->custody, "target") ||
	     custody_find(&u->custody, "target")->n_fds < 1))
		r = error_set(&err, -EINVAL, "a target is put with its process and its pidfd");
	if (r >= 0 && env->batches_left)
		return 0;
	if (r >= 0) {
		record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__CUSTODY;
		record.custody = custody_find(&u->custody, put->name)->put;
		/* A target that no record names would be left running by a recovery. */
		r = journal(u, &record, &err);
		fault_point(FAULT_CUSTODY_JOURNALED);
	}
	return r < 0 ? worker_process_refuse(u->worker, env->id, &err)
		     : worker_process_ack(u->worker, env->id);
}

/* Who the target takes over from, as the manager sees it. */
static void tell_manager(struct upgrade *u)
{
	const struct custody_item *target = custody_find(&u->custody, "target");
	pid_t from = u->start->vm->process->pid;

	if (!target)
		return;
	if (u->rebuilds && manager_of(u->vm)->place(u->ctx, u->vm, &u->place) >= 0)
		from = u->place.pid;
	manager_of(u->vm)->commit(u->ctx, u->vm, from, target->put->target->pid);
}

/* Without one the worker alone is trusted, as it is with everything before COMMIT. */
static void watch_source(struct upgrade *u, const CustodyPut *target)
{
	if (u->rebuilds || (target->plan && target->plan->tier == UPGRADED__V1__TIER__TIER_STAGE2))
		return;
	if (source_watch_new(u->ctx->event, u->vm->pb->name, u->start->upgrade_id,
			     u->start->vm->process->pid, u->source_pidfd, &u->watch) < 0)
		log_vm(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id,
		       "the source cannot be watched");
}

static int commit(struct upgrade *u, struct error *err)
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
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__COMMIT;
	fault_point(FAULT_COMMIT_DUE);
	r = journal(u, &record, err);
	if (r < 0)
		return r;
	fault_point(FAULT_COMMIT_JOURNALED);
	u->committed = true;
	/* The worker tells of its phases later, when the guest runs. */
	if (u->phase < PHASE(SWITCH))
		u->phase = PHASE(SWITCH);
	tell_manager(u);
	watch_source(u, target->put);
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
	if (commit(u, &err) >= 0)
		return worker_process_ack(u->worker, env->id);
	log_error(LOG_ERR, u->vm->pb->name, u->start->upgrade_id, &err, "no commit");
	return worker_process_refuse(u->worker, env->id, &err);
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
	case BODY(VMM_BORROW):
		return native_borrow(u->ctx, u->worker, env);
	default:
		return -EPROTO;
	}
}

/* ---- workers ---- */

static void recover(struct upgrade *u, const char *why);
static bool can_rebuild(struct upgrade *u);

/* The guest is not lost while it is in custody. */
static void on_lost(struct upgrade *u)
{
	_cleanup_message_ Report *report = TAKE_PTR(u->report);

	message_free(u->found);
	u->found = NULL;
	if (!u->rebuilds)
		u->tries = 0;
	recover(u, report->error);
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
	if (u->report && u->report->outcome == OUTCOME(LOST) && can_rebuild(u)) {
		on_lost(u);
		return;
	}
	if (u->report) {
		upgrade_end(u);
		return;
	}
	snprintf(why, sizeof(why), "its worker %s in phase %s", how, phase_name(u->phase));
	recover(u, why);
}

static const struct worker_ops upgrade_ops = { on_message, on_ended };

/* The target's pidfd for a recovery worker: from custody, or found again. */
static int open_target(struct upgrade *u, int *ret_fd)
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

/* ---- the guest is in custody ---- */

static bool has_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return pidfd >= 0 && poll(&p, 1, 0) == 1;
}

static bool target_has_ended(struct upgrade *u)
{
	_cleanup_close_ int target = -EBADF;

	return open_target(u, &target) >= 0 && (target < 0 || has_ended(target));
}

/* Whole, and nobody was told to run from it. */
static bool state_is_good(const struct upgrade *u)
{
	const struct custody_item *state = custody_find(&u->custody, DEVICE_STATE);
	enum device_state what;

	return state && state->n_fds == 1 && device_state_get(state->fds[0], &what) >= 0 &&
	       what == DEVICE_STATE_WHOLE;
}

static bool can_rebuild(struct upgrade *u)
{
	return !u->no_place && u->lost < REBUILD_TRIES && u->rebuilds < REBUILDS_MAX &&
	       custody_find(&u->custody, "start") && state_is_good(u) &&
	       /* After COMMIT it has no claim to the guest any more, and no way back. */
	       (has_ended(u->source_pidfd) || u->committed) &&
	       /* The target of a rebuild that got no COMMIT is ended by the next one. */
	       ((u->rebuilds && !u->committed) || target_has_ended(u));
}

/* -EAGAIN: there is none yet, and on_recovery() is called again. */
static int find_place(struct upgrade *u)
{
	uint64_t now = clock_us(CLOCK_MONOTONIC);
	int r;

	r = manager_of(u->vm)->place(u->ctx, u->vm, &u->place);
	if (r != -EAGAIN)
		return r;
	if (!u->place_until_us) {
		u->place_until_us = now + PLACE_US;
		log_vm(LOG_NOTICE, u->vm->pb->name, u->start->upgrade_id,
		       "both of its VMMs have ended: waits for %s to be started anew",
		       u->vm->pb->unit);
	}
	if (now > u->place_until_us) {
		u->no_place = true;
		log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
		       "%s is not started anew: nowhere to bring the guest back to",
		       u->vm->pb->unit);
	}
	oneshot_arm(u->later, PLACE_INTERVAL_US);
	return -EAGAIN;
}

/*
 * If the daemon dies before the record: both are dead still, and it is written
 * then. After it: COMMIT is about the target that is still to come.
 */
static int begin_rebuild(struct upgrade *u, struct error *err)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	int r;

	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__REBUILD;
	r = journal(u, &record, err);
	if (r < 0)
		return r;
	/* Whoever tried to undo or to finish has nothing to do with it. */
	if (!u->rebuilds++)
		u->tries = 1;
	u->committed = false;
	log_vm(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id,
	       "both of its VMMs have ended: another target is started from custody");
	return 0;
}

/* ---- starting one ---- */

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

static int run_worker(struct upgrade *u, Upgraded__V1__WorkerMode mode, struct error *err)
{
	const struct custody_item *t = custody_find(&u->custody, "target");
	_cleanup_close_ int target = -EBADF;
	WorkerStart start = *u->start;
	struct worker_order order;
	int r;

	start.mode = mode;
	if (mode != UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE) {
		r = open_target(u, &target);
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
	for (size_t i = 0; i < u->custody.n; i++)
		start.custody += is_given(u->custody.items[i], mode);
	order = (struct worker_order){
		.program = u->ctx->options.worker,
		.start = &start,
		.source_pidfd = u->source_pidfd,
		.target_pidfd = target,
		.silence_us = worker_silence_us(start.phase_timeout_us),
		.ops = &upgrade_ops,
		.userdata = u,
	};
	u->next_worker_mode = mode;
	r = worker_process_start(u->ctx->event, &order, &u->worker, err);
	if (r < 0)
		return r;
	fault_point(FAULT_WORKER_STARTED);
	give_custody(u, mode);
	r = work_dir_write_worker(start.work_dir, worker_process_pid(u->worker));
	if (r < 0)
		log_vm(LOG_WARNING, u->vm->pb->name, start.upgrade_id,
		       "the worker could not be noted for a restart: %s", strerror(-r));
	return 0;
}

/* Errors that are about this machine at this moment. */
static bool may_pass(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EAGAIN || r == -ENOSPC ||
	       r == -EDQUOT || r == -EROFS || r == -EIO;
}

static int on_recovery(sd_event_source *s, uint64_t usec, void *userdata)
{
	Upgraded__V1__WorkerMode mode = UPGRADED__V1__WORKER_MODE__WORKER_ROLLBACK;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct upgrade *u = userdata;
	int r = 0;

	if (can_rebuild(u)) {
		if (!has_ended(u->source_pidfd)) {
			(void)pidfd_send_signal(u->source_pidfd, SIGKILL, NULL, 0);
			oneshot_arm(u->later, SOURCE_END_US);
			return 0;
		}
		r = find_place(u);
		if (r == -EAGAIN)
			return 0;
		mode = UPGRADED__V1__WORKER_MODE__WORKER_REBUILD;
		r = r < 0 ? r : begin_rebuild(u, &err);
	} else if (u->committed) {
		mode = UPGRADED__V1__WORKER_MODE__WORKER_FORWARD;
	}
	/* The daemon may have died between COMMIT and this; twice does no harm. */
	if (u->committed)
		tell_manager(u);
	if (r >= 0)
		r = run_worker(u, mode, &err);
	if (may_pass(r)) {
		/* A guest that stands still gains nothing if this gives up. */
		if (!u->short_of)
			log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
			       "no worker can be started yet: %s", err.text ?: strerror(-r));
		u->short_of = -r;
		oneshot_arm(u->later, SHORTAGE_INTERVAL_US);
		return 0;
	}
	u->short_of = 0;
	if (r < 0)
		recover(u, err.text ?: "out of memory");
	return 0;
}

/* The worker is gone before it was done: have another one undo or finish. */
static void recover(struct upgrade *u, const char *why)
{
	static const uint64_t delay_us[RECOVERY_TRIES] = { 0, 1000000, 5000000 };
	_cleanup_free_ char *text = NULL;
	const char *what = can_rebuild(u) ? "a target is started from custody"
			   : u->committed ? "another one finishes the upgrade"
					  : "another one undoes the upgrade";

	log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id, "%s; %s", why,
	       u->tries < RECOVERY_TRIES ? what : "no more tries");
	if (!u->failure) {
		u->failure = strdup(why);
		u->failed_phase = u->phase;
	}
	if (u->tries < RECOVERY_TRIES) {
		oneshot_arm(u->later, delay_us[u->tries++]);
		tell_text(u, why);
		return;
	}
	if (asprintf(&text, "%s, and %u more workers could not %s it; look at processes %d and %d",
		     u->failure ?: why, u->tries, u->committed ? "finish" : "undo",
		     u->start->vm->process->pid,
		     custody_find(&u->custody, "target")
			     ? custody_find(&u->custody, "target")->put->target->pid
			     : 0) < 0)
		text = NULL;
	free(u->failure);
	u->failure = NULL; /* the whole story is in the report's error now */
	upgrade_end_with(u, OUTCOME(LOST), text ?: "out of memory");
}

/* ---- the beginning ---- */

static int begin(struct upgrade *u, struct error *err)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_free_ char *dir = NULL;
	char name[24];
	int r;

	u->began_us = clock_us(CLOCK_MONOTONIC);
	u->started_at_us = clock_us(CLOCK_REALTIME);
	if (u->vm->pidfd < 0)
		return error_set(err, -ESRCH, "its process is gone");
	u->source_pidfd = fcntl(u->vm->pidfd, F_DUPFD_CLOEXEC, 0);
	if (u->source_pidfd < 0)
		return error_errno(err, -errno, "no room for its pidfd");
	r = manager_of(u->vm)->begin(u->ctx, u->vm, err);
	if (r < 0)
		return r;
	/* The VM as it is now: it may have changed while this waited. */
	message_free(u->start->vm);
	u->start->vm = message_copy(u->vm->pb);
	if (!u->start->vm)
		return error_set(err, -ENOMEM, "out of memory");
	snprintf(name, sizeof(name), "%" PRIu64, u->start->upgrade_id);
	r = work_dir_make(u->ctx->options.runtime_dir, name, u->vm->pb->process->pid, &dir, err);
	if (r < 0)
		return r;
	if (message_set_string(&u->start->work_dir, dir) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	record.kind = UPGRADED__V1__JOURNAL_RECORD__KIND__INTENT;
	record.start = u->start;
	fault_point(FAULT_INTENT_DUE);
	r = journal(u, &record, err);
	if (r < 0) {
		work_dir_remove(dir);
		return r;
	}
	fault_point(FAULT_INTENT);
	u->begun = true;
	u->vm->working = true;
	return run_worker(u, UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE, err);
}

bool upgrade_start_next(struct context *ctx)
{
	for (struct upgrade *u = ctx->upgrades; u; u = u->next) {
		_cleanup_error_ struct error err = ERROR_INIT;

		if (u->begun || u->vm->working)
			continue;
		if (u->aborted)
			error_set(&err, -ECANCELED, "aborted before it began");
		else if (begin(u, &err) >= 0)
			return true;
		upgrade_end_with(u, err.code == -ESRCH ? OUTCOME(LOST) : OUTCOME(REFUSED),
				 err.text ?: "out of memory");
		/* upgrade_end() has gone through the list itself. */
		return false;
	}
	return false;
}

static int upgrade_new(struct context *ctx, struct vm *vm, struct upgrade **ret_upgrade)
{
	_cleanup_(upgrade_freep) struct upgrade *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	u->ctx = ctx;
	u->vm = vm;
	u->source_pidfd = u->past_worker = -EBADF;
	upgraded__v1__process__init(&u->place);
	u->custody.store = ctx->fd_store;
	u->start = message_new(&upgraded__v1__worker_start__descriptor);
	u->spare = message_new(&upgraded__v1__report__descriptor);
	if (!u->spare || !u->start || !(u->start->vm = message_copy(vm->pb)) ||
	    sd_event_add_time(ctx->event, &u->later, CLOCK_MONOTONIC, UINT64_MAX, 0, on_recovery,
			      u) < 0)
		return -ENOMEM;
	*ret_upgrade = TAKE_PTR(u);
	return 0;
}

static void reply_started(struct upgrade *u)
{
	Upgraded__V1__UpgradeStarted started = UPGRADED__V1__UPGRADE_STARTED__INIT;
	Envelope env = ENVELOPE_INIT;

	started.upgrade_id = u->start->upgrade_id;
	env.body_case = BODY(UPGRADE_STARTED);
	env.upgrade_started = &started;
	server_reply(u->ctx->server, &u->from, &env);
}

int upgrade_request(struct context *ctx, struct vm *vm, const Upgraded__V1__UpgradeRequest *request,
		    const struct requester *from, struct error *err)
{
	_cleanup_(upgrade_freep) struct upgrade *u = NULL;
	struct upgrade *queued;
	uint64_t id;
	int r;

	r = journal_writable(ctx->journal, err);
	if (r < 0)
		return r;
	if (upgrade_new(ctx, vm, &u) < 0 ||
	    message_set_string(&u->start->target_binary,
			       request->binary[0] ? request->binary : vm->pb->binary) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	u->from = *from;
	u->start->upgrade_id = u->custody.id = id = ctx->next_id++;
	u->start->max_blackout_us = request->max_blackout_us;
	u->start->no_stage2 = request->no_stage2;
	u->start->phase_timeout_us = request->phase_timeout_us ?: PHASE_TIMEOUT_DEFAULT_US;
	log_vm(LOG_NOTICE, vm->pb->name, id, "upgrade %" PRIu64 " to %s, asked for by uid %u", id,
	       u->start->target_binary, from->peer.uid);
	queued = TAKE_PTR(u);
	append(ctx, queued);
	reply_started(queued);
	schedule(ctx);
	/* It may have ended by now, and be freed. */
	queued = vm->upgrade;
	if (queued && queued->start->upgrade_id == id && !queued->begun)
		tell_text(queued, vm->working ? "waits for a check of this VM to end"
					      : "waits for other upgrades to end");
	return 0;
}

int upgrade_abort(struct upgrade *u, struct error *err)
{
	if (u->rebuilds) {
		error_set(err, -EALREADY,
			  "both VMMs of %s have ended, and another is being started: there is "
			  "nothing to go back to",
			  u->vm->pb->name);
		return -EALREADY;
	}
	if (u->committed) {
		error_set(err, -EALREADY,
			  "upgrade %" PRIu64 " of %s is committed: there is no way back",
			  u->start->upgrade_id, u->vm->pb->name);
		return -EALREADY;
	}
	log_vm(LOG_NOTICE, u->vm->pb->name, u->start->upgrade_id, "abort was asked for");
	u->aborted = true;
	if (!u->begun)
		schedule(u->ctx);
	else if (u->worker && u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE)
		worker_process_abort(u->worker);
	return 0;
}

/* ---- after a restart of the daemon ---- */

static int on_past_worker(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct upgrade *u = userdata;

	u->past_limit = sd_event_source_disable_unref(u->past_limit);
	u->past_exit = sd_event_source_disable_unref(u->past_exit);
	closep(&u->past_worker);
	return on_recovery(NULL, 0, u);
}

static int on_past_limit(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct upgrade *u = userdata;

	log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
	       "its worker from before the restart does not end, killed");
	pidfd_send_signal(u->past_worker, SIGKILL, NULL, 0);
	return 0;
}

/* Its own deadlines bring that worker to its end; nothing is to be done before. */
static int await_past_worker(struct upgrade *u)
{
	int r;

	r = sd_event_add_io(u->ctx->event, &u->past_exit, u->past_worker, EPOLLIN, on_past_worker,
			    u);
	if (r < 0)
		return r;
	return sd_event_add_time_relative(u->ctx->event, &u->past_limit, CLOCK_MONOTONIC,
					  worker_silence_us(u->start->phase_timeout_us), 0,
					  on_past_limit, u);
}

/* From the fd store; without it, the journal knows who the target is. */
static int restore_custody(struct upgrade *u, const CustodyPut *target, struct error *err)
{
	struct scm_fds none = SCM_FDS_INIT;
	int r;

	u->custody.id = u->start->upgrade_id;
	r = custody_restore(&u->custody, err);
	if (r < 0 || !target || custody_find(&u->custody, "target"))
		return r;
	return custody_put(&u->custody, target, false, &none, err);
}

int upgrade_resume(struct context *ctx, struct vm *vm, const struct unfinished *unfinished,
		   struct error *err)
{
	_cleanup_(upgrade_freep) struct upgrade *u = NULL;
	const Process *source = unfinished->start->vm->process;
	const struct custody_item *target;
	uint64_t age;
	int r;

	if (upgrade_new(ctx, vm, &u) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	message_free(u->start);
	u->start = message_copy(unfinished->start);
	u->failure = strdup("upgraded was restarted");
	if (!u->start || !u->failure)
		return error_set(err, -ENOMEM, "out of memory");
	r = restore_custody(u, unfinished->target, err);
	if (r < 0)
		return r;
	u->rebuilds = unfinished->rebuilds;
	r = process_open(source->pid, source->start_time, &u->source_pidfd);
	if (r == -ESRCH)
		r = process_open_dead(&u->source_pidfd);
	if (r < 0)
		return error_errno(err, r, "the source cannot be watched");
	u->begun = true;
	u->committed = unfinished->committed;
	u->phase = u->failed_phase = unfinished->phase;
	u->started_at_us = unfinished->at_us;
	age = clock_us(CLOCK_REALTIME) - unfinished->at_us;
	u->began_us = clock_us(CLOCK_MONOTONIC) - age;
	target = custody_find(&u->custody, "target");
	if (u->committed && target && !has_ended(u->source_pidfd))
		watch_source(u, target->put);
	if (work_dir_open_worker(u->start->work_dir, &u->past_worker) >= 0)
		r = await_past_worker(u);
	else
		oneshot_arm(u->later, 0);
	if (r < 0)
		return error_errno(err, r, "no recovery");
	log_vm(LOG_NOTICE, vm->pb->name, u->start->upgrade_id,
	       "upgrade %" PRIu64 " was running, phase %s: %s", u->start->upgrade_id,
	       phase_name(u->phase), u->committed ? "rolls forward" : "rolls back");
	vm->working = true;
	append(ctx, TAKE_PTR(u));
	return 0;
}

void upgrade_free_all(struct context *ctx)
{
	while (ctx->upgrades) {
		struct upgrade *u = ctx->upgrades;

		ctx->upgrades = u->next;
		upgrade_freep(&u);
	}
}
