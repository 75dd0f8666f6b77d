/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/scm_rights.c to its word: what arrives is complete or refused,
 * closed-on-exec, and never left behind. Every test counts this process's fds
 * before and after (see teardown), so a leak in any path fails the test that
 * took it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cleanup.h"
#include "count_fds.h"
#include "scm_rights.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif

struct fixture {
	size_t fds; /* open before the test */
	int a, b;   /* a connected pair */
	struct scm_fds got;
};

static int setup_pair(void **state, int type)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int pair[2];

	if (!f)
		return -1;
	f->fds = count_fds();
	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) < 0) {
		free(f);
		return -1;
	}
	f->a = pair[0];
	f->b = pair[1];
	/* What scm_recv() must reset. */
	f->got.n = 7;
	*state = f;
	return 0;
}

static int setup_packets(void **state)
{
	return setup_pair(state, SOCK_SEQPACKET);
}

static int setup_stream(void **state)
{
	return setup_pair(state, SOCK_STREAM);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	size_t now;

	closep(&f->a);
	closep(&f->b);
	now = count_fds();
	if (now != f->fds) {
		print_error("%zu fds open, %zu were before the test\n", now, f->fds);
		return -1;
	}
	free(f);
	return 0;
}

/* Sends @n duplicates of one memfd; returns what scm_send() did. */
static ssize_t send_duplicates(int sock, size_t n)
{
	_cleanup_close_ int fd = memfd_create("test", MFD_CLOEXEC);
	int list[SCM_RIGHTS_MAX + 1];

	assert_true(fd >= 0);
	for (size_t i = 0; i < n; i++)
		list[i] = fd;
	return scm_send(sock, "x", 1, list, n);
}

static void assert_received(struct fixture *f, size_t n)
{
	char buf[16];

	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 1);
	assert_int_equal(f->got.n, n);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(fcntl(f->got.fd[i], F_GETFD), FD_CLOEXEC);
	assert_int_equal(count_fds(), f->fds + 2 + n);
	scm_fds_close(&f->got);
	assert_int_equal(f->got.n, 0);
}

static void no_fds(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(scm_send(f->a, "x", 1, NULL, 0), 1);
	assert_received(f, 0);
}

static void one_fd_is_the_same_file(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int first = memfd_create("first", 0), second = memfd_create("second", 0);
	_cleanup_scm_fds_ struct scm_fds got = SCM_FDS_INIT;
	struct stat sent, received;
	char buf[4];

	assert_int_equal(scm_send(f->a, "ab", 2, (int[]){ first, second }, 2), 2);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &got), 2);
	assert_memory_equal(buf, "ab", 2);
	assert_int_equal(got.n, 2);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(fstat(i ? second : first, &sent), 0);
		assert_int_equal(fstat(got.fd[i], &received), 0);
		assert_int_equal(sent.st_ino, received.st_ino);
		/* Closed on exec here, whatever it was at the sender. */
		assert_int_equal(fcntl(got.fd[i], F_GETFD), FD_CLOEXEC);
	}
	/* Borrowed: still the sender's. */
	assert_int_equal(fcntl(first, F_GETFD), 0);
}

static void duplicates_of_one_fd_all_arrive(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(send_duplicates(f->a, 3), 1);
	assert_received(f, 3);
}

static void most_fds_the_kernel_takes(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(send_duplicates(f->a, 253), 1);
	assert_received(f, 253);
}

static void one_too_many_sends_nothing(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 254), -EMSGSIZE);
	assert_int_equal(recv(f->b, buf, sizeof(buf), MSG_DONTWAIT), -1);
	assert_int_equal(errno, EAGAIN);
}

static void fds_without_a_byte_are_not_sent(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(scm_send(f->a, "", 0, (int[]){ 0 }, 1), -EINVAL);
}

/* What scm_send() never does, a stranger can. */
static void send_raw(int sock, size_t len, const size_t *lists, size_t n_lists)
{
	char control[4096] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { .iov_base = (char[8]){ "raw" }, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	char *p = control;

	for (size_t k = 0; k < n_lists; k++) {
		struct cmsghdr *cmsg = (struct cmsghdr *)p;
		int *fd = (int *)CMSG_DATA(cmsg);

		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * lists[k]);
		for (size_t i = 0; i < lists[k]; i++)
			fd[i] = STDERR_FILENO;
		p += CMSG_SPACE(sizeof(int) * lists[k]);
	}
	msg.msg_controllen = (size_t)(p - control);
	assert_int_equal(sendmsg(sock, &msg, MSG_NOSIGNAL), len);
}

