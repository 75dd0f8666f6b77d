/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Does a process stand still? Read off /proc, which needs the process's consent to
 * nothing. Called by the worker, which stops the source, and by the daemon, which
 * looks whether it stays that way.
 */
#include "standstill.h"

#include "cleanup.h"
#include "procfs.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* include/linux/sched.h */
#define PF_EXITING 0x00000004

bool process_is_dying(pid_t pid)
{
	static const char *const keys[] = { "\nSigPnd:", "\nShdPnd:" };
	_cleanup_free_ char *status = NULL, *stat = NULL;
	const char *flags;
	char *p;
	int r;

	r = proc_read(pid, "status", &status, NULL);
	if (r >= 0)
		r = proc_read(pid, "stat", &stat, NULL);
	/* Who has no descriptor left to look with knows nothing of it. */
	if (r < 0)
		return r == -ENOENT || r == -ESRCH;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		p = strstr(status, keys[i]);
		if (p && strtoull(p + strlen(keys[i]), NULL, 16) >> (SIGKILL - 1) & 1)
			return true;
	}
	flags = proc_stat_field(stat, PROC_STAT_FLAGS);
	return !flags || strtoul(flags, NULL, 10) & PF_EXITING;
}

int process_is_stopped(pid_t pid)
{
	_cleanup_closedir_ DIR *dir = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT || errno == ESRCH ? 1 : -errno;
	for (struct dirent *de; (de = readdir(dir));) {
		_cleanup_close_ int fd = -EBADF;
		const char *state;
		char buf[512];
		ssize_t n;

		if (!isdigit((unsigned char)de->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/stat", pid, de->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
		if (n < 0 && errno != ENOENT && errno != ESRCH)
			return -errno;
		if (n <= 0)
			continue;
		buf[n] = '\0';
		state = proc_stat_field(buf, PROC_STAT_STATE);
		if (!state || !strchr("TtZX", *state))
			return 0;
	}
	return 1;
}

bool process_ends_within(int pidfd, int patience_ms)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return pidfd >= 0 && poll(&p, 1, patience_ms) == 1;
}

bool process_has_ended(int pidfd)
{
	return process_ends_within(pidfd, 0);
}
