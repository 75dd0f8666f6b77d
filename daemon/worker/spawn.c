/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Starting a process with the identity of another: the target, the short probe
 * of its binary, and a function of ours that is to have no more rights than the
 * guest's VMM (spawn_work()). The parent looks everything up and opens everything
 * (identity.c) before it forks, or long before: see spawn_order.c. The child only makes system
 * calls on what it finds ready, in an order in which every step still has the privileges it needs:
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
 * Parent and child have a close-on-exec socket pair, the gate. A failed step comes
 * back through it and becomes a sentence. Before exec the child says that it is
 * ready and waits to be let through; when it reads the end instead it exits. So, if
 * the worker dies at any moment before the target is in custody, no target is left:
 * custody comes between spawn_order_ready() and spawn_let_go(). From then on the target
 * must outlive the worker: it is not even the worker's child, see fork_away().
 * A probe ends with the worker, at any time: fork_here().
 */
#include "spawn.h"

#include "cleanup.h"
#include "identity.h"
#include "spawn_order.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The child makes a few dozen system calls; a network file system may hold up exec. */
#define START_TIMEOUT_MS 30000

#define VHOST_NET "/dev/vhost-net"

enum step {
	STEP_SIGNALS,
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
	STEP_COUNT,
	STEP_READY = STEP_COUNT /* not failed: waits at the gate */
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

/* What the child writes into the gate before it gives up, or when it is ready. */
struct failure {
	int step;
	int error;  /* errno */
	int detail; /* which namespace, limit, capability or fd */
};

struct child {
	const char *name; /* what is started, for messages */
	char **argv;
	const struct identity *id;
	struct spawn_fd *fds; /* a copy that the child may change */
	size_t n_fds;
	bool ends_with_us;
	int gate;		       /* the child's end */
	int (*work)(const void *data); /* instead of exec */
	const void *data;
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
	struct failure f = { .step = STEP_READY };
	char go;

	if (write(c->gate, &f, sizeof(f)) != sizeof(f) || read(c->gate, &go, 1) != 1)
		_exit(126);
}

__attribute__((noreturn)) static void child_main(struct child *c)
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

/* As child_main(), for a function instead of a program: nothing but the gate stays open. */
__attribute__((noreturn)) static void child_work(struct child *c)
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

static int child_failed(const char *name, const struct failure *f, bool *ret_no_exec,
			struct error *err)
{
	char detail[32];

	if (f->step < 0 || f->step >= STEP_COUNT || f->error <= 0)
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

void spawn_kill(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	/* One that hangs in a system call of a file system is left to end by itself. */
	while (poll(&p, 1, START_TIMEOUT_MS) < 0 && errno == EINTR)
		;
	/* What spawn_work() started is ours to reap. */
	(void)waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED | WNOHANG);
}

/* Waits for a word of the child. 1: it is ready; 0: it closed the gate without a word. */
static int hear(const char *name, int gate, bool *ret_no_exec, struct error *err)
{
	struct pollfd p = { .fd = gate, .events = POLLIN };
	struct failure f;
	ssize_t n;
	int r;

	do
		r = poll(&p, 1, START_TIMEOUT_MS);
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return error_set(err, -ETIMEDOUT, "%s was not executed within %d s", name,
				 START_TIMEOUT_MS / 1000);
	do
		n = read(gate, &f, sizeof(f));
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return 0;
	if (n != sizeof(f))
		return error_set(err, -EPROTO, "%s reported nonsense while it started", name);
	return f.step == STEP_READY ? 1 : child_failed(name, &f, ret_no_exec, err);
}

static int getfd(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
}

static int copy_fd(const struct spawn *s, const struct plan_fd *f, struct spawn_order *o,
		   struct error *err)
{
	bool anew = f->source == PLAN_NEW_VHOST;
	int fd = anew ? open(VHOST_NET, O_PATH | O_CLOEXEC) : getfd(s->source_pidfd, f->source);

