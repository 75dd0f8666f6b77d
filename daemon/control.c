/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What can be asked of the daemon, one function per request. Called by
 * server.c for a client that has said Hello and may ask. A handler answers, or
 * returns a negative errno with the sentence for the user in @err, which the
 * caller sends. What takes time (a check, an upgrade, starting a VM) is begun
 * here and answered from where it ends. Owns nothing; a request that the
 * daemon dies in was either not begun or is in the registry or the journal.
 */
#include "control.h"

#include "check.h"
#include "custody.h"
#include "history.h"
#include "log.h"
#include "manager/libvirt.h"
#include "manager/systemd.h"
#include "native.h"
#include "procfs.h"
#include "upgrade.h"
#include "worker/source.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Room in a packet for a list, beside the Envelope's own few bytes. */
#define LIST_BYTES_MAX (WIRE_PACKET_MAX - 1024)

/* What upgradectl takes at most as a time limit; sums of longer ones would overflow. */
#define LIMIT_MAX_S 10000000

ErrorCode control_error_code(int code)
{
	switch (code) {
	case -EINVAL:
		return ERROR_CODE(BAD_REQUEST);
	case -EPROTO:
		return ERROR_CODE(PROTOCOL);
	case -ENOENT:
		return ERROR_CODE(NO_SUCH_VM);
	case -EBUSY:
		return ERROR_CODE(BUSY);
	case -EALREADY:
		return ERROR_CODE(REFUSED);
	case -EACCES:
		return ERROR_CODE(DENIED);
	case -EOPNOTSUPP:
	case -EPROTONOSUPPORT:
		return ERROR_CODE(UNSUPPORTED);
	case -EEXIST:
		return ERROR_CODE(EXISTS);
	case -ESRCH:
		return ERROR_CODE(NOT_RUNNING);
	default:
		return ERROR_CODE(INTERNAL);
	}
}

Vm *control_describe(struct vm *vm)
{
	_cleanup_message_ Vm *pb = message_copy(vm->pb);

	if (!pb)
		return NULL;
	pb->alive = !vm_has_ended(vm);
	pb->outdated = pb->alive && process_outdated(pb->process->pid, pb->binary);
	if (vm->upgrade) {
		pb->phase = upgrade_phase(vm->upgrade);
		pb->upgrade_id = upgrade_id(vm->upgrade);
		if (custody_describe(upgrade_custody(vm->upgrade), &pb->custody) < 0)
			return NULL;
		pb->n_custody = upgrade_custody(vm->upgrade)->n;
	}
	return TAKE_PTR(pb);
}

void control_reply_vm(struct server *s, const struct requester *to, struct vm *vm)
{
	_cleanup_message_ Vm *pb = control_describe(vm);
	_cleanup_error_ struct error err = ERROR_INIT;
	Envelope env = ENVELOPE_INIT;

	if (!pb) {
		error_set(&err, -ENOMEM, "out of memory");
		server_reply_error(s, to, ERROR_CODE(INTERNAL), &err);
		return;
	}
	env.body_case = BODY(VM);
	env.vm = pb;
	server_reply(s, to, &env);
}

static int find_vm(struct context *ctx, const char *name, struct vm **ret_vm, struct error *err)
{
	struct vm *vm;

	libvirt_look(ctx);
	vm = registry_find(ctx->registry, name);
	if (!vm) {
		error_set(err, -ENOENT, "no VM named %s is known", name);
		error_hint(err, "upgradectl list shows those that are; upgradectl adopt makes a "
				"running one known");
		return -ENOENT;
	}
	*ret_vm = vm;
	return 0;
}

static int find_alive(struct context *ctx, const char *name, struct vm **ret_vm, struct error *err)
{
	int r = find_vm(ctx, name, ret_vm, err);

	if (r < 0 || !vm_has_ended(*ret_vm))
		return r;
	error_set(err, -ESRCH, "%s does not run: its process %d is gone", name,
		  (*ret_vm)->pb->process->pid);
	error_hint(err, "upgradectl run %s -- ... starts it, upgradectl forget %s forgets it", name,
		   name);
	return -ESRCH;
}

static int check_binary_path(const char *binary, struct error *err)
{
	if (!binary[0] || binary[0] == '/')
		return 0;
	error_set(err, -EINVAL, "%s is no absolute path", binary);
	error_hint(err, "upgradectl upgrade VM --vmm /usr/bin/qemu-system-x86_64");
	return -EINVAL;
}

