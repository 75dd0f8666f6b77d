/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One upgrade, from top to bottom, in straight-line code:
 *
 *   PREPARE → CHECK → FREEZE → LOAD → SWITCH → RUN → DONE
 *   any failure before the COMMIT record → ROLLBACK
 *
 * Called by main.c; owns the order of the phases and nothing else: how a step
 * is done is the driver's, what must outlive this process is the daemon's.
 *
 * If this process dies: before COMMIT is in the journal the daemon starts a
 * worker that only undoes (upgrade_undo), after it one that only goes forward
 * (upgrade_forward); when both VMMs are dead and the guest is in custody, one that
 * starts a target from there (upgrade_rebuild). All start from what may be half
 * done and may themselves be killed and started again.
 */
#include "upgrade.h"

#include "confine.h"
#include "deadlines.h"
#include "fault_point.h"
#include "hold.h"
#include "link.h"
#include "standstill.h"
#include "unit.h"

#include <string.h>

/*
 * An event wakes the daemon, the log and whoever watches, and what they do takes
 * processor time. So FREEZE is told a moment before the guest is stopped, and
 * the events after it are held back until the guest has been running for a
 * moment; but not for longer than QUIET_US, for whoever watches a hang.
 */
#define BEFORE_FREEZE_US 50000
#define AFTER_RUN_US	 250000
#define QUIET_US	 1000000

#define PHASE(p)   UPGRADED__V1__PHASE__PHASE_##p
#define OUTCOME(o) UPGRADED__V1__OUTCOME__OUTCOME_##o
#define BLOCKER	   UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

static void enter(struct upgrade *u, Upgraded__V1__Phase phase, const char *text)
{
	Upgraded__V1__Event event = UPGRADED__V1__EVENT__INIT;

	event.upgrade_id = u->start->upgrade_id;
	event.vm = u->start->vm->name;
	event.phase = phase;
	event.elapsed_us = timeline_enter(&u->timeline, phase);
	event.at_us = realtime_us();
	event.text = (char *)(text ?: "");
	if (u->quiet && !text && u->n_held < ARRAY_SIZE(u->held))
		u->held[u->n_held++] = event;
	else
		link_event(&u->wait, &event);
}

/* Tells what was held back, and holds nothing back from here on. */
static void speak(struct upgrade *u)
{
	for (size_t i = 0; i < u->n_held; i++)
		link_event(&u->wait, &u->held[i]);
	u->n_held = 0;
	u->quiet = false;
	u->wait.overdue = NULL;
}

static void on_overdue(struct waiter *w, void *userdata)
{
	(void)w;
	speak(userdata);
}

static void be_quiet(struct upgrade *u)
{
	u->quiet = true;
	u->wait.pulse_us = now_us() + PULSE_US;
	u->wait.overdue_us = now_us() + QUIET_US;
	u->wait.overdue_userdata = u;
	u->wait.overdue = on_overdue;
}

static int settle(struct upgrade *u, uint64_t us, const char *what, struct error *err)
{
	u->wait.what = what;
	return wait_sleep(&u->wait, us, err);
}

static void limit_phase(struct upgrade *u)
{
	u->wait.deadline_us = now_us() + (u->start->phase_timeout_us ?: DEFAULT_PHASE_LIMIT_US);
}

/* One limit for FREEZE, LOAD and SWITCH together: the guest stands still. */
static void limit_blackout(struct upgrade *u)
{
	u->wait.deadline_us = now_us() + (u->start->max_blackout_us ?: DEFAULT_BLACKOUT_LIMIT_US);
}

static int refuse_blockers(struct upgrade *u, struct error *err)
{
	size_t n = findings_count(&u->findings, BLOCKER), first = 0;

	if (!n)
		return 0;
	while (u->findings.v[first]->severity != BLOCKER)
		first++;
	if (n == 1)
		error_set(err, -EPERM, "%s", u->findings.v[first]->text);
	else
		error_set(err, -EPERM, "%s (the first of %zu blockers)", u->findings.v[first]->text,
			  n);
	return error_hint(err, "upgradectl check %s --vmm %s", u->start->vm->name,
			  u->start->target_binary);
}

static int examine(struct upgrade *u, struct error *err)
{
	int r;

	limit_phase(u);
	r = u->driver->examine(u, err);
	if (r < 0)
		u->driver->explain(u, err);
	if (r < 0 || strcmp(u->start->vm->manager, "none"))
		return r;
	r = unit_examine(u, err);
	if (r >= 0 && u->unit && u->plan) {
		u->plan->unit = u->unit;
		u->plan->unit_restarts = u->unit_restarts;
	}
	return r;
}

int upgrade_check(struct upgrade *u, struct error *err)
{
	timeline_begin(&u->timeline);
	return examine(u, err);
}

