/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The driver of a stock QEMU >= 10.0: its monitors by QMP, its state by the two
 * migration channels of mode cpr-transfer, which the worker relays.
 * Called by upgrade.c in the order of struct driver; owns the connections to
 * both monitors, the listening sockets in the work directory and the plan.
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
#include "argv_plan.h"
#include "channel.h"
#include "compare.h"
#include "device_state.h"
#include "fault_point.h"
#include "gmem.h"
#include "headroom.h"
#include "hold.h"
#include "libvirt.h"
#include "link.h"
#include "names.h"
#include "probe.h"
#include "qmp.h"
#include "source.h"
#include "spawn.h"
#include "standstill.h"
#include "tap.h"
#include "upgrade.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING
#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
#define NOTE UPGRADED__V1__SEVERITY__SEVERITY_NOTE

/* For one way to a monitor, when there is another. */
#define REACH_US 5000000

/* A target that hangs does not answer; killing it does the same, only slower. */
#define TAKE_BACK_US 1000000

struct qemu {
	struct qmp *source_qmp;
	struct qmp *target_qmp;
	struct source *source;
	struct argv_plan *plan;
	Upgraded__V1__TargetPlan wire_plan; /* borrows from plan */
	Upgraded__V1__TargetPlan__Rename *rename;
	Upgraded__V1__TargetPlan__Rename **renames;

	/* Sockets in the work directory. */
	char *source_cpr, *source_main; /* where the source connects */
	char *target_cpr, *target_main; /* where the target listens */
	int cpr_listener, main_listener;
	int cpr_held; /* the source's cpr connection: closing it is the freeze */
	int main_target;
	struct spool spool; /* the device state */
	struct gmem gmem;   /* when there is no source */
};

static struct qemu *qemu_of(struct upgrade *u)
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

static pid_t source_pid(const struct upgrade *u)
{
	return u->start->vm->process->pid;
}

/* What is known of the memory: of the source, or of a target without one. */
static struct gmem *gmem_of(struct qemu *q)
{
	return q->source ? &q->source->gmem : &q->gmem;
}

static bool is_libvirts(const struct upgrade *u)
{
	return !strcmp(u->start->vm->manager, "libvirt");
}

static int connect_source(struct upgrade *u, struct qemu *q, struct error *err)
{
	if (q->source_qmp)
		return 0;
	if (is_libvirts(u))
		return libvirt_connect(u->start->vm->unit, "the source", &u->wait, &q->source_qmp,
				       err);
	return qmp_connect(u->start->vm->qmp, "the source", &u->wait, &q->source_qmp, err);
}

/* ---- examine ---------------------------------------------------------- */

static int make_paths(struct upgrade *u, struct qemu *q)
{
	const char *dir = u->start->work_dir;

	if (asprintf(&q->source_cpr, "%s/source-cpr", dir) < 0 ||
	    asprintf(&q->source_main, "%s/source-main", dir) < 0 ||
	    asprintf(&q->target_cpr, "%s/target-cpr", dir) < 0 ||
	    asprintf(&q->target_main, "%s/target-main", dir) < 0)
		return -ENOMEM;
	return 0;
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
	r = make_paths(u, q);
	if (r < 0)
		return r;
	u->wait.what = "the source to say what it is";
	r = connect_source(u, q, err);
	if (r < 0)
		return r;
	r = source_read(source_pid(u), u->source_pidfd, q->source_qmp, &q->source, err);
	if (r < 0)
		return r;
	r = source_check(q->source, q->source_qmp, &u->findings, err);
	if (r >= 0)
		r = headroom_check("", source_pid(u), &u->findings);
	if (r >= 0 && is_libvirts(u))
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

/* ---- prepare ---------------------------------------------------------- */

static int put_cpr(struct upgrade *u, struct cpr_state *state, struct error *err)
{
	Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;

	put.name = (char *)"cpr";
	put.payload.data = state->bytes;
	put.payload.len = state->len;
	return link_put(&u->wait, &put, state->fds.fd, state->fds.n, err);
}

static int put_spool(struct upgrade *u, int spool, struct error *err)
{
	Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;

	put.name = (char *)DEVICE_STATE;
	return link_put(&u->wait, &put, &spool, 1, err);
}

static int start_target(struct upgrade *u, struct qemu *q, struct error *err)
{
	struct spawn spawn = {
		.source = source_pid(u),
		.source_pidfd = u->source_pidfd,
		.argv = q->plan->argv,
		.fds = q->plan->fds,
		.n_fds = q->plan->n_fds,
		.stdio = { -EBADF, -EBADF, -EBADF },
	};

	return hold_start(u, &spawn, q->plan->qmp, err);
}

static struct json_object *unix_channel(const char *type, const char *path)
{
	struct json_object *channel = json_object_new_object();
	struct json_object *addr = json_object_new_object();

	json_object_object_add(addr, "transport", json_object_new_string("socket"));
	json_object_object_add(addr, "type", json_object_new_string("unix"));
	json_object_object_add(addr, "path", json_object_new_string(path));
	json_object_object_add(channel, "channel-type", json_object_new_string(type));
	json_object_object_add(channel, "addr", addr);
	return channel;
}

static int set_migration_mode(struct qmp *qmp, const char *mode, struct error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "mode", json_object_new_string(mode));
	return qmp_execute(qmp, "migrate-set-parameters", args, NULL, err);
}

