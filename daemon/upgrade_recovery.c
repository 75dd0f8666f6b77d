/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An upgrade whose worker ended before it was done, or whose daemon did. The journal
 * says which way: before COMMIT another worker undoes, after it one finishes. When
 * both VMMs are dead and the guest is in custody, whole, and nobody was told to run
 * from it, one starts a target from there; that may have to wait until the manager has
 * a place for it. After COMMIT a source is as good as dead, and killed, unless there
 * is no other place (manager.h). What this machine is short of at the moment is waited
 * for as well: a guest that stands still gains nothing if this gives up.
 *
 * What if the daemon dies right now? The next one comes here by upgrade_resume() and
 * decides the same, from the same journal and the same custody.
 */
#include "upgrade_state.h"

#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "oneshot.h"
#include "standstill.h"
#include "work_dir.h"
#include "worker/device_state.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>

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
#define HANGS_INTERVAL_US    (5000 * 1000ULL)

bool upgrade_target_has_ended(struct upgrade *u)
{
	_cleanup_close_ int target = -EBADF;

	return upgrade_open_target(u, &target) >= 0 && (target < 0 || process_has_ended(target));
}

/* Whole, and nobody was told to run from it. */
static bool state_is_good(const struct upgrade *u)
{
	const struct custody_item *state = custody_find(&u->custody, DEVICE_STATE);
	enum device_state what;

	return state && state->n_fds == 1 && device_state_get(state->fds[0], &what) >= 0 &&
	       what == DEVICE_STATE_WHOLE;
}

bool upgrade_can_rebuild(struct upgrade *u)
{
	return !u->no_place && u->lost < REBUILD_TRIES && u->rebuilds < REBUILDS_MAX &&
	       custody_find(&u->custody, "start") && state_is_good(u) &&
	       /* After COMMIT it has no claim to the guest any more, and no way back. */
	       (process_has_ended(u->source_pidfd) || u->committed) &&
	       /* The target of a rebuild that got no COMMIT is ended by the next one. */
	       ((u->rebuilds && !u->committed) || upgrade_target_has_ended(u));
}

/* -EAGAIN: there is none yet, and upgrade_on_recovery() is called again. */
static int find_place(struct upgrade *u)
{
	uint64_t now = now_us();
	int r;

	r = manager_of(u->vm)->place(u->ctx, u->vm, upgrade_start_order(u), &u->place);
	if (r >= 0)
		return r;
	if (r != -EAGAIN) {
		u->no_place = true;
		log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
		       "its VMMs have ended, and whoever manages it has gone on without them");
	} else if (!u->place_until_us) {
		u->place_until_us = now + PLACE_US;
		log_vm(LOG_NOTICE, u->vm->pb->name, u->start->upgrade_id,
		       "its VMMs have ended: waits for %s to be started anew",
		       u->vm->pb->unit);
	}
	if (u->place_until_us && now > u->place_until_us) {
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
	r = upgrade_journal(u, &record, err);
	if (r < 0)
		return r;
	u->rebuild_due = true;
	/* Whoever tried to undo or to finish has nothing to do with it. */
	if (!u->rebuilds++)
		u->tries = 1;
	u->committed = false;
	u->ctx->metrics.pb.rebuilds++;
	log_vm(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id,
	       "its VMMs have ended: another target is started from custody");
	return 0;
}

bool upgrade_may_pass(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EAGAIN || r == -ENOSPC ||
	       r == -EDQUOT || r == -EROFS || r == -EIO;
}

