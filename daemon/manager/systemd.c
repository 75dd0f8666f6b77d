/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for VMs that are units of systemd, vmm@NAME.service:
 * started by `run`, restarted by systemd, handed over to their new process.
 * All talk with systemd over D-Bus is asynchronous; the loop never waits.
 *
 * The hand-over: MAINPID= is sent when COMMIT is in the journal and the worker
 * has not been told, so the source still exists and is the unit's main process.
 * The source is killed by the worker after that. The message is in PID 1's
 * queue before the source can die, and PID 1 reads that queue before it looks
 * at dead children (EVENT_PRIORITY_NOTIFY above SIGCHLD, "so that we can still
 * identify to which service an exit message belongs"), so there is no moment
 * at which the unit has lost its main process; waiting for a barrier would only
 * make the guest stand still for longer.
 *
 * When both VMMs die, systemd ends what is left of the unit and starts it anew. A VM
 * that is being upgraded must not boot then: the guest may be in custody. So from
 * begin() to done() there is a file vms-held/NAME. While it is there the launcher
 * says who it is in vms-launcher/NAME and waits. A target from custody is started
 * in its cgroup and becomes the main process in its place; if the guest is
 * lost, or there was nothing to bring back, the file goes away and the launcher boots
 * the VM.
 *
 * Owns the bus connection and the runs under way. If the daemon dies here, the
 * unit starts all the same (its launcher needs no daemon) and is not known;
 * `run` again, or `adopt`, makes it so.
 */
#include "systemd.h"

#include "check.h"
#include "control.h"
#include "log.h"
#include "manager.h"
#include "notify.h"
#include "oneshot.h"
#include "run_argv.h"
#include "system_bus.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <time.h>

#define DESTINATION	    "org.freedesktop.systemd1"
#define MANAGER_PATH	    "/org/freedesktop/systemd1"
#define MANAGER_INTERFACE   "org.freedesktop.systemd1.Manager"
#define HELD_DIR	    "vms-held"
#define LAUNCHER_DIR	    "vms-launcher"
#define RESTART_TRIES	    120
#define RESTART_INTERVAL_US (1 * 1000000ULL)

struct systemd {
	struct context *ctx;
	sd_bus *bus;
	struct run *runs;
};

/* A unit whose main process is waited for: a `run`, or a restart by systemd. */
struct run {
	struct run *next;
	struct systemd *systemd;
	struct requester from; /* client 0: nobody asked */
	char *name;
	char *unit;
	char *path; /* of the unit's object */
	char *qmp;
	char *job;	/* NULL: not known yet, or a restart */
	unsigned tries; /* left, of a restart */
	sd_bus_slot *call;
	sd_event_source *timer;
};

static void run_freep(struct run **run)
{
	struct run *r = *run;

	if (!r)
		return;
	sd_bus_slot_unref(r->call);
	sd_event_source_disable_unref(r->timer);
	free(r->name);
	free(r->unit);
	free(r->path);
	free(r->qmp);
	free(r->job);
	free(r);
	*run = NULL;
}

static void run_end(struct run *run)
{
	struct run **at = &run->systemd->runs;

	while (*at != run)
		at = &(*at)->next;
	*at = run->next;
	run_freep(&run);
}

static int run_new(struct systemd *s, const char *name, struct run **ret_run)
{
	_cleanup_(run_freep) struct run *run = calloc(1, sizeof(*run));

	if (!run)
		return -ENOMEM;
	run->systemd = s;
	run->name = strdup(name);
	if (!run->name || asprintf(&run->unit, "vmm@%s.service", name) < 0 ||
	    asprintf(&run->qmp, "%s/vmm/%s/qmp.sock", s->ctx->options.runtime_dir, name) < 0 ||
	    sd_bus_path_encode(MANAGER_PATH "/unit", run->unit, &run->path) < 0)
		return -ENOMEM;
	*ret_run = TAKE_PTR(run);
	return 0;
}

static void run_fail(struct run *run, struct error *err)
{
	struct context *ctx = run->systemd->ctx;

	error_hint(err, "journalctl -u %s", run->unit);
	log_error(LOG_ERR, run->name, 0, err, "not started");
	server_reply_error(ctx->server, &run->from, control_error_code(err->code), err);
	run_end(run);
}

/* ---- the unit's main process becomes the VM's ---- */

static int take_process(struct run *run, pid_t pid, struct vm **ret_vm, struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	struct context *ctx = run->systemd->ctx;
	int r;

	r = process_read(pid, &facts, err);
	if (r < 0)
		return r;
	return registry_add(ctx->registry, run->name, "qemu", manager_systemd.name, run->unit, &facts,
			    run->qmp, ret_vm, err);
}

static void take_over(struct run *run, pid_t pid)
{
	_cleanup_error_ struct error err = ERROR_INIT, later = ERROR_INIT;
	struct context *ctx = run->systemd->ctx;
	struct vm *vm;

	if (take_process(run, pid, &vm, &err) < 0) {
		run_fail(run, &err);
		return;
	}
	log_vm(LOG_NOTICE, run->name, 0, "runs as %s, process %d", run->unit, (int)pid);
	if (check_request(ctx, vm, "", NULL, &later) < 0)
		log_error(LOG_WARNING, run->name, 0, &later, "cannot be looked at");
	control_reply_vm(ctx->server, &run->from, vm);
	run_end(run);
}

static int ask(struct run *run, const char *interface, const char *property,
	       sd_bus_message_handler_t then)
{
	return sd_bus_call_method_async(run->systemd->bus, &run->call, DESTINATION, run->path,
					"org.freedesktop.DBus.Properties", "Get", then, run, "ss",
					interface, property);
}

static int on_main_pid(sd_bus_message *m, void *userdata, sd_bus_error *unused)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct run *run = userdata;
	uint32_t pid = 0;

	run->call = sd_bus_slot_unref(run->call);
	if (!sd_bus_message_is_method_error(m, NULL) &&
	    sd_bus_message_enter_container(m, 'v', "u") >= 0)
		(void)sd_bus_message_read(m, "u", &pid);
	if (pid) {
		take_over(run, (pid_t)pid);
	} else {
		error_set(&err, -EIO, "%s was started and has ended again", run->unit);
		run_fail(run, &err);
	}
	return 0;
}