/* The source begins to migrate: it writes its cpr state and waits, running. */
static int start_source(struct upgrade *u, struct qemu *q, struct cpr_state *ret_state,
			struct error *err)
{
	struct json_object *args, *channels;
	int r;

	r = set_migration_mode(q->source_qmp, "cpr-transfer", err);
	if (r < 0)
		return r;
	channels = json_object_new_array();
	json_object_array_add(channels, unix_channel("main", q->source_main));
	json_object_array_add(channels, unix_channel("cpr", q->source_cpr));
	args = json_object_new_object();
	json_object_object_add(args, "channels", channels);
	r = qmp_execute(q->source_qmp, "migrate", args, NULL, err);
	if (r < 0)
		return r;

	u->wait.what = "the source's cpr channel";
	r = channel_accept(&u->wait, q->cpr_listener, &q->cpr_held, err);
	if (r < 0)
		return r;
	u->wait.what = "the source's cpr state";
	return channel_receive_cpr(&u->wait, q->cpr_held, ret_state, err);
}

/*
 * As channel_wait_hup(), and keeps the taps usable for the source meanwhile:
 * the target sets them to its own liking once for each network card.
 */
static int wait_for_machine(struct upgrade *u, int cpr, struct error *err)
{
	uint64_t deadline = u->wait.deadline_us;
	int r;

	for (;;) {
		_cleanup_error_ struct error slice = ERROR_INIT;
		uint64_t soon = u->plan && u->plan->n_taps ? now_us() + 1000 : deadline;

		u->wait.deadline_us = soon < deadline ? soon : deadline;
		r = channel_wait_hup(&u->wait, cpr, &slice);
		u->wait.deadline_us = deadline;
		if (r < 0 && (r != -ETIMEDOUT || soon >= deadline)) {
			error_move(err, &slice);
			return r;
		}
		if (r == 0)
			return 0;
		r = taps_restore_headers(u->source_pidfd, u->plan, err);
		if (r < 0)
			return r;
	}
}

/* The target takes the cpr state, builds its machine and opens its monitor. */
static int build_target(struct upgrade *u, struct qemu *q, const struct cpr_state *state,
			struct error *err)
{
	_cleanup_close_ int cpr = -EBADF;
	struct json_object *args, *caps, *cap;
	int r;

