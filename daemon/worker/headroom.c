/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * While an upgrade is under way there are two VMMs, in one cgroup, with the same
 * limits. Whether they fit is asked before anything is started: where they do not,
 * the kernel might kill the source to make room for its target, or the target runs
 * into the limit while the guest stands still. Called by both drivers when they
 * examine the source.
 *
 * What the target will need is an estimate: what the source has of its own, and a
 * margin. The guest's memory is shared and charged already; it counts nothing. A file
 * that is missing or cannot be read means that nothing is known, and nothing is said.
 * So it is with cgroup v1, whose limits are not looked at.
 *
 * Owns nothing and changes nothing; if this process dies here, nothing has happened.
 */
#include "headroom.h"

#include "cgroup.h"
#include "cleanup.h"
#include "procfs.h"

#include <ctype.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>

#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING
#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

/* Not known, or no limit: either way there is nothing to be said. */
#define UNKNOWN ULLONG_MAX
#define KIB	1024ULL
#define MIB	(1024 * KIB)

/* For page tables, socket buffers, and a device state that is on its way. */
#define MEMORY_MARGIN (64 * MIB)
/* For channels, listening sockets and what else only a target has. */
#define FDS_MARGIN 16

struct headroom {
	const char *root;
	unsigned long long memory;  /* bytes that the target will need; 0: not known */
	unsigned long long threads; /* likewise */
	unsigned long long swap;    /* bytes that are free */
	struct findings *f;
};

/* malloc()ed; NULL: not known. */
__attribute__((format(printf, 1, 2))) static char *read_text(const char *fmt, ...)
{
	_cleanup_free_ char *path = NULL;
	char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&path, fmt, ap);
	va_end(ap);
	if (n < 0) {
		path = NULL;
		return NULL;
	}
	return proc_read_path(path, &text, NULL) < 0 ? NULL : text;
}

/* "max" is none. */
static unsigned long long number(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	return end == text ? UNKNOWN : value;
}

/* The number after @key, with which a line begins. @text may be NULL. */
static unsigned long long field(const char *text, const char *key)
{
	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, strlen(key)))
			return number(line + strlen(key));
	}
	return UNKNOWN;
}

static unsigned long long bytes(unsigned long long kib)
{
	return kib == UNKNOWN ? UNKNOWN : kib * KIB;
}

static unsigned long long mib_up(unsigned long long b)
{
	return (b + MIB - 1) / MIB;
}

static unsigned long long cgroup_number(const struct headroom *h, const char *dir, const char *file)
{
	_cleanup_free_ char *text = read_text("%s%s/%s", h->root, dir, file);

	return text ? number(text) : UNKNOWN;
}

/* What the limit @max of a cgroup leaves. */
static unsigned long long room(const struct headroom *h, const char *dir, unsigned long long max,
			       const char *used_file)
{
	unsigned long long used = cgroup_number(h, dir, used_file);

	if (max == UNKNOWN || used == UNKNOWN)
		return UNKNOWN;
	return max > used ? max - used : 0;
}

/* As room(), of memory. The kernel takes files out of its cache, and swaps, before it kills. */
static unsigned long long memory_room(const struct headroom *h, const char *dir,
				      unsigned long long max)
{
	_cleanup_free_ char *stat = read_text("%s%s/memory.stat", h->root, dir);
	unsigned long long active = field(stat, "active_file ");
	unsigned long long inactive = field(stat, "inactive_file ");
	unsigned long long swap =
		room(h, dir, cgroup_number(h, dir, "memory.swap.max"), "memory.swap.current");

	if (swap > h->swap)
		swap = h->swap;
	if (max == UNKNOWN || active == UNKNOWN || inactive == UNKNOWN || swap == UNKNOWN)
		return UNKNOWN;
	return room(h, dir, max + active + inactive + swap, "memory.current");
}

