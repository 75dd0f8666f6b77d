/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the cgroups of another process are, so that a new process can join
 * them. Used when the target is started: in the source's cgroups its memory is
 * charged where the guest's memory is charged already, and the limits that an
 * operator has set go on to hold; and before, to see whether they leave room
 * for it (headroom.c). Hosts have one v2 hierarchy, several v1 hierarchies, or
 * both ("hybrid"); /proc/PID/cgroup names the cgroup in each, /proc/self/mountinfo
 * says where each is mounted.
 *
 * Owns the fds of struct cgroups. Nothing is changed here.
 */
#include "cgroup.h"

#include "procfs.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>

/* Cuts the next line off *text. */
static char *next_line(char **text)
{
	char *line = *text, *end;

	if (!line || !*line)
		return NULL;
	end = strchrnul(line, '\n');
	*text = *end ? end + 1 : end;
	*end = '\0';
	return line;
}

/* Is every one of the comma-separated @names among the comma-separated @all? */
static bool has_all(const char *all, const char *names)
{
	while (*names) {
		size_t len = strcspn(names, ",");
		const char *at = all;
		bool found = false;

		while (*at && !found) {
			size_t n = strcspn(at, ",");

			found = n == len && !strncmp(at, names, len);
			at += n + (at[n] == ',');
		}
		if (!found)
			return false;
		names += len + (names[len] == ',');
	}
	return true;
}

/* mountinfo writes space, tab, newline and backslash as octal. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
		    s[3] >= '0' && s[3] <= '7') {
			*to++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else {
			*to++ = *s;
		}
	}
	*to = '\0';
}

/*
 * The directory of the cgroup @path in the hierarchy of @controllers (empty:
 * v2), or NULL when it is not mounted. *ret_root_len: so much of it is where the
 * hierarchy is mounted. @mountinfo is only read.
 */
static char *find_dir(const char *mountinfo, const char *controllers, const char *path,
		      size_t *ret_root_len)
{
	_cleanup_free_ char *copy = strdup(mountinfo);
	char *rest = copy, *line, *dir;

	while ((line = next_line(&rest))) {
		char *root, *point, *type, *options, *tail = strstr(line, " - ");
		size_t root_len;

		if (!tail)
			continue;
		*tail = '\0';
		tail += 3;
		/* "36 35 98:0 ROOT POINT options..." and "TYPE source OPTIONS" */
		for (int i = 0; i < 3; i++)
			strsep(&line, " ");
		root = strsep(&line, " ");
		point = strsep(&line, " ");
		type = strsep(&tail, " ");
		strsep(&tail, " ");
		options = tail;
		if (!root || !point || !type || !options)
			continue;
		if (*controllers ? strcmp(type, "cgroup") || !has_all(options, controllers)
				 : strcmp(type, "cgroup2"))
			continue;
		unescape(root);
		unescape(point);
		root_len = strcmp(root, "/") ? strlen(root) : 0;
		if (strncmp(path, root, root_len) ||
		    (path[root_len] != '/' && path[root_len] != '\0'))
			continue;
		if (asprintf(&dir, "%s%s", point, path + root_len) < 0)
			return NULL;
		*ret_root_len = strlen(point);
		return dir;
	}
	return NULL;
}

static int open_one(struct cgroups *c, const char *mountinfo, const char *controllers,
		    const char *path, struct error *err)
{
	size_t root_len;
	_cleanup_free_ char *dir = find_dir(mountinfo, controllers, path, &root_len);
	_cleanup_free_ char *file = NULL;
	int fd;

	if (!dir)
		return error_set(
			err, -ENOENT,
			"the source's cgroup %s%s%s is not to be seen under /sys/fs/cgroup",
			controllers, *controllers ? ":" : "", path);
	if (c->n >= ARRAY_SIZE(c->procs))
		return error_set(err, -E2BIG, "the source is in too many cgroup hierarchies");
	if (asprintf(&file, "%s/cgroup.procs", dir) < 0)
		return -ENOMEM;
	fd = open(file, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, -errno, "cannot join the source's cgroup, %s", file);
	c->procs[c->n++] = fd;
	return 0;
}

int cgroups_open(pid_t pid, struct cgroups *ret_cgroups, struct error *err)
{
	_cleanup_cgroups_ struct cgroups c = CGROUPS_INIT;
	_cleanup_free_ char *theirs = NULL, *ours = NULL, *mountinfo = NULL;
	char *rest, *line;
	int r;

	r = proc_read(pid, "cgroup", &theirs, NULL);
	if (r >= 0)
		r = proc_read(PROC_SELF, "cgroup", &ours, NULL);
	if (r >= 0)
		r = proc_read(PROC_SELF, "mountinfo", &mountinfo, NULL);
	if (r < 0)
		return error_errno(err, r, "cannot find the source's cgroup");

	/* The two lists have one line per hierarchy, in the same order. */
	rest = theirs;
	for (char *mine = ours; (line = next_line(&rest));) {
		const char *own = next_line(&mine);
		const char *id = strsep(&line, ":"), *controllers = strsep(&line, ":");

		if (!id || !controllers || !line)
			continue;
		own = own ? strchr(own, ':') : NULL;
		own = own ? strchr(own + 1, ':') : NULL;
		if (own && !strcmp(own + 1, line))
			continue;
		r = open_one(&c, mountinfo, controllers, line, err);
		if (r < 0)
			return r;
	}
	*ret_cgroups = c;
	c.n = 0;
	return 0;
}

int cgroup_find_v2(const char *cgroup, const char *mountinfo, char **ret_dir, size_t *ret_root_len)
{
	const char *line = !strncmp(cgroup, "0::", 3) ? cgroup : strstr(cgroup, "\n0::");
	_cleanup_free_ char *path = NULL;

	line = line ? strchr(line, '/') : NULL;
	if (!line)
		return -ENOENT;
	/* Of the root itself only the mount point is left. */
	path = strndup(line, line[1] == '\n' ? 0 : strcspn(line, "\n"));
	if (!path)
		return -ENOMEM;
	*ret_dir = find_dir(mountinfo, "", path, ret_root_len);
	return *ret_dir ? 0 : -ENOENT;
}

void cgroups_close(struct cgroups *c)
{
	for (size_t i = 0; i < c->n; i++)
		closep(&c->procs[i]);
	c->n = 0;
}
