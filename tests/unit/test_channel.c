/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The relay of the main stream: what arrives at the target and what is kept is
 * what the source wrote, however much it is and however slowly it is read.
 */
#include "channel.h"

#include "count_fds.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static uint8_t byte_at(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

/* A child that writes @n bytes into @fd. */
static pid_t start_source(int fd, size_t n)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	alarm(60);
	for (size_t i = 0; i < n;) {
		uint8_t buf[32768];
		size_t len = n - i < sizeof(buf) ? n - i : sizeof(buf);

		for (size_t j = 0; j < len; j++)
			buf[j] = byte_at(i + j);
		if (send(fd, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
			_exit(1);
		i += len;
	}
	_exit(0);
}

/*
 * A child that reads until the end after a while, and exits with 0 if it was all
 * right. It closes @other_end, which would keep the end from coming.
 */
static pid_t start_target(int fd, int other_end, size_t n, unsigned wait_us)
{
	uint8_t buf[10000];
	size_t at = 0;
	pid_t pid = fork();

	if (pid)
		return pid;
	close(other_end);
	alarm(60);
	usleep(wait_us);
	for (ssize_t k; (k = read(fd, buf, sizeof(buf))) > 0; at += (size_t)k)
		for (ssize_t j = 0; j < k; j++)
			if (buf[j] != byte_at(at + (size_t)j))
				_exit(2);
	_exit(at == n ? 0 : 1);
}

static void ended(pid_t pid, int wanted)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, wanted);
}

static void pass(size_t n, unsigned wait_us)
{
	char dir[TEMP_DIR], path[64];
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	size_t fds = count_fds();
	struct spool spool = SPOOL_INIT;
	int source[2], listener, target, accepted;
	uint64_t bytes = 0;
	struct stat st;
	pid_t a, b;
	uint8_t *kept;

	w.deadline_us = now_us() + 30000000;
	w.what = "the stream";
	temp_dir_make(dir);
	snprintf(path, sizeof(path), "%s/main", dir);
	assert_int_equal(channel_listen(path, geteuid(), &listener, &err), 0);
	assert_int_equal(channel_connect_main(&w, path, &target, &err), 0);
	accepted = accept(listener, NULL, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source), 0);
	assert_int_equal(spool_open(&spool, &err), 0);
	a = start_source(source[1], n);
	close(source[1]);
	b = start_target(accepted, target, n, wait_us);
	close(accepted);
	if (channel_relay_main(&w, source[0], target, &spool, &bytes, &err) < 0)
		fail_msg("%s", err.text);
	close(target);
	close(source[0]);
	assert_int_equal(bytes, n);
	assert_int_equal(fstat(spool.fd, &st), 0);
	assert_int_equal(st.st_size, n);
	kept = n ? mmap(NULL, n, PROT_READ, MAP_SHARED, spool.fd, 0) : NULL;
	assert_true(kept != MAP_FAILED);
	for (size_t i = 0; i < n; i++)
		if (kept[i] != byte_at(i))
			fail_msg("byte %zu of %zu is another", i, n);
	if (n)
		munmap(kept, n);
	ended(a, 0);
	ended(b, 0);
	spool_close(&spool);
	close(listener);
	temp_dir_remove(dir);
	assert_int_equal(count_fds(), fds);
}

static void streams_of_all_sizes_pass_and_are_kept(void **state)
{
	pass(0, 0);
	pass(1, 0);
	pass(323 * 1024 + 5, 0);
	pass(2 * 1024 * 1024, 0);
	pass(9 * 1024 * 1024 + 1, 0);
	pass(9 * 1024 * 1024 + 1, 100000);
}

/* Else the source would be running, and not held, until the target has read. */
static void a_usual_stream_does_not_wait_for_the_target(void **state)
{
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	char dir[TEMP_DIR], path[64];
	struct spool spool = SPOOL_INIT;
	int source[2], listener, target;
	uint64_t bytes = 0;
	pid_t a;

	if (geteuid())
		skip(); /* SO_SNDBUFFORCE */
	w.deadline_us = now_us() + 2000000;
	w.what = "the stream";
	temp_dir_make(dir);
	snprintf(path, sizeof(path), "%s/main", dir);
	assert_int_equal(channel_listen(path, 0, &listener, &err), 0);
	assert_int_equal(channel_connect_main(&w, path, &target, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source), 0);
	assert_int_equal(spool_open(&spool, &err), 0);
	a = start_source(source[1], 1024 * 1024);
	close(source[1]);
	if (channel_relay_main(&w, source[0], target, &spool, &bytes, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(bytes, 1024 * 1024);
	ended(a, 0);
	spool_close(&spool);
	close(source[0]);
	close(target);
	close(listener);
	temp_dir_remove(dir);
}

static void a_target_that_closes_is_an_error(void **state)
{
	struct waiter w = WAITER_INIT;
	struct error err = ERROR_INIT;
	struct spool spool = SPOOL_INIT;
	int source[2], target[2];
	uint64_t bytes = 0;
	pid_t a;
	int r;

	w.deadline_us = now_us() + 5000000;
	w.what = "the stream";
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, target), 0);
	close(target[1]);
	assert_int_equal(spool_open(&spool, &err), 0);
	a = start_source(source[1], 100000);
	close(source[1]);
	r = channel_relay_main(&w, source[0], target[0], &spool, &bytes, &err);
	assert_int_equal(r, -EPIPE);
	assert_string_equal(err.text, "the target refused the stream");
	error_clear(&err);
	close(source[0]);
	close(target[0]);
	assert_int_equal(waitpid(a, NULL, 0), a);
	spool_close(&spool);
}