static int ask_main_pid(struct run *run)
{
	return ask(run, "org.freedesktop.systemd1.Service", "MainPID", on_main_pid);
}

/* Of a unit whose main process ended: is it back, on its way back, or stopped for good? */
static int on_active_state(sd_bus_message *m, void *userdata, sd_bus_error *unused)
{
	struct run *run = userdata;
	const char *state = "";

	run->call = sd_bus_slot_unref(run->call);
	if (!sd_bus_message_is_method_error(m, NULL) &&
	    sd_bus_message_enter_container(m, 'v', "s") >= 0)
		(void)sd_bus_message_read(m, "s", &state);
	if (!strcmp(state, "active")) {
		if (ask_main_pid(run) >= 0)
			return 0;
	} else if (!strcmp(state, "activating") && run->tries) {
		run->tries--;
		oneshot_arm(run->timer, RESTART_INTERVAL_US);
		return 0;
	}
	run_end(run);
	return 0;
}

/* ---- the bus ---- */

static int on_job_removed(sd_bus_message *m, void *userdata, sd_bus_error *unused)
{
	struct systemd *s = userdata;
	const char *job, *unit, *result;
	uint32_t id;

	if (sd_bus_message_read(m, "uoss", &id, &job, &unit, &result) < 0)
		return 0;
	for (struct run *run = s->runs; run; run = run->next) {
		_cleanup_error_ struct error err = ERROR_INIT;

		if (!run->job || strcmp(run->job, job) != 0)
			continue;
		if (strcmp(result, "done") != 0)
			error_set(&err, -EIO, "%s did not start (%s)", run->unit, result);
		else if (ask_main_pid(run) < 0)
			error_set(&err, -EIO, "systemd cannot be asked for the process of %s",
				  run->unit);
		if (err.code)
			run_fail(run, &err);
		return 0;
	}
	return 0;
}