/* Up to the point where nothing has been touched yet. */
static int look(struct upgrade *u, struct error *err)
{
	int r;

	enter(u, PHASE(PREPARE), "examining the source and the target");
	r = examine(u, err);
	if (r < 0)
		return r;
	fault_point(FAULT_EXAMINED);
	return refuse_blockers(u, err);
}

static bool same_file(const Upgraded__V1__FileDigest *a, const Upgraded__V1__FileDigest *b)
{
	return a->device == b->device && a->inode == b->inode && a->size == b->size &&
	       a->changed_ns == b->changed_ns;
}

static const char *find_digest(const struct upgrade *u, const Upgraded__V1__FileDigest *file)
{
	for (size_t i = 0; i < u->n_read; i++)
		if (same_file(&u->read[i], file))
			return u->read[i].sha256;
	for (size_t i = 0; i < u->start->n_known; i++)
		if (same_file(u->start->known[i], file))
			return u->start->known[i]->sha256;
	return NULL;
}

static void identify(struct upgrade *u, int exe, char sha256[SHA256_TEXT])
{
	Upgraded__V1__FileDigest file = UPGRADED__V1__FILE_DIGEST__INIT;
	const char *known;

	if (sha256[0] || !executable_stat(exe, &file))
		return;
	known = find_digest(u, &file);
	if (known) {
		snprintf(sha256, SHA256_TEXT, "%s", known);
		return;
	}
	executable_sha256(exe, sha256);
	file.sha256 = sha256;
	if (sha256[0] && u->n_read < ARRAY_SIZE(u->read))
		u->read[u->n_read++] = file;
}

void upgrade_identify(struct upgrade *u)
{
	/* As the target of an upgrade before this one. */
	if (!u->source_sha256[0])
		snprintf(u->source_sha256, SHA256_TEXT, "%s", u->start->vm->binary_sha256);
	identify(u, u->source_exe, u->source_sha256);
	identify(u, u->target_exe, u->target_sha256);
}

/* Everything that can be undone. */
static int switch_over(struct upgrade *u, struct error *err)
{
	const struct driver *d = u->driver;
	int r;

	limit_phase(u);
	r = unit_prepare(u, err);
	if (r < 0)
		return r;
	r = d->prepare(u, err);
	if (r < 0)
		return r;
	fault_point(FAULT_PREPARED);
	/* Nothing more is executed. */
	r = confine(err);
	if (r < 0)
		return r;
	u->confined = true;

	enter(u, PHASE(CHECK), NULL);
	limit_phase(u);
	r = d->verify(u, err);
	if (r < 0)
		return r;
	r = refuse_blockers(u, err);
	if (r < 0)
		return r;

	/* A tenth of a second of work, which a guest that catches up would feel. */
	upgrade_identify(u);
	fault_point(FAULT_VERIFIED);
	enter(u, PHASE(FREEZE), NULL);
	r = settle(u, BEFORE_FREEZE_US, "the moment before the freeze", err);
	if (r < 0)
		return r;
	be_quiet(u);
	limit_blackout(u);
	r = d->freeze(u, err);
	if (r < 0)
		return r;

	fault_point(FAULT_FROZEN);
	enter(u, PHASE(LOAD), NULL);
	r = d->load(u, err);
	if (r < 0)
		return r;

	fault_point(FAULT_LOADED);
	enter(u, PHASE(SWITCH), NULL);
	r = d->hold(u, err);
	if (r < 0)
		return r;
	fault_point(FAULT_HELD);
	return link_commit(&u->wait, u->parked, err);
}

/* The one way on after COMMIT; also where a second worker begins. */
static Upgraded__V1__Outcome go_forward(struct upgrade *u, struct error *err)
{
	_cleanup_error_ struct error late = ERROR_INIT;
	int r;

	fault_point(FAULT_COMMITTED);
	u->committed = true;
	u->wait.uninterruptible = true;
	u->wait.deadline_us = now_us() + LAST_RESORT_US;
	/* It has no claim to the guest any more: its end must not end a wait for the target. */
	u->wait.source = -EBADF;
	enter(u, PHASE(RUN), NULL);
	if (u->driver->run(u, err) < 0) {
		speak(u);
		u->driver->explain(u, err);
		return OUTCOME(LOST);
	}
	fault_point(FAULT_RAN);
	enter(u, PHASE(DONE), NULL);
	/* It catches up and gets its memory mapped again: that goes before the rest. */
	(void)settle(u, AFTER_RUN_US, "the guest to run for a moment", &late);
	error_clear(&late);
	speak(u);
	/* What a worker before this one did not get to; a manager may have to wait for finish(). */
	upgrade_identify(u);
	/* The guest runs; what is left are names and files. */
	r = u->driver->finish(u, &late);
	/* The next worker does it: the source stands still until then. */
	if (r == -EOWNERDEAD)
		return OUTCOME(UNSPECIFIED);
	if (r < 0)
		findings_add(&u->findings, UPGRADED__V1__SEVERITY__SEVERITY_WARNING, "finish",
			     u->start->vm->name, late.hint, "%s", late.text ?: "out of memory");
	fault_point(FAULT_FINISHED);
	return OUTCOME(COMMITTED);
}

