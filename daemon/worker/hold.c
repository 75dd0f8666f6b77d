/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The two VMMs as processes, whatever kind of VMM they are: starting the target,
 * keeping the source from running, ending either, saying how one ended. This is
 * how the worker enforces "one runner", whatever the VMM itself would do. Called
 * by the drivers; owns nothing. If this process dies here, a stopped source
 * stays stopped, and the next worker continues or kills it; when the source is dead
 * as well, custody knows how the target was started.
 */
#include "hold.h"

#include "cleanup.h"
#include "device_state.h"
#include "executable.h"
#include "fault_point.h"
#include "link.h"
#include "process.h"
#include "procfs.h"
#include "spawn.h"
#include "spawn_order.h"
#include "standstill.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

/* What a process that was killed may take to give back its memory. */
#define DYING_MS 10000

/* linux/pidfd.h of Linux 6.15 */
#define GET_INFO  _IOWR(0xFF, 11, struct pidfd_info_exit)
#define INFO_EXIT (1ULL << 3)

struct pidfd_info_exit {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t ids[11];
	int32_t exit_code;
};

/* ---- starting the target ---- */

/* If this process dies before it is acknowledged, nothing has been started. */
static int put_order(struct upgrade *u, const struct spawn_order *o, char *qmp, struct error *err)
{
	Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;
	_cleanup_free_ uint8_t *packed = NULL;
	_cleanup_free_ int *fds = NULL;
	size_t n_fds;
	int r;

	r = spawn_order_pack(o, &packed, &put.payload.len, &fds, &n_fds);
	if (r < 0)
		return error_errno(err, r, "cannot note how the target is started");
	put.payload.data = packed;
	put.name = (char *)"start";
	put.plan = u->plan;
	put.target_qmp = qmp ?: put.target_qmp;
	return link_put(&u->wait, &put, fds, n_fds, err);
}

/*
 * If this process dies before custody has the target, that ends as well, for it was
 * not let go yet (spawn.c); from then on the next worker finds it, dead or alive.
 */
static int start(struct upgrade *u, const struct spawn_order *o, char *qmp, struct error *err)
{
	Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;
	_cleanup_close_ int gate = -EBADF;
	uint64_t start_time;
	pid_t pid;
	int r;

	r = spawn_order_ready(o, &pid, &u->target_pidfd, &gate, err);
	if (r < 0)
		return r;
	fault_point(FAULT_TARGET_STARTED);
	u->wait.target = u->target_pidfd;
	u->target.pid = pid;
	r = process_start_time(pid, &start_time);
	if (r < 0)
		return error_errno(err, r, "the target disappeared");
	u->target.start_time = start_time;
	put.name = (char *)"target";
	put.target = &u->target;
	put.target_qmp = qmp ?: put.target_qmp;
	put.plan = u->plan;
	r = link_put(&u->wait, &put, &u->target_pidfd, 1, err);
	if (r >= 0)
		r = spawn_let_go(o->argv[0], gate, err);
	u->wait.what = "the target to be executed";
	if (r >= 0)
		r = wait_for(&u->wait, gate, POLLIN, err);
	if (r >= 0)
		r = spawn_started(o->argv[0], gate, NULL, err);
	if (r < 0)
		return r;
	closep(&u->target_exe);
	u->target_exe = executable_open(pid, u->target_pidfd);
	return 0;
}

int hold_start(struct upgrade *u, const struct spawn *spawn, char *qmp, struct error *err)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	int r;

	r = spawn_order_make(spawn, &o, err);
	if (r < 0)
		return r;
	r = put_order(u, o, qmp, err);
	return r < 0 ? r : start(u, o, qmp, err);
}

/*
 * If this process dies here, the next worker does the same again: it ends whoever
 * is in custody as the target.
 */
int hold_start_again(struct upgrade *u, struct error *err)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	const struct inherited_item *item = inherited_find(&u->inherited, "start");
	int r;

	if (!item)
		return error_set(err, -ENOENT, "how the target is started is not in custody");
	r = spawn_order_unpack(item->held->put->payload.data, item->held->put->payload.len,
			       item->fds, item->n_fds, &o);
	if (r < 0)
		return error_errno(err, r, "what custody has of the target's start is no order");
	/* The source's may be gone, as those of a unit that has ended. */
	if (u->start->place && u->start->place->pid) {
		cgroups_close(&o->id->cgroups);
		r = cgroups_open(u->start->place->pid, &o->id->cgroups, err);
		if (r < 0)
			return r;
	}
	u->wait.target = -EBADF;
	r = hold_end(&u->wait, u->target_pidfd, "the target of before", err);
	if (r < 0)
		return r;
	closep(&u->target_pidfd);
	r = link_drop(&u->wait, "target", err);
	if (r >= 0)
		r = link_drop(&u->wait, "target-vm", err);
	return r < 0 ? r : start(u, o, u->start->target_qmp, err);
}

/* ---- keeping the source from running ---- */