	u->wait.what = "the target to open its cpr channel";
	r = channel_connect(&u->wait, q->target_cpr, &cpr, err);
	if (r < 0)
		return r;
	r = channel_send_cpr(&u->wait, cpr, state, err);
	if (r < 0)
		return r;
	u->wait.what = "the target to build its machine";
	r = wait_for_machine(u, cpr, err);
	if (r < 0)
		return r;
	/* The machine stands: from here on the target leaves them alone until it loads. */
	if (u->plan)
		r = taps_restore(u->source_pidfd, u->plan, err);
	if (r < 0)
		return r;
	u->wait.what = "the target's monitor";
	r = qmp_connect(q->plan ? q->plan->qmp : u->start->target_qmp, "the target", &u->wait,
			&q->target_qmp, err);
	if (r < 0)
		return r;
	cap = json_object_new_object();
	json_object_object_add(cap, "capability", json_object_new_string("events"));
	json_object_object_add(cap, "state", json_object_new_boolean(true));
	caps = json_object_new_array();
	json_object_array_add(caps, cap);
	args = json_object_new_object();
	json_object_object_add(args, "capabilities", caps);
	return qmp_execute(q->target_qmp, "migrate-set-capabilities", args, NULL, err);
}

static int prepare(struct upgrade *u, struct error *err)
{
	_cleanup_cpr_state_ struct cpr_state state = CPR_STATE_INIT;
	struct qemu *q = u->vmm;
	struct stat st;
	int r;

	if (stat(u->start->work_dir, &st) < 0)
		return error_errno(err, -errno, "%s", u->start->work_dir);
	r = channel_listen(q->source_cpr, st.st_uid, &q->cpr_listener, err);
	if (r < 0)
		return r;
	r = channel_listen(q->source_main, st.st_uid, &q->main_listener, err);
	if (r < 0)
		return r;
	r = spool_open(&q->spool, err);
	if (r < 0)
		return r;
	u->state = fcntl(q->spool.fd, F_DUPFD_CLOEXEC, 3);
	if (u->state < 0)
		return error_errno(err, -errno, "the device state");
	r = put_spool(u, q->spool.fd, err);
	if (r < 0)
		return r;
	r = taps_note(u->source_pidfd, q->plan->fds, q->plan->n_fds, &q->wire_plan, err);
	if (r < 0)
		return r;
	r = start_target(u, q, err);
	if (r < 0)
		return r;
	r = start_source(u, q, &state, err);
	if (r < 0)
		return r;
	u->fds = (uint32_t)state.fds.n;
	if (is_libvirts(u))
		r = libvirt_hold_connections(u, q->source->fds, q->source->n_fds, err);
	if (r >= 0)
		r = put_cpr(u, &state, err);
	if (r < 0)
		return r;
	return build_target(u, q, &state, err);
}

/* ---- verify ----------------------------------------------------------- */

/* A string that a QMP command returns in @key of an object, or as it is (key NULL). */
static int qmp_string(struct qmp *qmp, const char *command, struct json_object *args,
		      const char *key, char **ret_string, struct error *err)
{
	struct json_object *value = NULL, *field;
	const char *s;
	char *copy;
	int r;

	r = qmp_execute(qmp, command, args, &value, err);
	if (r < 0)
		return r;
	field = key ? json_object_object_get(value, key) : value;
	s = field ? json_object_get_string(field) : NULL;
	copy = s ? strdup(s) : NULL;
	json_object_put(value);
	if (!s)
		return error_set(err, -EBADMSG, "%s answered without %s", command,
				 key ?: "a value");
	if (!copy)
		return -ENOMEM;
	*ret_string = copy;
	return 0;
}

static int verify(struct upgrade *u, struct error *err)
{
	_cleanup_free_ char *status = NULL;
	struct qemu *q = u->vmm;
	int r;

	u->wait.what = "the target to say what it is";
	r = qmp_string(q->target_qmp, "query-status", NULL, "status", &status, err);
	if (r < 0)
		return r;
	if (strcmp(status, "inmigrate"))
		findings_add(&u->findings, BLOCKER, "target.status", "query-status",
			     "try again, or choose another target",
			     "The target is \"%s\" where it should wait for the device state",
			     status);
	/* Without a source there is nothing to compare with; loading the state says the same. */
	if (q->source_qmp) {
		r = compare_machines(q->source_qmp, q->target_qmp, &u->findings, err);
		/* What libvirt has begun since it was examined. */
		if (r >= 0 && is_libvirts(u))
			r = libvirt_check(u->start->vm, &u->findings);
		if (r < 0)
			return r;
	}
	r = gmem_verify(gmem_of(q), q->target_qmp, &u->tier, &u->findings, err);
	u->handover = gmem_of(q)->handover;
	if (r < 0)
		return r;
	free(u->target_version);
	u->target_version = strdup(qmp_version(q->target_qmp));
	return u->target_version ? 0 : -ENOMEM;
}

