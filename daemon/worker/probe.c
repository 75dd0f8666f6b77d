/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the target binary can do, asked of the binary itself before anything of
 * the guest is touched. It is started once without a machine, as the source's
 * user in the source's namespaces, because only there it is certain that it
 * can be executed and finds its modules and /dev/kvm. Where the source's virtio
 * rings give reason to, it is started once more with the source's machine type
 * and one virtio device. Called for every check and every upgrade.
 *
 * All that does not fit becomes findings, as many as can be found in one go; an
 * error is only what keeps the worker from asking. Owns the process until it
 * is killed and reaped at the end. If the worker dies in between, the process
 * ends with it: spawn_probe().
 */
#include "probe.h"

#include "cpu_pin.h"
#include "qmp_query.h"
#include "spawn.h"
#include "virtio_rings.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING

/* Starting takes 0.1 s on bare metal, seconds on an emulated host, and longer on a busy one. */
#define PROBE_LEAST_US (30 * 1000 * 1000ULL)

struct probe {
	const char *binary;
	struct source *source;
	struct findings *findings;
	struct qmp *qmp;
	uint64_t phase_deadline_us;
	int pidfd;
	int stderr_fd;
	bool no_exec;
	bool has_machine; /* it knows the source's machine type */
};

static void probe_end(struct probe *p)
{
	qmp_freep(&p->qmp);
	if (p->pidfd >= 0)
		spawn_kill(p->pidfd);
	closep(&p->pidfd);
	closep(&p->stderr_fd);
}

/* Why the binary could not be executed; 1: not because of the binary. */
static int cannot_execute(struct probe *p, int code)
{
	switch (code) {
	case -ENOENT:
	case -ENOTDIR:
		return findings_add(p->findings, BLOCKER, "target.missing", p->binary,
				    "give the path of an installed QEMU, as the source sees it",
				    "there is no %s where the source runs", p->binary);
	case -EACCES:
	case -EPERM:
		return findings_add(p->findings, BLOCKER, "target.not-executable", p->binary,
				    "make it executable for the user that the guest runs as",
				    "%s may not be executed by the source's user", p->binary);
	case -ENOEXEC:
	case -ELIBBAD:
		return findings_add(p->findings, BLOCKER, "target.not-a-program", p->binary,
				    "give the path of a QEMU binary for this host",
				    "%s is no program that this host can run", p->binary);
	default:
		return 1;
	}
}