/* It would fill the host's memory. */
static void a_stream_without_an_end_is_an_error(void **state)
{
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct spool spool = SPOOL_INIT;
	int source[2], target[2];
	uint64_t bytes = 0;
	pid_t a, b;

	w.deadline_us = now_us() + 5000000;
	w.what = "the stream";
	assert_int_equal(spool_open(&spool, &err), 0);
	spool.max = 4 * 1024 * 1024;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, target), 0);
	a = start_source(source[1], 100 * 1024 * 1024);
	close(source[1]);
	b = start_target(target[1], target[0], spool.max, 0);
	close(target[1]);
	assert_int_equal(channel_relay_main(&w, source[0], target[0], &spool, &bytes, &err),
			 -E2BIG);
	/* It would go on for ever, and holds an end of the target's. */
	assert_int_equal(kill(a, SIGKILL), 0);
	assert_int_equal(waitpid(a, NULL, 0), a);
	close(source[0]);
	close(target[0]);
	ended(b, 0);
	spool_close(&spool);
}

/* There is always something to read of it, so it is never waited for. */
static void a_stream_that_never_pauses_ends_at_the_deadline(void **state)
{
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct spool spool = SPOOL_INIT;
	int source[2], target[2];
	uint64_t bytes = 0;

	w.deadline_us = now_us();
	w.what = "the stream";
	assert_int_equal(spool_open(&spool, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, target), 0);
	assert_int_equal(send(source[1], "more and more", 13, 0), 13);
	close(source[1]);
	assert_int_equal(channel_relay_main(&w, source[0], target[0], &spool, &bytes, &err),
			 -ETIMEDOUT);
	assert_string_equal(err.text, "time ran out while waiting for the stream");
	error_clear(&err);
	assert_int_equal(channel_wait_hup(&w, source[0], &err), -ETIMEDOUT);
	close(source[0]);
	close(target[0]);
	close(target[1]);
	spool_close(&spool);
}

/* A target that hangs, or that somebody else's socket is in the place of. */
static void a_target_that_does_not_answer_ends_at_the_deadline(void **state)
{
	char dir[TEMP_DIR], path[64];
	struct cpr_state cpr = { .len = 1024 * 1024 };
	struct waiter w = WAITER_INIT, soon;
	struct error err = ERROR_INIT;
	int listener, first, second, third = -EBADF;

	w.deadline_us = now_us() + 5000000;
	w.what = "the target";
	temp_dir_make(dir);
	snprintf(path, sizeof(path), "%s/cpr", dir);
	assert_int_equal(channel_listen(path, geteuid(), &listener, &err), 0);
	assert_int_equal(channel_connect(&w, path, &first, &err), 0);
	assert_int_equal(channel_connect(&w, path, &second, &err), 0);
	alarm(60);
	/* Its queue is full. */
	soon = w;
	soon.deadline_us = now_us() + 50000;
	assert_int_equal(channel_connect(&soon, path, &third, &err), -ETIMEDOUT);
	error_clear(&err);
	/* So is the socket's. */
	cpr.bytes = calloc(1, cpr.len);
	assert_non_null(cpr.bytes);
	soon.deadline_us = now_us() + 50000;
	assert_int_equal(channel_send_cpr(&soon, first, &cpr, &err), -ETIMEDOUT);
	alarm(0);
	error_clear(&err);
	cpr_state_clear(&cpr);
	close(first);
	close(second);
	close(listener);
	temp_dir_remove(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(streams_of_all_sizes_pass_and_are_kept),
		cmocka_unit_test(a_usual_stream_does_not_wait_for_the_target),
		cmocka_unit_test(a_target_that_closes_is_an_error),
		cmocka_unit_test(a_stream_without_an_end_is_an_error),
		cmocka_unit_test(a_stream_that_never_pauses_ends_at_the_deadline),
		cmocka_unit_test(a_target_that_does_not_answer_ends_at_the_deadline),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
