/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for libvirt's domains. Nobody has to adopt them: whenever VMs are
 * asked for, the status files of libvirt's QEMU driver say which domains run in which
 * process. control.c calls in before it looks into the registry; reading the files of
 * a hundred domains takes some milliseconds.
 *
 * libvirt's daemon must not see the source end: it would take the domain for dead and
 * its cgroup down with it. So what it is connected to is in custody (worker/libvirt.c), and
 * when the target runs and has the source's names, the worker waits (finish()) until
 * libvirt's daemon is between its end and its start: we have it restarted, and its unit's
 * ExecStartPre= asks us and waits (LibvirtStarting). Then the status files are changed
 * (done()), and it may start: all else was done while it was there. The same question
 * comes when it starts for any other reason.
 *
 * Owns the questions that wait. If this process dies, they are asked again, of the next
 * daemon; the domain's target runs on all the while. What the registry has of a domain
 * that has ended or was started anew meanwhile is put right at the next look.
 */
#include "manager/libvirt.h"

#include "clock.h"
#include "log.h"
#include "manager/libvirt_files.h"
#include "manager/systemd.h"
#include "procfs.h"
#include "registry.h"
#include "standstill.h"
#include "upgrade.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define STARTING_MAX 4
/* systemd gives a start that long. A restart that fails brings no question at all. */
#define RESTART_US (90 * 1000000ULL)

#define _cleanup_status_ _cleanup_(libvirt_status_freep)

struct libvirt {
	uint64_t restarting_us; /* when one was asked for that has not come yet; 0: none */
	struct requester starting[STARTING_MAX]; /* who waits with the start of a daemon */
	size_t n_starting;
};

int libvirt_new(struct libvirt **ret_libvirt)
{
	*ret_libvirt = calloc(1, sizeof(**ret_libvirt));
	return *ret_libvirt ? 0 : -ENOMEM;
}

void libvirt_freep(struct libvirt **l)
{
	free(*l);
	*l = NULL;
}

/* ---- the domains ---- */

/* @vm: that has the name already, or NULL. */
static int learn(struct context *ctx, const struct libvirt_status *s, struct vm *vm,
		 struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	int r;

	if (vm && !vm_has_ended(vm) && vm->pb->process->pid == s->pid)
		return 0;
	/* Another VM that has the name keeps it while it runs. */
	if (vm && !vm_has_ended(vm))
		return error_set(err, -EEXIST, "a VM that is not libvirt's has the name %s",
				 s->name);
	r = process_read(s->pid, &facts, err);
	if (r < 0)
		return r;
	return registry_add(ctx->registry, s->name, "qemu", manager_libvirt.name, s->uuid, &facts,
			    s->monitor, &vm, err);
}

void libvirt_look(struct context *ctx)
{
	_cleanup_closedir_ DIR *dir = opendir(LIBVIRT_STATUS_DIR);

	/* A domain that was shut down is libvirt's to remember. */
	for (struct vm *vm = registry_first(ctx->registry), *next; vm; vm = next) {
		next = vm->next;
		if (vm_has_ended(vm) && !vm->upgrade && !vm->working &&
		    manager_of(vm) == &manager_libvirt)
			registry_remove(vm);
	}
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));) {
		_cleanup_status_ struct libvirt_status *s = NULL;
		_cleanup_error_ struct error err = ERROR_INIT;
		size_t len = strlen(de->d_name);
		struct vm *vm;

		if (len < 5 || strcmp(de->d_name + len - 4, ".xml"))
			continue;
		de->d_name[len - 4] = '\0';
		if (libvirt_files_read(de->d_name, &s, &err) < 0) {
			log_error(LOG_DEBUG, NULL, 0, &err, de->d_name);
			continue;
		}
		vm = registry_find(ctx->registry, s->name);
		if ((vm && vm->upgrade) || learn(ctx, s, vm, &err) >= 0)
			continue;
		log_error(LOG_DEBUG, s->name, 0, &err, "libvirt's domain stays unknown");
	}
}