	if (fd < 0 && anew)
		return error_errno(err, -errno, "cannot find %s", VHOST_NET);
	if (fd < 0)
		return error_errno(err, fd, "cannot copy fd %d of the source", f->source);
	return spawn_order_add_fd(o, fd, f->target, anew);
}

/* The source's fds and stdio, copied here. */
static int copy_fds(const struct spawn *s, struct spawn_order *o, struct error *err)
{
	int fd, r;

	for (int i = 0; i < 3; i++) {
		fd = s->stdio[i] >= 0 ? fcntl(s->stdio[i], F_DUPFD_CLOEXEC, 3)
				      : getfd(s->source_pidfd, i);
		if (fd == -EBADF)
			fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return error_errno(err, -ENODEV, "cannot copy the source's stdio");
		r = spawn_order_add_fd(o, fd, i, false);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < s->n_fds; i++) {
		for (size_t j = 0; j < i; j++)
			if (s->fds[j].target == s->fds[i].target)
				return error_set(err, -EINVAL, "two fds are to become fd %d",
						 s->fds[i].target);
		if (s->fds[i].target < 3)
			return error_set(err, -EINVAL, "fd %d is no number for a source's fd",
					 s->fds[i].target);
		r = copy_fd(s, &s->fds[i], o, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The pid of the new process as its grandparent sees it, or a negative errno. */
struct birth {
	int pid;
	const char *what; /* failed; the reader has the same strings */
};

/*
 * As fork(), but the new process is a child of init's (of the nearest subreaper's, where
 * there is one), and in the source's pid namespace. systemd learns how a unit's main
 * process ended, and so whether to start it anew, only of its own children.
 * *ret_pidfd is the new process's.
 */
static pid_t fork_away(const struct identity *id, int *ret_pidfd, struct error *err)
{
	struct birth birth = { .pid = -ECHILD, .what = "start a process" };
	_cleanup_close_ int ours = -EBADF, theirs = -EBADF;
	pid_t middle;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, -errno, "cannot make a socket pair");
	ours = pair[0];
	theirs = pair[1];
	middle = fork();
	if (middle < 0)
		return error_errno(err, -errno, "cannot fork");
	if (middle == 0) {
		closep(&ours);
		if (id->ns[NS_PID] >= 0 && setns(id->ns[NS_PID], CLONE_NEWPID) < 0)
			birth = (struct birth){ -errno, "enter the source's pid namespace" };
		else if ((birth.pid = fork()) == 0)
			return 0;
		else if (birth.pid < 0)
			birth = (struct birth){ -errno, "fork" };
		/* While its parent lives, the pid is its own: until there is a pidfd. */
		if (write(theirs, &birth, sizeof(birth)) == sizeof(birth))
			(void)read(theirs, &birth, 1);
		_exit(0);
	}
	closep(&theirs);
	if (read(ours, &birth, sizeof(birth)) == sizeof(birth) && birth.pid > 0) {
		*ret_pidfd = (int)syscall(SYS_pidfd_open, birth.pid, 0);
		if (*ret_pidfd < 0) {
			kill(birth.pid, SIGKILL);
			birth = (struct birth){ -errno, "open a pidfd" };
		}
	}
	closep(&ours);
	while (waitpid(middle, NULL, 0) < 0 && errno == EINTR)
		;
	return birth.pid < 0 ? error_errno(err, birth.pid, "cannot %s", birth.what) : birth.pid;
}

/* A child of ours, in the source's pid namespace: its end is ours to see, or it ends with us. */
static pid_t fork_here(const struct identity *id, int *ret_pidfd, struct error *err)
{
	_cleanup_close_ int home = -EBADF;
	pid_t pid;
	int r = 0;

	if (id->ns[NS_PID] >= 0) {
		home = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
		if (home < 0 || setns(id->ns[NS_PID], CLONE_NEWPID) < 0)
			return error_errno(err, -errno, "cannot enter the source's pid namespace");
	}
	pid = fork();
	if (pid == 0)
		return 0;
	if (pid < 0)
		r = -errno;
	if (home >= 0 && setns(home, CLONE_NEWPID) < 0)
		r = -errno;
	if (r == 0 && (*ret_pidfd = (int)syscall(SYS_pidfd_open, pid, 0)) >= 0)
		return pid;
	if (r == 0)
		r = -errno;
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return error_errno(err, r, "cannot have a child");
}

/* Forks @c; *ret_gate is our end of the gate. What is forked ends when that is closed. */
static int spawn_child(struct child *c, bool here, pid_t *ret_pid, int *ret_pidfd, int *ret_gate,
		       struct error *err)
{
	_cleanup_close_ int gate = -EBADF;
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, -errno, "cannot make a socket pair");
	gate = pair[0];
	c->gate = pair[1];
	pid = here ? fork_here(c->id, ret_pidfd, err) : fork_away(c->id, ret_pidfd, err);
	if (pid == 0) {
		closep(&gate);
		if (c->work)
			child_work(c);
		child_main(c);
	}
	closep(&c->gate);
	if (pid < 0)
		return pid;
	*ret_pid = pid;
	*ret_gate = TAKE_FD(gate);
	return 0;
}

/* Puts @assignment into the environment, in place of what the name had before. */
static int set_variable(struct identity *id, const char *assignment)
{
	size_t name = (size_t)(strchr(assignment, '=') - assignment) + 1, n = 0;
	char **env, *copy;

	while (id->env[n] && strncmp(id->env[n], assignment, name) != 0)
		n++;
	copy = strdup(assignment);
	if (!copy)
		return -ENOMEM;
	if (!id->env[n]) {
		env = reallocarray(id->env, n + 2, sizeof(*env));
		if (!env) {
			free(copy);
			return -ENOMEM;
		}
		id->env = env;
		env[n + 1] = NULL;
	}
	free(id->env[n]);
	id->env[n] = copy;
	return 0;
}

static int copy_argv(char **argv, char ***ret_argv)
{
	_cleanup_strv_ char **copy = NULL;
	size_t n = 0;

	while (argv[n])
		n++;
	copy = calloc(n + 1, sizeof(*copy));
	if (!copy)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		if (!(copy[i] = strdup(argv[i])))
			return -ENOMEM;
	*ret_argv = TAKE_PTR(copy);
	return 0;
}

int spawn_order_make(const struct spawn *s, struct spawn_order **ret_order, struct error *err)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	int r;

	if (spawn_order_new(&o) < 0 || copy_argv(s->argv, &o->argv) < 0)
		return -ENOMEM;
	r = identity_read(s->source, s->source_pidfd, s->keep_cgroup, &o->id, err);
	if (r < 0)
		return r;
	if (s->setenv && set_variable(o->id, s->setenv) < 0)
		return -ENOMEM;
	r = copy_fds(s, o, err);
	if (r < 0)
		return r;
	*ret_order = TAKE_PTR(o);
	return 0;
}

static void close_anew(const struct spawn_order *o, struct spawn_fd *fds)
{
	for (size_t i = 0; i < o->n_fds; i++)
		if (fds[i].anew && fds[i].fd != o->fds[i].fd)
			closep(&fds[i].fd);
}

/* @fds is a copy of the order's: in place of what is to be opened anew it has what was. */
static int open_anew(const struct spawn_order *o, struct spawn_fd *fds, struct error *err)
{
	char path[32];
	int fd;

	for (size_t i = 0; i < o->n_fds; i++) {
		if (!fds[i].anew)
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", o->fds[i].fd);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return error_errno(err, -errno, "cannot open %s for the target",
					   VHOST_NET);
		fds[i].fd = fd;
	}
	return 0;
}

