/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Everything that a process inherits from whoever starts it, read off the
 * running source: the target gets the same, or it would miss files, devices,
 * memory limits or the protection that the source has. Called by spawn.c, in
 * the parent, because between fork and exec nothing may be looked up any more.
 *
 * What Linux does not show of another process cannot be carried: seccomp
 * filters set by whoever started the source (QEMU's own -sandbox is in its
 * command line), securebits, the session keyring.
 *
 * Owns fds of the source's namespaces, root and cgroups while the target is
 * being started. Reads only; if the worker dies here, nothing has changed.
 */
#include "identity.h"

#include "procfs.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

/* More CPUs than any kernel is built for. */
#define CPUS 16384

const char *const ns_names[NS_COUNT] = {
	[NS_NET] = "net",	[NS_IPC] = "ipc", [NS_UTS] = "uts", [NS_TIME] = "time",
	[NS_CGROUP] = "cgroup", [NS_MNT] = "mnt", [NS_PID] = "pid", [NS_USER] = "user",
};

/* The text after "KEY:" and blanks in /proc/PID/status; NULL: not there. */
static const char *status_field(const char *status, const char *key)
{
	size_t len = strlen(key);

	for (const char *line = status; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && line[len] == ':')
			return line + len + 1 + strspn(line + len + 1, " \t");
	}
	return NULL;
}

static bool parse_ids(const char *text, unsigned ids[3])
{
	return text && sscanf(text, "%u %u %u", &ids[0], &ids[1], &ids[2]) == 3;
}

static bool parse_caps(const char *status, const char *key, uint64_t *ret_caps)
{
	const char *text = status_field(status, key);

	if (!text)
		return false;
	*ret_caps = strtoull(text, NULL, 16);
	return true;
}

static int parse_groups(struct identity *id, const char *text)
{
	while (text && *text >= '0' && *text <= '9') {
		gid_t *groups = reallocarray(id->groups, id->n_groups + 1, sizeof(*groups));
		char *end;

		if (!groups)
			return -ENOMEM;
		id->groups = groups;
		groups[id->n_groups++] = (gid_t)strtoul(text, &end, 10);
		text = end + strspn(end, " ");
	}
	return 0;
}

/* Who is process 1 of its pid namespace takes everybody there along when it dies. */
static bool is_init(const char *status)
{
	const char *text = status_field(status, "NSpid");
	int last = 0, n = 0;

	while (text && *text >= '0' && *text <= '9') {
		char *end;

		last = (int)strtol(text, &end, 10);
		text = end + strspn(end, " \t");
		n++;
	}
	return n > 1 && last == 1;
}

static int read_status(struct identity *id, pid_t pid, struct error *err)
{
	_cleanup_free_ char *status = NULL;
	const char *umask_text, *nnp;
	int r;

	r = proc_read(pid, "status", &status, NULL);
	if (r < 0)
		return error_errno(err, r, "cannot read /proc/%d/status", (int)pid);
	umask_text = status_field(status, "Umask");
	nnp = status_field(status, "NoNewPrivs");
	if (!parse_ids(status_field(status, "Uid"), id->uid) ||
	    !parse_ids(status_field(status, "Gid"), id->gid) ||
	    !parse_caps(status, "CapInh", &id->cap_inheritable) ||
	    !parse_caps(status, "CapPrm", &id->cap_permitted) ||
	    !parse_caps(status, "CapEff", &id->cap_effective) ||
	    !parse_caps(status, "CapBnd", &id->cap_bounding) ||
	    !parse_caps(status, "CapAmb", &id->cap_ambient) || !umask_text || !nnp)
		return error_set(err, -ESRCH, "/proc/%d/status lacks a field: the source is dying",
				 (int)pid);
	id->umask = (mode_t)strtoul(umask_text, NULL, 8);
	id->no_new_privs = *nnp == '1';
	if (is_init(status))
		return error_set(err, -EOPNOTSUPP,
				 "the source is process 1 of its pid namespace: a target in there "
				 "would die with it");
	return parse_groups(id, status_field(status, "Groups"));
}

