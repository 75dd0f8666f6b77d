/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way back, up to COMMIT: the target ends, the source goes on. Whatever state
 * the steps of qemu_carry.c, or a worker before this one, have left the two in.
 */
#include "qemu.h"

#include "hold.h"
#include "libvirt.h"
#include "qmp.h"
#include "qmp_query.h"
#include "tap.h"

#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>

#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING
#define NOTE UPGRADED__V1__SEVERITY__SEVERITY_NOTE

/* For one way to a monitor, when there is another. */
#define REACH_US 5000000

/* A target that hangs does not answer; killing it does the same, only slower. */
#define TAKE_BACK_US 1000000

/* Waits until the source's migration is over, one way or the other. */
static int settle_migration(struct upgrade *u, struct qemu *q, struct error *err)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };
	bool cancelled = false;
	int r;

	for (;;) {
		struct json_object *value = NULL, *status;
		bool done = false;

		r = qmp_execute(q->source_qmp, "query-migrate", NULL, &value, err);
		if (r < 0)
			return r;
		status = json_object_object_get(value, "status");
		for (size_t i = 0; i < ARRAY_SIZE(over); i++)
			done |= status && !strcmp(json_object_get_string(status), over[i]);
		done |= !status;
		json_object_put(value);
		if (done)
			return 0;
		if (!cancelled) {
			_cleanup_error_ struct error ignored = ERROR_INIT;

			cancelled = true;
			(void)qmp_execute(q->source_qmp, "migrate_cancel", NULL, NULL, &ignored);
		}
		r = wait_sleep(&u->wait, 2000, err);
		if (r < 0)
			return r;
	}
}

/* A migration shows as over a moment before the source is done with it, and takes `cont`. */
static int source_status(struct upgrade *u, struct qemu *q, char **ret_status, struct error *err)
{
	for (;;) {
		_cleanup_free_ char *status = NULL;
		int r;

		r = qmp_status(q->source_qmp, &status, err);
		if (r < 0)
			return r;
		if (strcmp(status, "finish-migrate")) {
			*ret_status = TAKE_PTR(status);
			return 0;
		}
		r = wait_sleep(&u->wait, 2000, err);
		if (r < 0)
			return r;
	}
}

/*
 * The memory and its page tables go back before the target ends. If that fails,
 * the kernel gives the memory back when the target's VM is gone.
 */
static void take_back(struct upgrade *u, struct qemu *q)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	uint64_t deadline = u->wait.deadline_us;
	int r;

	if (!q->source || !q->source->gmem.enforced || !q->source_qmp || !q->target_qmp)
		return;
	/* Parked, so that nothing of it can run in the guest. */
	if (pidfd_send_signal(u->source_pidfd, SIGCONT, NULL, 0) < 0)
		return;
	u->wait.what = "the guest's memory to go back to the source";
	u->wait.deadline_us = now_us() + TAKE_BACK_US;
	r = gmem_reverse(&q->source->gmem, q->source_qmp, q->target_qmp, u->target_pidfd, &why);
	u->wait.deadline_us = deadline;
	u->handover = q->source->gmem.handover;
	if (r < 0)
		(void)findings_add(&u->findings, NOTE, "tier.reverse", "KVM_GMEM_TRANSFER", NULL,
				   "the page tables did not come back, every page is faulted in "
				   "again: %s", why.text ?: "out of memory");
}

static int try_source(struct upgrade *u, struct qemu *q, bool through_libvirt, struct error *err)
{
	uint64_t deadline = u->wait.deadline_us;
	int r;

	u->wait.deadline_us = now_us() + REACH_US;
	r = through_libvirt ? libvirt_connect(u->start->vm->unit, "the source", &u->wait,
					      &q->source_qmp, err)
			    : qmp_connect(u->start->vm->qmp, "the source", &u->wait,
					  &q->source_qmp, err);
	u->wait.deadline_us = deadline;
	return r;
}

/*
 * The connection of before may have ended with libvirt's daemon, through which it went.
 * While that is away the source's monitor is free; it is away until we have ended.
 */
static int reach_source(struct upgrade *u, struct qemu *q, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	_cleanup_free_ char *status = NULL;
	bool through_libvirt = qemu_is_libvirts(u) && libvirt_is_there();
	int r;

	if (q->source_qmp &&
	    qmp_status(q->source_qmp, &status, &ignored) >= 0)
		return 0;
	error_clear(&ignored);
	qmp_freep(&q->source_qmp);
	if (!qemu_is_libvirts(u))
		return qemu_connect_source(u, q, err);
	if (try_source(u, q, through_libvirt, &ignored) >= 0)
		return 0;
	r = try_source(u, q, !through_libvirt, err);
	if (r >= 0 || !through_libvirt)
		return r;
	/* libvirt has the monitor. Who is confined has no way through it; else it is slow. */
	if (u->confined)
		return -ECHILD;
	error_clear(err);
	return libvirt_connect(u->start->vm->unit, "the source", &u->wait, &q->source_qmp, err);
}

int qemu_undo(struct upgrade *u, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	_cleanup_free_ char *status = NULL;
	const Upgraded__V1__TargetPlan *plan;
	struct qemu *q = qemu_of(u);
	int r;

	if (!q)
		return -ENOMEM;
	u->wait.source = u->source_pidfd;
	u->wait.target = -EBADF;
	take_back(u, q);
	r = hold_end(&u->wait, u->target_pidfd, "the target", err);
	if (r < 0)
		return r;
	/* Nobody listens any more: a source that wants to send fails, and runs on. */
	(void)unlink(q->source_main ?: "");
	(void)unlink(q->source_cpr ?: "");
	closep(&q->main_listener);
	closep(&q->cpr_listener);
	closep(&q->cpr_held);
	closep(&q->main_target);
	/* Without a plan the source was never asked to migrate. */
	plan = u->plan ?: u->start->plan;
	if (plan && taps_restore(u->source_pidfd, plan, &ignored) < 0)
		findings_add(&u->findings, WARNING, "source.tap", "TUNSETVNETHDRSZ",
			     "reset the guest's network card from inside the guest",
			     "the guest's network may not work: %s", ignored.text ?: "?");
	error_clear(&ignored);
	if (pidfd_send_signal(u->source_pidfd, SIGCONT, NULL, 0) < 0)
		return error_errno(err, -errno, "the source cannot go on");

	u->wait.what = "the source to go on";
	r = reach_source(u, q, err);
	if (r < 0)
		return r;
	r = settle_migration(u, q, err);
	if (r >= 0)
		r = source_status(u, q, &status, err);
	if (r < 0)
		return r;
	/* A source that has sent all of its state does not run before it is told to. */
	r = hold_let_go(u, err);
	if (r < 0)
		return r;
	if (plan && !plan->paused && strcmp(status, "running")) {
		r = qmp_execute(q->source_qmp, "cont", NULL, NULL, err);
		if (r < 0)
			return r;
	}
	u->stopped_at_us = qemu_event_time(u, q->source_qmp, "STOP") ?: u->stopped_at_us;
	if (u->stopped_at_us)
		u->running_at_us = qemu_event_time(u, q->source_qmp, "RESUME");
	/* The guest runs; a mode that stays set only matters to other migrations. */
	if (qmp_set_migration_mode(q->source_qmp, "normal", &ignored) < 0)
		findings_add(
			&u->findings, WARNING, "source.migration-mode", "migrate-set-parameters",
			"set the parameter mode to normal by QMP before another migration",
			"the source kept migration mode cpr-transfer: %s", ignored.text ?: "?");
	return 0;
}