static Upgraded__V1__Outcome go_back(struct upgrade *u, const char *why, struct error *err)
{
	_cleanup_error_ struct error undo = ERROR_INIT;
	int r;

	u->wait.uninterruptible = true;
	u->wait.deadline_us = now_us() + LAST_RESORT_US;
	speak(u);
	enter(u, PHASE(ROLLBACK), why);
	fault_point(FAULT_UNDO);
	r = u->driver->undo(u, &undo);
	/* It takes a process that is not confined: the next worker is none. */
	if (r == -ECHILD)
		return OUTCOME(UNSPECIFIED);
	if (r < 0) {
		_cleanup_error_ struct error first = ERROR_INIT;

		hold_see_out(u);
		error_move(&first, err);
		error_set(err, undo.code, "%s; and the rollback failed: %s", first.text ?: "?",
			  undo.text ?: "?");
		return OUTCOME(LOST);
	}
	fault_point(FAULT_UNDONE);
	return OUTCOME(ROLLED_BACK);
}

Upgraded__V1__Outcome upgrade_run(struct upgrade *u, struct error *err)
{
	int r;

	timeline_begin(&u->timeline);
	r = look(u, err);
	/* Nothing was touched; but there may be nothing left to touch. */
	if (r < 0) {
		hold_see_out(u);
		return process_has_ended(u->source_pidfd) ? OUTCOME(LOST) : OUTCOME(REFUSED);
	}
	r = switch_over(u, err);
	if (r == -EOWNERDEAD && timeline_phase(&u->timeline) == PHASE(SWITCH)) {
		/*
		 * The daemon died with the COMMIT request in its hands. Whether
		 * the record was written is in the journal; the daemon's next
		 * incarnation reads it and starts another worker. The source is
		 * held and the target has not run: both ways are open.
		 */
		return OUTCOME(UNSPECIFIED);
	}
	if (r < 0) {
		u->driver->explain(u, err);
		return go_back(u, err->text, err);
	}
	return go_forward(u, err);
}

/*
 * As switch_over(), without a source; one that is kept to be seen stands still. If this
 * process dies here the target is as good as never started: another worker ends it and
 * starts one more, because the device state is used by none before COMMIT.
 */
static int start_over(struct upgrade *u, struct error *err)
{
	const struct driver *d = u->driver;
	uint64_t least = now_us() + REBUILD_LEAST_US;
	int r;

	limit_phase(u);
	if (u->wait.deadline_us < least)
		u->wait.deadline_us = least;
	r = hold_stop(u->source_pidfd, err);
	if (r >= 0)
		r = d->rebuild(u, err);
	if (r >= 0)
		r = confine(err);
	if (r < 0)
		return r;
	fault_point(FAULT_REBUILD_STARTED);
	enter(u, PHASE(CHECK), NULL);
	r = d->verify(u, err);
	if (r >= 0)
		r = refuse_blockers(u, err);
	if (r < 0)
		return r;
	enter(u, PHASE(LOAD), NULL);
	r = d->load(u, err);
	if (r < 0)
		return r;
	enter(u, PHASE(SWITCH), NULL);
	r = d->hold(u, err);
	return r < 0 ? r : link_commit(&u->wait, u->parked, err);
}

Upgraded__V1__Outcome upgrade_rebuild(struct upgrade *u, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	int r;

	timeline_begin(&u->timeline);
	enter(u, PHASE(PREPARE), "starting a target from custody: the VMMs have ended");
	u->plan = u->start->plan;
	/* It is dead, or as good as that: its end is no news. */
	u->wait.source = -EBADF;
	r = start_over(u, err);
	if (r == -EOWNERDEAD && timeline_phase(&u->timeline) == PHASE(SWITCH))
		return OUTCOME(UNSPECIFIED); /* as in upgrade_run() */
	if (r >= 0) {
		findings_add(&u->findings, UPGRADED__V1__SEVERITY__SEVERITY_WARNING, "rebuild",
			     u->start->vm->name, NULL,
			     "the VMMs ended during the upgrade: the guest was taken from custody "
			     "into a target started anew");
		return go_forward(u, err);
	}
	u->driver->explain(u, err);
	u->wait.uninterruptible = true;
	u->wait.deadline_us = now_us() + LAST_RESORT_US;
	(void)hold_end(&u->wait, u->target_pidfd, "the target", &ignored);
	return OUTCOME(LOST);
}

Upgraded__V1__Outcome upgrade_undo(struct upgrade *u, struct error *err)
{
	timeline_begin(&u->timeline);
	error_set(err, -ECONNABORTED, "the worker of this upgrade died");
	return go_back(u, err->text, err);
}

Upgraded__V1__Outcome upgrade_forward(struct upgrade *u, struct error *err)
{
	timeline_begin(&u->timeline);
	return go_forward(u, err);
}
