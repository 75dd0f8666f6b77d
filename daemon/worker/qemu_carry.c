/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU's way to its target, up to COMMIT: prepare() starts the target and gives
 * it the source's memory, freeze() and load() carry the device state, hold() sees
 * to it that the source cannot run. Every step is undone by qemu_undo.c; who dies
 * when: see driver_qemu.c.
 */
#include "qemu.h"

#include "argv_plan.h"
#include "compare.h"
#include "device_state.h"
#include "fault_point.h"
#include "hold.h"
#include "libvirt.h"
#include "link.h"
#include "qmp.h"
#include "qmp_query.h"
#include "spawn.h"
#include "standstill.h"
#include "tap.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

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
		.source = qemu_source_pid(u),
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

/* The source begins to migrate: it writes its cpr state and waits, running. */
static int start_source(struct upgrade *u, struct qemu *q, struct cpr_state *ret_state,
			struct error *err)
{
	struct json_object *args, *channels;
	int r;

	r = qmp_set_migration_mode(q->source_qmp, "cpr-transfer", err);
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

int qemu_prepare(struct upgrade *u, struct error *err)
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
	if (qemu_is_libvirts(u))
		r = libvirt_hold_connections(u, q->source->fds, q->source->n_fds, err);
	if (r >= 0)
		r = put_cpr(u, &state, err);
	if (r < 0)
		return r;
	return qemu_build_target(u, q, &state, err);
}

int qemu_verify(struct upgrade *u, struct error *err)
{
	_cleanup_free_ char *status = NULL;
	struct qemu *q = u->vmm;
	int r;

	u->wait.what = "the target to say what it is";
	r = qmp_status(q->target_qmp, &status, err);
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
		if (r >= 0 && qemu_is_libvirts(u))
			r = libvirt_check(u->start->vm, &u->findings);
		if (r < 0)
			return r;
	}
	r = gmem_verify(qemu_gmem(q), q->target_qmp, &u->tier, &u->findings, err);
	u->handover = qemu_gmem(q)->handover;
	if (r < 0)
		return r;
	free(u->target_version);
	u->target_version = strdup(qmp_version(q->target_qmp));
	return u->target_version ? 0 : -ENOMEM;
}

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

int qemu_freeze(struct upgrade *u, struct error *err)
{
	_cleanup_close_ int main_source = -EBADF;
	struct qemu *q = u->vmm;
	int r;

	/* Its next one would see the source end. */
	r = qemu_is_libvirts(u) ? libvirt_is_same(u, err) : 0;
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

int qemu_load(struct upgrade *u, struct error *err)
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

	r = qmp_status(q->target_qmp, &status, err);
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
int qemu_hold(struct upgrade *u, struct error *err)
{
	struct qemu *q = u->vmm;
	struct gmem *g = qemu_gmem(q);
	int r;

	r = gmem_switch(g, q->target_qmp, &u->tier, &u->findings, err);
	u->handover = g->handover;
	u->parked = g->enforced;
	/* The pid of a source that has ended may be somebody else's. */
	if (r < 0 || g->enforced || process_has_ended(u->source_pidfd))
		return r;
	return hold_wait(&u->wait, qemu_source_pid(u), err);
}
