/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a worker can no longer do once it has started its target, and what it still can. */
#include "confine.h"
#include "standstill.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* In a child, for it is for good. Its exit status: the number of the first line that is wrong. */
static void in_child(int (*fn)(void))
{
	_cleanup_error_ struct error err = ERROR_INIT;
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		if (confine(&err) < 0) {
			fprintf(stderr, "%s\n", err.text);
			_exit(255);
		}
		_exit(fn());
	}
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("status %#x", status);
}

static int denied_calls(void)
{
	char *argv[] = { "/bin/true", NULL };

	if (execv(argv[0], argv) != -1 || errno != EPERM)
		return 1;
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != -1 || errno != EPERM)
		return 2;
	if (mount("none", "/nonexistent", "tmpfs", 0, NULL) != -1 || errno != EPERM)
		return 3;
	if (syscall(SYS_unshare, 0) != -1 || errno != EPERM)
		return 4;
	if (syscall(SYS_bpf, 0, NULL, 0) != -1 || errno != EPERM)
		return 5;
	return 0;
}

static void programs_memory_and_mounts_are_out_of_reach(void **state)
{
	in_child(denied_calls);
}

static int needed_calls(void)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC), pidfd, copy, status;
	pid_t child;

	if (fd < 0)
		return 1;
	child = fork();
	if (child == 0)
		_exit(pause());
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	if (pidfd < 0)
		return 2;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (copy < 0 && errno != EPERM) /* not everybody may, confined or not */
		return 3;
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0)
		return 4;
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status))
		return 5;
	return process_has_ended(pidfd) ? 0 : 6;
}

static void a_worker_can_still_do_its_work(void **state)
{
	in_child(needed_calls);
}

static int capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return 1;
	if (data[CAP_SYS_MODULE / 32].permitted & 1U << CAP_SYS_MODULE % 32)
		return 2;
	if (!getuid() && !(data[CAP_KILL / 32].effective & 1U << CAP_KILL % 32))
		return 3;
	if (!getuid() && prctl(PR_CAPBSET_READ, CAP_SYS_BOOT))
		return 4;
	return 0;
}

static void only_capabilities_of_its_trade_are_left(void **state)
{
	in_child(capabilities);
}

static int twice(void)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	return confine(&err) < 0;
}

static void the_second_time_there_is_nothing_to_do(void **state)
{
	in_child(twice);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(programs_memory_and_mounts_are_out_of_reach),
		cmocka_unit_test(a_worker_can_still_do_its_work),
		cmocka_unit_test(only_capabilities_of_its_trade_are_left),
		cmocka_unit_test(the_second_time_there_is_nothing_to_do),
	};

	return cmocka_run_group_tests_name("confine", tests, NULL, NULL);
}
