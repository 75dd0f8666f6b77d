/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * VMMs that speak libupgraded. Each connects to vmm.sock and registers its VM;
 * from then on the daemon only keeps the connection, and lends it to the worker
 * that checks or upgrades the VM. server.c calls in with requests and ends of
 * connections, upgrade_worker.c and check.c with what their workers ask for.
 *
 * Who a VMM is, is said by the kernel: the process at the other end of the
 * socket. A VM's name is taken from the message, but only by the process that
 * is the VM already, by the target of its upgrade, or when nobody has it.
 *
 * Owns the list of connected VMMs and of workers that wait for one. If the
 * worker dies, the connection is still here, for the next one. If the daemon
 * dies, VMMs connect again by themselves, and say where they stand.
 */
#include "native.h"

#include "log.h"
#include "upgrade.h"
#include "version.h"

#include <inttypes.h>
#include <poll.h>
#include <string.h>

/* One connected VMM. */
struct vmm {
	struct vmm *next;
	uint64_t client;
	pid_t pid;
	uint64_t start_time;
	uint64_t upgrade_id;		/* that it says it is the target of; 0: none */
	struct worker_process *lent_to; /* NULL: nobody; only compared */
};

/* A worker that waits until this process connects. */
struct wait {
	struct wait *next;
	pid_t pid;
	uint64_t start_time;
	struct worker_process *worker;
	uint64_t id;
};

struct native {
	struct vmm *vmms;
	struct wait *waits;
};

int native_new(struct native **ret_native, struct error *err)
{
	*ret_native = calloc(1, sizeof(**ret_native));
	return *ret_native ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void native_freep(struct native **native)
{
	if (!*native)
		return;
	while ((*native)->vmms) {
		struct vmm *v = (*native)->vmms;

		(*native)->vmms = v->next;
		free(v);
	}
	while ((*native)->waits) {
		struct wait *w = (*native)->waits;

		(*native)->waits = w->next;
		free(w);
	}
	free(*native);
	*native = NULL;
}

/* ---- lending ---- */

static struct vmm *find(struct native *n, pid_t pid, uint64_t start_time)
{
	struct vmm *v = n->vmms;

	while (v && (v->pid != pid || v->start_time != start_time))
		v = v->next;
	return v;
}

static int lend(struct context *ctx, struct vmm *v, struct worker_process *worker, uint64_t id)
{
	_cleanup_close_ int fd = -EBADF;
	int r;

	r = server_lend(ctx->server, v->client, &fd);
	if (r < 0)
		return r;
	v->lent_to = worker;
	/* A worker that is about to end does not take it: its end is seen elsewhere. */
	(void)worker_process_lend(worker, id, fd);
	return 0;
}

static void refuse(struct worker_process *worker, uint64_t id, int code)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	error_errno(&err, code, "the VMM's connection cannot be lent");
	(void)worker_process_refuse(worker, id, &err);
}

int native_borrow(struct context *ctx, struct worker_process *worker, const Envelope *env)
{
	const Process *p = env->vmm_borrow->process;
	struct vmm *v;
	struct wait *w;
	int r;

	if (!p)
		return -EPROTO;
	v = find(ctx->native, p->pid, p->start_time);
	/* It has it, and asks again: the connection has ended, which is not seen from here. */
	if (v && v->lent_to == worker) {
		uint64_t past = v->client;

		native_closed(past, ctx);
		server_close(ctx->server, past);
		v = NULL;
	}
	r = v ? lend(ctx, v, worker, env->id) : -ENOTCONN;
	if (r >= 0)
		return 0;
	w = r == -ENOTCONN ? calloc(1, sizeof(*w)) : NULL;
	if (!w) {
		refuse(worker, env->id, r == -ENOTCONN ? -ENOMEM : r);
		return 0;
	}
	*w = (struct wait){ ctx->native->waits, p->pid, p->start_time, worker, env->id };
	ctx->native->waits = w;
	return 0;
}

void native_take_back(struct context *ctx, struct worker_process *worker)
{
	struct wait **at = &ctx->native->waits;

	if (!worker)
		return;
	while (*at) {
		struct wait *w = *at;

		if (w->worker != worker) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		free(w);
	}
	for (struct vmm *v = ctx->native->vmms; v; v = v->next)
		if (v->lent_to == worker) {
			v->lent_to = NULL;
			server_take_back(ctx->server, v->client);
		}
}

