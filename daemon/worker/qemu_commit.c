/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What follows COMMIT: run() lets the target go, finish() ends the source and
 * gives the target its names. Each step may have been done already, by a worker
 * that died: it is then done again, or found done.
 */
#include "qemu.h"

#include "hold.h"
#include "libvirt.h"
#include "names.h"
#include "qmp.h"
#include "standstill.h"

#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>

/* With the last of a domain's processes goes its scope, and the place for another target. */
static int bar_source(struct upgrade *u, struct error *err)
{
	int r;

	if (qemu_is_libvirts(u)) {
		r = hold_stop(u->source_pidfd, err);
		if (r < 0 || process_has_ended(u->source_pidfd))
			return r;
		return hold_wait(&u->wait, qemu_source_pid(u), err);
	}
	if (pidfd_send_signal(u->source_pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot end the source");
	return 0;
}

int qemu_run(struct upgrade *u, struct error *err)
{
	struct qemu *q = qemu_of(u);
	int r;

	if (!q)
		return -ENOMEM;
	/* A second worker finds the source held, or not: it must not run, ever. */
	if (!u->plan) {
		u->plan = u->start->plan;
		r = bar_source(u, err);
		if (r < 0)
			return r;
	}
	r = qemu_connect_target(u, q, err);
	if (r < 0)
		return r;
	/* From here on it may run: the next word may be its operator's. */
	r = hold_let_run(u, err);
	if (r < 0)
		return r;
	if (u->plan && u->plan->paused)
		return 0;
	u->wait.what = "the target to run";
	return qmp_execute(q->target_qmp, "cont", NULL, NULL, err);
}

static int run_command(struct qmp *qmp, const char *command, struct error *err)
{
	struct json_object *object = json_tokener_parse(command);
	struct json_object *name, *args;
	int r = -EINVAL;

	if (object && json_object_object_get_ex(object, "execute", &name)) {
		args = json_object_get(json_object_object_get(object, "arguments"));
		r = qmp_execute(qmp, json_object_get_string(name), args, NULL, err);
	}
	json_object_put(object);
	return r;
}

int qemu_finish(struct upgrade *u, struct error *err)
{
	const Upgraded__V1__TargetPlan *plan = u->plan;
	struct qemu *q = u->vmm;
	int r, first;

	if (!plan->paused)
		u->running_at_us = qemu_event_time(u, q->target_qmp, "RESUME");
	if (q->source_qmp)
		u->stopped_at_us = qemu_event_time(u, q->source_qmp, "STOP") ?: u->stopped_at_us;
	qmp_freep(&q->source_qmp);
	r = hold_end(&u->wait, u->source_pidfd, "the source", err);
	if (r < 0)
		return r;
	u->wait.what = "the target to take the source's names over";
	first = names_take_over(plan, u->target.pid, u->target_pidfd, err);
	for (size_t i = 0; i < plan->n_commands; i++) {
		r = run_command(q->target_qmp, plan->commands[i], err);
		first = first ?: r;
	}
	if (!qemu_is_libvirts(u))
		return first;
	/* libvirt kills a QEMU that does not answer by this name. */
	qmp_freep(&q->target_qmp);
	u->wait.what = "the target's monitor to answer where libvirt looks for it";
	r = qmp_connect(u->start->vm->qmp, "the target", &u->wait, &q->target_qmp, err);
	if (r >= 0)
		r = libvirt_part(u, q->target_qmp, err);
	return r == -EOWNERDEAD ? r : first ?: r;
}
