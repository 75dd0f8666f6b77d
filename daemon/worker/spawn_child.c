/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a process that spawn.c has forked does until it is the target, a probe, or
 * has done its work. It only makes system calls on what it finds ready, in an order
 * in which every step still has the privileges it needs:
 *
 *   label, cgroups, oom score   while /proc and /sys are ours
 *   namespaces, root, cwd       mount last: after it the paths are others
 *   fds                         close-on-exec all, then place the wanted ones
 *   limits, niceness, CPUs      raising needs capabilities
 *   gids, uids, capabilities    after this there is no way back
 *   no_new_privs, exec
 *
 * Capabilities are set by plain system calls: libcap-ng keeps state of its own
 * and reads /proc at moments that are wrong here.
 *
 * A step that fails is told through the gate and is the process's end; so is the end
 * of the worker, whose end of the gate closes with it.
 */
#include "spawn_child.h"

#include "identity.h"
#include "spawn_order.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum step {
	STEP_SIGNALS = CHILD_READY + 1,
	STEP_LABEL,
	STEP_CGROUP,
	STEP_OOM,
	STEP_NAMESPACE,
	STEP_ROOT,
	STEP_CWD,
	STEP_FDS,
	STEP_LIMITS,
	STEP_NICE,
	STEP_CPUS,
	STEP_SESSION,
	STEP_GROUPS,
	STEP_GID,
	STEP_BOUNDING,
	STEP_UID,
	STEP_CAPS,
	STEP_AMBIENT,
	STEP_NO_NEW_PRIVS,
	STEP_TIE,
	STEP_EXEC,
	STEP_WORK,
	STEP_COUNT
};

static const char *const step_names[STEP_COUNT] = {
	[STEP_SIGNALS] = "reset its signals",
	[STEP_LABEL] = "take the source's security label",
	[STEP_CGROUP] = "join the source's cgroup",
	[STEP_OOM] = "set the source's oom_score_adj",
	[STEP_NAMESPACE] = "enter the source's namespace",
	[STEP_ROOT] = "take the source's root directory",
	[STEP_CWD] = "take the source's working directory",
	[STEP_FDS] = "place the source's fds",
	[STEP_LIMITS] = "set the source's resource limits",
	[STEP_NICE] = "set the source's niceness",
	[STEP_CPUS] = "set the source's CPU affinity",
	[STEP_SESSION] = "make a session",
	[STEP_GROUPS] = "set the source's supplementary groups",
	[STEP_GID] = "set the source's gids",
	[STEP_BOUNDING] = "set the source's capability bounding set",
	[STEP_UID] = "set the source's uids",
	[STEP_CAPS] = "set the source's capabilities",
	[STEP_AMBIENT] = "set the source's ambient capabilities",
	[STEP_NO_NEW_PRIVS] = "set no_new_privs",
	[STEP_TIE] = "be tied to upgraded's worker",
	[STEP_EXEC] = "be executed",
	[STEP_WORK] = "do it",
};

__attribute__((noreturn)) static void fail(const struct child *c, enum step step, int detail)
{
	struct failure f = { .step = step, .error = errno, .detail = detail };

	/* Nothing can be done if this fails; the status still tells. */
	if (write(c->gate, &f, sizeof(f)) != sizeof(f))
		_exit(126);
	_exit(127);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	closep(&fd);
	return n < 0 ? -1 : 0;
}

static void reset_signals(const struct child *c)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	sigset_t none;

	/* Fails for SIGKILL, SIGSTOP and the ones that libc keeps to itself. */
	for (int i = 1; i < NSIG; i++)
		sigaction(i, &dfl, NULL);
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		fail(c, STEP_SIGNALS, 0);
}

static void join(const struct child *c)
{
	const struct identity *id = c->id;
	char path[64] = "/proc/self/";

	if (id->label_file && write_file(strcat(path, id->label_file), id->label) < 0)
		fail(c, STEP_LABEL, 0);
	for (size_t i = 0; i < id->cgroups.n; i++)
		if (write(id->cgroups.procs[i], "0", 1) < 0)
			fail(c, STEP_CGROUP, (int)i);
	if (id->oom_score_adj && write_file("/proc/self/oom_score_adj", id->oom_score_adj) < 0)
		fail(c, STEP_OOM, 0);
}