int upgrade_on_recovery(sd_event_source *s, uint64_t usec, void *userdata)
{
	Upgraded__V1__WorkerMode mode = UPGRADED__V1__WORKER_MODE__WORKER_ROLLBACK;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct upgrade *u = userdata;
	int r = 0;

	if (upgrade_can_rebuild(u)) {
		if (!process_has_ended(u->source_pidfd) && !manager_of(u->vm)->needs_source) {
			(void)pidfd_send_signal(u->source_pidfd, SIGKILL, NULL, 0);
			oneshot_arm(u->later, SOURCE_END_US);
			return 0;
		}
		r = find_place(u);
		if (r == -EAGAIN)
			return 0;
		mode = UPGRADED__V1__WORKER_MODE__WORKER_REBUILD;
		if (r >= 0 && !u->rebuild_due)
			r = begin_rebuild(u, &err);
	} else if (u->committed) {
		mode = UPGRADED__V1__WORKER_MODE__WORKER_FORWARD;
	}
	/* The daemon may have died between COMMIT and this; twice does no harm. */
	if (u->committed)
		upgrade_tell_manager(u);
	if (r >= 0)
		r = upgrade_run_worker(u, mode, &err);
	if (r >= 0)
		u->rebuild_due = false;
	if (upgrade_may_pass(r)) {
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
		upgrade_recover(u, err.text ?: "out of memory");
	return 0;
}

bool upgrade_puts_off(struct upgrade *u, const char *why)
{
	if (!u->committed || u->finish || !manager_of(u->vm)->needs_finish ||
	    upgrade_target_has_ended(u))
		return false;
	if (!u->puts_off)
		log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id,
		       "the target (process %d) does not answer, and what manages the VM would "
		       "end it: tried again until it does, or has ended: %s",
		       custody_find(&u->custody, "target")->put->target->pid, why);
	u->puts_off = true;
	/* The report is made of what is known here: of the workers each knows a part. */
	if (!u->failure)
		u->failure = strdup(why);
	upgrade_tell_text(u, why);
	oneshot_arm(u->later, HANGS_INTERVAL_US);
	return true;
}

void upgrade_recover(struct upgrade *u, const char *why)
{
	static const uint64_t delay_us[RECOVERY_TRIES] = { 0, 1000000, 5000000 };
	_cleanup_free_ char *text = NULL;
	const char *what = upgrade_can_rebuild(u) ? "a target is started from custody"
			   : u->committed	  ? "another one finishes the upgrade"
						  : "another one undoes the upgrade";

	u->ctx->metrics.pb.workers_failed++;
	if (!u->failure) {
		u->failure = strdup(why);
		u->failed_phase = u->phase;
	}
	if (u->tries < RECOVERY_TRIES) {
		log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id, "%s; %s", why, what);
		oneshot_arm(u->later, delay_us[u->tries++]);
		upgrade_tell_text(u, why);
		return;
	}
	if (upgrade_puts_off(u, why))
		return;
	log_vm(LOG_ERR, u->vm->pb->name, u->start->upgrade_id, "%s; no more tries", why);
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

/* ---- after a restart of the daemon ---- */

static int on_past_worker(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct upgrade *u = userdata;

	u->past_limit = sd_event_source_disable_unref(u->past_limit);
	u->past_exit = sd_event_source_disable_unref(u->past_exit);
	closep(&u->past_worker);
	return upgrade_on_recovery(NULL, 0, u);
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
					  worker_silence_us(u->start, true), 0, on_past_limit, u);
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
	uint64_t now = realtime_us(), age;
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
	u->parked = unfinished->parked;
	u->phase = u->failed_phase = unfinished->phase;
	u->started_at_us = unfinished->at_us;
	/* The clock on the wall may have been set back since. */
	age = now > unfinished->at_us ? now - unfinished->at_us : 0;
	u->began_us = now_us() - age;
	if (u->committed)
		upgrade_watch_source(u);
	r = work_dir_open_worker(u->start->work_dir, &u->past_worker);
	if (r >= 0)
		r = await_past_worker(u);
	else if (r == -ESRCH)
		oneshot_arm(u->later, 0);
	if (r < 0 && r != -ESRCH)
		return error_errno(err, r, "no recovery");
	log_vm(LOG_NOTICE, vm->pb->name, u->start->upgrade_id,
	       "upgrade %" PRIu64 " was running, phase %s: %s", u->start->upgrade_id,
	       phase_name(u->phase), u->committed ? "rolls forward" : "rolls back");
	vm->working = true;
	upgrade_append(ctx, TAKE_PTR(u));
	return 0;
}