void native_upgrade_ended(struct context *ctx, uint64_t id, const Process *now)
{
	for (struct vmm **at = &ctx->native->vmms; *at;) {
		struct vmm *v = *at;

		if (v->upgrade_id != id) {
			at = &v->next;
		} else if (now && v->pid == now->pid && v->start_time == now->start_time) {
			v->upgrade_id = 0;
			at = &v->next;
		} else {
			*at = v->next;
			server_close(ctx->server, v->client);
			free(v);
		}
	}
}

/* Gives the connection to the worker that waits for it, if one does. */
static void serve_wait(struct context *ctx, struct vmm *v)
{
	for (struct wait **at = &ctx->native->waits; *at; at = &(*at)->next) {
		struct wait *w = *at;
		int r;

		if (w->pid != v->pid || w->start_time != v->start_time)
			continue;
		r = lend(ctx, v, w->worker, w->id);
		/* It is gone as it came, and will come once more. */
		if (r == -ENOTCONN)
			return;
		*at = w->next;
		if (r < 0)
			refuse(w->worker, w->id, r);
		free(w);
		return;
	}
}

void native_closed(uint64_t client, void *userdata)
{
	struct context *ctx = userdata;

	for (struct vmm **at = &ctx->native->vmms; *at; at = &(*at)->next) {
		struct vmm *v = *at;

		if (v->client != client)
			continue;
		*at = v->next;
		free(v);
		return;
	}
}

/* ---- registering ---- */

/* What is at the other end, read while a pidfd (where there is one) says that it lives. */
static int read_peer(struct context *ctx, const struct requester *from,
		     struct process_facts *ret_facts, struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	_cleanup_close_ int pidfd = -EBADF;
	struct pollfd p = { .events = POLLIN };
	int r;

	r = server_peer_pidfd(ctx->server, from->client, &pidfd);
	if (r < 0 && r != -ENODATA)
		return error_errno(err, r, "who connected is not known");
	r = process_read(from->peer.pid, &facts, err);
	if (r < 0)
		return r;
	p.fd = pidfd;
	if (pidfd >= 0 && poll(&p, 1, 0) != 0)
		return error_set(err, -ESRCH, "process %d has ended", (int)from->peer.pid);
	*ret_facts = facts;
	facts = (struct process_facts)PROCESS_FACTS_INIT;
	return 0;
}

static bool is_process(const Process *p, const struct process_facts *facts)
{
	return p && p->pid == facts->pid && p->start_time == facts->start_time;
}

static int taken(const char *name, const struct vm *vm, struct error *err)
{
	error_set(err, -EEXIST, "%s is process %d, driver %s", name, vm->pb->process->pid,
		  vm->pb->driver);
	error_hint(err, "upgradectl show %s", name);
	return -EEXIST;
}

/*
 * May this process be the VM of that name? *ret_vm: the VM that it is; NULL: it
 * is the target of an upgrade, or no VM of that name is known.
 */
static int may_be(struct context *ctx, const Upgraded__V1__VmmRegister *reg,
		  const struct process_facts *facts, struct vm **ret_vm, struct error *err)
{
	struct vm *vm = registry_find(ctx->registry, reg->name);
	struct vm *other = registry_find_process(ctx->registry, facts->pid, facts->start_time);
	const Process *target;

	*ret_vm = NULL;
	if (other && other != vm) {
		error_set(err, -EEXIST, "process %d is known already, as %s", (int)facts->pid,
			  other->pb->name);
		return -EEXIST;
	}
	if (other && strcmp(other->pb->driver, "native") != 0)
		return taken(reg->name, other, err);
	if (other) {
		*ret_vm = other;
		return 0;
	}
	if (vm && vm->upgrade) {
		target = upgrade_target(vm->upgrade);
		/* Registered before its worker said who it is: the worker asks for it by process.
		 */
		if (target ? is_process(target, facts) : reg->upgrade_id == upgrade_id(vm->upgrade))
			return 0;
		return taken(reg->name, vm, err);
	}
	if (reg->upgrade_id)
		return error_set(err, -ESRCH, "upgrade %" PRIu64 " of %s is over", reg->upgrade_id,
				 reg->name);
	if (reg->state != UPGRADED__V1__VMM_STATE__VMM_RUNNING)
		return error_set(err, -ESRCH, "no upgrade of %s is known that stopped this VMM",
				 reg->name);
	if (vm && (!vm_has_ended(vm) || vm->working || strcmp(vm->pb->driver, "native") != 0))
		return taken(reg->name, vm, err);
	return 0;
}