/* The first line that it wrote to stderr; empty if none. */
static void first_line(int fd, char *line, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len + 1 < size) {
		n = read(fd, line + len, size - len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	line[len] = '\0';
	line[strcspn(line, "\r\n")] = '\0';
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
}

/* It was executed and did not become a QEMU that answers. */
static int no_answer(struct probe *p, int code, const struct error *why)
{
	char line[512];

	/* After the kill, what it wrote is complete. */
	spawn_kill(p->pidfd);
	closep(&p->pidfd);
	first_line(p->stderr_fd, line, sizeof(line));
	if (code == -EBUSY || code == -ETIMEDOUT)
		return findings_add(p->findings, BLOCKER, "target.silent", p->binary,
				    "give the path of a QEMU binary",
				    "%s did not answer as a QEMU: %s%s%s", p->binary,
				    why->text ?: "no answer", *line ? ", it said: " : "", line);
	if (code == -EBADMSG)
		return findings_add(p->findings, BLOCKER, "target.not-qemu", p->binary,
				    "give the path of a QEMU binary",
				    "%s is not a QEMU: it does not speak QMP", p->binary);
	return findings_add(p->findings, BLOCKER, "target.dies", p->binary,
			    "give the path of a QEMU binary that starts on this host",
			    "%s ended as soon as it was started%s%s", p->binary,
			    *line ? ": " : " and did not say why", line);
}

/* Returns its monitor (an fd of the caller's) or a negative errno. @device: a -device, NULL for
 * none. */
static int start(struct probe *p, int source_pidfd, const char *machine_type, const char *device,
		 struct error *err)
{
	_cleanup_close_ int ours = -EBADF, theirs = -EBADF, stderr_end = -EBADF;
	_cleanup_free_ char *machine = NULL;
	int pair[2], ends[2];
	pid_t pid;

	if (asprintf(&machine, "%s,accel=%s", machine_type, p->source->accel) < 0) {
		machine = NULL;
		return -ENOMEM;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, -errno, "cannot make a socket pair");
	ours = pair[0];
	theirs = pair[1];
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return error_errno(err, -errno, "cannot make a pipe");
	p->stderr_fd = ends[0];
	stderr_end = ends[1];

	struct spawn s = {
		.source = p->source->pid,
		.source_pidfd = source_pidfd,
		.argv = (char *[]){ (char *)p->binary, (char *)"-S", (char *)"-nodefaults",
				    (char *)"-no-user-config", (char *)"-display", (char *)"none",
				    (char *)"-machine", machine, (char *)"-qmp", (char *)"stdio",
				    device ? (char *)"-device" : NULL, (char *)device, NULL },
		.stdio = { theirs, theirs, stderr_end },
		.keep_cgroup = true,
		.ret_no_exec = &p->no_exec,
	};
	int r = spawn_probe(&s, &pid, &p->pidfd, err);

	return r < 0 ? r : TAKE_FD(ours);
}

static int check_architecture(struct probe *p, bool *ret_same, struct error *err)
{
	struct json_object *v = NULL;
	const char *arch;
	int r;

	r = qmp_execute(p->qmp, "query-target", NULL, &v, err);
	if (r < 0)
		return r;
	arch = json_get_string(v, "arch") ?: "unknown";
	*ret_same = !strcmp(arch, p->source->arch);
	if (!*ret_same)
		r = findings_add(p->findings, BLOCKER, "target.architecture", p->binary,
				 "give the QEMU binary of the guest's architecture",
				 "%s emulates %s, the guest is %s", p->binary, arch,
				 p->source->arch);
	json_object_put(v);
	return r;
}

static int check_cpr(struct probe *p, struct error *err)
{
	bool knows;
	int r;

	r = qmp_knows_cpr_transfer(p->qmp, &knows, err);
	if (r < 0 || knows)
		return r;
	return findings_add(p->findings, BLOCKER, "target.too-old", p->binary,
			    "give a QEMU 10.0 or later",
			    "QEMU %s cannot take a guest over from another process (cpr-transfer "
			    "came with 10.0)",
			    qmp_version(p->qmp));
}

/* -1, 0, 1: the release series (major.minor) of @a is older, the same, newer. */
static int compare_series(const char *a, const char *b)
{
	unsigned x[2] = { 0 }, y[2] = { 0 };

	/* What is no version compares as equal: nothing is known then. */
	if (sscanf(a, "%u.%u", &x[0], &x[1]) != 2 || sscanf(b, "%u.%u", &y[0], &y[1]) != 2)
		return 0;
	if (x[0] != y[0])
		return x[0] < y[0] ? -1 : 1;
	return x[1] == y[1] ? 0 : x[1] < y[1] ? -1 : 1;
}

static int check_series(struct probe *p)
{
	if (compare_series(qmp_version(p->qmp), p->source->version) >= 0)
		return 0;
	return findings_add(p->findings, BLOCKER, "target.older", p->binary,
			    "choose a target of the source's release series or of a newer one",
			    "QEMU %s is older than the source, QEMU %s: what a QEMU hands to "
			    "another process on the same host (its CPR state) is only understood "
			    "by its own release series and newer ones",
			    qmp_version(p->qmp), p->source->version);
}

/*
 * Of the machines with the same stem ("pc-q35-"), the newest; NULL: none.
 * strverscmp() knows that 10.0 is newer than 9.2.
 */
static const char *newest_like(struct json_object *machines, const char *name)
{
	const char *dash = strrchr(name, '-'), *newest = NULL;
	size_t stem = dash ? (size_t)(dash - name) + 1 : 0;

	for (size_t i = 0; stem && i < json_array_size(machines); i++) {
		const char *n = json_get_string(json_object_array_get_idx(machines, i), "name");

		if (n && !strncmp(n, name, stem) && (!newest || strverscmp(n, newest) > 0))
			newest = n;
	}
	return newest;
}

static int check_machine(struct probe *p, bool *ret_found, struct error *err)
{
	const char *want = p->source->machine;
	struct json_object *v = NULL, *machines, *found = NULL;
	const char *near;
	int r;

	r = qmp_execute(p->qmp, "query-machines", NULL, &v, err);
	if (r < 0)
		return r;
	machines = json_get_array(v, NULL);
	for (size_t i = 0; i < json_array_size(machines) && !found; i++) {
		struct json_object *m = json_object_array_get_idx(machines, i);
		const char *name = json_get_string(m, "name");

		if (name && !strcmp(name, want))
			found = m;
	}
	*ret_found = found;
	near = newest_like(machines, want);
	if (found && json_get_bool(found, "deprecated"))
		r = findings_add(p->findings, WARNING, "target.machine-deprecated", want,
				 "start the guest with a newer machine type when it is restarted",
				 "QEMU %s will be among the last to know the machine type %s",
				 qmp_version(p->qmp), want);
	else if (!found && near && strverscmp(near, want) < 0)
		r = findings_add(
			p->findings, BLOCKER, "target.machine-type", want, "choose a newer target",
			"QEMU %s is too old for the guest's machine type %s, it knows %s at most",
			qmp_version(p->qmp), want, near);
	else if (!found)
		r = findings_add(p->findings, BLOCKER, "target.machine-type", want,
				 "choose another target, or restart the guest with a machine type "
				 "that both know",
				 "QEMU %s does not know the guest's machine type %s%s%s",
				 qmp_version(p->qmp), want, near ? ", the nearest is " : "",
				 near ?: "");
	json_object_put(v);
	return r;
}

static int check_devices(struct probe *p, struct error *err)
{
	struct json_object *types = NULL;
	int r;

	r = qmp_types(p->qmp, "device", &types, err);
	for (char **d = p->source->devices; r >= 0 && *d; d++)
		if (!json_object_object_get_ex(types, *d, NULL))
			r = findings_add(p->findings, BLOCKER, "target.device", *d,
					 "choose a target that has it (a package with more "
					 "modules?), or unplug it",
					 "QEMU %s at %s lacks the guest's device '%s'",
					 qmp_version(p->qmp), p->binary, *d);
	/* How a machine builds its own devices may change: its type is the promise. */
	for (char **d = p->source->onboard; r >= 0 && *d; d++)
		if (!json_object_object_get_ex(types, *d, NULL))
			r = findings_add(
				p->findings, WARNING, "target.onboard-device", *d,
				"install the package with the target's other modules",
				"QEMU %s at %s lacks '%s', which is part of the guest's machine",
				qmp_version(p->qmp), p->binary, *d);
	json_object_put(types);
	return r;
}

static int ask(struct probe *p, struct error *err)
{
	bool same;
	int r;

	r = check_architecture(p, &same, err);
	if (r < 0 || !same)
		return r;
	r = check_cpr(p, err);
	if (r >= 0)
		r = check_series(p);
	if (r >= 0)
		r = check_machine(p, &p->has_machine, err);
	if (r >= 0)
		r = check_devices(p, err);
	if (r >= 0)
		r = gmem_probe(p->qmp, &p->source->gmem.target, err);
	if (r >= 0)
		r = cpu_pin_resolve(p->source, p->qmp, p->findings, err);
	return r;
}

/* How large a ring does the target make for a queue that asks for a small one? */
static int probe_ring(struct probe *p, int source_pidfd, struct waiter *w, int64_t *ret_size,
		      struct error *err)
{
	__attribute__((cleanup(probe_end))) struct probe second = {
		.binary = p->binary,
		.source = p->source,
		.pidfd = -EBADF,
		.stderr_fd = -EBADF,
	};
	int monitor, r;

	monitor = start(&second, source_pidfd, p->source->machine,
			virtio_rings_device(p->source->devices), err);
	if (monitor < 0)
		return monitor;
	r = qmp_open(monitor, monitor, "the target", w, &second.qmp, err);
	return r < 0 ? r : virtio_rings_probed(second.qmp, ret_size, err);
}

static int check_rings(struct probe *p, int source_pidfd, struct waiter *w, struct error *err)
{
	const struct virtio_rings *rings = &p->source->rings;
	_cleanup_error_ struct error why = ERROR_INIT;
	_cleanup_free_ char *others = NULL;
	int64_t size = 0;
	int r;

	if (!rings->n || !p->has_machine)
		return 0;
	r = probe_ring(p, source_pidfd, w, &size, &why);
	/* As in probe(): then there is nobody to tell. */
	if (r == -ECANCELED || r == -ESRCH || r == -ENOMEM) {
		error_move(err, &why);
		return r;
	}
	if (r < 0 || !size)
		return findings_add(p->findings, WARNING, "target.virtio-ring", rings->device,
				    "try the upgrade with another guest of this kind first",
				    "whether QEMU %s takes rings of %lld entries as the source's "
				    "could not be found out%s%s",
				    qmp_version(p->qmp), (long long)rings->size, r < 0 ? ": " : "",
				    r < 0 ? why.text ?: "no answer" : "");
	if (size >= rings->size)
		return 0;
	if (rings->n > 1 &&
	    asprintf(&others, ", and so it is with %zu more of its devices", rings->n - 1) < 0) {
		others = NULL;
		return -ENOMEM;
	}
	return findings_add(p->findings, BLOCKER, "target.virtio-ring", rings->device,
			    "choose a target that makes rings as the source does (another release "
			    "of the same series), or restart the guest in the target; a guest "
			    "with emulated devices instead of virtio could be upgraded",
			    "QEMU %s gave queue %u of the guest's %s a ring of %lld entries, "
			    "QEMU %s would make %lld and refuse the state%s",
			    p->source->version, rings->queue, rings->device, (long long)rings->size,
			    qmp_version(p->qmp), (long long)rings->own, others ?: "");
}

/* Runs with a waiter of its own, whose deadline is the probe's. */
static int probe(struct probe *p, int source_pidfd, struct waiter *w, char **ret_version,
		 struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	int monitor, r;

	monitor = start(p, source_pidfd, "none", NULL, &why);
	if (monitor < 0) {
		int added = p->no_exec ? cannot_execute(p, monitor) : 1;

		if (added <= 0)
			return added;
		error_move(err, &why);
		return monitor;
	}
	r = qmp_open(monitor, monitor, "the target", w, &p->qmp, &why);
	if (r >= 0) {
		*ret_version = strdup(qmp_version(p->qmp));
		r = *ret_version ? ask(p, &why) : -ENOMEM;
	}
	if (r >= 0)
		r = check_rings(p, source_pidfd, w, &why);
	if (r >= 0)
		return 0;
	/* The worker itself is to stop, or has nothing to ask for any more. */
	if (r == -ECANCELED || r == -ESRCH || r == -ENOMEM || r == -EPROTO) {
		error_move(err, &why);
		return r;
	}
	/* The phase had no time left: that says nothing about the binary. */
	if ((r == -EBUSY || r == -ETIMEDOUT) && now_us() >= p->phase_deadline_us)
		return error_set(err, -ETIMEDOUT, "time ran out while %s was asked what it can do",
				 p->binary);
	return no_answer(p, r, &why);
}

int probe_target(const char *binary, struct source *s, int source_pidfd, struct waiter *w,
		 struct findings *f, char **ret_version, struct error *err)
{
	__attribute__((cleanup(probe_end))) struct probe p = {
		.binary = binary,
		.source = s,
		.findings = f,
		.phase_deadline_us = w->deadline_us,
		.pidfd = -EBADF,
		.stderr_fd = -EBADF,
	};
	struct waiter own = *w;
	uint64_t now = now_us();
	/* Who gave a phase more time gave the target more. */
	uint64_t half = w->deadline_us > now ? (w->deadline_us - now) / 2 : 0;
	uint64_t deadline = now + (half > PROBE_LEAST_US ? half : PROBE_LEAST_US);
	int r;

	*ret_version = NULL;
	if (*binary != '/')
		return findings_add(f, BLOCKER, "target.missing", binary, "give its absolute path",
				    "%s is no absolute path", binary);
	own.what = "the target to say what it can do";
	own.target = -EBADF;
	if (own.deadline_us > deadline)
		own.deadline_us = deadline;
	r = probe(&p, source_pidfd, &own, ret_version, err);
	w->aborted |= own.aborted;
	w->orphaned |= own.orphaned;
	return r < 0 ? error_errno(err, r, "cannot ask %s what it can do", binary) : 0;
}