static int connect_bus(struct systemd *s, struct error *err)
{
	_cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
	int r;

	if (s->bus && sd_bus_is_open(s->bus) > 0)
		return 0;
	s->bus = sd_bus_flush_close_unref(s->bus);
	r = system_bus_open(&bus);
	if (r >= 0)
		r = sd_bus_attach_event(bus, s->ctx->event, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0)
		r = sd_bus_match_signal_async(bus, NULL, DESTINATION, MANAGER_PATH,
					      MANAGER_INTERFACE, "JobRemoved", on_job_removed, NULL,
					      s);
	if (r >= 0)
		r = sd_bus_call_method_async(bus, NULL, DESTINATION, MANAGER_PATH,
					     MANAGER_INTERFACE, "Subscribe", NULL, NULL, "");
	if (r < 0) {
		error_set(err, -EOPNOTSUPP, "systemd cannot be reached over D-Bus: %s",
			  strerror(-r));
		error_hint(err, "start the QEMU yourself and upgradectl adopt it");
		return -EOPNOTSUPP;
	}
	s->bus = TAKE_PTR(bus);
	return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct run *run = userdata;

	if (connect_bus(run->systemd, &err) < 0 ||
	    ask(run, "org.freedesktop.systemd1.Unit", "ActiveState", on_active_state) < 0)
		run_end(run);
	return 0;
}

/* ---- run ---- */

static int write_argv(const char *runtime_dir, const char *name, char **argv, struct error *err)
{
	_cleanup_free_ char *dir = NULL, *path = NULL, *fresh = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	int r = 0;

	if (asprintf(&dir, "%s/vms-argv", runtime_dir) < 0 ||
	    asprintf(&path, "%s/%s", dir, name) < 0 ||
	    asprintf(&fresh, "%s/.new-%s", dir, name) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "cannot make %s", dir);
	f = fopen(fresh, "we");
	if (!f)
		return error_errno(err, -errno, "cannot write %s", fresh);
	for (char **a = argv; *a && r >= 0; a++)
		r = fwrite(*a, strlen(*a) + 1, 1, f) == 1 ? 0 : -EIO;
	if (r < 0 || fflush(f) || rename(fresh, path) < 0)
		return error_errno(err, r < 0 ? r : -errno, "cannot write %s", path);
	return 0;
}

static int on_started(sd_bus_message *m, void *userdata, sd_bus_error *unused)
{
	const sd_bus_error *failure = sd_bus_message_get_error(m);
	_cleanup_error_ struct error err = ERROR_INIT;
	struct run *run = userdata;
	const char *job;

	run->call = sd_bus_slot_unref(run->call);
	if (failure)
		error_set(&err, -EIO, "systemd does not start %s: %s", run->unit,
			  failure->message ?: failure->name);
	else if (sd_bus_message_read(m, "o", &job) < 0 || !(run->job = strdup(job)))
		error_set(&err, -EIO, "systemd's answer cannot be read");
	if (err.code)
		run_fail(run, &err);
	return 0;
}

static int check_new(struct systemd *s, const char *name, struct error *err)
{
	struct vm *vm = registry_find(s->ctx->registry, name);
	int r;

	r = registry_check_name(name, err);
	if (r < 0)
		return r;
	if (vm && (!vm_has_ended(vm) || vm->upgrade || vm->working)) {
		error_set(err, -EEXIST, "a VM named %s is known already, process %d", name,
			  vm->pb->process->pid);
		error_hint(err, "upgradectl show %s", name);
		return -EEXIST;
	}
	for (struct run *run = s->runs; run; run = run->next)
		if (run->from.client && !strcmp(run->name, name))
			return error_set(err, -EBUSY, "%s is being started", name);
	return 0;
}