/* The registry's VM, made or as it was. Targets have none of their own. */
static int enter(struct context *ctx, const Upgraded__V1__VmmRegister *reg,
		 const struct process_facts *facts, struct error *err)
{
	_cleanup_message_ Vm *found = message_new(&upgraded__v1__vm__descriptor);
	struct vm *vm;
	int r;

	if (!found)
		return error_set(err, -ENOMEM, "out of memory");
	r = may_be(ctx, reg, facts, &vm, err);
	if (r < 0)
		return r;
	if (!vm && registry_find(ctx->registry, reg->name) &&
	    registry_find(ctx->registry, reg->name)->upgrade)
		return 0;
	if (!vm) {
		r = registry_add(ctx->registry, reg->name, "native", "none", "", facts, "", &vm,
				 err);
		if (r < 0)
			return r;
		log_vm(LOG_NOTICE, reg->name, 0, "registered by process %d, %s %s", (int)facts->pid,
		       facts->binary, reg->version);
	}
	if (message_set_string(&found->version, reg->version) < 0 ||
	    message_set_string(&found->machine, reg->machine) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	found->memory = reg->memory;
	r = registry_learn(vm, found);
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

/* Remembers the connection; an older one of the same process is closed. */
static int remember(struct context *ctx, uint64_t client, uint64_t upgrade_id,
		    const struct process_facts *facts, struct vmm **ret_vmm)
{
	struct vmm *old = find(ctx->native, facts->pid, facts->start_time);
	struct vmm *v;

	if (old && old->client == client) {
		*ret_vmm = old;
		return 0;
	}
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	if (old) {
		uint64_t past = old->client;

		native_closed(past, ctx);
		server_close(ctx->server, past);
	}
	*v = (struct vmm){
		.next = ctx->native->vmms,
		.client = client,
		.pid = facts->pid,
		.start_time = facts->start_time,
		.upgrade_id = upgrade_id,
	};
	ctx->native->vmms = v;
	*ret_vmm = v;
	return 0;
}

static int register_vmm(struct context *ctx, const struct requester *from,
			const Upgraded__V1__VmmRegister *reg, struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	Upgraded__V1__VmmRegistered registered = UPGRADED__V1__VMM_REGISTERED__INIT;
	Envelope env = ENVELOPE_INIT;
	struct vmm *v;
	int r;

	r = registry_check_name(reg->name, err);
	if (r >= 0)
		r = read_peer(ctx, from, &facts, err);
	if (r >= 0)
		r = enter(ctx, reg, &facts, err);
	if (r < 0)
		return r;
	r = remember(ctx, from->client, reg->upgrade_id, &facts, &v);
	if (r < 0)
		return error_set(err, r, "out of memory");
	registered.version = (char *)UPGRADED_VERSION;
	env.body_case = BODY(VMM_REGISTERED);
	env.vmm_registered = &registered;
	server_reply(ctx->server, from, &env);
	serve_wait(ctx, v);
	return 0;
}

static bool is_connected(const struct native *n, uint64_t client)
{
	for (const struct vmm *v = n->vmms; v; v = v->next)
		if (v->client == client)
			return true;
	return false;
}

/* The ErrorCode that libupgraded tells apart: over, taken, not allowed, try again. */
static ErrorCode error_code(int code)
{
	switch (code) {
	case -EINVAL:
		return ERROR_CODE(BAD_REQUEST);
	case -EEXIST:
		return ERROR_CODE(EXISTS);
	case -ESRCH:
		return ERROR_CODE(NOT_RUNNING);
	default:
		return ERROR_CODE(INTERNAL);
	}
}

void native_request(struct context *ctx, const struct requester *from, const Envelope *request)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	int r;

	/* The last answer to a worker that is gone. */
	if (is_connected(ctx->native, from->client) && request->body_case != BODY(VMM_REGISTER))
		return;
	if (request->body_case != BODY(VMM_REGISTER)) {
		error_set(&err, -EPROTO, "%s is no request of a VMM", envelope_name(request));
		server_reject(ctx->server, from, ERROR_CODE(PROTOCOL), &err);
		return;
	}
	r = register_vmm(ctx, from, request->vmm_register, &err);
	if (r < 0) {
		error_prefix(&err, "%s cannot be registered", request->vmm_register->name);
		server_reject(ctx->server, from, error_code(r), &err);
	}
}
