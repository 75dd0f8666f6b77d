/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Upgrades that were running when the daemon ended. Called once from main(),
 * before anybody can connect: replays the journal, and gives each upgrade that
 * has an INTENT and no END to upgrade_recovery.c, which takes its custody back from the fd
 * store. The rule is in the journal alone: with a COMMIT record it rolls forward,
 * without one it rolls back; a REBUILD record says that there are no VMMs to which
 * either could apply. Owns the list while it reads. If the daemon dies here, the
 * next one does the same again: what is taken up stays in journal and fd store
 * until its END. So it ends when this machine is too short of something to take one
 * up, and systemd starts another.
 */
#include "recover.h"

#include "fd_store.h"
#include "history.h"
#include "journal.h"
#include "log.h"
#include "manager/systemd.h"
#include "registry.h"
#include "upgrade.h"

#include <inttypes.h>

#define KIND(x) UPGRADED__V1__JOURNAL_RECORD__KIND__##x

struct replay {
	struct unfinished *v;
	size_t n;
	uint64_t last_id;
	Report *last_report; /* of the last END */
};

static struct unfinished *find(struct replay *replay, uint64_t id)
{
	for (size_t i = 0; i < replay->n; i++)
		if (replay->v[i].start->upgrade_id == id)
			return &replay->v[i];
	return NULL;
}

static void unfinished_clear(struct unfinished *u)
{
	message_free(u->start);
	message_free(u->target);
}

static int begin(struct replay *replay, const JournalRecord *record)
{
	struct unfinished *v = reallocarray(replay->v, replay->n + 1, sizeof(*v));
	WorkerStart *start;

	if (!v)
		return -ENOMEM;
	replay->v = v;
	if (!record->start || !record->start->vm || !record->start->vm->process)
		return -EBADMSG;
	start = message_copy(record->start);
	if (!start)
		return -ENOMEM;
	v[replay->n++] = (struct unfinished){ .start = start, .at_us = record->at_us };
	return 0;
}

/* A daemon writes END, then the history: if it died in between, that report is missing there. */
static int note_report(struct replay *replay, const JournalRecord *record)
{
	message_free(replay->last_report);
	replay->last_report = record->report ? message_copy(record->report) : NULL;
	return record->report && !replay->last_report ? -ENOMEM : 0;
}

static int replay_one(const JournalRecord *record, void *userdata)
{
	struct replay *replay = userdata;
	struct unfinished *u = find(replay, record->upgrade_id);

	if (record->upgrade_id > replay->last_id)
		replay->last_id = record->upgrade_id;
	if (record->kind == KIND(INTENT))
		return u ? 0 : begin(replay, record);
	if (record->kind == KIND(END) && note_report(replay, record) < 0)
		return -ENOMEM;
	if (!u)
		return 0;
	switch (record->kind) {
	case KIND(PHASE):
		u->phase = record->phase;
		break;
	case KIND(CUSTODY):
		if (!record->custody || !record->custody->target)
			break;
		message_free(u->target);
		u->target = message_copy(record->custody);
		if (!u->target)
			return -ENOMEM;
		break;
	case KIND(COMMIT):
		u->committed = true;
		u->parked = record->parked;
		break;
	case KIND(REBUILD):
		u->rebuilds++;
		u->committed = false;
		message_free(u->target);
		u->target = NULL;
		break;
	case KIND(END):
		unfinished_clear(u);
		*u = replay->v[--replay->n];
		break;
	default:
		break;
	}
	return 0;
}

/* The VM that was upgraded; one whose file was lost is made known again, dead or alive. */
static struct vm *vm_of(struct context *ctx, const struct unfinished *u, struct error *err)
{
	struct vm *vm = registry_find(ctx->registry, u->start->vm->name);

	if (vm || registry_restore(ctx->registry, u->start->vm, &vm, err) >= 0)
		return vm;
	return NULL;
}

/* Only an upgrade with which no daemon could go on is given up: its guest may stand still. */
static int take_up(struct context *ctx, const struct unfinished *u, struct error *err)
{
	JournalRecord end = UPGRADED__V1__JOURNAL_RECORD__INIT;
	_cleanup_error_ struct error why = ERROR_INIT;
	struct vm *vm = vm_of(ctx, u, &why);

	if (vm && upgrade_resume(ctx, vm, u, &why) >= 0)
		return 0;
	if (upgrade_may_pass(why.code)) {
		error_move(err, &why);
		return error_prefix(err, "upgrade %" PRIu64 " of %s cannot be taken up now",
				    u->start->upgrade_id, u->start->vm->name);
	}
	log_error(LOG_CRIT, u->start->vm->name, u->start->upgrade_id, &why,
		  "an upgrade that was running cannot be taken up again");
	end.kind = KIND(END);
	end.upgrade_id = u->start->upgrade_id;
	(void)journal_append(ctx->journal, &end, NULL);
	return 0;
}

int recover_all(struct context *ctx, struct error *err)
{
	struct replay replay = { 0 };
	int r;

	/* A newer daemon's journal: change nothing, and serve what needs no upgrade. */
	if (!journal_readable(ctx->journal))
		return 0;
	r = journal_replay(ctx->journal, replay_one, &replay, err);
	/* next_id is still the one after the history's last. */
	if (r >= 0 && replay.last_report && replay.last_report->upgrade_id + 1 != ctx->next_id)
		history_append(ctx->history, replay.last_report);
	message_free(replay.last_report);
	if (replay.last_id >= ctx->next_id)
		ctx->next_id = replay.last_id + 1;
	for (size_t i = 0; i < replay.n; i++) {
		if (r >= 0)
			r = take_up(ctx, &replay.v[i], err);
		unfinished_clear(&replay.v[i]);
	}
	free(replay.v);
	/* Of upgrades that have ended, or never began. */
	if (r >= 0)
		fd_store_drop_unused(ctx->fd_store);
	if (r >= 0)
		systemd_release(ctx);
	if (r >= 0 && !ctx->upgrades)
		journal_compact(ctx->journal, NULL, NULL);
	return r;
}
