/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The driver of a stock QEMU >= 10.0: its monitors by QMP, its state by the two
 * migration channels of mode cpr-transfer, which the worker relays.
 * Called by upgrade.c in the order of struct driver; owns the connections to
 * both monitors, the listening sockets in the work directory and the plan.
 * Here: examine(), and what the rest shares. The way there is in qemu_carry.c,
 * the way back in qemu_undo.c, what follows COMMIT in qemu_commit.c, a target's
 * start in qemu_target.c.
 *
 * What if this process dies, step by step:
 *   examine   nothing was touched; a probe process ends with its monitor pipe
 *   prepare   the source's cpr connection closes, it finds nobody on the main
 *             channel and fails its migration while running; the target sits
 *             in front of an empty cpr channel: the daemon's next worker kills it
 *   freeze    the main stream breaks: the source resumes by itself, or, if it
 *             had written all, stands in postmigrate: the next worker conts it
 *   load/hold as the latter, with a SIGCONT first
 *             (tier stage2: with the target's VM, the kernel's hold on the source ends)
 *   run       COMMIT is in the journal: the next worker kills the source, then
 *             conts the target
 *   rebuild   the next worker ends that target and starts another
 *
 * And if both VMMs die? From when the stream is whole until somebody is told to
 * run, the guest is in custody: its memory and whatever else the cpr state has, the
 * device state, and how the target was started. That is rebuild().
 *
 * QEMU accepts `cont` on a source whose target has run, and destroys the guest
 * with it. Hence hold(): from before COMMIT until its SIGKILL after the
 * target's first instruction every thread of the source is stopped.
 */
#include "qemu.h"

#include "argv_plan.h"
#include "headroom.h"
#include "hold.h"
#include "libvirt.h"
#include "probe.h"
#include "qmp.h"
#include "tap.h"

#include <string.h>

struct qemu *qemu_of(struct upgrade *u)
{
	struct qemu *q = u->vmm;

	if (q)
		return q;
	q = calloc(1, sizeof(*q));
	if (!q)
		return NULL;
	q->cpr_listener = q->main_listener = -EBADF;
	q->cpr_held = q->main_target = -EBADF;
	q->spool = (struct spool)SPOOL_INIT;
	u->vmm = q;
	return q;
}

pid_t qemu_source_pid(const struct upgrade *u)
{
	return u->start->vm->process->pid;
}

bool qemu_is_libvirts(const struct upgrade *u)
{
	return !strcmp(u->start->vm->manager, "libvirt");
}

struct gmem *qemu_gmem(struct qemu *q)
{
	return q->source ? &q->source->gmem : &q->gmem;
}

int qemu_connect_source(struct upgrade *u, struct qemu *q, struct error *err)
{
	if (q->source_qmp)
		return 0;
	if (qemu_is_libvirts(u))
		return libvirt_connect(u->start->vm->unit, "the source", &u->wait, &q->source_qmp,
				       err);
	return qmp_connect(u->start->vm->qmp, "the source", &u->wait, &q->source_qmp, err);
}

int qemu_make_paths(struct upgrade *u, struct qemu *q)
{
	const char *dir = u->start->work_dir;

	if (asprintf(&q->source_cpr, "%s/source-cpr", dir) < 0 ||
	    asprintf(&q->source_main, "%s/source-main", dir) < 0 ||
	    asprintf(&q->target_cpr, "%s/target-cpr", dir) < 0 ||
	    asprintf(&q->target_main, "%s/target-main", dir) < 0)
		return -ENOMEM;
	return 0;
}

uint64_t qemu_event_time(struct upgrade *u, struct qmp *qmp, const char *name)
{
	uint64_t deadline = u->wait.deadline_us;
	_cleanup_error_ struct error ignored = ERROR_INIT;
	struct qmp_event event;
	uint64_t at = 0;

	u->wait.deadline_us = now_us() + 50000;
	if (!qmp_wait_event(qmp, name, &event, &ignored))
		at = event.qemu_us;
	u->wait.deadline_us = deadline;
	return at;
}

/* The part of the plan that a later worker needs, as a message. */
static int make_wire_plan(struct qemu *q, Upgraded__V1__Tier tier)
{
	struct argv_plan *plan = q->plan;
	Upgraded__V1__TargetPlan *wire = &q->wire_plan;

	upgraded__v1__target_plan__init(wire);
	q->rename = calloc(plan->n_renames + 1, sizeof(*q->rename));
	q->renames = calloc(plan->n_renames + 1, sizeof(*q->renames));
	if (!q->rename || !q->renames)
		return -ENOMEM;
	for (size_t i = 0; i < plan->n_renames; i++) {
		upgraded__v1__target_plan__rename__init(&q->rename[i]);
		q->rename[i].from = plan->renames[i].from;
		q->rename[i].to = plan->renames[i].to;
		q->renames[i] = &q->rename[i];
	}
	wire->n_renames = plan->n_renames;
	wire->renames = q->renames;
	wire->pidfiles = plan->pidfiles;
	while (plan->pidfiles && plan->pidfiles[wire->n_pidfiles])
		wire->n_pidfiles++;
	wire->commands = plan->commands;
	while (plan->commands && plan->commands[wire->n_commands])
		wire->n_commands++;
	wire->paused = !q->source->running;
	wire->tier = tier;
	return 0;
}