/*
 * Sends @n messages as lists that fit into packets. All but the last packet
 * have batches_left set, all have the request's id; an empty list is sent too.
 */
static void reply_list(struct context *ctx, const struct requester *from, void **items, size_t n,
		       void (*wrap)(Envelope *env, void **items, size_t n, void *userdata),
		       void *userdata)
{
	size_t first = 0, batches = 1, bytes = 0;

	for (size_t i = 0; i < n; i++) {
		size_t len = protobuf_c_message_get_packed_size(items[i]) + 8;

		if (bytes && bytes + len > LIST_BYTES_MAX) {
			batches++;
			bytes = 0;
		}
		bytes += len;
	}
	while (batches--) {
		Envelope env = ENVELOPE_INIT;
		size_t k = first;

		for (bytes = 0; k < n; k++) {
			size_t len = protobuf_c_message_get_packed_size(items[k]) + 8;

			if (bytes && bytes + len > LIST_BYTES_MAX)
				break;
			bytes += len;
		}
		env.batches_left = (uint32_t)batches;
		wrap(&env, items + first, k - first, userdata);
		server_reply(ctx->server, from, &env);
		first = k;
	}
}

static void wrap_vms(Envelope *env, void **items, size_t n, void *userdata)
{
	Upgraded__V1__VmList *list = userdata;

	list->vms = (Vm **)items;
	list->n_vms = n;
	env->body_case = BODY(VM_LIST);
	env->vm_list = list;
}

static int handle_list(struct context *ctx, const struct requester *from, struct error *err)
{
	Upgraded__V1__VmList list = UPGRADED__V1__VM_LIST__INIT;
	_cleanup_free_ void **vms = NULL;
	size_t n = 0, count = 0;
	int r = 0;

	libvirt_look(ctx);
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		count++;
	vms = calloc(count + 1, sizeof(*vms));
	if (!vms)
		return error_set(err, -ENOMEM, "out of memory");
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next) {
		vms[n] = control_describe(vm);
		if (!vms[n]) {
			r = error_set(err, -ENOMEM, "out of memory");
			break;
		}
		n++;
	}
	if (r >= 0)
		reply_list(ctx, from, vms, n, wrap_vms, &list);
	while (n)
		message_free(vms[--n]);
	return r;
}

static int handle_show(struct context *ctx, const struct requester *from,
		       const Upgraded__V1__ShowRequest *request, struct error *err)
{
	struct vm *vm;
	int r;

	r = find_vm(ctx, request->name, &vm, err);
	if (r < 0)
		return r;
	control_reply_vm(ctx->server, from, vm);
	return 0;
}

/* The VM that a check or an upgrade is asked for. */
static int find_idle(struct context *ctx, const char *name, const char *binary, struct vm **ret_vm,
		     struct error *err)
{
	int r;

	r = check_binary_path(binary, err);
	if (r >= 0)
		r = find_alive(ctx, name, ret_vm, err);
	if (r < 0 || !(*ret_vm)->upgrade)
		return r;
	error_set(err, -EBUSY, "an upgrade of %s is running", name);
	error_hint(err, "upgradectl watch %s, or upgradectl abort %s", name, name);
	return -EBUSY;
}

static int handle_check(struct context *ctx, const struct requester *from,
			const Upgraded__V1__CheckRequest *request, struct error *err)
{
	struct vm *vm;
	int r;

	r = find_idle(ctx, request->name, request->binary, &vm, err);
	return r < 0 ? r : check_request(ctx, vm, request->binary, from, err);
}

static int handle_upgrade(struct context *ctx, const struct requester *from,
			  const Upgraded__V1__UpgradeRequest *request, struct error *err)
{
	struct vm *vm;
	int r;

	if (request->max_blackout_us > LIMIT_MAX_S * 1000000ULL ||
	    request->phase_timeout_us > LIMIT_MAX_S * 1000000ULL)
		return error_set(err, -EINVAL, "a time limit is at most %d s", LIMIT_MAX_S);
	r = find_idle(ctx, request->name, request->binary, &vm, err);
	if (r < 0)
		return r;
	if (request->set_emulator && manager_of(vm) != &manager_libvirt)
		return error_set(err, -EINVAL,
				 "%s is no domain of libvirt's: there is no emulator to be set",
				 vm->pb->name);
	return upgrade_request(ctx, vm, request, from, err);
}

