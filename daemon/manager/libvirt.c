/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for libvirt's domains. Nobody has to adopt them: whenever VMs are
 * asked for, the status files of libvirt's QEMU driver say which domains run in which
 * process. control.c calls in before it looks into the registry; reading the files of
 * a hundred domains takes some milliseconds.
 *
 * libvirt's daemon must not see the source end: it would take the domain for dead and
 * its cgroup down with it. So what it is connected to is in custody (worker/libvirt.c) until
 * that daemon is between its end and its start: when the target runs and answers by the
 * source's names, and the worker has ended (finish()), we have libvirt restarted, and its
 * unit's ExecStartPre= asks us and waits (LibvirtStarting). Then the status files are
 * changed (tell()), END is written and it may start: all else was done while it was there,
 * or is done when it starts. The same question comes when it starts for any other reason.
 *
 * A restart cuts the way by which other upgrades reach their sources, and checks. So it is put
 * off until all that have begun are as far, no more begin meanwhile, and it serves them all.
 * How long it takes others is limited, unless a target hangs that libvirt would not find.
 *
 * Owns the questions that wait, and the upgrades that do have their custody. What if this
 * process dies?
 *   before the restart is asked for   the next daemon has another worker look at each of
 *                                     these upgrades, which ends the same, and goes on
 *   from then until the question      the same; the question waits for those workers
 *   while the question waits          it is asked again, of the next daemon (libvirt_starting.c)
 *   between two status files          each is whole, and is written again: no END yet
 *   after END                         the status is right and on its disk; who asks may start
 * In all of it the domain's target runs on, and libvirt does not start on a status file
 * that names the source. What the registry has of a domain that has ended or was started
 * anew meanwhile is put right at the next look.
 */
#include "manager/libvirt.h"

#include "clock.h"
#include "log.h"
#include "manager/libvirt_files.h"
#include "manager/systemd.h"
#include "oneshot.h"
#include "procfs.h"
#include "registry.h"
#include "standstill.h"
#include "upgrade.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define STARTING_MAX 4
#define UNKNOWN_MAX  16
/* systemd gives a start that long. A restart that fails brings no question at all. */
#define RESTART_US (90 * 1000000ULL)
/* For so long the first that is ready for it waits for others. */
#define OTHERS_US (60 * 1000000ULL)
/* What empties custody keeps PID 1 from starting it: not before it has started. */
#define AFTER_START_US 250000
#define LOOK_US	       (50 * 1000ULL)
#define HANGS_US       (1000 * 1000ULL)

#define _cleanup_status_ _cleanup_(libvirt_status_freep)

struct libvirt {
	struct context *ctx;
	sd_event_source *later;	  /* calls on_later() */
	uint64_t restarting_us;	  /* when one was asked for that has not come yet; 0: none */
	uint64_t others_until_us; /* 0: none waits for others */
	struct requester starting[STARTING_MAX]; /* who waits with the start of a daemon */
	size_t n_starting;
	char *unknown[UNKNOWN_MAX]; /* domains whose names no VM may have, told of */
	size_t n_unknown;
};

static int on_later(sd_event_source *s, uint64_t usec, void *userdata);

int libvirt_new(struct context *ctx, struct libvirt **ret_libvirt)
{
	struct libvirt *l = calloc(1, sizeof(*l));

	if (!l || sd_event_add_time(ctx->event, &l->later, CLOCK_MONOTONIC, UINT64_MAX, 0, on_later,
				    l) < 0) {
		free(l);
		return -ENOMEM;
	}
	l->ctx = ctx;
	*ret_libvirt = l;
	return 0;
}