static int examine(struct upgrade *u, struct error *err)
{
	_cleanup_free_ char *suffix = NULL;
	struct qemu *q = qemu_of(u);
	struct plan_input in;
	int r;

	if (!q)
		return -ENOMEM;
	r = qemu_make_paths(u, q);
	if (r < 0)
		return r;
	u->wait.what = "the source to say what it is";
	r = qemu_connect_source(u, q, err);
	if (r < 0)
		return r;
	r = source_read(qemu_source_pid(u), u->source_pidfd, q->source_qmp, &q->source, err);
	if (r < 0)
		return r;
	r = source_check(q->source, q->source_qmp, &u->findings, err);
	if (r >= 0)
		r = headroom_check("", qemu_source_pid(u), &u->findings);
	if (r >= 0 && qemu_is_libvirts(u))
		r = libvirt_check(u->start->vm, &u->findings);
	if (r < 0)
		return r;
	u->wait.what = "the target's binary to say what it can do";
	r = probe_target(u->start->target_binary, q->source, u->source_pidfd, &u->wait,
			 &u->findings, &u->target_version, err);
	if (r < 0)
		return r;
	q->source->gmem.no_stage2 = u->start->no_stage2;
	r = gmem_plan(&q->source->gmem, &u->tier, &u->findings);
	if (r < 0)
		return r;

	if (asprintf(&suffix, ".upgraded-%llu", (unsigned long long)u->start->upgrade_id) < 0)
		return -ENOMEM;
	in = (struct plan_input){
		.argv = q->source->argv,
		.target_binary = u->start->target_binary,
		.machine = q->source->machine,
		.cpu = q->source->cpu,
		.qmp = u->start->vm->qmp,
		.suffix = suffix,
		.incoming_main = q->target_main,
		.incoming_cpr = q->target_cpr,
		.fds = q->source->fds,
		.n_fds = q->source->n_fds,
		.fdsets = q->source->fdsets,
		.n_fdsets = q->source->n_fdsets,
		.no_guest_memfd = !q->source->gmem.target,
	};
	r = argv_plan_make(&in, &q->plan, err);
	if (r < 0)
		return r;
	r = findings_move(&u->findings, &q->plan->findings);
	if (r < 0)
		return r;
	r = make_wire_plan(q, u->tier);
	if (r < 0)
		return r;
	u->plan = &q->wire_plan;
	return 0;
}

static void describe(struct upgrade *u, bool target, Upgraded__V1__Vm *vm)
{
	struct qemu *q = u->vmm;

	if (q && q->source) {
		vm->machine = q->source->machine;
		vm->memory = q->source->memory;
		vm->binary = q->source->binary;
		vm->version = q->source->version;
		vm->outdated = q->source->outdated;
	}
	if (!target)
		return;
	vm->process = &u->target;
	vm->binary = u->start->target_binary;
	if (u->target_version)
		vm->version = u->target_version;
	else if (q && q->target_qmp)
		vm->version = (char *)qmp_version(q->target_qmp);
	vm->outdated = false;
}

static char **planned_argv(struct upgrade *u)
{
	struct qemu *q = u->vmm;

	return q && q->plan ? q->plan->argv : NULL;
}

static void qemu_free(struct upgrade *u)
{
	struct qemu *q = u->vmm;

	if (!q)
		return;
	qmp_freep(&q->source_qmp);
	qmp_freep(&q->target_qmp);
	source_freep(&q->source);
	argv_plan_freep(&q->plan);
	taps_free(&q->wire_plan);
	free(q->rename);
	free(q->renames);
	free(q->source_cpr);
	free(q->source_main);
	free(q->target_cpr);
	free(q->target_main);
	closep(&q->cpr_listener);
	closep(&q->main_listener);
	closep(&q->cpr_held);
	closep(&q->main_target);
	spool_close(&q->spool);
	u->handover = NULL;
	gmem_clear(&q->gmem);
	free(q);
	u->vmm = NULL;
}

const struct driver driver_qemu = {
	.name = "qemu",
	.examine = examine,
	.prepare = qemu_prepare,
	.verify = qemu_verify,
	.freeze = qemu_freeze,
	.load = qemu_load,
	.hold = qemu_hold,
	.run = qemu_run,
	.finish = qemu_finish,
	.undo = qemu_undo,
	.rebuild = qemu_rebuild,
	.explain = hold_explain,
	.describe = describe,
	.planned_argv = planned_argv,
	.free = qemu_free,
};
