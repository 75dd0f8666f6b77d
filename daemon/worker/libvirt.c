/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reaches the monitor of a domain through libvirt, whose it is: by a process of its
 * own, which stands beside the worker's binary (manager/libvirt_monitor.c). It ends when
 * the connection does, and with this process. And keeps libvirt from seeing the source
 * end: what was connected with it stays so, in custody, until the upgrade has ended.
 */
#include "libvirt.h"

#include "argv_plan.h"
#include "cleanup.h"
#include "json.h"
#include "link.h"
#include "manager/libvirt_files.h"
#include "scm_rights.h"
#include "standstill.h"
#include "upgrade.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROGRAM "upgraded-libvirt-monitor"

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

bool libvirt_is_there(void)
{
	pid_t pid = libvirt_daemon_pid();

	return pid > 0 && !process_is_dying(pid);
}

/* Where we are installed, it is. */
static int program_path(char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof("/" PROGRAM));
	char *slash;

	if (n < 0)
		return -errno;
	path[n] = '\0';
	slash = strrchr(path, '/');
	strcpy(slash + 1, PROGRAM);
	return 0;
}

__attribute__((noreturn)) static void child(const char *path, const char *uuid, int fd,
					    pid_t parent)
{
	char *argv[] = { (char *)PROGRAM, (char *)uuid, NULL };

	/* Not before: a parent that died meanwhile sends nothing. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
		_exit(126);
	if (fd != 3 ? dup2(fd, 3) < 0 : fcntl(fd, F_SETFD, 0) < 0)
		_exit(126);
	execv(path, argv);
	_exit(127);
}

int libvirt_connect(const char *uuid, const char *name, struct waiter *w, struct qmp **ret_qmp,
		    struct error *err)
{
	_cleanup_close_ int ours = -EBADF, theirs = -EBADF;
	char path[PATH_MAX];
	pid_t parent = getpid(), pid;
	int pair[2], fd, r;

	r = program_path(path);
	if (r < 0)
		return error_errno(err, r, "cannot find %s", PROGRAM);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, -errno, "cannot make a socket pair");
	ours = pair[0];
	theirs = pair[1];
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "cannot fork");
	if (pid == 0)
		child(path, uuid, theirs, parent);
	closep(&theirs);
	fd = TAKE_FD(ours);
	r = qmp_open(fd, fd, name, w, ret_qmp, err);
	if (r < 0)
		error_hint(err, "see whether libvirt's daemon is well: virsh list");
	return r;
}

int libvirt_check(const Upgraded__V1__Vm *vm, struct findings *f)
{
	__attribute__((cleanup(libvirt_status_freep))) struct libvirt_status *s = NULL;
	_cleanup_error_ struct error err = ERROR_INIT;
	int r;

	r = libvirt_files_read(vm->name, &s, &err);
	if (r == -ENOMEM)
		return r;
	if (r < 0)
		return findings_add(f, BLOCKER, "libvirt.status", vm->name, "virsh list --all",
				    "what libvirt knows of %s cannot be read: %s", vm->name,
				    err.text ?: strerror(-r));
	if (s->pid != vm->process->pid)
		return findings_add(f, BLOCKER, "libvirt.process", vm->name, "virsh list --all",
				    "libvirt has %s in process %d, not in %d", vm->name,
				    (int)s->pid, vm->process->pid);
	return libvirt_status_check(s, f);
}

/* What the source accepted from @daemon: its monitor, its guest's agent. -EBADF: something else. */
static int copy_connection(int source_pidfd, const struct source_fd *fd, pid_t daemon)
{
	_cleanup_close_ int copy = -EBADF;
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);

	if (fd->listen || strncmp(fd->link, "socket:", 7) != 0)
		return -EBADF;
	copy = (int)syscall(SYS_pidfd_getfd, source_pidfd, fd->fd, 0);
	if (copy < 0 || getsockopt(copy, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
	    peer.pid != daemon)
		return -EBADF;
	return TAKE_FD(copy);
}

int libvirt_hold_connections(struct upgrade *u, const struct source_fd *fds, size_t n,
			     struct error *err)
{
	Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;
	_cleanup_scm_fds_ struct scm_fds found = SCM_FDS_INIT;
	pid_t daemon = libvirt_daemon_pid();

	for (size_t i = 0; daemon && i < n && found.n < ARRAY_SIZE(found.fd); i++) {
		int fd = copy_connection(u->source_pidfd, &fds[i], daemon);

		if (fd >= 0)
			found.fd[found.n++] = fd;
	}
	if (!found.n) {
		error_set(err, -ENOTCONN, "libvirt's daemon is not connected to %s",
			  u->start->vm->name);
		error_hint(err, "virsh domstate %s; systemctl status libvirtd virtqemud",
			   u->start->vm->name);
		return -ENOTCONN;
	}
	u->libvirt_daemon = daemon;
	put.name = (char *)"libvirt";
	return link_put(&u->wait, &put, found.fd, found.n, err);
}

int libvirt_is_same(const struct upgrade *u, struct error *err)
{
	if (libvirt_daemon_pid() == u->libvirt_daemon && libvirt_is_there())
		return 0;
	return error_set(err, -ENOTCONN, "libvirt's daemon has ended meanwhile (process %d)",
			 (int)u->libvirt_daemon);
}

static int read_vcpus(struct qmp *target, Upgraded__V1__FinishRequest__Vcpu **ret, size_t *ret_n,
		      struct error *err)
{
	struct json_object *list = NULL, *index, *tid;
	Upgraded__V1__FinishRequest__Vcpu *v;
	size_t n;
	int r;

	r = qmp_execute(target, "query-cpus-fast", NULL, &list, err);
	if (r < 0)
		return r;
	n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
	v = calloc(n + 1, sizeof(*v));
	for (size_t i = 0; v && i < n; i++) {
		struct json_object *cpu = json_object_array_get_idx(list, i);

		upgraded__v1__finish_request__vcpu__init(&v[i]);
		if (json_object_object_get_ex(cpu, "cpu-index", &index))
			v[i].index = (uint32_t)json_object_get_int(index);
		if (json_object_object_get_ex(cpu, "thread-id", &tid))
			v[i].tid = json_object_get_int(tid);
	}
	json_object_put(list);
	*ret = v;
	*ret_n = n;
	return v ? 0 : -ENOMEM;
}

/* Its terminals are others than the source's. */
static int read_ptys(struct qmp *target, struct json_object **ret_answer,
		     Upgraded__V1__FinishRequest__Pty **ret, size_t *ret_n, struct error *err)
{
	struct json_object *label, *name;
	Upgraded__V1__FinishRequest__Pty *ptys;
	size_t n;
	int r;

	r = qmp_execute(target, "query-chardev", NULL, ret_answer, err);
	if (r < 0)
		return r;
	n = json_object_is_type(*ret_answer, json_type_array)
		    ? json_object_array_length(*ret_answer)
		    : 0;
	*ret = ptys = calloc(n + 1, sizeof(*ptys));
	for (size_t i = 0; ptys && i < n; i++) {
		struct json_object *chardev = json_object_array_get_idx(*ret_answer, i);

		if (!json_object_object_get_ex(chardev, "label", &label) ||
		    !json_object_object_get_ex(chardev, "filename", &name) ||
		    strncmp(json_object_get_string(name) ?: "", "pty:", 4) != 0)
			continue;
		upgraded__v1__finish_request__pty__init(&ptys[*ret_n]);
		ptys[*ret_n].chardev = (char *)json_object_get_string(label);
		ptys[(*ret_n)++].path = (char *)json_object_get_string(name) + 4;
	}
	if (ptys)
		return 0;
	json_object_put(*ret_answer);
	return -ENOMEM;
}

int libvirt_part(struct upgrade *u, struct qmp *target, struct error *err)
{
	Upgraded__V1__FinishRequest request = UPGRADED__V1__FINISH_REQUEST__INIT;
	_cleanup_free_ Upgraded__V1__FinishRequest__Vcpu *vcpus = NULL;
	_cleanup_free_ Upgraded__V1__FinishRequest__Vcpu **list = NULL;
	_cleanup_free_ Upgraded__V1__FinishRequest__Pty *ptys = NULL;
	_cleanup_free_ Upgraded__V1__FinishRequest__Pty **pty_list = NULL;
	struct json_object *chardevs = NULL;
	int r;

	r = read_vcpus(target, &vcpus, &request.n_vcpus, err);
	if (r >= 0)
		r = read_ptys(target, &chardevs, &ptys, &request.n_ptys, err);
	if (r < 0)
		return r;
	list = calloc(request.n_vcpus + 1, sizeof(*list));
	pty_list = calloc(request.n_ptys + 1, sizeof(*pty_list));
	if (!list || !pty_list) {
		json_object_put(chardevs);
		return -ENOMEM;
	}
	for (size_t i = 0; i < request.n_vcpus; i++)
		list[i] = &vcpus[i];
	for (size_t i = 0; i < request.n_ptys; i++)
		pty_list[i] = &ptys[i];
	request.vcpus = list;
	request.ptys = pty_list;
	request.runs = !u->plan || !u->plan->paused;
	r = link_finish(&u->wait, &request, err);
	json_object_put(chardevs);
	return r;
}