/* ---- the daemon of libvirt ---- */

static bool is_libvirts(const struct vm *vm)
{
	return manager_of(vm) == &manager_libvirt;
}

/* A source that may stand still, but for that of @but: a daemon that starts now would hang on it.
 */
static bool is_busy(const struct context *ctx, const struct vm *but)
{
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		if (vm != but && vm->upgrade && is_libvirts(vm) &&
		    upgrade_phase(vm->upgrade) >= PHASE(FREEZE))
			return true;
	return false;
}

/*
 * The unit of the daemon that has the QEMU driver, libvirtd or virtqemud. 0 and *ret_unit is
 * NULL: no daemon runs; -ENOENT: it is no unit's. With cgroup v1 there are other hierarchies
 * beside systemd's.
 */
static int daemon_unit(char **ret_unit)
{
	_cleanup_free_ char *cgroup = NULL;
	pid_t pid = libvirt_daemon_pid();
	char *next = NULL;

	*ret_unit = NULL;
	if (!pid || proc_read(pid, "cgroup", &cgroup, NULL) < 0)
		return 0;
	for (char *line = strtok_r(cgroup, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
		char *name = strrchr(line, '/');

		if (!strstr(line, "::/") && !strstr(line, ":name=systemd:/"))
			continue;
		if (!name || !strstr(name, ".service"))
			continue;
		*ret_unit = strdup(name + 1);
		return *ret_unit ? 0 : -ENOMEM;
	}
	return -ENOENT;
}

static void let_start(struct context *ctx)
{
	struct libvirt *l = ctx->libvirt;

	while (l->n_starting)
		server_reply_ack(ctx->server, &l->starting[--l->n_starting]);
}

static void let_finish(struct context *ctx)
{
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		if (vm->upgrade && is_libvirts(vm) && upgrade_is_finishing(vm->upgrade))
			upgrade_may_finish(vm->upgrade);
}

int libvirt_starting(struct context *ctx, const struct requester *from, struct error *err)
{
	struct libvirt *l = ctx->libvirt;

	l->restarting_us = 0;
	if (l->n_starting == STARTING_MAX)
		return error_set(err, -EBUSY, "libvirt's daemon is being started already");
	l->starting[l->n_starting++] = *from;
	if (is_busy(ctx, NULL))
		let_finish(ctx);
	else
		let_start(ctx);
	return 0;
}

void libvirt_closed(struct context *ctx, uint64_t client)
{
	struct libvirt *l = ctx->libvirt;

	for (size_t i = l->n_starting; i-- > 0;)
		if (l->starting[i].client == client)
			l->starting[i] = l->starting[--l->n_starting];
}

static int libvirt_finish(struct context *ctx, struct vm *vm)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *unit = NULL;
	struct libvirt *l = ctx->libvirt;

	if (l->n_starting)
		return 0;
	/* Nobody is there who could see the source end, and who starts now asks first. */
	if (daemon_unit(&unit) >= 0 && !unit)
		return 0;
	if (l->restarting_us && now_us() - l->restarting_us < RESTART_US)
		return 1;
	if (!unit)
		return 1;
	if (systemd_restart(ctx->systemd, unit, &err) < 0) {
		log_error(LOG_ERR, vm->pb->name, 0, &err, "libvirt does not get to know of the target");
		return 1;
	}
	l->restarting_us = now_us();
	return 1;
}

/* ---- the driver ---- */

/* A daemon that cannot be restarted would see the source end, and take the domain down. */
static int libvirt_begin(struct context *ctx, struct vm *vm, struct error *err)
{
	_cleanup_free_ char *unit = NULL;
	int r = daemon_unit(&unit);

	if (r == -ENOENT) {
		error_set(err, -EOPNOTSUPP,
			  "libvirt's daemon (process %d) is no unit of systemd's, so it cannot be "
			  "restarted for %s",
			  (int)libvirt_daemon_pid(), vm->pb->name);
		error_hint(err, "end it and start its unit, libvirtd.service or virtqemud.service");
	}
	return r;
}