int hold_stop(int pidfd, struct error *err)
{
	if (pidfd_send_signal(pidfd, SIGSTOP, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot stop the source");
	return 0;
}

/* One that dies is waited for. */
static bool dies(struct waiter *w, pid_t pid, int pidfd)
{
	if (process_has_ended(pidfd))
		return true;
	if (!process_is_dying(pid))
		return false;
	for (int ms = 0; ms < DYING_MS; ms += 1000) {
		if (process_ends_within(pidfd, 1000))
			return true;
		wait_pulse(w);
	}
	return false;
}

static int use_state(struct upgrade *u, pid_t pid, int pidfd, const char *who, struct error *err)
{
	int r;

	if (dies(&u->wait, pid, pidfd))
		return error_set(err, -ESRCH, "%s has ended", who);
	r = device_state_use(u->state);
	fault_point(FAULT_LET_GO);
	return r < 0 ? error_errno(err, r, "the device state cannot be marked as used") : 0;
}

void hold_see_out(struct upgrade *u)
{
	(void)dies(&u->wait, u->start->vm->process->pid, u->source_pidfd);
}

int hold_let_go(struct upgrade *u, struct error *err)
{
	return use_state(u, u->start->vm->process->pid, u->source_pidfd, "the source", err);
}

int hold_let_run(struct upgrade *u, struct error *err)
{
	return use_state(u, u->target.pid, u->target_pidfd, "the target", err);
}

int hold_wait(struct waiter *w, pid_t pid, struct error *err)
{
	int r;

	w->what = "the source to stand still";
	for (;;) {
		r = process_is_stopped(pid);
		if (r == 1)
			return 0;
		if (r < 0)
			return error_errno(err, r, "cannot see whether the source runs");
		r = wait_sleep(w, 200, err);
		if (r < 0)
			return r;
	}
}

int hold_end(struct waiter *w, int pidfd, const char *who, struct error *err)
{
	if (pidfd < 0)
		return 0;
	if (pidfd_send_signal(pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot end %s", who);
	for (;;) {
		uint64_t now = now_us(), left = w->deadline_us > now ? w->deadline_us - now : 0;

		if (process_ends_within(pidfd, left < 1000000 ? (int)(left / 1000) : 1000))
			return 0;
		if (!left)
			return error_set(err, -ETIMEDOUT, "%s does not end", who);
		wait_pulse(w);
	}
}

/* From when it was reaped on, the kernel keeps it with the pidfd (Linux 6.15 and later). */
static bool reaped_code(int pidfd, int *ret_code)
{
	struct pidfd_info_exit info = { .mask = INFO_EXIT };

	if (ioctl(pidfd, GET_INFO, &info) < 0 || !(info.mask & INFO_EXIT))
		return false;
	*ret_code = info.exit_code;
	return true;
}

/* While it is a zombie its stat has it. */
static bool zombie_code(pid_t pid, int *ret_code)
{
	_cleanup_free_ char *stat = NULL;
	const char *state, *code;

	if (proc_read(pid, "stat", &stat, NULL) < 0)
		return false;
	state = proc_stat_field(stat, PROC_STAT_STATE);
	code = proc_stat_field(stat, PROC_STAT_EXIT_CODE);
	return state && *state == 'Z' && code && sscanf(code, "%d", ret_code) == 1;
}

/* How a process ended that is init's to reap: before, after, or just now. Waits for nothing. */
static bool exit_code(pid_t pid, int pidfd, int *ret_code)
{
	return reaped_code(pidfd, ret_code) || zombie_code(pid, ret_code) ||
	       reaped_code(pidfd, ret_code);
}

/*
 * The end of a VMM shows in different ways: its monitor closes, its channel
 * breaks, a wait ends. The first two come a little before the process is gone.
 */
void hold_explain(struct upgrade *u, struct error *err)
{
	int r = err->code, patience_ms = r == -ECONNRESET || r == -EPIPE ? 500 : 0;
	const char *what = u->wait.what ?: "it";
	bool known;
	int code;

	if (!r || r == -ECANCELED)
		return;
	if (process_ends_within(u->target_pidfd, patience_ms)) {
		known = exit_code(u->target.pid, u->target_pidfd, &code);
		error_clear(err);
		if (!known)
			error_set(err, r, "the target ended while upgraded waited for %s", what);
		else if (WIFEXITED(code))
			error_set(err, r,
				  "the target exited with status %d while upgraded waited for %s",
				  WEXITSTATUS(code), what);
		else
			error_set(err, r,
				  "the target was killed by SIG%s while upgraded waited for %s",
				  sigabbrev_np(WTERMSIG(code)) ?: "?", what);
		error_hint(err, "its own words are in the log of %s", u->start->vm->name);
	} else if (process_ends_within(u->wait.source, u->target_pidfd < 0 ? patience_ms : 0)) {
		error_clear(err);
		error_set(err, -ESRCH,
			  "the VMM of %s (process %d) ended while upgraded waited for %s",
			  u->start->vm->name, u->start->vm->process->pid, what);
	}
}