static bool parse_limit(const char **text, rlim_t *ret_limit)
{
	char *end;

	*text += strspn(*text, " ");
	if (!strncmp(*text, "unlimited", 9)) {
		*ret_limit = RLIM_INFINITY;
		*text += 9;
		return true;
	}
	*ret_limit = strtoull(*text, &end, 10);
	if (end == *text)
		return false;
	*text = end;
	return true;
}

/*
 * From /proc, because prlimit() asks for a capability that a worker in a
 * container need not have. One line per limit, in the order of their numbers,
 * after a heading; the names are 25 wide.
 */
static int read_limits(struct identity *id, pid_t pid, struct error *err)
{
	_cleanup_free_ char *text = NULL;
	const char *line;
	int r;

	r = proc_read(pid, "limits", &text, NULL);
	if (r < 0)
		return error_errno(err, r, "cannot read the source's resource limits");
	line = text;
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		line = strchr(line, '\n');
		if (!line || strnlen(++line, 26) < 26)
			return error_set(err, -ESRCH, "/proc/%d/limits is cut short", (int)pid);
		line += 25;
		if (!parse_limit(&line, &id->limits[i].rlim_cur) ||
		    !parse_limit(&line, &id->limits[i].rlim_max))
			return error_set(err, -EPROTO, "/proc/%d/limits cannot be read", (int)pid);
	}
	return 0;
}

static int read_scheduling(struct identity *id, pid_t pid, struct error *err)
{
	_cleanup_free_ char *ours = NULL;
	int r;

	r = read_limits(id, pid, err);
	if (r < 0)
		return r;
	errno = 0;
	id->nice = getpriority(PRIO_PROCESS, (id_t)pid);
	if (errno)
		return error_errno(err, -errno, "cannot read the source's niceness");
	id->cpus_size = CPU_ALLOC_SIZE(CPUS);
	id->cpus = CPU_ALLOC(CPUS);
	if (!id->cpus)
		return -ENOMEM;
	if (sched_getaffinity(pid, id->cpus_size, id->cpus) < 0)
		return error_errno(err, -errno, "cannot read the source's CPU affinity");

	r = proc_read(pid, "oom_score_adj", &id->oom_score_adj, NULL);
	if (r >= 0)
		r = proc_read(PROC_SELF, "oom_score_adj", &ours, NULL);
	if (r < 0)
		return error_errno(err, r, "cannot read the source's oom_score_adj");
	if (!strcmp(id->oom_score_adj, ours)) {
		free(id->oom_score_adj);
		id->oom_score_adj = NULL;
	}
	return 0;
}

/*
 * AppArmor has its own directory in newer kernels and takes "exec PROFILE";
 * SELinux takes the bare context, also when it is ours: without it, policy
 * might name another domain for what the worker starts.
 */
static int read_label(struct identity *id, pid_t pid, struct error *err)
{
	_cleanup_free_ char *theirs = NULL, *ours = NULL;
	bool selinux = access("/sys/fs/selinux/enforce", F_OK) == 0;
	const char *current = "attr/apparmor/current";
	int r;

	r = selinux ? -ENOENT : proc_read(pid, current, &theirs, NULL);
	if (r == -ENOENT) {
		current = "attr/current";
		r = proc_read(pid, current, &theirs, NULL);
	}
	if (r == -EINVAL || r == -ENOENT || (r >= 0 && !*theirs))
		return 0; /* no such module is active */
	if (r >= 0)
		r = proc_read(PROC_SELF, current, &ours, NULL);
	if (r < 0)
		return error_errno(err, r, "cannot read the source's security label");
	theirs[strcspn(theirs, "\n")] = '\0';
	ours[strcspn(ours, "\n")] = '\0';
	if (selinux) {
		id->label_file = "attr/exec";
		id->label = TAKE_PTR(theirs);
		return 0;
	}
	if (!strcmp(theirs, ours))
		return 0;
	/* "libvirt-4f1a... (enforce)" */
	if (strstr(theirs, " ("))
		*strstr(theirs, " (") = '\0';
	if (asprintf(&id->label, "exec %s", theirs) < 0) {
		id->label = NULL;
		return -ENOMEM;
	}
	id->label_file = strcmp(current, "attr/current") ? "attr/apparmor/exec" : "attr/exec";
	return 0;
}

