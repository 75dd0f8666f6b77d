/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading files and links of /proc/PID, whose sizes are not known beforehand.
 * Used by the daemon for what is to be known of a VMM, and by the worker for
 * the source. Owns nothing; leaves nothing behind. A pid says little about a process: whoever calls
 * this holds a pidfd and makes sure afterwards that the process it stands for is still there.
 */
#include "procfs.h"

#include "cleanup.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>

/* A process can make its command line as long as it likes. */
#define READ_MAX (8 * 1024 * 1024)

static int proc_path(pid_t pid, const char *name, char **ret_path)
{
	int n = pid == PROC_SELF ? asprintf(ret_path, "/proc/self/%s", name)
				 : asprintf(ret_path, "/proc/%d/%s", (int)pid, name);

	return n < 0 ? -ENOMEM : 0;
}

int proc_open(pid_t pid, const char *name, int flags)
{
	_cleanup_free_ char *path = NULL;
	int fd, r;

	r = proc_path(pid, name, &path);
	if (r < 0)
		return r;
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int proc_read_path(const char *path, char **ret_text, size_t *ret_len)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *text = NULL;
	size_t size = 4096, len = 0;
	ssize_t n;

	if (fd < 0)
		return -errno;
	for (;;) {
		char *more = size > READ_MAX ? NULL : realloc(text, size);

		if (!more)
			return size > READ_MAX ? -E2BIG : -ENOMEM;
		text = more;
		n = read(fd, text + len, size - len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
		if (len + 1 == size)
			size *= 2;
	}
	text[len] = '\0';
	if (ret_len)
		*ret_len = len;
	*ret_text = TAKE_PTR(text);
	return 0;
}

int proc_read(pid_t pid, const char *name, char **ret_text, size_t *ret_len)
{
	_cleanup_free_ char *path = NULL;
	int r;

	r = proc_path(pid, name, &path);
	return r < 0 ? r : proc_read_path(path, ret_text, ret_len);
}

const char *proc_stat_field(const char *stat, enum proc_stat field)
{
	/* Field 2, the name, may hold blanks and parentheses; field 3 follows its last ')'. */
	const char *p = strrchr(stat, ')');

	for (int i = 2; p && i < (int)field; i++)
		p = strchr(p + 1, ' ');
	return p && p[1] ? p + 1 : NULL;
}

int proc_read_strv(pid_t pid, const char *name, char ***ret_v)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_strv_ char **v = NULL;
	size_t len, n = 0, i = 0;
	int r;

	r = proc_read(pid, name, &text, &len);
	if (r < 0)
		return r;
	/* What a process wrote over its title may lack the last NUL; ours is there. */
	for (size_t at = 0; at < len; at += strlen(text + at) + 1)
		n++;
	v = calloc(n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t at = 0; at < len; at += strlen(text + at) + 1) {
		v[i] = strdup(text + at);
		if (!v[i++])
			return -ENOMEM;
	}
	*ret_v = TAKE_PTR(v);
	return 0;
}

int proc_readlink(pid_t pid, const char *name, char **ret_target)
{
	_cleanup_free_ char *path = NULL;
	char buf[PATH_MAX];
	ssize_t n;
	int r;

	r = proc_path(pid, name, &path);
	if (r < 0)
		return r;
	n = readlink(path, buf, sizeof(buf));
	if (n < 0)
		return -errno;
	if ((size_t)n == sizeof(buf))
		return -ENAMETOOLONG;
	*ret_target = strndup(buf, (size_t)n);
	return *ret_target ? 0 : -ENOMEM;
}

int proc_read_exe(pid_t pid, char **ret_path)
{
	static const char deleted[] = " (deleted)";
	char *path;
	size_t len;
	int r;

	r = proc_readlink(pid, "exe", &path);
	if (r < 0)
		return r;
	len = strlen(path);
	if (len > strlen(deleted) && !strcmp(path + len - strlen(deleted), deleted))
		path[len - strlen(deleted)] = '\0';
	*ret_path = path;
	return 0;
}
