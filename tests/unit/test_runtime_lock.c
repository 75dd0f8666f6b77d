/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/runtime_lock.c to its word: a second daemon with the same runtime directory
 * goes before it has touched anything, and one that comes after a daemon that was killed
 * takes over at once, whoever that one has left behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "clock.h"
#include "runtime_lock.h"
#include "temp_dir.h"
#include "worker_process.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

struct fixture {
	char dir[TEMP_DIR];
	char journal[64];
	char words[64]; /* what the daemons say */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	temp_dir_make(f->dir);
	snprintf(f->journal, sizeof(f->journal), "%s/journal", f->dir);
	snprintf(f->words, sizeof(f->words), "%s/words", f->dir);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	/* Of a test that failed in between. */
	(void)umount2(f->dir, MNT_DETACH);
	temp_dir_remove(f->dir);
	free(f);
	return 0;
}

static pid_t start_daemon(struct fixture *f)
{
	const char *program = getenv("UPGRADED");
	pid_t pid = fork();
	int fd;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	unsetenv("NOTIFY_SOCKET");
	fd = open(f->words, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	dup2(fd, STDERR_FILENO);
	execl(program, program, "--runtime-dir", f->dir, "--state-dir", f->dir, "--config-root",
	      f->dir, "--worker", "/bin/false", NULL);
	_exit(99);
}

static bool answers(struct fixture *f)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/vmm.sock", f->dir);
	return connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
}

static void words(struct fixture *f, char ret_text[4096])
{
	_cleanup_close_ int fd = open(f->words, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, ret_text, 4095);

	ret_text[n > 0 ? n : 0] = '\0';
}

/* It listens before it has taken up, and emptied, the journal. The @nth that gets so far. */
static void await_daemon(struct fixture *f, int nth)
{
	uint64_t end = now_us() + 20000000;
	char text[4096];
	int ready;

	do {
		words(f, text);
		ready = 0;
		for (const char *at = text; (at = strstr(at, "is ready")); at++)
			ready++;
		if (now_us() > end)
			fail_msg("no daemon after twenty seconds: %s", text);
		usleep(20000);
	} while (ready < nth);
	assert_true(answers(f));
}

static void kill_daemon(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static off_t size_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_size;
}

static void second_daemon_goes_before_it_touches_the_journal(void **state)
{
	struct fixture *f = *state;
	pid_t first, second;
	char text[4096];
	int fd, status;

	if (!getenv("UPGRADED"))
		skip();
	first = start_daemon(f);
	await_daemon(f, 1);
	/* As it is while the first one writes. */
	fd = open(f->journal, O_WRONLY | O_CLOEXEC);
	assert_int_equal(write(fd, "half", 4), 4);
	close(fd);
	second = start_daemon(f);
	assert_int_equal(waitpid(second, &status, 0), second);
	words(f, text);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status));
	assert_int_equal(size_of(f->journal), 4);
	if (!strstr(text, "another upgraded runs") || !strstr(text, "--runtime-dir"))
		fail_msg("%s", text);
	assert_true(answers(f));
	/* The kernel lets go of what the dead one had. */
	kill_daemon(first);
	first = start_daemon(f);
	await_daemon(f, 2);
	assert_int_equal(size_of(f->journal), 0);
	kill_daemon(first);
}

static void second_one_is_told_what_to_do_until_the_first_lets_go(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;
	int first, second;

	assert_int_equal(runtime_lock(f->dir, &first, NULL), 0);
	assert_int_equal(runtime_lock(f->dir, &second, &err), -EWOULDBLOCK);
	assert_non_null(strstr(err.text, f->dir));
	assert_non_null(err.hint);
	close(first);
	assert_int_equal(runtime_lock(f->dir, &second, NULL), 0);
	close(second);
}

static int on_message(Envelope *env, struct scm_fds *fds, void *userdata)
{
	bool *heard = userdata;

	*heard = true;
	return 0;
}

static void on_ended(const char *how, void *userdata)
{
	fail_msg("the worker %s", how);
}

static uint64_t silence_us(void *userdata)
{
	return 60000000;
}

/* What runs when TEST_WORKER is set: it is there until the daemon lets go of it. */
static int be_worker(void)
{
	Upgraded__V1__Event event = UPGRADED__V1__EVENT__INIT;
	Envelope env = ENVELOPE_INIT;
	char c;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_EVENT;
	env.event = &event;
	if (wire_send(3, &env, NULL, 0) < 0)
		return 1;
	while (recv(3, &c, 1, 0) > 0)
		;
	return 0;
}

static void worker_that_outlives_its_daemon_keeps_nobody_out(void **state)
{
	static const struct worker_ops ops = { on_message, on_ended, silence_us };
	_cleanup_(worker_process_freep) struct worker_process *w = NULL;
	WorkerStart start = UPGRADED__V1__WORKER_START__INIT;
	Vm vm = UPGRADED__V1__VM__INIT;
	struct fixture *f = *state;
	bool heard = false;
	char program[4096] = "";
	struct worker_order order = {
		.program = program,
		.start = &start,
		.source_pidfd = -EBADF,
		.target_pidfd = -EBADF,
		.ops = &ops,
		.userdata = &heard,
	};
	sd_event *event;
	sigset_t mask;
	int lock;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	assert_true(readlink("/proc/self/exe", program, sizeof(program) - 1) > 0);
	start.vm = &vm;
	assert_true(sd_event_new(&event) >= 0);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	setenv("TEST_WORKER", "", 1);
	assert_int_equal(worker_process_start(event, &order, &w, NULL), 0);
	unsetenv("TEST_WORKER");
	while (!heard)
		assert_true(sd_event_run(event, 20000000) > 0);
	close(lock);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	close(lock);
	worker_process_freep(&w);
	sd_event_unref(event);
}

/* As it is when one was killed while it started a worker. */
static void copy_that_is_there_for_a_moment_is_waited_for(void **state)
{
	struct fixture *f = *state;
	int lock;
	pid_t pid;

	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	pid = fork();
	if (!pid) {
		usleep(200000);
		_exit(0);
	}
	close(lock);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	close(lock);
	waitpid(pid, NULL, 0);
}

static void read_only_directory_is_no_obstacle(void **state)
{
	struct fixture *f = *state;
	int lock, second;

	if (geteuid() || mount("none", f->dir, "tmpfs", 0, "size=64k"))
		skip();
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64k"), 0);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	assert_int_equal(lock, -EBADF);
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT, "size=64k"), 0);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	close(lock);
	assert_int_equal(mount("none", f->dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64k"), 0);
	assert_int_equal(runtime_lock(f->dir, &lock, NULL), 0);
	assert_int_equal(runtime_lock(f->dir, &second, NULL), -EWOULDBLOCK);
	close(lock);
	umount(f->dir);
}

int main(void)
{
	if (getenv("TEST_WORKER"))
		return be_worker();

	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(second_daemon_goes_before_it_touches_the_journal),
		TEST(second_one_is_told_what_to_do_until_the_first_lets_go),
		TEST(worker_that_outlives_its_daemon_keeps_nobody_out),
		TEST(copy_that_is_there_for_a_moment_is_waited_for),
		TEST(read_only_directory_is_no_obstacle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