static void fds_in_an_empty_packet_are_refused(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	send_raw(f->a, 0, (size_t[]){ 2 }, 1);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), -EBADMSG);
	assert_int_equal(f->got.n, 0);
}

static void two_lists_in_one_packet_both_arrive(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	send_raw(f->a, 1, (size_t[]){ 2, 3 }, 2);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 1);
	assert_int_equal(f->got.n, 5);
	scm_fds_close(&f->got);
}

/* Lowers the limit so that exactly @n more fds fit. */
static void set_room_for(size_t n, struct rlimit *ret_old)
{
	const char *preload = getenv("LD_PRELOAD");
	struct rlimit limit;
	int fd[16];

	/* valgrind keeps a limit of its own, which does not bind the kernel. */
	if (preload && strstr(preload, "valgrind"))
		skip();
	assert_true(n < ARRAY_SIZE(fd));
	for (size_t i = 0; i <= n; i++) {
		fd[i] = dup(STDERR_FILENO);
		assert_true(fd[i] >= 0);
	}
	for (size_t i = 0; i <= n; i++)
		close(fd[i]);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, ret_old), 0);
	limit = *ret_old;
	limit.rlim_cur = (rlim_t)fd[n];
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void without_room_for_the_last_fd_none_is_kept(void **state)
{
	struct fixture *f = *state;
	struct rlimit old;
	ssize_t r;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 5), 1);
	set_room_for(4, &old);
	r = scm_recv(f->b, buf, sizeof(buf), &f->got);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(r, -EMFILE);
	assert_int_equal(f->got.n, 0);
	assert_int_equal(count_fds(), f->fds + 2);
}

static void without_room_for_any_fd_says_so(void **state)
{
	struct fixture *f = *state;
	struct rlimit old;
	ssize_t r;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 1), 1);
	set_room_for(0, &old);
	r = scm_recv(f->b, buf, sizeof(buf), &f->got);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(r, -EMFILE);
}

static void with_room_for_exactly_all_they_arrive(void **state)
{
	struct fixture *f = *state;
	struct rlimit old;
	ssize_t r;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 5), 1);
	set_room_for(5, &old);
	r = scm_recv(f->b, buf, sizeof(buf), &f->got);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(r, 1);
	assert_int_equal(f->got.n, 5);
	scm_fds_close(&f->got);
}

static void credentials_do_not_crowd_out_fds(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(setsockopt(f->b, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)), 0);
	assert_int_equal(send_duplicates(f->a, 253), 1);
	assert_received(f, 253);
}

static void a_pidfd_of_the_peer_is_not_left_behind(void **state)
{
	struct fixture *f = *state;

	if (setsockopt(f->b, SOL_SOCKET, SO_PASSPIDFD, &(int){ 1 }, sizeof(int)) < 0) {
		print_message("the kernel has no SO_PASSPIDFD\n");
		skip();
	}
	assert_int_equal(send_duplicates(f->a, 253), 1);
	assert_received(f, 253);
}

static void a_packet_longer_than_the_buffer_is_refused(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	assert_int_equal(scm_send(f->a, "hello", 5, (int[]){ 0, 1 }, 2), 5);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), -EBADMSG);
	assert_int_equal(f->got.n, 0);
}

static void an_fd_that_is_none_is_not_sent(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(scm_send(f->a, "x", 1, (int[]){ 0, -EBADF }, 2), -EBADF);
}

static void the_end_is_zero(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	closep(&f->a);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 0);
	assert_int_equal(f->got.n, 0);
}