void libvirt_freep(struct libvirt **l)
{
	if (!*l)
		return;
	sd_event_source_disable_unref((*l)->later);
	while ((*l)->n_unknown)
		free((*l)->unknown[--(*l)->n_unknown]);
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

/* A name that no VM here may have. Its operator would look for it in vain: said once. */
static void tell_of_unknown(struct libvirt *l, const char *name, const struct error *why)
{
	char *known;

	for (size_t i = 0; i < l->n_unknown; i++)
		if (!strcmp(l->unknown[i], name))
			return;
	if (l->n_unknown == UNKNOWN_MAX || !(known = strdup(name)))
		return;
	l->unknown[l->n_unknown++] = known;
	log_line(LOG_WARNING, "libvirt's domain \"%s\" cannot be upgraded: %s", name,
		 why->text ?: strerror(ENOMEM));
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
		int r;

		if (len < 5 || strcmp(de->d_name + len - 4, ".xml"))
			continue;
		de->d_name[len - 4] = '\0';
		if (libvirt_files_read(de->d_name, &s, &err) < 0) {
			log_error(LOG_DEBUG, NULL, 0, &err, de->d_name);
			continue;
		}
		vm = registry_find(ctx->registry, s->name);
		if (vm && vm->upgrade)
			continue;
		r = learn(ctx, s, vm, &err);
		if (r == -EINVAL)
			tell_of_unknown(ctx->libvirt, s->name, &err);
		else if (r < 0)
			log_error(LOG_DEBUG, s->name, 0, &err, "libvirt's domain stays unknown");
	}
}

/* ---- the daemon of libvirt ---- */

static bool is_libvirts(const struct vm *vm)
{
	return manager_of(vm) == &manager_libvirt;
}

/* Of libvirt's, one of which @is is true; NULL: none. */
static struct upgrade *find(const struct context *ctx, bool (*is)(const struct upgrade *u))
{
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		if (vm->upgrade && is_libvirts(vm) && is(vm->upgrade))
			return vm->upgrade;
	return NULL;
}

/* Its source may stand still: a daemon that starts now would hang on it. */
static bool is_in_the_way(const struct upgrade *u)
{
	return !upgrade_is_decided(u) && upgrade_phase(u) >= PHASE(FREEZE);
}

static bool is_before_finish(const struct upgrade *u)
{
	return upgrade_has_begun(u) && !upgrade_is_finishing(u);
}

static bool is_to_be_decided(const struct upgrade *u)
{
	return upgrade_is_finishing(u) && !upgrade_is_decided(u);
}

/* Told of, and its end is left to on_later(). */
static bool is_to_be_ended(const struct upgrade *u)
{
	return upgrade_is_finishing(u) && upgrade_is_decided(u);
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

static void end_all(struct context *ctx, bool (*is)(const struct upgrade *u))
{
	struct upgrade *u;

	while ((u = find(ctx, is)))
		upgrade_end(u);
}

static bool is_restarting(const struct libvirt *l)
{
	return l->restarting_us && now_us() - l->restarting_us < RESTART_US;
}

/* A check reaches its domain through libvirt as well, and does not take long. */
static bool is_checking(const struct context *ctx)
{
	for (struct vm *vm = registry_first(ctx->registry); vm; vm = vm->next)
		if (is_libvirts(vm) && vm->working &&
		    !(vm->upgrade && upgrade_has_begun(vm->upgrade)))
			return true;
	return false;
}

/* Once for all that wait for it; what is not due yet is looked at again. */
static void restart_when_due(struct context *ctx)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *unit = NULL;
	struct libvirt *l = ctx->libvirt;
	struct upgrade *first = find(ctx, upgrade_is_finishing);
	uint64_t now = now_us();

	if (!first || find(ctx, is_to_be_ended) || is_restarting(l))
		return;
	if (!l->others_until_us)
		l->others_until_us = now + OTHERS_US;
	/* Its domain would not be found, and ended. */
	if (find(ctx, upgrade_is_put_off)) {
		oneshot_arm(l->later, HANGS_US);
		return;
	}
	if (is_checking(ctx) && now < l->others_until_us) {
		oneshot_arm(l->later, LOOK_US);
		return;
	}
	if (find(ctx, is_before_finish) && now < l->others_until_us) {
		oneshot_arm(l->later, l->others_until_us - now);
		return;
	}
	if (daemon_unit(&unit) >= 0 && !unit) {
		end_all(ctx, upgrade_is_finishing);
		return;
	}
	if (!unit)
		error_set(&err, -ENOENT, "libvirt's daemon is no unit of systemd's");
	if (!unit || systemd_restart(ctx->systemd, unit, &err) < 0)
		log_error(LOG_ERR, NULL, upgrade_id(first), &err,
			  "libvirt does not get to know of the target");
	l->restarting_us = now;
	oneshot_arm(l->later, RESTART_US);
}

