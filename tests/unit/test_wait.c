/* SPDX-License-Identifier: GPL-2.0-or-later */
/* wait_for(): every way in which a wait must end does end it, and says why. */
#include "few_fds.h"
#include "link.h"
#include "standstill.h"
#include "wait.h"
#include "wire.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

struct fixture {
	struct waiter w;
	int daemon; /* the daemon's end */
	int fd[2];  /* what is waited for, and its other end */
};

static void open_fixture(struct fixture *f)
{
	int pair[2];

	f->w = (struct waiter)WAITER_INIT;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	f->w.daemon = pair[0];
	f->daemon = pair[1];
	f->w.what = "a test";
	f->w.deadline_us = now_us() + 5000000;
	assert_int_equal(pipe2(f->fd, O_CLOEXEC), 0);
}

static void close_fixture(struct fixture *f)
{
	closep(&f->w.daemon);
	closep(&f->daemon);
	closep(&f->fd[0]);
	closep(&f->fd[1]);
}

static void expect(struct fixture *f, int code, const char *word)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	int r = wait_for(&f->w, f->fd[0], POLLIN, &err);

	if (r != code || !err.text || !strstr(err.text, word) || !strstr(err.text, "a test"))
		fail_msg("wait_for: %d, '%s'; expected %d with '%s'", r, err.text, code, word);
}

static void send_abort(int sock)
{
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__WorkerAbort abort_msg = UPGRADED__V1__WORKER_ABORT__INIT;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT;
	env.worker_abort = &abort_msg;
	assert_int_equal(wire_send(sock, &env, NULL, 0), 0);
}

static void ready_fd_is_returned(void **state)
{
	struct fixture f;

	open_fixture(&f);
	assert_int_equal(write(f.fd[1], "x", 1), 1);
	assert_int_equal(wait_for(&f.w, f.fd[0], POLLIN, NULL), POLLIN);
	/* Also when the deadline has passed already. */
	f.w.deadline_us = now_us() - 1;
	assert_int_equal(wait_for(&f.w, f.fd[0], POLLIN, NULL), POLLIN);
	close_fixture(&f);
}

static void deadline_ends_a_wait(void **state)
{
	uint64_t begin = now_us();
	struct fixture f;

	open_fixture(&f);
	f.w.deadline_us = begin + 50000;
	expect(&f, -ETIMEDOUT, "time ran out while waiting for");
	assert_true(now_us() - begin >= 50000 && now_us() - begin < 2000000);
	assert_int_equal(wait_sleep(&f.w, 1000000, NULL), -ETIMEDOUT);
	close_fixture(&f);
}

static void abort_ends_this_and_every_later_wait(void **state)
{
	struct fixture f;

	open_fixture(&f);
	send_abort(f.daemon);
	expect(&f, -ECANCELED, "aborted");
	assert_true(f.w.aborted);
	expect(&f, -ECANCELED, "aborted");
	assert_int_equal(wait_sleep(&f.w, 1, NULL), -ECANCELED);
	close_fixture(&f);
}

static void abort_wins_over_a_busy_stream(void **state)
{
	struct fixture f;

	open_fixture(&f);
	assert_int_equal(write(f.fd[1], "x", 1), 1);
	send_abort(f.daemon);
	expect(&f, -ECANCELED, "aborted");
	close_fixture(&f);
}

static void dead_daemon_ends_a_wait(void **state)
{
	struct fixture f;

	open_fixture(&f);
	closep(&f.daemon);
	expect(&f, -ECANCELED, "daemon went away");
	assert_true(f.w.orphaned);
	close_fixture(&f);
}

static void after_the_commit_nothing_but_time_and_death_does(void **state)
{
	struct fixture f;
	uint64_t begin;

	open_fixture(&f);
	f.w.uninterruptible = true;
	send_abort(f.daemon);
	begin = now_us();
	assert_int_equal(wait_sleep(&f.w, 30000, NULL), 0);
	assert_true(now_us() - begin >= 30000);
	assert_true(f.w.aborted);
	closep(&f.daemon);
	assert_int_equal(wait_sleep(&f.w, 30000, NULL), 0);
	assert_true(f.w.orphaned);
	f.w.deadline_us = now_us() + 20000;
	expect(&f, -ETIMEDOUT, "time ran out");
	close_fixture(&f);
}