static void a_closed_peer_is_epipe_without_a_signal(void **state)
{
	struct fixture *f = *state;

	closep(&f->b);
	assert_true(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
	assert_int_equal(send_duplicates(f->a, 1), -EPIPE);
}

static void nothing_there_is_eagain(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	assert_int_equal(fcntl(f->b, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), -EAGAIN);
	assert_int_equal(f->got.n, 0);
}

static void a_full_socket_is_eagain(void **state)
{
	struct fixture *f = *state;
	char buf[1024] = { 0 };
	ssize_t r = 0;

	assert_int_equal(fcntl(f->a, F_SETFL, O_NONBLOCK), 0);
	for (int i = 0; i < 100000 && r >= 0; i++)
		r = scm_send(f->a, buf, sizeof(buf), NULL, 0);
	assert_int_equal(r, -EAGAIN);
}

/* QEMU's cpr channel is a stream. */
static void on_a_stream_fds_come_with_their_byte(void **state)
{
	struct fixture *f = *state;
	char buf[16];

	assert_int_equal(scm_send(f->a, "ab", 2, NULL, 0), 2);
	assert_int_equal(scm_send(f->a, "c", 1, (int[]){ 0, 1 }, 2), 1);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 3);
	assert_memory_equal(buf, "abc", 3);
	assert_int_equal(f->got.n, 2);
	scm_fds_close(&f->got);
}

static void on_a_stream_two_lists_are_not_mixed(void **state)
{
	struct fixture *f = *state;
	char buf[16];

	assert_int_equal(send_duplicates(f->a, 253), 1);
	assert_int_equal(send_duplicates(f->a, 2), 1);
	assert_received(f, 253);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 1);
	assert_int_equal(f->got.n, 2);
	scm_fds_close(&f->got);
}

static void a_taken_fd_is_the_callers(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int taken = -EBADF;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 2), 1);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 1);
	taken = scm_fds_take(&f->got, 0);
	assert_true(taken >= 0);
	assert_int_equal(scm_fds_take(&f->got, 0), -EBADF);
	assert_int_equal(scm_fds_take(&f->got, 2), -EBADF);
	scm_fds_close(&f->got);
	assert_int_equal(fcntl(taken, F_GETFD), FD_CLOEXEC);
}

static void closing_keeps_errno(void **state)
{
	struct fixture *f = *state;
	char buf[4];

	assert_int_equal(send_duplicates(f->a, 1), 1);
	assert_int_equal(scm_recv(f->b, buf, sizeof(buf), &f->got), 1);
	close(f->got.fd[0]); /* close() will fail with EBADF */
	errno = ENOSPC;
	scm_fds_close(&f->got);
	assert_int_equal(errno, ENOSPC);
}

#define PACKETS(test) cmocka_unit_test_setup_teardown(test, setup_packets, teardown)
#define STREAM(test)  cmocka_unit_test_setup_teardown(test, setup_stream, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PACKETS(no_fds),
		PACKETS(one_fd_is_the_same_file),
		PACKETS(duplicates_of_one_fd_all_arrive),
		PACKETS(most_fds_the_kernel_takes),
		PACKETS(one_too_many_sends_nothing),
		PACKETS(fds_without_a_byte_are_not_sent),
		PACKETS(fds_in_an_empty_packet_are_refused),
		PACKETS(two_lists_in_one_packet_both_arrive),
		PACKETS(without_room_for_the_last_fd_none_is_kept),
		PACKETS(without_room_for_any_fd_says_so),
		PACKETS(with_room_for_exactly_all_they_arrive),
		PACKETS(credentials_do_not_crowd_out_fds),
		PACKETS(a_pidfd_of_the_peer_is_not_left_behind),
		PACKETS(a_packet_longer_than_the_buffer_is_refused),
		PACKETS(an_fd_that_is_none_is_not_sent),
		PACKETS(the_end_is_zero),
		PACKETS(a_closed_peer_is_epipe_without_a_signal),
		/* Only a stream would raise it. */
		STREAM(a_closed_peer_is_epipe_without_a_signal),
		PACKETS(nothing_there_is_eagain),
		PACKETS(a_full_socket_is_eagain),
		STREAM(on_a_stream_fds_come_with_their_byte),
		STREAM(on_a_stream_two_lists_are_not_mixed),
		PACKETS(a_taken_fd_is_the_callers),
		PACKETS(closing_keeps_errno),
	};

	return cmocka_run_group_tests_name("scm_rights", tests, NULL, NULL);
}