/* ---- freeze, load, hold ------------------------------------------------ */

/* Why the source's migration failed, or 0 while it has not. */
static int migration_error(struct qemu *q, struct error *err)
{
	struct json_object *value = NULL, *desc;
	int r;

	r = qmp_execute(q->source_qmp, "query-migrate", NULL, &value, err);
	if (r < 0)
		return r;
	desc = json_object_object_get(value, "status");
	if (desc && strstr(json_object_get_string(desc), "fail")) {
		desc = json_object_object_get(value, "error-desc");
		r = error_set(err, -EIO, "the source could not send its state: %s",
			      desc ? json_object_get_string(desc) : "it does not say why");
	}
	json_object_put(value);
	return r;
}

/* The source connects, unless its migration failed: then say why, at once. */
static int accept_main(struct upgrade *u, struct qemu *q, int *ret_fd, struct error *err)
{
	uint64_t deadline = u->wait.deadline_us;
	int r;

	u->wait.what = "the source's main channel";
	for (;;) {
		_cleanup_error_ struct error slice = ERROR_INIT;
		uint64_t soon = now_us() + 100000;

		u->wait.deadline_us = soon < deadline ? soon : deadline;
		r = channel_accept(&u->wait, q->main_listener, ret_fd, &slice);
		u->wait.deadline_us = deadline;
		if (r != -ETIMEDOUT || soon >= deadline) {
			if (r < 0)
				error_move(err, &slice);
			return r;
		}
		r = migration_error(q, err);
		if (r < 0)
			return r;
	}
}

static int freeze(struct upgrade *u, struct error *err)
{
	_cleanup_close_ int main_source = -EBADF;
	struct qemu *q = u->vmm;
	int r;

	/* Its next one would see the source end. */
	r = is_libvirts(u) ? libvirt_is_same(u, err) : 0;
	if (r < 0)
		return r;
	/*
	 * Before the source stops, but not earlier: from its accept() on the
	 * target's main loop stands still until the first byte.
	 */
	u->wait.what = "the target's main channel";
	r = channel_connect_main(&u->wait, q->target_main, &q->main_target, err);
	if (r < 0)
		return r;
	closep(&q->cpr_held);
	r = accept_main(u, q, &main_source, err);
	if (r < 0)
		return r;
	u->wait.what = "the source's device state";
	r = channel_relay_main(&u->wait, main_source, q->main_target, &q->spool, &u->state_bytes,
			       err);
	if (r < 0)
		return r;
	fault_point(FAULT_STATE_WHOLE);
	/*
	 * The source has said all: it stands in postmigrate, its disks are
	 * inactive. It is stopped while the target loads; hold() checks. From
	 * here on a dead source is as good as a held one.
	 */
	r = hold_stop(u->source_pidfd, err);
	if (r < 0)
		return r;
	u->wait.source = -EBADF;
	return 0;
}

/* The main stream, from custody: there is no source that would send it. */
static int send_state(struct upgrade *u, struct qemu *q, struct error *err)
{
	int r;

	u->wait.what = "the target's main channel";
	r = channel_connect_main(&u->wait, q->target_main, &q->main_target, err);
	return r < 0 ? r : channel_send_main(&u->wait, q->main_target, u->state, &u->state_bytes,
					     err);
}

