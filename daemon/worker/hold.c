/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The two VMMs as processes, whatever kind of VMM they are: starting the target,
 * keeping the source from running, ending either, saying how one ended. This is
 * how the worker enforces "one runner", whatever the VMM itself would do. Called
 * by the drivers; owns nothing. If this process dies here, a stopped source
 * stays stopped, and the next worker continues or kills it.
 */
#include "hold.h"

#include "process.h"
#include "spawn.h"

#include <ctype.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

int hold_start(struct upgrade *u, const struct spawn *spawn, struct error *err)
{
	uint64_t start_time;
	pid_t pid;
	int r;

	r = spawn_like(spawn, &pid, &u->target_pidfd, err);
	if (r < 0)
		return r;
	u->wait.target = u->target_pidfd;
	u->target.pid = pid;
	r = process_start_time(pid, &start_time);
	if (r < 0)
		return error_errno(err, r, "the target disappeared");
	u->target.start_time = start_time;
	return 0;
}

int hold_stop(int pidfd, struct error *err)
{
	if (pidfd_send_signal(pidfd, SIGSTOP, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot stop the source");
	return 0;
}

/* 1: every thread is stopped or gone; 0: not yet. */
static int threads_stopped(pid_t pid)
{
	_cleanup_closedir_ DIR *dir = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT || errno == ESRCH ? 1 : -errno;
	for (struct dirent *de; (de = readdir(dir));) {
		_cleanup_close_ int fd = -EBADF;
		char buf[512], *end;
		ssize_t n;

		if (!isdigit((unsigned char)de->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/stat", pid, de->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, buf, sizeof(buf) - 1);
		if (n <= 0)
			continue;
		buf[n] = '\0';
		/* The name may hold any character, even ')': the state follows the last one. */
		end = strrchr(buf, ')');
		if (!end || !strchr("TtZX", end[2]))
			return 0;
	}
	return 1;
}

int hold_wait(struct waiter *w, pid_t pid, struct error *err)
{
	int r;

	w->what = "the source to stand still";
	for (;;) {
		r = threads_stopped(pid);
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
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	uint64_t now;

	if (pidfd < 0)
		return 0;
	if (pidfd_send_signal(pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return error_errno(err, -errno, "cannot end %s", who);
	now = now_us();
	while (poll(&p, 1, w->deadline_us > now ? (int)((w->deadline_us - now) / 1000) : 0) == 0) {
		now = now_us();
		if (now >= w->deadline_us)
			return error_set(err, -ETIMEDOUT, "%s does not end", who);
	}
	/* Reaps it if it is a child; else somebody else does. */
	(void)waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED | WNOHANG);
	return 0;
}

/*
 * The end of a VMM shows in different ways: its monitor closes, its channel
 * breaks, a wait ends. The first two come a little before the process is gone.
 */
void hold_explain(struct upgrade *u, struct error *err)
{
	int r = err->code, patience_ms = r == -ECONNRESET || r == -EPIPE ? 500 : 0;
	const char *what = u->wait.what ?: "it";
	siginfo_t info = { 0 };

	if (!r || r == -ECANCELED)
		return;
	if (wait_ended(u->target_pidfd, patience_ms)) {
		/* Who is not its parent only learns that it ended. */
		(void)waitid(P_PIDFD, (id_t)u->target_pidfd, &info, WEXITED | WNOHANG | WNOWAIT);
		error_clear(err);
		if (!info.si_pid)
			error_set(err, r, "the target ended while upgraded waited for %s", what);
		else if (info.si_code == CLD_EXITED)
			error_set(err, r,
				  "the target exited with status %d while upgraded waited for %s",
				  info.si_status, what);
		else
			error_set(err, r,
				  "the target was killed by SIG%s while upgraded waited for %s",
				  sigabbrev_np(info.si_status) ?: "?", what);
		error_hint(err, "its own words are in the log of %s", u->start->vm->name);
	} else if (wait_ended(u->wait.source, u->target_pidfd < 0 ? patience_ms : 0)) {
		error_clear(err);
		error_set(err, -ESRCH,
			  "the VMM of %s (process %d) ended while upgraded waited for %s",
			  u->start->vm->name, u->start->vm->process->pid, what);
	}
}