static int handle_abort(struct context *ctx, const struct requester *from,
			const Upgraded__V1__AbortRequest *request, struct error *err)
{
	struct vm *vm;
	int r;

	r = find_vm(ctx, request->name, &vm, err);
	if (r < 0)
		return r;
	if (!vm->upgrade) {
		error_set(err, -ESRCH, "no upgrade of %s is running", request->name);
		error_hint(err, "upgradectl history %s", request->name);
		return -ESRCH;
	}
	r = upgrade_abort(vm->upgrade, err);
	if (r >= 0)
		server_reply_ack(ctx->server, from);
	return r;
}

static int handle_watch(struct context *ctx, const struct requester *from,
			const Upgraded__V1__WatchRequest *request, struct error *err)
{
	struct vm *vm;
	int r = 0;

	if (request->name[0])
		r = find_vm(ctx, request->name, &vm, err);
	if (r < 0)
		return r;
	if (server_watch(ctx->server, from, request->name) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	server_reply_ack(ctx->server, from);
	return 0;
}

static void wrap_reports(Envelope *env, void **items, size_t n, void *userdata)
{
	Upgraded__V1__History *list = userdata;

	list->reports = (Report **)items;
	list->n_reports = n;
	env->body_case = BODY(HISTORY_REPLY);
	env->history_reply = list;
}

static int handle_history(struct context *ctx, const struct requester *from,
			  const Upgraded__V1__HistoryRequest *request, struct error *err)
{
	Upgraded__V1__History list = UPGRADED__V1__HISTORY__INIT;
	Report **reports;
	size_t n;
	int r;

	r = history_read(ctx->history, request->name, request->limit, &reports, &n);
	if (r < 0)
		return error_errno(err, r, "cannot read the history");
	reply_list(ctx, from, (void **)reports, n, wrap_reports, &list);
	history_free_reports(reports, n);
	return 0;
}

/* Who listens on the UNIX socket @path. */
static int listener_pid(const char *path, pid_t *ret_pid, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -EBADF;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -EINVAL, "%s is too long for the path of a socket", path);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, -errno, "no socket");
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		/* Not ENOENT, which would read as "no such VM". */
		error_set(err, -EINVAL, "nobody answers on %s: %m", path);
		error_hint(err, "name the path of a QMP socket of a running QEMU");
		return -EINVAL;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return error_errno(err, -errno, "who listens on %s is not known", path);
	*ret_pid = cred.pid;
	return 0;
}

/* The QMP socket that the command line names, made absolute. */
static char *find_qmp(const struct process_facts *facts)
{
	_cleanup_free_ char *found = source_find_qmp(facts->argv);
	_cleanup_free_ char *cwd = NULL;
	char *path;

	if (!found || found[0] == '/')
		return TAKE_PTR(found);
	if (proc_readlink(facts->pid, "cwd", &cwd) < 0)
		return NULL;
	return asprintf(&path, "%s/%s", cwd, found) < 0 ? NULL : path;
}

static int adopt_find(const Upgraded__V1__AdoptRequest *request, struct process_facts *ret_facts,
		      char **ret_qmp, struct error *err)
{
	_cleanup_free_ char *qmp = NULL;
	pid_t pid = request->pid, listener = 0;
	int r;

	if (request->qmp[0]) {
		if (request->qmp[0] != '/')
			return error_set(err, -EINVAL, "%s is no absolute path", request->qmp);
		r = listener_pid(request->qmp, &listener, err);
		if (r < 0)
			return r;
		if (pid && pid != listener)
			return error_set(err, -EINVAL, "process %d listens on %s, not %d",
					 (int)listener, request->qmp, (int)pid);
		pid = listener;
	}
	if (pid <= 0)
		return error_set(err, -EINVAL, "adopting needs a process or a QMP socket");
	r = process_read(pid, ret_facts, err);
	if (r < 0)
		return r;
	qmp = request->qmp[0] ? strdup(request->qmp) : find_qmp(ret_facts);
	if (!qmp) {
		error_set(err, -EINVAL, "process %d has no QMP socket on its command line",
			  (int)pid);
		error_hint(err, "upgradectl adopt --qmp PATH, or start it with -qmp "
				"unix:PATH,server=on,wait=off");
		return -EINVAL;
	}
	*ret_qmp = TAKE_PTR(qmp);
	return 0;
}

static char *adopt_name(const Upgraded__V1__AdoptRequest *request,
			const struct process_facts *facts)
{
	char *name;

	if (request->name[0])
		return strdup(request->name);
	name = process_guest_name(facts->argv);
	if (name && name[0])
		return name;
	free(name);
	return asprintf(&name, "qemu-%d", (int)facts->pid) < 0 ? NULL : name;
}