int systemd_run(struct systemd *s, const struct requester *from,
		const Upgraded__V1__RunRequest *request, struct error *err)
{
	_cleanup_strv_ char **argv = NULL, **notes = NULL;
	_cleanup_(run_freep) struct run *run = NULL;
	int r;

	r = check_new(s, request->name, err);
	if (r < 0)
		return r;
	if (run_new(s, request->name, &run) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	r = run_argv_make(request->argv, request->n_argv, request->name, run->qmp, &argv, &notes,
			  err);
	if (r < 0)
		return r;
	r = connect_bus(s, err);
	if (r < 0)
		return r;
	r = write_argv(s->ctx->options.runtime_dir, request->name, argv, err);
	if (r < 0)
		return r;
	for (char **note = notes; note && *note; note++)
		log_vm(LOG_INFO, request->name, 0, "%s", *note);
	r = sd_bus_call_method_async(s->bus, &run->call, DESTINATION, MANAGER_PATH,
				     MANAGER_INTERFACE, "StartUnit", on_started, run, "ss",
				     run->unit, "fail");
	if (r < 0)
		return error_errno(err, r, "cannot ask systemd to start %s", run->unit);
	run->from = *from;
	run->next = s->runs;
	s->runs = TAKE_PTR(run);
	return 0;
}

/* ---- the driver ---- */

static int path_of(const struct context *ctx, const char *dir, const char *name, char **ret_path)
{
	if (asprintf(ret_path, "%s/%s%s%s", ctx->options.runtime_dir, dir, name[0] ? "/" : "",
		     name) < 0) {
		*ret_path = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* From here on a start of the unit is no boot. */
static int hold(struct context *ctx, struct vm *vm)
{
	static const char *const dirs[] = { HELD_DIR, LAUNCHER_DIR };
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int fd = -EBADF;

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		_cleanup_free_ char *dir = NULL;

		if (path_of(ctx, dirs[i], "", &dir) < 0)
			return -ENOMEM;
		if (mkdir(dir, 0700) < 0 && errno != EEXIST)
			return -errno;
	}
	if (path_of(ctx, HELD_DIR, vm->pb->name, &path) < 0)
		return -ENOMEM;
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : 0;
}

static void release(struct context *ctx, const char *name)
{
	_cleanup_free_ char *path = NULL;

	if (path_of(ctx, HELD_DIR, name, &path) < 0 || (unlink(path) < 0 && errno != ENOENT))
		log_vm(LOG_ERR, name, 0, "its unit cannot boot it until %s is removed",
		       path ?: HELD_DIR);
}

/* The launcher that waits; -EAGAIN: none does. */
static int find_launcher(struct context *ctx, struct vm *vm, Process *ret_process)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	_cleanup_close_ int pidfd = -EBADF;
	uint64_t start_time;
	int pid;

	if (path_of(ctx, LAUNCHER_DIR, vm->pb->name, &path) < 0)
		return -ENOMEM;
	f = fopen(path, "re");
	if (!f || fscanf(f, "%d %" SCNu64, &pid, &start_time) != 2 ||
	    process_open(pid, start_time, &pidfd) < 0)
		return -EAGAIN;
	ret_process->pid = pid;
	ret_process->start_time = start_time;
	return 0;
}

/*
 * The target is the main process now, and its launcher would boot the VM when it is
 * no longer held. If the daemon dies before this, it is still held, and the next one
 * does it: see systemd_release().
 */
static void end_launcher(struct context *ctx, struct vm *vm)
{
	Process launcher = UPGRADED__V1__PROCESS__INIT;
	_cleanup_close_ int pidfd = -EBADF;

	if (find_launcher(ctx, vm, &launcher) < 0 || launcher.pid == vm->pb->process->pid ||
	    process_open(launcher.pid, launcher.start_time, &pidfd) < 0)
		return;
	(void)pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
}

void systemd_release(struct context *ctx)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_closedir_ DIR *dir = NULL;

	if (path_of(ctx, HELD_DIR, "", &path) < 0)
		return;
	dir = opendir(path);
	for (struct dirent *entry; dir && (entry = readdir(dir));) {
		struct vm *vm = registry_find(ctx->registry, entry->d_name);

		if (entry->d_name[0] == '.' || (vm && vm->upgrade))
			continue;
		/* As done() would have, had the daemon not died before it. */
		if (vm && !vm_has_ended(vm))
			end_launcher(ctx, vm);
		release(ctx, entry->d_name);
	}
}