/* What raises a limit. What is below a service or a scope is not the system's systemd's. */
static char *raise_command(const char *dir, const char *property, const char *file,
			   unsigned long long value, const char *unit)
{
	const char *name = strrchr(dir, '/') + 1, *type = strrchr(name, '.') ?: "";
	bool plain = true;
	char *text;
	int n;

	/* Root is to type it, and the name may be anybody's. */
	for (const char *c = dir; *c; c++)
		plain &= isalnum((unsigned char)*c) || strchr("/._@:\\-", *c);
	if (!plain)
		n = asprintf(&text, "set its %s to %llu%s", file, value, unit);
	else if ((!strcmp(type, ".service") || !strcmp(type, ".scope") ||
		  !strcmp(type, ".slice")) &&
		 !strstr(dir, ".service/") && !strstr(dir, ".scope/"))
		n = asprintf(&text, "systemctl set-property --runtime '%s' %s=%llu%s", name,
			     property, value, unit);
	else
		n = asprintf(&text, "echo %llu%s > '%s/%s'", value, unit, dir, file);
	return n < 0 ? NULL : text;
}

/* 1: a second VMM does not fit below the limit in @file. *ret_remedy raises it. */
static int is_short(const struct headroom *h, const char *dir, const char *property,
		    const char *file, unsigned long long *ret_left, char **ret_remedy)
{
	unsigned long long limit = cgroup_number(h, dir, file);

	*ret_left = memory_room(h, dir, limit);
	if (*ret_left >= h->memory)
		return 0;
	*ret_remedy = raise_command(dir, property, file, mib_up(limit + h->memory), "M");
	return *ret_remedy ? 1 : -ENOMEM;
}

static int check_memory(const struct headroom *h, const char *dir, const char *name)
{
	_cleanup_free_ char *raise_max = NULL, *raise_high = NULL;
	unsigned long long left;
	int r;

	r = is_short(h, dir, "MemoryMax", "memory.max", &left, &raise_max);
	if (r > 0)
		r = findings_add(h->f, BLOCKER, "cgroup.memory", name, raise_max,
				 "a second VMM needs about %llu MiB of its own, and memory.max "
				 "of the cgroup %s leaves %llu MiB: the kernel would kill a "
				 "process in it, perhaps the one that runs the guest",
				 mib_up(h->memory), name, left / MIB);
	if (r >= 0)
		r = is_short(h, dir, "MemoryHigh", "memory.high", &left, &raise_high);
	if (r > 0)
		r = findings_add(h->f, WARNING, "cgroup.memory-high", name, raise_high,
				 "a second VMM needs about %llu MiB of its own, and memory.high "
				 "of the cgroup %s leaves %llu MiB: the kernel would slow down "
				 "every process in it, and the guest",
				 mib_up(h->memory), name, left / MIB);
	return r;
}

static int check_pids(const struct headroom *h, const char *dir, const char *name)
{
	unsigned long long max = cgroup_number(h, dir, "pids.max");
	unsigned long long left = room(h, dir, max, "pids.current");
	_cleanup_free_ char *remedy = NULL;

	if (left >= h->threads)
		return 0;
	remedy = raise_command(dir, "TasksMax", "pids.max", max + h->threads, "");
	if (!remedy)
		return -ENOMEM;
	return findings_add(h->f, BLOCKER, "cgroup.pids", name, remedy,
			    "a second VMM has about %llu threads, and pids.max of the "
			    "cgroup %s leaves %llu",
			    h->threads, name, left);
}

/* From the source's cgroup up to the one that is mounted. */
static int check_cgroups(const struct headroom *h, pid_t pid)
{
	_cleanup_free_ char *cgroup = read_text("%s/proc/%d/cgroup", h->root, (int)pid);
	_cleanup_free_ char *mountinfo = read_text("%s/proc/self/mountinfo", h->root);
	_cleanup_free_ char *dir = NULL;
	size_t root_len;
	int r;

	if (!cgroup || !mountinfo)
		return 0;
	r = cgroup_find_v2(cgroup, mountinfo, &dir, &root_len);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	for (size_t len = strlen(dir); len >= root_len; len = (size_t)(strrchr(dir, '/') - dir)) {
		const char *name = len > root_len ? dir + root_len : "/";

		dir[len] = '\0';
		r = check_memory(h, dir, name);
		if (r >= 0)
			r = check_pids(h, dir, name);
		if (r < 0)
			return r;
	}
	return 0;
}