static int handle_adopt(struct context *ctx, const struct requester *from,
			const Upgraded__V1__AdoptRequest *request, struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	_cleanup_free_ char *qmp = NULL, *name = NULL;
	_cleanup_error_ struct error later = ERROR_INIT;
	struct vm *vm;
	int r;

	r = adopt_find(request, &facts, &qmp, err);
	if (r < 0)
		return r;
	vm = registry_find_process(ctx->registry, facts.pid, facts.start_time);
	if (vm) {
		error_set(err, -EEXIST, "process %d is known already, as %s", (int)facts.pid,
			  vm->pb->name);
		error_hint(err, "upgradectl show %s", vm->pb->name);
		return -EEXIST;
	}
	name = adopt_name(request, &facts);
	if (!name)
		return error_set(err, -ENOMEM, "out of memory");
	r = registry_add(ctx->registry, name, "qemu", "none", "", &facts, qmp, &vm, err);
	if (r < 0) {
		if (!request->name[0])
			error_hint(err, "upgradectl adopt NAME ... gives it another one");
		return r;
	}
	log_vm(LOG_NOTICE, name, 0, "adopted process %d, monitor %s", (int)facts.pid, qmp);
	/* Version, machine and memory come from the monitor, a moment later. */
	if (check_request(ctx, vm, "", NULL, &later) < 0)
		log_error(LOG_WARNING, name, 0, &later, "cannot be looked at");
	control_reply_vm(ctx->server, from, vm);
	return 0;
}

static int handle_forget(struct context *ctx, const struct requester *from,
			 const Upgraded__V1__ForgetRequest *request, struct error *err)
{
	struct vm *vm;
	int r;

	r = find_vm(ctx, request->name, &vm, err);
	if (r < 0)
		return r;
	if (vm->upgrade || vm->working) {
		error_set(err, -EBUSY, "%s of %s is running",
			  vm->upgrade ? "an upgrade" : "a check", request->name);
		error_hint(err, "try again when it has ended");
		return -EBUSY;
	}
	if (!vm_has_ended(vm) && !strcmp(vm->pb->driver, "native")) {
		error_set(err, -EBUSY, "%s is known because its process %d registers itself",
			  request->name, vm->pb->process->pid);
		error_hint(err, "end that process first");
		return -EBUSY;
	}
	log_vm(LOG_NOTICE, request->name, 0, "forgotten");
	registry_remove(vm);
	server_reply_ack(ctx->server, from);
	return 0;
}

static int handle_metrics(struct context *ctx, const struct requester *from)
{
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(METRICS);
	env.metrics = &ctx->metrics.pb;
	server_reply(ctx->server, from, &env);
	return 0;
}

static int handle(struct context *ctx, const struct requester *from, const Envelope *request,
		  struct error *err)
{
	switch (request->body_case) {
	case BODY(LIST):
		return handle_list(ctx, from, err);
	case BODY(SHOW):
		return handle_show(ctx, from, request->show, err);
	case BODY(CHECK):
		return handle_check(ctx, from, request->check, err);
	case BODY(UPGRADE):
		return handle_upgrade(ctx, from, request->upgrade, err);
	case BODY(ABORT):
		return handle_abort(ctx, from, request->abort, err);
	case BODY(WATCH):
		return handle_watch(ctx, from, request->watch, err);
	case BODY(HISTORY):
		return handle_history(ctx, from, request->history, err);
	case BODY(RUN):
		return systemd_run(ctx->systemd, from, request->run, err);
	case BODY(ADOPT):
		return handle_adopt(ctx, from, request->adopt, err);
	case BODY(FORGET):
		return handle_forget(ctx, from, request->forget, err);
	case BODY(LIBVIRT_STARTING):
		return libvirt_starting(ctx, from, err);
	case BODY(METRICS_REQUEST):
		return handle_metrics(ctx, from);
	default:
		return error_set(err, -EPROTO, "%s is no request", envelope_name(request));
	}
}

void control_request(const struct requester *from, enum server_socket socket,
		     const Envelope *request, void *userdata)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct context *ctx = userdata;
	int r;

	if (socket == SOCKET_VMM) {
		native_request(ctx, from, request);
		return;
	}
	r = handle(ctx, from, request, &err);
	if (r >= 0)
		return;
	if (r == -EPROTO)
		server_reject(ctx->server, from, ERROR_CODE(PROTOCOL), &err);
	else
		server_reply_error(ctx->server, from, control_error_code(r), &err);
}