static int systemd_begin(struct context *ctx, struct vm *vm, struct error *err)
{
	int r = hold(ctx, vm);

	if (r < 0)
		return error_errno(err, r, "%s cannot be kept from starting %s during the upgrade",
				   "systemd", vm->pb->name);
	r = notify_as(vm->pb->process->pid, "STATUS=Being upgraded");
	/* After COMMIT it would be too late to find out. */
	if (r < 0) {
		error_errno(err, r, "systemd cannot be told of a new main process of %s",
			    vm->pb->unit);
		error_hint(err, "upgraded must run as root, on the host that systemd manages");
	}
	return r;
}

static int systemd_place(struct context *ctx, struct vm *vm, const CustodyPut *start,
			 Process *ret_process)
{
	return find_launcher(ctx, vm, ret_process);
}

void systemd_set_main_process(const char *vm, const char *unit, pid_t target, pid_t source)
{
	char state[32];
	int r;

	snprintf(state, sizeof(state), "MAINPID=%d", (int)target);
	r = notify_as(source, state);
	if (r < 0)
		log_vm(LOG_CRIT, vm, 0,
		       "systemd was not told that process %d is the main one of %s now: %s",
		       (int)target, unit, strerror(-r));
}

static void systemd_commit(struct context *ctx, struct vm *vm, const CustodyPut *target,
			   pid_t source)
{
	systemd_set_main_process(vm->pb->name, vm->pb->unit, target->target->pid, source);
}

/* Restart=on-failure may bring it back, as another process. */
static void systemd_gone(struct context *ctx, struct vm *vm)
{
	struct systemd *s = ctx->systemd;
	_cleanup_(run_freep) struct run *run = NULL;

	if (run_new(s, vm->pb->name, &run) < 0)
		return;
	run->tries = RESTART_TRIES;
	if (sd_event_add_time_relative(ctx->event, &run->timer, CLOCK_MONOTONIC,
				       RESTART_INTERVAL_US, 0, on_timer, run) < 0)
		return;
	run->next = s->runs;
	s->runs = TAKE_PTR(run);
}

static void systemd_done(struct context *ctx, struct vm *vm, const Report *report)
{
	char state[256];

	if (report->outcome == OUTCOME(COMMITTED))
		snprintf(state, sizeof(state), "STATUS=Upgraded from %s to %s (%u so far)",
			 report->source_version, report->target_version, vm->pb->generation);
	else
		snprintf(state, sizeof(state), "STATUS=The last upgrade did not happen: %s",
			 report->error);
	if (report->outcome == OUTCOME(COMMITTED))
		end_launcher(ctx, vm);
	release(ctx, vm->pb->name);
	(void)notify_as(vm->pb->process->pid, state);
	/* Nobody looked while the upgrade went on. */
	if (vm_has_ended(vm))
		systemd_gone(ctx, vm);
}

/* Its main process is the target since COMMIT. */
static int systemd_finish(struct context *ctx, struct vm *vm)
{
	return 0;
}

const struct manager_driver manager_systemd = {
	.name = "systemd",
	.begin = systemd_begin,
	.commit = systemd_commit,
	.finish = systemd_finish,
	.place = systemd_place,
	.done = systemd_done,
	.gone = systemd_gone,
};

int systemd_new(struct context *ctx, struct systemd **ret_systemd, struct error *err)
{
	struct systemd *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	s->ctx = ctx;
	*ret_systemd = s;
	return 0;
}

void systemd_freep(struct systemd **s)
{
	if (!*s)
		return;
	while ((*s)->runs)
		run_end((*s)->runs);
	sd_bus_flush_close_unref((*s)->bus);
	free(*s);
	*s = NULL;
}

int systemd_restart(struct systemd *s, const char *unit, struct error *err)
{
	int r = connect_bus(s, err);

	if (r < 0)
		return r;
	/* Or the fifth within ten seconds is refused, and the unit stays down. */
	(void)sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER_INTERFACE,
				       "ResetFailedUnit", NULL, NULL, "s", unit);
	r = sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER_INTERFACE,
				     "RestartUnit", NULL, NULL, "ss", unit, "replace");
	return r < 0 ? error_errno(err, r, "cannot ask systemd to restart %s", unit) : 0;
}