/* What a MIGRATION event says: 1 completed, 0 not yet, -EIO failed. */
static int migration_ended(const struct qmp_event *event, struct error *err)
{
	struct json_object *status;

	if (strcmp(event->name, "MIGRATION") || !event->data ||
	    !(status = json_object_object_get(event->data, "status")))
		return 0;
	if (!strcmp(json_object_get_string(status), "completed"))
		return 1;
	if (strstr(json_object_get_string(status), "fail"))
		return error_set(err, -EIO, "the target could not load the source's state");
	return 0;
}

static int load(struct upgrade *u, struct error *err)
{
	_cleanup_free_ char *status = NULL;
	struct qemu *q = u->vmm;
	int r = q->source ? 0 : send_state(u, q, err);

	if (r < 0)
		return r;
	u->wait.what = "the target to load the state";
	do {
		struct qmp_event event;

		r = qmp_next_event(q->target_qmp, &event, err);
		if (r < 0)
			return r;
		r = migration_ended(&event, err);
	} while (r == 0);
	if (r < 0)
		return r;

	r = qmp_string(q->target_qmp, "query-status", NULL, "status", &status, err);
	if (r < 0)
		return r;
	if (strcmp(status, "paused") && strcmp(status, "prelaunch"))
		return error_set(err, -EPROTO, "the target is \"%s\" after loading the state",
				 status);
	return 0;
}

/*
 * Once the kernel has parked the source's VM, its threads need not be waited
 * for: whatever they still do, no vCPU of theirs gets into the guest.
 */
static int hold(struct upgrade *u, struct error *err)
{
	struct qemu *q = u->vmm;
	struct gmem *g = gmem_of(q);
	int r;

	r = gmem_switch(g, q->target_qmp, &u->tier, &u->findings, err);
	u->handover = g->handover;
	u->parked = g->enforced;
	/* The pid of a source that has ended may be somebody else's. */
	if (r < 0 || g->enforced || process_has_ended(u->source_pidfd))
		return r;
	return hold_wait(&u->wait, source_pid(u), err);
}

/* ---- run, finish ------------------------------------------------------- */

/* A worker before us may have given it its final name already. */
static const char *target_monitor(const struct upgrade *u)
{
	const char *path = u->start->target_qmp;

	for (size_t i = 0; u->plan && access(path, F_OK) < 0 && i < u->plan->n_renames; i++)
		if (!strcmp(u->plan->renames[i]->from, path))
			return u->plan->renames[i]->to;
	return path;
}

static int connect_target(struct upgrade *u, struct qemu *q, struct error *err)
{
	if (q->target_qmp)
		return 0;
	u->wait.what = "the target's monitor";
	return qmp_connect(target_monitor(u), "the target", &u->wait, &q->target_qmp, err);
}

/* The time of an event that came, or comes soon; 0 if it does not. */
static uint64_t event_time(struct upgrade *u, struct qmp *qmp, const char *name)
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