/* As spawn_order_ready(). */
static int ready(const struct spawn_order *o, bool ends_with_us, pid_t *ret_pid, int *ret_pidfd,
		 int *ret_gate, struct error *err)
{
	_cleanup_free_ struct spawn_fd *fds = malloc((o->n_fds + 1) * sizeof(*fds));
	_cleanup_close_ int pidfd = -EBADF, gate = -EBADF;
	struct child c = {
		.name = o->argv[0],
		.argv = o->argv,
		.id = o->id,
		.fds = fds,
		.n_fds = o->n_fds,
		.ends_with_us = ends_with_us,
	};
	int r;

	if (!fds)
		return -ENOMEM;
	memcpy(fds, o->fds, o->n_fds * sizeof(*fds));
	r = open_anew(o, fds, err);
	if (r >= 0)
		r = spawn_child(&c, ends_with_us, ret_pid, &pidfd, &gate, err);
	close_anew(o, fds);
	if (r < 0)
		return r;
	r = hear(c.name, gate, NULL, err);
	if (r == 0)
		r = error_set(err, -ECHILD, "%s ended before it was executed", c.name);
	if (r < 0) {
		spawn_kill(pidfd);
		return r;
	}
	*ret_pidfd = TAKE_FD(pidfd);
	*ret_gate = TAKE_FD(gate);
	return 0;
}

int spawn_order_ready(const struct spawn_order *o, pid_t *ret_pid, int *ret_pidfd, int *ret_gate,
		      struct error *err)
{
	return ready(o, false, ret_pid, ret_pidfd, ret_gate, err);
}

int spawn_let_go(const char *name, int gate, struct error *err)
{
	if (send(gate, "", 1, MSG_NOSIGNAL) != 1)
		return error_errno(err, -errno, "cannot let %s go", name);
	return 0;
}

int spawn_started(const char *name, int gate, bool *ret_no_exec, struct error *err)
{
	int r = hear(name, gate, ret_no_exec, err);

	return r <= 0 ? r : error_set(err, -EPROTO, "%s reported nonsense while it started", name);
}

int spawn_probe(const struct spawn *s, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	_cleanup_close_ int gate = -EBADF;
	int r;

	r = spawn_order_make(s, &o, err);
	if (r >= 0)
		r = ready(o, true, ret_pid, ret_pidfd, &gate, err);
	if (r < 0)
		return r;
	r = spawn_let_go(o->argv[0], gate, err);
	if (r >= 0)
		r = spawn_started(o->argv[0], gate, s->ret_no_exec, err);
	if (r < 0) {
		spawn_kill(*ret_pidfd);
		closep(ret_pidfd);
	}
	return r;
}

int spawn_work(pid_t like, int like_pidfd, const char *what, int (*work)(const void *data),
	       const void *data, struct error *err)
{
	__attribute__((cleanup(identity_freep))) struct identity *id = NULL;
	_cleanup_close_ int pidfd = -EBADF, gate = -EBADF;
	struct child c = { .name = what, .work = work, .data = data };
	siginfo_t info = { 0 };
	pid_t pid;
	int r;

	r = identity_read(like, like_pidfd, true, &id, err);
	if (r < 0)
		return r;
	/* It is no process of the VM's, and nobody there is to see it. */
	closep(&id->ns[NS_PID]);
	c.id = id;
	r = spawn_child(&c, true, &pid, &pidfd, &gate, err);
	if (r < 0)
		return r;
	r = hear(what, gate, NULL, err);
	if (r < 0) {
		spawn_kill(pidfd);
		return r;
	}
	/* Its end without a word is the end of a killed one, too. */
	while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0 && errno == EINTR)
		;
	if (info.si_code != CLD_EXITED || info.si_status)
		return error_set(err, -ECHILD,
				 "cannot %s: the process that was to do it was killed", what);
	return 0;
}
