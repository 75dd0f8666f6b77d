/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the worker brings a source back, against a scripted QEMU: what is asked when.
 * What a real one makes of it is for the emulated host to show.
 */
#include "compare.h"
#include "qmp_peer.h"
#include "upgrade.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#define RETURN(id, json) "{\"return\": " json ", \"id\": " #id "}\r\n"

/* A source whose monitor is at @path and does @steps. It is a process of its own. */
static pid_t start_source(const char *path, const struct step *steps)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	strcpy(addr.sun_path, path);
	unlink(path);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listener, 1), 0);
	pid = fork();
	if (!pid) {
		int fd = accept(listener, NULL, NULL);

		alarm(60);
		play_steps(fd, steps);
		linger(fd);
	}
	close(listener);
	return pid;
}

static void undo(const struct step *steps)
{
	Upgraded__V1__WorkerStart start = UPGRADED__V1__WORKER_START__INIT;
	Upgraded__V1__TargetPlan plan = UPGRADED__V1__TARGET_PLAN__INIT;
	Upgraded__V1__Process process = UPGRADED__V1__PROCESS__INIT;
	Upgraded__V1__Vm vm = UPGRADED__V1__VM__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct upgrade u = {
		.start = &start,
		.wait = WAITER_INIT,
		.target_pidfd = -EBADF,
		.state = -EBADF,
	};
	char path[64];
	int r;

	snprintf(path, sizeof(path), "/tmp/test-driver-qemu-%d", getpid());
	process.pid = start_source(path, steps);
	vm.name = (char *)"web";
	vm.manager = (char *)"none";
	vm.qmp = path;
	vm.process = &process;
	start.vm = &vm;
	start.plan = &plan;
	u.source_pidfd = (int)syscall(SYS_pidfd_open, process.pid, 0);
	u.wait.deadline_us = now_us() + 3000000;
	r = driver_qemu.undo(&u, &err);
	if (r < 0)
		print_message("%s\n", err.text);
	assert_int_equal(r, 0);
	driver_qemu.free(&u);
	findings_clear(&u.findings);
	close(u.source_pidfd);
	kill(process.pid, SIGKILL);
	waitpid(process.pid, NULL, 0);
	unlink(path);
}

static void source_that_has_sent_all_is_told_to_go_on(void **state)
{
	static const struct step steps[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "query-migrate", RETURN(2, "{\"status\": \"completed\"}") },
		{ "query-status", RETURN(3, "{\"status\": \"postmigrate\"}") },
		{ "cont", RETURN(4, "{}") },
		{ "migrate-set-parameters", RETURN(5, "{}") },
		{ 0 },
	};

	(void)state;
	undo(steps);
}

/* QEMU: "Migration is not finalized yet" */
static void source_is_not_told_to_go_on_before_it_is_done_with_its_migration(void **state)
{
	static const struct step steps[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "query-migrate", RETURN(2, "{\"status\": \"failed\"}") },
		{ "query-status", RETURN(3, "{\"status\": \"finish-migrate\"}") },
		{ "query-status", RETURN(4, "{\"status\": \"running\"}") },
		{ "migrate-set-parameters", RETURN(5, "{}") },
		{ 0 },
	};

	(void)state;
	undo(steps);
}

static void machine_of_no_type_is_a_difference(void **state)
{
	static const struct step says_null[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "qom-get", RETURN(2, "null") },
		{ 0 },
	};
	static const struct step says_q35[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "qom-get", RETURN(2, "\"pc-q35-10.0-machine\"") },
		{ 0 },
	};
	struct findings f = FINDINGS_INIT;
	struct peer source, target;

	(void)state;
	open_peer(&source, play_steps, says_null);
	open_peer(&target, play_steps, says_q35);
	source.w.deadline_us = target.w.deadline_us = now_us() + 3000000;
	/* It says nothing of its memory. */
	assert_int_equal(compare_machines(source.q, target.q, &f, &source.err), -ETIMEDOUT);
	assert_int_equal(f.n, 1);
	assert_string_equal(f.v[0]->code, "target.machine-type");
	assert_non_null(strstr(f.v[0]->text, "nothing in the source"));
	findings_clear(&f);
	close_peer(&source);
	close_peer(&target);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(source_that_has_sent_all_is_told_to_go_on),
		cmocka_unit_test(source_is_not_told_to_go_on_before_it_is_done_with_its_migration),
		cmocka_unit_test(machine_of_no_type_is_a_difference),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