static int check_host_memory(const struct headroom *h, unsigned long long available)
{
	if (available >= h->memory)
		return 0;
	return findings_add(h->f, WARNING, "host.memory", "MemAvailable",
			    "end what the host can do without, or move another guest away",
			    "a second VMM needs about %llu MiB of its own, and the host has "
			    "%llu MiB: the kernel may kill a process to get them",
			    mib_up(h->memory), available / MIB);
}

static unsigned long long count_fds(const char *root, pid_t pid)
{
	_cleanup_closedir_ DIR *dir = NULL;
	_cleanup_free_ char *path = NULL;
	unsigned long long n = 0;

	if (asprintf(&path, "%s/proc/%d/fd", root, (int)pid) < 0) {
		path = NULL;
		return UNKNOWN;
	}
	dir = opendir(path);
	if (!dir)
		return UNKNOWN;
	for (struct dirent *d; (d = readdir(dir));)
		n += d->d_name[0] != '.';
	return n;
}

static int check_source_fds(const struct headroom *h, pid_t pid, unsigned long long fds)
{
	_cleanup_free_ char *limits = read_text("%s/proc/%d/limits", h->root, (int)pid);
	const char *line = limits ? strstr(limits, "\nMax open files") : NULL;
	_cleanup_free_ char *remedy = NULL;
	unsigned long long soft, hard, enough = 2 * (fds + FDS_MARGIN);

	if (!line || sscanf(line, "\nMax open files %llu %llu", &soft, &hard) != 2 ||
	    soft >= fds + FDS_MARGIN)
		return 0;
	if (asprintf(&remedy,
		     "prlimit --pid %d --nofile=%llu:%llu (the target gets the source's limits)",
		     (int)pid, enough, hard > enough ? hard : enough) < 0) {
		remedy = NULL;
		return -ENOMEM;
	}
	return findings_add(h->f, BLOCKER, "source.descriptors", "RLIMIT_NOFILE", remedy,
			    "the source has %llu descriptors open and may have %llu: the target "
			    "would need as many and up to %d more",
			    fds, soft, FDS_MARGIN);
}

static int check_host_fds(const struct headroom *h, unsigned long long fds)
{
	_cleanup_free_ char *text = read_text("%s/proc/sys/fs/file-nr", h->root);
	_cleanup_free_ char *remedy = NULL;
	unsigned long long used, max, left;

	/* The one between them is always 0. */
	if (!text || sscanf(text, "%llu %*u %llu", &used, &max) != 2)
		return 0;
	left = max > used ? max - used : 0;
	if (left >= fds + FDS_MARGIN)
		return 0;
	if (asprintf(&remedy, "sysctl fs.file-max=%llu", used + 2 * (fds + FDS_MARGIN)) < 0) {
		remedy = NULL;
		return -ENOMEM;
	}
	return findings_add(h->f, WARNING, "host.descriptors", "fs.file-max", remedy,
			    "a second VMM opens about %llu files, and the host can have "
			    "%llu more",
			    fds + FDS_MARGIN, left);
}

/* It would count as the source's own; and that it is private is a blocker anyway. */
static bool has_private_ram(const struct findings *f)
{
	for (size_t i = 0; i < f->n; i++)
		if (!strcmp(f->v[i]->code, "source.ram-private"))
			return true;
	return false;
}

int headroom_check(const char *root, pid_t pid, struct findings *f)
{
	_cleanup_free_ char *status = read_text("%s/proc/%d/status", root, (int)pid);
	_cleanup_free_ char *meminfo = read_text("%s/proc/meminfo", root);
	unsigned long long own = bytes(field(status, "RssAnon:"));
	unsigned long long threads = field(status, "Threads:");
	struct headroom h = {
		.root = root,
		.memory = own == UNKNOWN || has_private_ram(f) ? 0 : own + MEMORY_MARGIN,
		.threads = threads == UNKNOWN ? 0 : threads,
		.swap = bytes(field(meminfo, "SwapFree:")),
		.f = f,
	};
	unsigned long long fds = count_fds(root, pid);
	int r;

	r = check_host_memory(&h, bytes(field(meminfo, "MemAvailable:")));
	if (r >= 0)
		r = check_cgroups(&h, pid);
	if (r >= 0 && fds != UNKNOWN)
		r = check_source_fds(&h, pid, fds);
	if (r >= 0 && fds != UNKNOWN)
		r = check_host_fds(&h, fds);
	return r;
}