static void libvirt_commit(struct context *ctx, struct vm *vm, const CustodyPut *target,
			   pid_t source)
{
}

/* Into the cgroups that libvirt made for the vCPUs of the source, where it pins and limits them. */
static void place_vcpus(pid_t target, const FinishRequest *request)
{
	_cleanup_free_ char *cgroup = NULL;
	char *path, *slash;

	if (proc_read(target, "cgroup", &cgroup, NULL) < 0 || strncmp(cgroup, "0::/", 4))
		return;
	path = cgroup + 3;
	path[strcspn(path, "\n")] = '\0';
	slash = strrchr(path, '/');
	if (!slash || strcmp(slash, "/emulator"))
		return;
	*slash = '\0';
	for (size_t i = 0; i < request->n_vcpus; i++) {
		_cleanup_free_ char *file = NULL;
		_cleanup_close_ int fd = -EBADF;

		if (asprintf(&file, "/sys/fs/cgroup%s/vcpu%u/cgroup.threads", path,
			     request->vcpus[i]->index) < 0) {
			file = NULL;
			return;
		}
		fd = open(file, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || dprintf(fd, "%d", request->vcpus[i]->tid) < 0)
			log_line(LOG_WARNING, "cannot put a vCPU into %s: %m", file);
	}
}

/* @emulator: to be remembered as well, or NULL. */
static int tell(struct vm *vm, pid_t target, const FinishRequest *request, const char *emulator,
		struct error *err)
{
	_cleanup_free_ struct libvirt_vcpu *vcpus = calloc(request->n_vcpus + 1, sizeof(*vcpus));
	_cleanup_status_ struct libvirt_status *s = NULL;
	int r;

	if (!vcpus)
		return -ENOMEM;
	for (size_t i = 0; i < request->n_vcpus; i++)
		vcpus[i] =
			(struct libvirt_vcpu){ request->vcpus[i]->index, request->vcpus[i]->tid };
	r = libvirt_files_read(vm->pb->name, &s, err);
	if (r >= 0)
		r = libvirt_status_move(s, target, vcpus, request->n_vcpus, emulator, request->runs,
					err);
	if (r >= 0)
		r = libvirt_files_write(s, err);
	if (r >= 0 && emulator)
		r = libvirt_files_set_emulator(vm->pb->name, emulator, err);
	return r;
}

static void libvirt_done(struct context *ctx, struct vm *vm, const Report *report)
{
	const FinishRequest *request = vm->upgrade ? upgrade_target_vcpus(vm->upgrade) : NULL;
	_cleanup_error_ struct error err = ERROR_INIT;

	if (report->outcome == OUTCOME(COMMITTED) && report->target && request) {
		place_vcpus(report->target->pid, request);
		if (tell(vm, report->target->pid, request,
			 upgrade_sets_emulator(vm->upgrade) ? report->target_binary : NULL,
			 &err) < 0)
			log_error(LOG_CRIT, vm->pb->name, report->upgrade_id, &err,
				  "libvirt does not know of the target");
	}
	if (!is_busy(ctx, vm))
		let_start(ctx);
}

static void libvirt_gone(struct context *ctx, struct vm *vm)
{
}

/*
 * In the cgroups of the source, while it stands there. With the last of its processes
 * systemd takes the domain's scope down, and there is none to be started in.
 */
static int libvirt_place(struct context *ctx, struct vm *vm, const CustodyPut *start,
			 Process *ret_process)
{
	return vm->pidfd >= 0 && !process_has_ended(vm->pidfd) ? 0 : -ENOENT;
}

const struct manager_driver manager_libvirt = {
	.name = "libvirt",
	.needs_source = true,
	.begin = libvirt_begin,
	.commit = libvirt_commit,
	.finish = libvirt_finish,
	.done = libvirt_done,
	.gone = libvirt_gone,
	.place = libvirt_place,
};