/* With the last of a domain's processes goes its scope, and the place for another target. */
static int bar_source(struct upgrade *u, struct error *err)
{
	int r;

	if (is_libvirts(u)) {
		r = hold_stop(u->source_pidfd, err);
		if (r < 0 || process_has_ended(u->source_pidfd))
			return r;
		return hold_wait(&u->wait, source_pid(u), err);
	}
	if (pidfd_send_signal(u->source_pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot end the source");
	return 0;
}

static int run(struct upgrade *u, struct error *err)
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
	r = connect_target(u, q, err);
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

static int finish(struct upgrade *u, struct error *err)
{
	const Upgraded__V1__TargetPlan *plan = u->plan;
	struct qemu *q = u->vmm;
	int r, first;

	if (!plan->paused)
		u->running_at_us = event_time(u, q->target_qmp, "RESUME");
	if (q->source_qmp)
		u->stopped_at_us = event_time(u, q->source_qmp, "STOP") ?: u->stopped_at_us;
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
	if (!is_libvirts(u))
		return first;
	/* libvirt kills a QEMU that does not answer by this name. */
	qmp_freep(&q->target_qmp);
	u->wait.what = "the target's monitor to answer where libvirt looks for it";
	r = qmp_connect(u->start->vm->qmp, "the target", &u->wait, &q->target_qmp, err);
	if (r >= 0)
		r = libvirt_part(u, q->target_qmp, err);
	return r == -EOWNERDEAD ? r : first ?: r;
}

/* ---- undo --------------------------------------------------------------- */

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

		r = qmp_string(q->source_qmp, "query-status", NULL, "status", &status, err);
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
	bool through_libvirt = is_libvirts(u) && libvirt_is_there();
	int r;

	if (q->source_qmp &&
	    qmp_string(q->source_qmp, "query-status", NULL, "status", &status, &ignored) >= 0)
		return 0;
	error_clear(&ignored);
	qmp_freep(&q->source_qmp);
	if (!is_libvirts(u))
		return connect_source(u, q, err);
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

static int undo(struct upgrade *u, struct error *err)
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
	u->stopped_at_us = event_time(u, q->source_qmp, "STOP") ?: u->stopped_at_us;
	if (u->stopped_at_us)
		u->running_at_us = event_time(u, q->source_qmp, "RESUME");
	/* The guest runs; a mode that stays set only matters to other migrations. */
	if (set_migration_mode(q->source_qmp, "normal", &ignored) < 0)
		findings_add(
			&u->findings, WARNING, "source.migration-mode", "migrate-set-parameters",
			"set the parameter mode to normal by QMP before another migration",
			"the source kept migration mode cpr-transfer: %s", ignored.text ?: "?");
	return 0;
}

/* ---- rebuild ------------------------------------------------------------ */

/* The cpr state as custody has it; the fds are copies. */
static int take_cpr(struct upgrade *u, struct cpr_state *ret_state, struct error *err)
{
	const struct inherited_item *item = inherited_find(&u->inherited, "cpr");
	_cleanup_cpr_state_ struct cpr_state state = CPR_STATE_INIT;

	if (!item || item->n_fds > SCM_RIGHTS_MAX || item->held->put->payload.len < item->n_fds)
		return error_set(err, -ENOENT, "the source's memory is not in custody");
	state.len = item->held->put->payload.len;
	state.bytes = malloc(state.len ?: 1);
	if (!state.bytes)
		return -ENOMEM;
	memcpy(state.bytes, item->held->put->payload.data, state.len);
	for (size_t i = 0; i < item->n_fds; i++) {
		state.fds.fd[i] = fcntl(item->fds[i], F_DUPFD_CLOEXEC, 3);
		if (state.fds.fd[i] < 0)
			return error_errno(err, -errno, "cannot take memory from custody");
		state.fds.n++;
	}
	*ret_state = state;
	state = (struct cpr_state)CPR_STATE_INIT;
	return 0;
}

static int rebuild(struct upgrade *u, struct error *err)
{
	_cleanup_cpr_state_ struct cpr_state state = CPR_STATE_INIT;
	struct qemu *q = qemu_of(u);
	int r;

	if (!q)
		return -ENOMEM;
	if (u->state < 0)
		return error_set(err, -ENOENT, "the device state is not in custody");
	r = make_paths(u, q);
	if (r < 0)
		return r;
	q->gmem.no_stage2 = u->start->no_stage2;
	/* Whatever was planned, the memory must have an owner that runs. */
	q->gmem.source = q->gmem.kernel = q->gmem.target =
		u->tier == UPGRADED__V1__TIER__TIER_STAGE2 ||
		(u->tier == UPGRADED__V1__TIER__TIER_GMEM && u->start->no_stage2);
	r = take_cpr(u, &state, err);
	if (r >= 0)
		r = hold_start_again(u, err);
	if (r < 0)
		return r;
	u->fds = (uint32_t)state.fds.n;
	return build_target(u, q, &state, err);
}

/* ---- the rest ------------------------------------------------------------ */

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
	.prepare = prepare,
	.verify = verify,
	.freeze = freeze,
	.load = load,
	.hold = hold,
	.run = run,
	.finish = finish,
	.undo = undo,
	.rebuild = rebuild,
	.explain = hold_explain,
	.describe = describe,
	.planned_argv = planned_argv,
	.free = qemu_free,
};