/* 1: it is another one, and open now; 0: it is ours; or a negative errno. */
static int open_if_other(pid_t pid, const char *name, int flags, int *ret_fd)
{
	_cleanup_close_ int theirs = -EBADF, ours = -EBADF;
	struct stat a, b;

	theirs = proc_open(pid, name, flags);
	if (theirs < 0)
		return theirs;
	ours = proc_open(PROC_SELF, name, flags);
	if (ours < 0)
		return ours;
	if (fstat(theirs, &a) < 0 || fstat(ours, &b) < 0)
		return -errno;
	if (a.st_dev == b.st_dev && a.st_ino == b.st_ino)
		return 0;
	*ret_fd = TAKE_FD(theirs);
	return 1;
}

static int open_places(struct identity *id, pid_t pid, struct error *err)
{
	int r;

	for (int i = 0; i < NS_COUNT; i++) {
		char name[16];

		snprintf(name, sizeof(name), "ns/%s", ns_names[i]);
		r = open_if_other(pid, name, O_RDONLY, &id->ns[i]);
		if (r < 0 && r != -ENOENT) /* the kernel has no such namespaces */
			return error_errno(err, r, "cannot open the source's %s namespace",
					   ns_names[i]);
	}
	if (id->ns[NS_USER] >= 0)
		return error_set(err, -EOPNOTSUPP,
				 "the source runs in a user namespace of its own, which a target "
				 "cannot be started in");
	r = open_if_other(pid, "root", O_PATH | O_DIRECTORY, &id->root);
	/* Entering a mount namespace changes the root: it must be set again. */
	if (r == 0 && id->ns[NS_MNT] >= 0)
		r = id->root = proc_open(pid, "root", O_PATH | O_DIRECTORY);
	if (r < 0)
		return error_errno(err, r, "cannot open the source's root directory");
	id->cwd = proc_open(pid, "cwd", O_PATH | O_DIRECTORY);
	if (id->cwd < 0)
		return error_errno(err, id->cwd, "cannot open the source's working directory");
	return 0;
}

int identity_new(struct identity **ret_identity)
{
	struct identity *id = calloc(1, sizeof(*id));

	if (!id)
		return -ENOMEM;
	id->cwd = id->root = -EBADF;
	for (int i = 0; i < NS_COUNT; i++)
		id->ns[i] = -EBADF;
	*ret_identity = id;
	return 0;
}

int identity_read(pid_t pid, int pidfd, bool keep_cgroup, struct identity **ret_identity,
		  struct error *err)
{
	__attribute__((cleanup(identity_freep))) struct identity *id = NULL;
	struct pollfd alive = { .fd = pidfd, .events = POLLIN };
	int r;

	r = identity_new(&id);
	if (r < 0)
		return r;
	r = proc_read_strv(pid, "environ", &id->env);
	if (r < 0)
		return error_errno(err, r, "cannot read the source's environment");
	r = read_status(id, pid, err);
	if (r >= 0)
		r = read_scheduling(id, pid, err);
	if (r >= 0)
		r = read_label(id, pid, err);
	if (r >= 0)
		r = open_places(id, pid, err);
	if (r >= 0 && !keep_cgroup)
		r = cgroups_open(pid, &id->cgroups, err);
	if (r < 0)
		return error_errno(err, r, "cannot read what the source is");
	/* All of it was the source's only if the source is alive still. */
	if (poll(&alive, 1, 0) != 0)
		return error_set(err, -ESRCH, "the source is gone");
	*ret_identity = TAKE_PTR(id);
	return 0;
}

void identity_freep(struct identity **idp)
{
	struct identity *id = *idp;

	*idp = NULL;
	if (!id)
		return;
	strv_freep(&id->env);
	free(id->groups);
	free(id->oom_score_adj);
	free(id->label);
	if (id->cpus)
		CPU_FREE(id->cpus);
	closep(&id->cwd);
	closep(&id->root);
	for (int i = 0; i < NS_COUNT; i++)
		closep(&id->ns[i]);
	cgroups_close(&id->cgroups);
	free(id);
}
