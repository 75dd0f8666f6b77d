/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Looking at a VM without touching it: a worker in CHECK mode asks the VM's
 * monitor, probes the target binary and plans the target's command line. Asked
 * for by `upgradectl check`, and by the daemon itself when a VM becomes known,
 * to learn its version, machine and memory.
 *
 * Owns the waiting and running checks (context.checks). Nothing is journaled:
 * a check leaves nothing behind, whoever dies.
 */
#include "check.h"

#include "control.h"
#include "log.h"
#include "manager/manager.h"
#include "native.h"
#include "schedule.h"
#include "settings.h"
#include "upgrade.h"
#include "work_dir.h"
#include "worker_process.h"

#include <string.h>

/* More that wait would be no operator's, and each that fails starts the next one. */
#define WAITING_MAX 1000

struct check {
	struct check *next;
	struct context *ctx;
	char *name; /* of the VM, which may be forgotten while this waits */
	char *binary;
	struct requester from;
	struct vm *vm; /* while it runs */
	WorkerStart *start;
	struct worker_process *worker;
	WorkerDone *done;
};

static void check_freep(struct check **c)
{
	if (!*c)
		return;
	native_take_back((*c)->ctx, (*c)->worker);
	worker_process_freep(&(*c)->worker);
	message_free((*c)->start);
	message_free((*c)->done);
	free((*c)->name);
	free((*c)->binary);
	free(*c);
	*c = NULL;
}

static void check_end(struct check *c)
{
	struct context *ctx = c->ctx;
	struct check **at = &ctx->checks;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	if (c->vm)
		c->vm->working = false;
	if (c->start)
		work_dir_remove(c->start->work_dir);
	check_freep(&c);
	schedule(ctx);
}

static void check_fail(struct check *c, struct error *err)
{
	error_prefix(err, "%s cannot be checked", c->name);
	log_error(LOG_WARNING, c->name, 0, err, "check failed");
	server_reply_error(c->ctx->server, &c->from, control_error_code(err->code), err);
}

static int on_message(Envelope *env, struct scm_fds *fds, void *userdata)
{
	struct check *c = userdata;

	switch (env->body_case) {
	case BODY(EVENT):
		return 0;
	case BODY(WORKER_DONE):
		message_free(c->done);
		c->done = TAKE_PTR(env->worker_done);
		env->body_case = UPGRADED__V1__ENVELOPE__BODY__NOT_SET;
		worker_process_expect_end(c->worker, WORKER_END_US);
		return 0;
	case BODY(VMM_BORROW):
		return native_borrow(c->ctx, c->worker, env);
	default:
		return -EPROTO;
	}
}

static void answer(struct check *c)
{
	Envelope env = ENVELOPE_INIT;
	CheckReport *report = c->done->check;

	/* The VM in the report is the registry's, now that it has learned. */
	message_free(report->vm);
	report->vm = control_describe(c->vm);
	env.body_case = BODY(CHECK_REPORT);
	env.check_report = report;
	server_reply(c->ctx->server, &c->from, &env);
}

static void on_ended(const char *how, void *userdata)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct check *c = userdata;

	if (c->done && c->done->vm)
		registry_learn(c->vm, c->done->vm);
	if (c->done && c->done->report && c->done->report->error[0])
		error_set(&err, -EIO, "%s", c->done->report->error);
	else if (!c->done || !c->done->check)
		error_set(&err, -EIO, "its worker %s before it had an answer", how);
	if (err.code)
		check_fail(c, &err);
	else
		answer(c);
	check_end(c);
}

static uint64_t silence_us(void *userdata)
{
	const struct check *c = userdata;

	return worker_silence_us(c->start, false);
}

static const struct worker_ops check_ops = { on_message, on_ended, silence_us };

static int check_start(struct check *c, struct error *err)
{
	_cleanup_free_ char *dir = NULL;
	struct worker_order order;
	char name[32];
	int r;

	r = registry_watched(c->vm, err);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "check-%d", c->vm->pb->process->pid);
	r = work_dir_make(c->ctx->options.runtime_dir, name, c->vm->pb->process->pid, &dir, err);
	if (r < 0)
		return r;
	c->start = message_new(&upgraded__v1__worker_start__descriptor);
	if (!c->start || !(c->start->vm = message_copy(c->vm->pb)) ||
	    message_set_string(&c->start->work_dir, dir) < 0 ||
	    message_set_string(&c->start->target_binary, c->binary) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	c->start->mode = UPGRADED__V1__WORKER_MODE__WORKER_CHECK;
	c->start->phase_timeout_us = settings_phase_timeout_us(c->ctx);
	order = (struct worker_order){
		.program = c->ctx->options.worker,
		.start = c->start,
		.source_pidfd = c->vm->pidfd,
		.target_pidfd = -EBADF,
		.ops = &check_ops,
		.userdata = c,
	};
	return worker_process_start(c->ctx->event, &order, &c->worker, err);
}

bool check_start_next(struct context *ctx)
{
	for (struct check *c = ctx->checks; c; c = c->next) {
		_cleanup_error_ struct error err = ERROR_INIT;
		struct vm *vm = registry_find(ctx->registry, c->name);
		int r;

		if (c->worker || (vm && vm->working))
			continue;
		if (vm && !manager_may_begin(ctx, vm))
			continue;
		c->vm = vm;
		if (vm) {
			vm->working = true;
			r = check_start(c, &err);
		} else {
			r = error_set(&err, -ENOENT, "it was forgotten meanwhile");
		}
		if (r >= 0)
			return true;
		check_fail(c, &err);
		check_end(c);
		/* check_end() has gone through the list itself. */
		return false;
	}
	return false;
}

int check_request(struct context *ctx, struct vm *vm, const char *binary,
		  const struct requester *from, struct error *err)
{
	_cleanup_(check_freep) struct check *c = NULL;
	struct check **at = &ctx->checks;
	size_t n = 0;

	for (; *at; at = &(*at)->next)
		n++;
	if (n >= WAITING_MAX) {
		error_set(err, -EBUSY, "%zu checks are waiting already", n);
		error_hint(err, "try again when they have ended");
		return -EBUSY;
	}
	c = calloc(1, sizeof(*c));
	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	c->ctx = ctx;
	c->name = strdup(vm->pb->name);
	c->binary = strdup(binary[0] ? binary : vm->pb->binary);
	if (from)
		c->from = *from;
	if (!c->name || !c->binary)
		return error_set(err, -ENOMEM, "out of memory");
	*at = TAKE_PTR(c);
	schedule(ctx);
	return 0;
}

void check_free_all(struct context *ctx)
{
	while (ctx->checks) {
		struct check *c = ctx->checks;

		ctx->checks = c->next;
		check_freep(&c);
	}
}