static void other_messages_of_the_daemon_are_protocol_errors(void **state)
{
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	struct fixture f;

	open_fixture(&f);
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
	env.ack = &ack;
	assert_int_equal(wire_send(f.daemon, &env, NULL, 0), 0);
	expect(&f, -EPROTO, "'ack'");
	assert_int_equal(send(f.daemon, "\xff\xff\xff", 3, 0), 3);
	expect(&f, -EPROTO, "undecodable");
	/* But when the caller waits for the daemon's answer itself, it is that. */
	assert_int_equal(wire_send(f.daemon, &env, NULL, 0), 0);
	assert_int_equal(wait_for(&f.w, f.w.daemon, POLLIN, NULL), POLLIN);
	close_fixture(&f);
}

static void dead_process_ends_a_wait_but_its_last_words_count(void **state)
{
	struct fixture f;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	open_fixture(&f);
	f.w.target = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(f.w.target >= 0);
	expect(&f, -ESRCH, "the target died");
	f.w.source = f.w.target;
	expect(&f, -ESRCH, "the source died");
	assert_int_equal(write(f.fd[1], "x", 1), 1);
	assert_int_equal(wait_for(&f.w, f.fd[0], POLLIN, NULL), POLLIN);
	closep(&f.w.target);
	waitpid(pid, NULL, 0);
	close_fixture(&f);
}

static void count_overdue(struct waiter *w, void *userdata)
{
	(void)w;
	++*(int *)userdata;
}

static void a_wait_that_takes_long_says_so_once_and_goes_on(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	uint64_t begin = now_us();
	struct fixture f;
	int calls = 0;

	open_fixture(&f);
	f.w.overdue = count_overdue;
	f.w.overdue_userdata = &calls;
	f.w.overdue_us = begin + 50000;
	assert_int_equal(wait_sleep(&f.w, 10000, &err), 0);
	assert_int_equal(calls, 0);
	f.w.deadline_us = begin + 100000;
	expect(&f, -ETIMEDOUT, "time ran out");
	assert_int_equal(calls, 1);
	assert_true(now_us() - begin >= 100000);
	f.w.deadline_us = now_us() + 20000;
	expect(&f, -ETIMEDOUT, "time ran out");
	assert_int_equal(calls, 1);
	close_fixture(&f);
}

static size_t count_pulses(int sock)
{
	size_t n = 0;

	for (;;) {
		_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *env = NULL;
		struct pollfd p = { .fd = sock, .events = POLLIN };

		if (poll(&p, 1, 0) != 1)
			return n;
		assert_int_equal(wire_recv(sock, &env, &fds), 0);
		assert_int_equal(env->body_case, UPGRADED__V1__ENVELOPE__BODY_WORKER_WAITS);
		n++;
	}
}

static void a_wait_tells_the_daemon_that_it_is_one(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture f;

	open_fixture(&f);
	assert_int_equal(wait_sleep(&f.w, 10000, &err), 0);
	assert_int_equal(count_pulses(f.daemon), 0);
	f.w.pulse_us = now_us() + 20000;
	assert_int_equal(wait_sleep(&f.w, 50000, &err), 0);
	assert_int_equal(count_pulses(f.daemon), 1);
	assert_true(f.w.pulse_us > now_us() + 1000000);
	/* A daemon that reads nothing gets one. */
	for (int i = 0; i < 3; i++) {
		f.w.pulse_us = now_us();
		assert_int_equal(wait_sleep(&f.w, 1000, &err), 0);
	}
	assert_int_equal(count_pulses(f.daemon), 1);
	/* Nobody is there to hear: it is a wait like any other. */
	f.w.uninterruptible = true;
	closep(&f.daemon);
	f.w.pulse_us = now_us();
	assert_int_equal(wait_sleep(&f.w, 10000, &err), 0);
	assert_true(f.w.orphaned);
	close_fixture(&f);
}