static void enter(const struct child *c)
{
	const struct identity *id = c->id;

	for (int i = 0; i < NS_COUNT_IN_CHILD; i++)
		if (id->ns[i] >= 0 && setns(id->ns[i], 0) < 0)
			fail(c, STEP_NAMESPACE, i);
	if (id->root >= 0 && (fchdir(id->root) < 0 || chroot(".") < 0))
		fail(c, STEP_ROOT, 0);
	if (fchdir(id->cwd) < 0)
		fail(c, STEP_CWD, 0);
}

static int move_above(int fd, int above)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, above);
}

/*
 * A wanted number may be in use for another fd that is still needed, so all
 * that is needed first moves above the highest wanted number.
 */
static void place_fds(struct child *c)
{
	struct rlimit limit;
	int above = 3, gate;

	for (size_t i = 0; i < c->n_fds; i++)
		if (c->fds[i].number >= above)
			above = c->fds[i].number + 1;
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	gate = move_above(c->gate, above);
	if (gate < 0)
		fail(c, STEP_FDS, -1);
	c->gate = gate;
	for (size_t i = 0; i < c->n_fds; i++)
		if ((c->fds[i].fd = move_above(c->fds[i].fd, above)) < 0)
			fail(c, STEP_FDS, c->fds[i].number);

	/* Whatever else is open here, ours or a library's, ends with exec. */
	if (close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC) < 0)
		fail(c, STEP_FDS, -1);
	for (size_t i = 0; i < c->n_fds; i++)
		if (dup2(c->fds[i].fd, c->fds[i].number) < 0)
			fail(c, STEP_FDS, c->fds[i].number);
}

static void set_limits(const struct child *c)
{
	const struct identity *id = c->id;

	for (int i = 0; i < RLIM_NLIMITS; i++)
		if (setrlimit(i, &id->limits[i]) < 0)
			fail(c, STEP_LIMITS, i);
	errno = 0;
	if (getpriority(PRIO_PROCESS, 0) != id->nice && setpriority(PRIO_PROCESS, 0, id->nice) < 0)
		fail(c, STEP_NICE, 0);
	if (sched_setaffinity(0, id->cpus_size, id->cpus) < 0)
		fail(c, STEP_CPUS, 0);
	umask(id->umask);
	if (setsid() < 0)
		fail(c, STEP_SESSION, 0);
}

static bool has_groups(const struct identity *id)
{
	gid_t groups[NGROUPS_MAX];
	int n = getgroups(NGROUPS_MAX, groups);

	return n >= 0 && (size_t)n == id->n_groups &&
	       (!n || !memcmp(groups, id->groups, id->n_groups * sizeof(*groups)));
}

/* A confined worker has fewer than the VMM whose user its helper becomes. */
static uint64_t own_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return 0;
	return data[0].permitted | (uint64_t)data[1].permitted << 32;
}

/*
 * exec computes the capabilities anew. Root gets its whole bounding set back,
 * so that one is cut to what the source has now; anyone else loses all but the
 * ambient ones, so what the source holds becomes ambient.
 */
