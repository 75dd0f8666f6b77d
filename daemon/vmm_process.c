/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What /proc says of a VMM process. Used when a VM is adopted, and to find it
 * again after a restart: a process is named by pid and start time, so that a
 * reused pid is not taken for it. Owns nothing. The process may end at any
 * moment between two reads: all such endings are -ESRCH.
 */
#include "vmm_process.h"

#include "clock.h"
#include "procfs.h"

#include <fcntl.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* As CLOCK_REALTIME. */
static uint64_t since_us(uint64_t start_time)
{
	return clock_us(CLOCK_REALTIME) - clock_us(CLOCK_BOOTTIME) +
	       start_time * 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
}

int process_read(pid_t pid, struct process_facts *ret_facts, struct error *err)
{
	_cleanup_process_facts_ struct process_facts f = PROCESS_FACTS_INIT;
	_cleanup_close_ int dir = proc_open(pid, ".", O_RDONLY);
	struct stat st = { 0 };
	int r;

	f.pid = pid;
	r = dir < 0 ? dir : process_start_time(pid, &f.start_time);
	if (r >= 0)
		r = proc_read_exe(pid, &f.binary);
	if (r >= 0)
		r = proc_read_strv(pid, "cmdline", &f.argv);
	/* The directory belongs to the effective uid and gid. */
	if (r >= 0 && fstat(dir, &st) < 0)
		r = -errno;
	if (r == -ENOENT)
		r = -ESRCH;
	if (r < 0)
		return error_errno(err, r, "cannot read what process %d is", (int)pid);
	f.uid = st.st_uid;
	f.gid = st.st_gid;
	f.since_us = since_us(f.start_time);
	*ret_facts = f;
	f = (struct process_facts)PROCESS_FACTS_INIT;
	return 0;
}

int process_facts_make(pid_t pid, uint64_t start_time, const char *binary,
		       struct process_facts *ret_facts)
{
	struct process_facts f = {
		.pid = pid,
		.start_time = start_time,
		.since_us = since_us(start_time),
		.binary = strdup(binary),
	};

	if (!f.binary)
		return -ENOMEM;
	*ret_facts = f;
	return 0;
}

void process_facts_clear(struct process_facts *facts)
{
	free(facts->binary);
	strv_freep(&facts->argv);
	*facts = (struct process_facts)PROCESS_FACTS_INIT;
}

int process_open(pid_t pid, uint64_t start_time, int *ret_pidfd)
{
	_cleanup_close_ int fd = -EBADF;
	uint64_t ticks;
	int r;

	if (pid <= 0)
		return -ESRCH;
	fd = pidfd_open(pid, 0);
	/* It is a thread's by now; Linux before 6.16 says EINVAL. */
	if (fd < 0)
		return errno == EINVAL || errno == ENOENT ? -ESRCH : -errno;
	/* Looked at while the pidfd holds the pid. */
	r = process_start_time(pid, &ticks);
	if (r < 0)
		return r;
	if (ticks != start_time)
		return -ESRCH;
	*ret_pidfd = TAKE_FD(fd);
	return 0;
}

int process_open_dead(int *ret_pidfd)
{
	_cleanup_close_ int fd = -EBADF;
	pid_t pid = fork();
	int r;

	if (pid < 0)
		return -errno;
	if (pid == 0)
		_exit(0);
	fd = pidfd_open(pid, 0);
	r = fd < 0 ? -errno : 0;
	waitpid(pid, NULL, 0);
	if (r < 0)
		return r;
	*ret_pidfd = TAKE_FD(fd);
	return 0;
}

bool process_outdated(pid_t pid, const char *binary)
{
	struct stat running, disk;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
	if (stat(path, &running) < 0)
		return false;
	return stat(binary, &disk) < 0 || disk.st_dev != running.st_dev ||
	       disk.st_ino != running.st_ino;
}

char *process_guest_name(char **argv)
{
	for (char **a = argv; a[0] && a[1]; a++) {
		const char *value = a[1];

		if (strcmp(a[0], "-name") != 0 && strcmp(a[0], "--name") != 0)
			continue;
		if (!strncmp(value, "guest=", 6))
			value += 6;
		return strndup(value, strcspn(value, ","));
	}
	return NULL;
}