static void the_end_of_a_process_is_seen(void **state)
{
	pid_t pid = fork();
	int fd;

	if (!pid) {
		pause();
		_exit(0);
	}
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(fd >= 0);
	assert_false(process_has_ended(fd));
	kill(pid, SIGKILL);
	assert_true(process_ends_within(fd, 5000));
	waitpid(pid, NULL, 0);
	assert_true(process_has_ended(fd));
	assert_false(process_has_ended(-EBADF));
	close(fd);
}

static void who_cannot_look_takes_no_process_for_one_that_stands_still(void **state)
{
	struct rlimit limit;
	pid_t pid = fork();
	int stopped[3];
	bool dying[3];

	if (!pid) {
		pause();
		_exit(0);
	}
	for (int i = 0; i < 3; i++) {
		limit = few_fds(i);
		stopped[i] = process_is_stopped(pid);
		dying[i] = process_is_dying(pid);
		enough_fds(&limit);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(stopped[0], -EMFILE);
	assert_int_equal(stopped[1], -EMFILE);
	assert_int_equal(stopped[2], 0);
	assert_false(dying[0] || dying[1] || dying[2]);
	assert_true(process_is_dying(pid));
}

/* What has come of it; freed by the caller. */
static Envelope *receive_done(struct fixture *f)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	Envelope *env = NULL;

	assert_int_equal(wire_recv(f->daemon, &env, &fds), 0);
	assert_int_equal(env->body_case, UPGRADED__V1__ENVELOPE__BODY_WORKER_DONE);
	return env;
}

/* A VM with a hundred disks has a command line that is longer than a packet. */
static void what_a_worker_found_is_told_however_much_it_is(void **state)
{
	_cleanup_envelope_ Envelope *long_line = NULL, *much = NULL;
	Upgraded__V1__WorkerDone done = UPGRADED__V1__WORKER_DONE__INIT;
	Upgraded__V1__CheckReport check = UPGRADED__V1__CHECK_REPORT__INIT;
	Upgraded__V1__Report report = UPGRADED__V1__REPORT__INIT;
	Upgraded__V1__Finding finding[600], *list[ARRAY_SIZE(finding)];
	char text[301], *argv[400];
	struct fixture f;

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(argv); i++)
		argv[i] = text;
	for (size_t i = 0; i < ARRAY_SIZE(finding); i++) {
		upgraded__v1__finding__init(&finding[i]);
		finding[i].severity = UPGRADED__V1__SEVERITY__SEVERITY_NOTE;
		finding[i].text = text;
		list[i] = &finding[i];
	}
	finding[ARRAY_SIZE(finding) - 1].severity = UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER;
	done.check = &check;
	done.report = &report;
	check.findings = list;
	check.n_findings = 2;
	check.argv = argv;
	check.n_argv = ARRAY_SIZE(argv);
	open_fixture(&f);
	assert_int_equal(link_done(&f.w, &done), 0);
	long_line = receive_done(&f);
	assert_int_equal(long_line->worker_done->check->n_findings, 2);
	assert_int_equal(long_line->worker_done->check->n_argv, 0);

	/* What forbids the upgrade is not left out. */
	check.n_findings = ARRAY_SIZE(finding);
	assert_int_equal(link_done(&f.w, &done), 0);
	much = receive_done(&f);
	assert_true(much->worker_done->check->n_findings > 50);
	assert_int_equal(much->worker_done->check->findings[0]->severity,
			 UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER);
	close_fixture(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ready_fd_is_returned),
		cmocka_unit_test(deadline_ends_a_wait),
		cmocka_unit_test(abort_ends_this_and_every_later_wait),
		cmocka_unit_test(abort_wins_over_a_busy_stream),
		cmocka_unit_test(dead_daemon_ends_a_wait),
		cmocka_unit_test(after_the_commit_nothing_but_time_and_death_does),
		cmocka_unit_test(other_messages_of_the_daemon_are_protocol_errors),
		cmocka_unit_test(dead_process_ends_a_wait_but_its_last_words_count),
		cmocka_unit_test(a_wait_that_takes_long_says_so_once_and_goes_on),
		cmocka_unit_test(what_a_worker_found_is_told_however_much_it_is),
		cmocka_unit_test(a_wait_tells_the_daemon_that_it_is_one),
		cmocka_unit_test(the_end_of_a_process_is_seen),
		cmocka_unit_test(who_cannot_look_takes_no_process_for_one_that_stands_still),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