static void set_credentials(const struct child *c)
{
	const struct identity *id = c->id;
	bool root = id->uid[0] == 0 || id->uid[1] == 0;
	uint64_t ours = c->work ? own_capabilities() : UINT64_MAX;
	uint64_t bounding = root ? id->cap_bounding & id->cap_permitted : id->cap_bounding;
	uint64_t ambient = (root ? id->cap_ambient : id->cap_ambient | id->cap_permitted) & ours;
	uint64_t inheritable = (id->cap_inheritable & ours) | ambient;
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (root)
		inheritable &= id->cap_permitted;
	if (!has_groups(id) && setgroups(id->n_groups, id->groups) < 0)
		fail(c, STEP_GROUPS, 0);
	if (setresgid(id->gid[0], id->gid[1], id->gid[2]) < 0)
		fail(c, STEP_GID, 0);
	for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (!(bounding >> cap & 1) && prctl(PR_CAPBSET_READ, cap) == 1 &&
		    prctl(PR_CAPBSET_DROP, cap) < 0)
			fail(c, STEP_BOUNDING, cap);
	if (prctl(PR_SET_KEEPCAPS, 1) < 0 || setresuid(id->uid[0], id->uid[1], id->uid[2]) < 0)
		fail(c, STEP_UID, 0);
	for (int i = 0; i < 2; i++) {
		data[i].effective = (uint32_t)((id->cap_effective & ours) >> (32 * i));
		data[i].permitted = (uint32_t)((id->cap_permitted & ours) >> (32 * i));
		data[i].inheritable = (uint32_t)(inheritable >> (32 * i));
	}
	if (syscall(SYS_capset, &header, data) < 0)
		fail(c, STEP_CAPS, 0);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		fail(c, STEP_AMBIENT, -1);
	for (int cap = 0; cap < 64; cap++)
		if ((ambient >> cap & 1) &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			fail(c, STEP_AMBIENT, cap);
	if (id->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail(c, STEP_NO_NEW_PRIVS, 0);
}

/* Returns when the parent says so; does not return when that is gone. */
static void wait_at_gate(const struct child *c)
{
	struct failure f = { .step = CHILD_READY };
	char go;

	if (write(c->gate, &f, sizeof(f)) != sizeof(f) || read(c->gate, &go, 1) != 1)
		_exit(126);
}

void child_main(struct child *c)
{
	/* What ps calls it until it has the name of its binary. */
	prctl(PR_SET_NAME, "upgraded-target");
	reset_signals(c);
	join(c);
	enter(c);
	place_fds(c);
	set_limits(c);
	set_credentials(c);
	/* Changed credentials clear it. A parent that has died before is found at the gate. */
	if (c->ends_with_us && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		fail(c, STEP_TIE, 0);
	wait_at_gate(c);
	execve(c->argv[0], c->argv, c->id->env);
	fail(c, STEP_EXEC, 0);
}

void child_work(struct child *c)
{
	int r;

	reset_signals(c);
	enter(c);
	if ((c->gate != 3 && dup3(c->gate, 3, O_CLOEXEC) < 0) || close_range(4, UINT_MAX, 0) < 0)
		fail(c, STEP_FDS, -1);
	c->gate = 3;
	set_limits(c);
	set_credentials(c);
	r = c->work(c->data);
	if (r >= 0)
		_exit(0);
	errno = -r;
	fail(c, STEP_WORK, 0);
}

/* What the detail of a failed step is, as a text in parentheses; may be empty. */
static void detail_text(const struct failure *f, char *text, size_t size)
{
	switch (f->step) {
	case STEP_NAMESPACE:
		snprintf(text, size, " (%s)", ns_names[f->detail % NS_COUNT]);
		break;
	case STEP_LIMITS:
		snprintf(text, size, " (resource %d)", f->detail);
		break;
	case STEP_FDS:
		snprintf(text, size, " (fd %d)", f->detail);
		break;
	case STEP_BOUNDING:
	case STEP_AMBIENT:
		snprintf(text, size, " (capability %d)", f->detail);
		break;
	default:
		*text = '\0';
	}
}

int child_failed(const char *name, const struct failure *f, bool *ret_no_exec,
			struct error *err)
{
	char detail[32];

	if (f->step <= CHILD_READY || f->step >= STEP_COUNT || f->error <= 0)
		return error_set(err, -EPROTO, "%s reported nonsense while it started", name);
	if (f->step == STEP_EXEC && ret_no_exec)
		*ret_no_exec = true;
	if (f->step == STEP_WORK)
		return error_errno(err, -f->error, "cannot %s", name);
	if (f->step == STEP_EXEC)
		return error_errno(err, -f->error, "%s cannot be executed", name);
	detail_text(f, detail, sizeof(detail));
	return error_errno(err, -f->error, "cannot start %s: it cannot %s%s", name,
			   step_names[f->step], detail);
}