static int on_later(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct libvirt *l = userdata;

	end_all(l->ctx, is_to_be_ended);
	restart_when_due(l->ctx);
	return 0;
}

int libvirt_starting(struct context *ctx, const struct requester *from, struct error *err)
{
	struct libvirt *l = ctx->libvirt;
	struct upgrade *u;

	l->restarting_us = l->others_until_us = 0;
	if (l->n_starting == STARTING_MAX)
		return error_set(err, -EBUSY, "libvirt's daemon is being started already");
	l->starting[l->n_starting++] = *from;
	while ((u = find(ctx, is_to_be_decided)))
		upgrade_decide(u);
	if (!find(ctx, is_in_the_way))
		let_start(ctx);
	if (find(ctx, is_to_be_ended))
		oneshot_arm(l->later, AFTER_START_US);
	return 0;
}

void libvirt_closed(struct context *ctx, uint64_t client)
{
	struct libvirt *l = ctx->libvirt;

	for (size_t i = l->n_starting; i-- > 0;)
		if (l->starting[i].client == client)
			l->starting[i] = l->starting[--l->n_starting];
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

static int libvirt_finish(struct context *ctx, struct vm *vm)
{
	_cleanup_free_ char *unit = NULL;
	int r = daemon_unit(&unit);

	if (upgrade_target(vm->upgrade))
		place_vcpus(upgrade_target(vm->upgrade)->pid, upgrade_target_finish(vm->upgrade));
	/* Nobody is there who could see the source end, and who starts now asks first. */
	if (ctx->libvirt->n_starting || (r >= 0 && !unit))
		return 0;
	restart_when_due(ctx);
	return 1;
}

/* Between the restart and its question it would begin with a connection that is cut. */
static bool libvirt_may_begin(struct context *ctx)
{
	return !is_restarting(ctx->libvirt) && !find(ctx, upgrade_is_finishing);
}

/* @emulator: to be remembered as well, or NULL. */
static int write_status(struct vm *vm, pid_t target, const FinishRequest *request,
			const char *emulator, struct error *err)
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
	for (size_t i = 0; r >= 0 && i < request->n_ptys; i++)
		r = libvirt_status_set_pty(s, request->ptys[i]->chardev, request->ptys[i]->path);
	if (r >= 0)
		r = libvirt_files_write(s, err);
	if (r >= 0 && emulator)
		r = libvirt_files_set_emulator(vm->pb->name, emulator, err);
	return r;
}

static void libvirt_tell(struct context *ctx, struct vm *vm, const Report *report)
{
	const FinishRequest *request = vm->upgrade ? upgrade_target_finish(vm->upgrade) : NULL;
	_cleanup_error_ struct error err = ERROR_INIT;

	if (report->outcome != OUTCOME(COMMITTED) || !report->target || !request)
		return;
	if (write_status(vm, report->target->pid, request,
			 upgrade_sets_emulator(vm->upgrade) ? report->target_binary : NULL,
			 &err) < 0)
		log_error(LOG_CRIT, vm->pb->name, report->upgrade_id, &err,
			  "libvirt does not know of the target");
}

static void libvirt_done(struct context *ctx, struct vm *vm, const Report *report)
{
	if (!find(ctx, is_in_the_way))
		let_start(ctx);
	/* Others may have waited for this one. Not from here: it is still in the list. */
	oneshot_arm(ctx->libvirt->later, 0);
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
	.needs_finish = true,
	.may_begin = libvirt_may_begin,
	.begin = libvirt_begin,
	.commit = libvirt_commit,
	.finish = libvirt_finish,
	.tell = libvirt_tell,
	.done = libvirt_done,
	.gone = libvirt_gone,
	.place = libvirt_place,
};
