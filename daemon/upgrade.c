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
#include "upgrade_state.h"

#include "fault_point.h"
#include "journal.h"
#include "log.h"
#include "manager/manager.h"
#include "native.h"
#include "schedule.h"
#include "settings.h"
#include "source_watch.h"
#include "work_dir.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

Phase upgrade_phase(const struct upgrade *u)
{
	return u->phase;
}

bool upgrade_has_begun(const struct upgrade *u)
{
	return u->begun;
}

bool upgrade_is_finishing(const struct upgrade *u)
{
	return u->finishing;
}

bool upgrade_is_put_off(const struct upgrade *u)
{
	return u->puts_off && !u->finishing;
}

bool upgrade_is_decided(const struct upgrade *u)
{
	return u->decided;
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

void upgrade_freep(struct upgrade **up)
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
	message_free(u->finish);
	closep(&u->source_pidfd);
	custody_leave(&u->custody);
	for (size_t i = 0; i < u->n_phases; i++)
		message_free(u->phases[i]);
	free(u->phases);
	free(u->failure);
	message_free(u->report);
	message_free(u->ran);
	message_free(u->spare);
	message_free(u->found);
	message_free(u->start);
	free(u);
	*up = NULL;
}

void upgrade_append(struct context *ctx, struct upgrade *u)
{
	struct upgrade **at = &ctx->upgrades;

	while (*at)
		at = &(*at)->next;
	*at = u;
	u->vm->upgrade = u;
}

int upgrade_journal(struct upgrade *u, JournalRecord *record, struct error *err)
{
	record->upgrade_id = u->start->upgrade_id;
	return journal_append(u->ctx->journal, record, err);
}

void upgrade_journal_or_log(struct upgrade *u, JournalRecord *record)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	if (upgrade_journal(u, record, &err) < 0)
		log_error(LOG_WARNING, u->vm->pb->name, u->start->upgrade_id, &err,
			  "a record is missing in the journal");
}

void upgrade_tell(struct upgrade *u, Event *event)
{
	event->upgrade_id = u->start->upgrade_id;
	event->vm = u->vm->pb->name;
	if (!event->at_us)
		event->at_us = realtime_us();
	if (!event->elapsed_us && u->began_us)
		event->elapsed_us = now_us() - u->began_us;
	server_event(u->ctx->server, event, &u->from);
}

void upgrade_tell_text(struct upgrade *u, const char *text)
{
	Event event = UPGRADED__V1__EVENT__INIT;

	event.phase = u->phase;
	event.text = (char *)text;
	upgrade_tell(u, &event);
}

/* ---- the beginning ---- */

static int begin(struct upgrade *u, struct error *err)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_free_ char *dir = NULL;
	char name[24];
	int r;

	u->began_us = now_us();
	u->started_at_us = realtime_us();
	r = registry_watched(u->vm, err);
	if (r < 0)
		return r;
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
	r = upgrade_journal(u, &record, err);
	if (r < 0) {
		work_dir_remove(dir);
		return r;
	}
	fault_point(FAULT_INTENT);
	u->begun = true;
	u->vm->working = true;
	return upgrade_run_worker(u, UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE, err);
}

bool upgrade_start_next(struct context *ctx)
{
	for (struct upgrade *u = ctx->upgrades; u; u = u->next) {
		_cleanup_error_ struct error err = ERROR_INIT;

		if (u->begun || u->vm->working || !manager_may_begin(ctx, u->vm))
			continue;
		if (begin(u, &err) >= 0)
			return true;
		upgrade_end_with(u, err.code == -ESRCH ? OUTCOME(LOST) : OUTCOME(REFUSED),
				 err.text ?: "out of memory");
		/* upgrade_end() has gone through the list itself. */
		return false;
	}
	return false;
}

int upgrade_new(struct context *ctx, struct vm *vm, struct upgrade **ret_upgrade)
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
	    sd_event_add_time(ctx->event, &u->later, CLOCK_MONOTONIC, UINT64_MAX, 0,
			      upgrade_on_recovery, u) < 0)
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

	r = settings_right(ctx, err);
	if (r >= 0)
		r = journal_writable(ctx->journal, err);
	if (r < 0)
		return r;
	if (upgrade_new(ctx, vm, &u) < 0 ||
	    message_set_string(&u->start->target_binary,
			       request->binary[0] ? request->binary : vm->pb->binary) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	u->from = *from;
	u->start->upgrade_id = u->custody.id = id = ctx->next_id++;
	u->start->max_blackout_us = request->max_blackout_us ?: settings_max_blackout_us(ctx);
	u->start->no_stage2 = request->no_stage2;
	u->start->set_emulator = request->set_emulator;
	u->start->phase_timeout_us = request->phase_timeout_us ?: settings_phase_timeout_us(ctx);
	log_vm(LOG_NOTICE, vm->pb->name, id, "upgrade %" PRIu64 " to %s, asked for by uid %u", id,
	       u->start->target_binary, from->peer.uid);
	queued = TAKE_PTR(u);
	upgrade_append(ctx, queued);
	reply_started(queued);
	schedule(ctx);
	/* It may have ended by now, and be freed. */
	queued = vm->upgrade;
	if (queued && queued->start->upgrade_id == id && !queued->begun)
		upgrade_tell_text(queued, vm->working ? "waits for a check of this VM to end"
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
	if (!u->begun) {
		upgrade_end_with(u, OUTCOME(REFUSED), "aborted before it began");
		return 0;
	}
	u->aborted = true;
	if (u->worker && u->next_worker_mode == UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE)
		worker_process_abort(u->worker);
	return 0;
}

void upgrade_hear_out_all(struct context *ctx)
{
	for (struct upgrade *u = ctx->upgrades; u; u = u->next)
		if (u->worker)
			worker_process_hear_out(u->worker);
}

void upgrade_free_all(struct context *ctx)
{
	while (ctx->upgrades) {
		struct upgrade *u = ctx->upgrades;

		ctx->upgrades = u->next;
		upgrade_freep(&u);
	}
}
