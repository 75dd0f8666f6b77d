/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The target of a QEMU, from its cpr channel to its monitor, and the one that is
 * made from custody when no source is left: rebuild(). Who dies when: see
 * driver_qemu.c.
 */
#include "qemu.h"

#include "hold.h"
#include "qmp.h"
#include "tap.h"

#include <fcntl.h>
#include <string.h>

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
int qemu_build_target(struct upgrade *u, struct qemu *q, const struct cpr_state *state,
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

/* A worker before us may have given it its final name already. */
static const char *target_monitor(const struct upgrade *u)
{
	const char *path = u->start->target_qmp;

	for (size_t i = 0; u->plan && access(path, F_OK) < 0 && i < u->plan->n_renames; i++)
		if (!strcmp(u->plan->renames[i]->from, path))
			return u->plan->renames[i]->to;
	return path;
}

int qemu_connect_target(struct upgrade *u, struct qemu *q, struct error *err)
{
	if (q->target_qmp)
		return 0;
	u->wait.what = "the target's monitor";
	return qmp_connect(target_monitor(u), "the target", &u->wait, &q->target_qmp, err);
}

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

int qemu_rebuild(struct upgrade *u, struct error *err)
{
	_cleanup_cpr_state_ struct cpr_state state = CPR_STATE_INIT;
	struct qemu *q = qemu_of(u);
	int r;

	if (!q)
		return -ENOMEM;
	if (u->state < 0)
		return error_set(err, -ENOENT, "the device state is not in custody");
	r = qemu_make_paths(u, q);
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
	return qemu_build_target(u, q, &state, err);
}
