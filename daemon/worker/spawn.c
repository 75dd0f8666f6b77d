/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Starting a process with the identity of another: the target, the short probe
 * of its binary, and a function of ours that is to have no more rights than the
 * guest's VMM (spawn_work()). The parent looks everything up and opens everything
 * (identity.c) before it forks, or long before: see spawn_order.c. What the child
 * does with it stands in spawn_child.c.
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
#include "spawn_child.h"
#include "spawn_order.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The child makes a few dozen system calls; a network file system may hold up exec. */
#define START_TIMEOUT_MS 30000

#define VHOST_NET "/dev/vhost-net"

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
	return f.step == CHILD_READY ? 1 : child_failed(name, &f, ret_no_exec, err);
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
