/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds lib/wire.c to its word against a peer that means harm: whatever bytes
 * and fds arrive, the answer is a whole Envelope with the announced fds, or an
 * error that leaves nothing behind. Every test counts this process's fds
 * before and after; memory is the sanitizers' to watch.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "count_fds.h"
#include "wire.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

struct fixture {
	size_t fds;
	int a, b;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int pair[2];

	if (!f)
		return -1;
	f->fds = count_fds();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		free(f);
		return -1;
	}
	f->a = pair[0];
	f->b = pair[1];
	*state = f;
	return 0;
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

/* A message with every kind of field in it; the result is the caller's. */
static size_t valid_packet(uint8_t **ret_packet)
{
	Upgraded__V1__Finding finding = UPGRADED__V1__FINDING__INIT;
	Upgraded__V1__Finding *findings[] = { &finding };
	Upgraded__V1__Process process = UPGRADED__V1__PROCESS__INIT;
	Upgraded__V1__Vm vm = UPGRADED__V1__VM__INIT;
	Upgraded__V1__CheckReport report = UPGRADED__V1__CHECK_REPORT__INIT;
	char *argv[] = { "qemu-system-x86_64", "-m", "1G" };
	Envelope env = ENVELOPE_INIT;
	size_t len;

	process.pid = 1234;
	process.start_time = UINT64_MAX;
	vm.name = "vm1";
	vm.process = &process;
	vm.alive = true;
	finding.severity = UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER;
	finding.text = "text";
	report.vm = &vm;
	report.findings = findings;
	report.n_findings = 1;
	report.argv = argv;
	report.n_argv = ARRAY_SIZE(argv);
	env.id = 7;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_CHECK_REPORT;
	env.check_report = &report;
	len = upgraded__v1__envelope__get_packed_size(&env);
	*ret_packet = malloc(len);
	assert_non_null(*ret_packet);
	upgraded__v1__envelope__pack(&env, *ret_packet);
	return len;
}

static int decode(const void *packet, size_t len, size_t n_fds)
{
	_cleanup_envelope_ Envelope *env = NULL;
	int r = wire_decode(packet, len, n_fds, &env);

	if (r < 0)
		assert_null(env);
	else
		assert_string_not_equal(envelope_name(env), "nothing");
	return r;
}

static void what_was_sent_arrives(void **state)
{
	struct fixture *f = *state;
	Upgraded__V1__ShowRequest show = UPGRADED__V1__SHOW_REQUEST__INIT;
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *got = NULL;
	Envelope env = ENVELOPE_INIT;

	show.name = "vm1";
	env.id = 42;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_SHOW;
	env.show = &show;
	assert_int_equal(wire_send(f->a, &env, (int[]){ 0, 1, 1 }, 3), 0);
	assert_int_equal(wire_recv(f->b, &got, &fds), 0);
	assert_int_equal(got->id, 42);
	assert_int_equal(got->fds, 3);
	assert_int_equal(fds.n, 3);
	assert_string_equal(envelope_name(got), "show");
	assert_string_equal(got->show->name, "vm1");
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(fcntl(fds.fd[i], F_GETFD), FD_CLOEXEC);
}

static void nothing_is_no_message(void **state)
{
	assert_int_equal(decode("", 0, 0), -EBADMSG);
}

static uint32_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return (uint32_t)(*seed >> 16);
}

static void random_bytes_do_no_harm(void **state)
{
	uint64_t seed = 0x5eed;
	uint8_t packet[256];

	for (int round = 0; round < 100000; round++) {
		size_t len = next_random(&seed) % sizeof(packet);
		int r;

		for (size_t i = 0; i < len; i++)
			packet[i] = (uint8_t)next_random(&seed);
		r = decode(packet, len, 0);
		assert_true(r == 0 || r == -EBADMSG);
	}
}

static void damaged_messages_do_no_harm(void **state)
{
	_cleanup_free_ uint8_t *valid = NULL;
	_cleanup_free_ uint8_t *packet = NULL;
	size_t len = valid_packet(&valid), decoded = 0;
	uint64_t seed = 0xdead;

	packet = malloc(len);
	assert_non_null(packet);
	for (int round = 0; round < 100000; round++) {
		int r;

		memcpy(packet, valid, len);
		for (uint32_t n = next_random(&seed) % 4 + 1; n; n--)
			packet[next_random(&seed) % len] = (uint8_t)next_random(&seed);
		r = decode(packet, len, 0);
		assert_true(r == 0 || r == -EBADMSG);
		decoded += r == 0;
	}
	/* Both ways out were taken, or the test tests nothing. */
	assert_in_range(decoded, 1000, 99000);
}

static void a_message_cut_anywhere_is_refused(void **state)
{
	_cleanup_free_ uint8_t *packet = NULL;
	size_t len = valid_packet(&packet);

	assert_int_equal(decode(packet, len, 0), 0);
	for (size_t cut = 0; cut < len; cut++) {
		/* A copy of exactly that size: the sanitizer sees a read beyond. */
		_cleanup_free_ uint8_t *part = malloc(cut ?: 1);

		assert_non_null(part);
		memcpy(part, packet, cut);
		if (decode(part, cut, 0) != -EBADMSG)
			fail_msg("accepted when cut to %zu of %zu bytes", cut, len);
	}
}

static void an_unknown_member_is_refused(void **state)
{
	/* id = 1; field 2000, length 0 */
	static const uint8_t packet[] = { 0x08, 1, 0x82, 0x7d, 0 };

	assert_int_equal(decode(packet, sizeof(packet), 0), -EBADMSG);
}

static void an_unknown_field_beside_a_known_member_is_ignored(void **state)
{
	/* id = 1; ack {}; field 2000, length 0: a later version's addition */
	static const uint8_t packet[] = { 0x08, 1, 0x62, 0, 0x82, 0x7d, 0 };

	assert_int_equal(decode(packet, sizeof(packet), 0), 0);
}

static void of_two_members_the_last_counts(void **state)
{
	/* show { name = "a" }; ack {} */
	static const uint8_t packet[] = { 0xb2, 1, 3, 0x0a, 1, 'a', 0x62, 0 };
	_cleanup_envelope_ Envelope *env = NULL;

	assert_int_equal(wire_decode(packet, sizeof(packet), 0, &env), 0);
	assert_string_equal(envelope_name(env), "ack");
}

static void a_length_that_lies_is_refused(void **state)
{
	/* ack with a length of 2^31 - 1, of 2^32 - 1, of 2^64 - 1, and one byte more than is there
	 */
	static const uint8_t a[] = { 0x62, 0xff, 0xff, 0xff, 0xff, 0x07 };
	static const uint8_t b[] = { 0x62, 0xff, 0xff, 0xff, 0xff, 0x0f };
	static const uint8_t c[] = {
		0x62, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1
	};
	static const uint8_t d[] = { 0x62, 1 };

	assert_int_equal(decode(a, sizeof(a), 0), -EBADMSG);
	assert_int_equal(decode(b, sizeof(b), 0), -EBADMSG);
	assert_int_equal(decode(c, sizeof(c), 0), -EBADMSG);
	assert_int_equal(decode(d, sizeof(d), 0), -EBADMSG);
}

static void deep_nesting_does_not_exhaust_the_stack(void **state)
{
	_cleanup_free_ uint8_t *packet = malloc(WIRE_PACKET_MAX);
	size_t at = WIRE_PACKET_MAX;

	assert_non_null(packet);
	/* Groups in groups: start-group of field 1, over and over. */
	memset(packet, 0x0b, WIRE_PACKET_MAX);
	assert_int_equal(decode(packet, WIRE_PACKET_MAX, 0), -EBADMSG);

	/* Event in Envelope in Event in ...: field 13, built from the inside. */
	for (size_t inner = 0; at > 8; inner = WIRE_PACKET_MAX - at) {
		packet[--at] = (uint8_t)(inner >> 14);
		packet[--at] = (uint8_t)(inner >> 7 | 0x80);
		packet[--at] = (uint8_t)(inner | 0x80);
		packet[--at] = 13 << 3 | 2;
	}
	/* Unknown inside the Event, where field 13 does not exist: skipped. */
	assert_int_equal(decode(packet + at, WIRE_PACKET_MAX - at, 0), 0);
}

static void many_small_messages_are_bounded(void **state)
{
	_cleanup_free_ uint8_t *packet = calloc(1, WIRE_PACKET_MAX);
	_cleanup_envelope_ Envelope *env = NULL;
	size_t inner = WIRE_PACKET_MAX - 8;

	assert_non_null(packet);
	/* vm_list of as many empty VMs as fit */
	packet[0] = 0xaa;
	packet[1] = 1;
	packet[2] = (uint8_t)(inner | 0x80);
	packet[3] = (uint8_t)(inner >> 7 | 0x80);
	packet[4] = (uint8_t)(inner >> 14);
	for (size_t i = 5; i < 5 + inner; i += 2)
		packet[i] = 0x0a;
	assert_int_equal(wire_decode(packet, 5 + inner, 0, &env), 0);
	assert_int_equal(env->vm_list->n_vms, inner / 2);
}

static void strings_that_are_none_end_at_their_nul(void **state)
{
	/* show { name = "a\0b" }, show { name = "\xff\xc0\x80" } */
	static const uint8_t nul[] = { 0xb2, 1, 5, 0x0a, 3, 'a', 0, 'b' };
	static const uint8_t utf8[] = { 0xb2, 1, 5, 0x0a, 3, 0xff, 0xc0, 0x80 };
	_cleanup_envelope_ Envelope *a = NULL, *b = NULL;

	assert_int_equal(wire_decode(nul, sizeof(nul), 0, &a), 0);
	assert_string_equal(a->show->name, "a");
	assert_int_equal(wire_decode(utf8, sizeof(utf8), 0, &b), 0);
	assert_string_equal(b->show->name, "\xff\xc0\x80");
}

/* Sends raw bytes with @n fds. */
static void send_raw(struct fixture *f, const void *packet, size_t len, size_t n)
{
	static const int list[SCM_RIGHTS_MAX];

	assert_int_equal(scm_send(f->a, packet, len, list, n), len);
}

static void assert_refused(struct fixture *f, int code)
{
	struct scm_fds fds = { .n = 9 };
	Envelope *env = NULL;

	assert_int_equal(wire_recv(f->b, &env, &fds), code);
	assert_null(env);
	assert_int_equal(fds.n, 0);
	/* At once, not only when the socket dies. */
	assert_int_equal(count_fds(), f->fds + 2);
}

static void bad_bytes_with_fds_leave_nothing(void **state)
{
	struct fixture *f = *state;

	send_raw(f, "\xff\xff\xff", 3, 5);
	assert_refused(f, -EBADMSG);
}

static void an_unknown_member_with_fds_leaves_nothing(void **state)
{
	struct fixture *f = *state;

	/* fds = 2; field 2000 */
	send_raw(f, "\x10\x02\x82\x7d\x00", 5, 2);
	assert_refused(f, -EBADMSG);
}

static void surplus_fds_are_refused(void **state)
{
	struct fixture *f = *state;

	/* fds = 2; ack {} */
	send_raw(f, "\x10\x02\x62\x00", 4, 3);
	assert_refused(f, -EBADMSG);
	/* ack {}: none announced */
	send_raw(f, "\x62\x00", 2, 1);
	assert_refused(f, -EBADMSG);
}

static void missing_fds_are_refused(void **state)
{
	struct fixture *f = *state;

	send_raw(f, "\x10\x02\x62\x00", 4, 1);
	assert_refused(f, -EBADMSG);
	send_raw(f, "\x10\x02\x62\x00", 4, 0);
	assert_refused(f, -EBADMSG);
}

static void an_empty_packet_ends_the_connection(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(send(f->a, "", 0, MSG_NOSIGNAL), 0);
	assert_refused(f, -ENOTCONN);
}

/* An Error whose packet is exactly @size bytes; its text is the caller's to free. */
static void fill(Envelope *env, Upgraded__V1__Error *error, char **text, size_t size)
{
	size_t n = size;

	*text = malloc(size + 1);
	assert_non_null(*text);
	memset(*text, 'x', size);
	upgraded__v1__error__init(error);
	error->text = *text;
	env->body_case = UPGRADED__V1__ENVELOPE__BODY_ERROR;
	env->error = error;
	do
		(*text)[n] = '\0';
	while (upgraded__v1__envelope__get_packed_size(env) > size && n--);
	assert_int_equal(upgraded__v1__envelope__get_packed_size(env), size);
}

static void the_longest_packet_passes(void **state)
{
	struct fixture *f = *state;
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *got = NULL;
	_cleanup_free_ char *text = NULL;
	Upgraded__V1__Error error;
	Envelope env = ENVELOPE_INIT;

	fill(&env, &error, &text, 64 * 1024);
	assert_int_equal(wire_send(f->a, &env, NULL, 0), 0);
	assert_int_equal(wire_recv(f->b, &got, &fds), 0);
	assert_string_equal(got->error->text, text);
}

static void one_byte_more_does_not(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ uint8_t *packet = NULL;
	_cleanup_free_ char *text = NULL;
	Upgraded__V1__Error error;
	Envelope env = ENVELOPE_INIT;

	fill(&env, &error, &text, 64 * 1024 + 1);
	assert_int_equal(wire_send(f->a, &env, NULL, 0), -EMSGSIZE);
	env.fds = 2;
	packet = malloc(64 * 1024 + 8);
	assert_non_null(packet);
	send_raw(f, packet, upgraded__v1__envelope__pack(&env, packet), 2);
	assert_refused(f, -EBADMSG);
}

static void too_many_fds_are_not_sent(void **state)
{
	struct fixture *f = *state;
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	Envelope env = ENVELOPE_INIT;
	int list[SCM_RIGHTS_MAX + 1] = { 0 };

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
	env.ack = &ack;
	assert_int_equal(wire_send(f->a, &env, list, 254), -EMSGSIZE);
}

static int send_ack(int sock)
{
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
	env.ack = &ack;
	return wire_send(sock, &env, NULL, 0);
}

static void a_closed_peer_is_an_error_on_both_sides(void **state)
{
	struct fixture *f = *state;
	struct scm_fds fds = { .n = 9 };
	Envelope *got = NULL;

	assert_true(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
	closep(&f->a);
	assert_int_equal(send_ack(f->b), -EPIPE);
	assert_int_equal(wire_recv(f->b, &got, &fds), -ENOTCONN);
	assert_null(got);
	assert_int_equal(fds.n, 0);
}

static void a_peer_that_closed_unread_is_gone_too(void **state)
{
	struct fixture *f = *state;
	struct scm_fds fds;
	Envelope *got = NULL;

	/* The kernel reports unread data at the peer as a reset. */
	assert_int_equal(send_ack(f->b), 0);
	closep(&f->a);
	assert_int_equal(wire_recv(f->b, &got, &fds), -ENOTCONN);
	assert_null(got);
}

static void nothing_there_is_eagain(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(fcntl(f->b, F_SETFL, O_NONBLOCK), 0);
	assert_refused(f, -EAGAIN);
}

static void on_signal(int number)
{
}

static void signals_do_not_push_the_deadline_away(void **state)
{
	struct fixture *f = *state;
	struct sigaction act = { .sa_handler = on_signal };
	struct itimerval every = { { 0, 20000 }, { 0, 20000 } }, never = { 0 };
	struct timespec begin, end;
	int r;

	assert_int_equal(sigaction(SIGALRM, &act, NULL), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	/* The restart per signal alone would wait for ever. */
	r = wire_wait(f->b, 200);
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
	assert_int_equal(r, -ETIMEDOUT);
	assert_in_range((end.tv_sec - begin.tv_sec) * 1000 +
				(end.tv_nsec - begin.tv_nsec) / 1000000,
			150, 5000);
}

static void waiting_ends_when_something_comes(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(wire_wait(f->b, 0), -ETIMEDOUT);
	send_raw(f, "x", 1, 0);
	assert_int_equal(wire_wait(f->b, 0), 0);
}

static int negotiate(uint32_t min, uint32_t max)
{
	Upgraded__V1__Hello hello = UPGRADED__V1__HELLO__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	int r;

	hello.program = "peer";
	hello.version = "9.9";
	hello.protocol_min = min;
	hello.protocol_max = max;
	r = wire_negotiate(&hello, &err);
	if (r < 0) {
		assert_int_equal(err.code, r);
		assert_non_null(strstr(err.text, "peer 9.9 speaks protocol"));
	} else {
		assert_null(err.text);
	}
	return r;
}

static void neighbouring_versions_understand_each_other(void **state)
{
	const uint32_t n = WIRE_PROTOCOL_MAX;

	assert_int_equal(negotiate(n, n), n);
	/* A newer peer that still speaks ours, and the oldest that we still speak. */
	assert_int_equal(negotiate(n, n + 1), n);
	assert_int_equal(negotiate(1, UINT32_MAX), n);
	assert_int_equal(negotiate(0, WIRE_PROTOCOL_MIN), WIRE_PROTOCOL_MIN);
	/* Too new, and too old. */
	assert_int_equal(negotiate(n + 1, n + 2), -EPROTONOSUPPORT);
	assert_int_equal(negotiate(0, WIRE_PROTOCOL_MIN - 1), -EPROTONOSUPPORT);
}

static void nonsense_versions_are_refused(void **state)
{
	assert_int_equal(negotiate(0, 0), -EPROTONOSUPPORT);
	assert_int_equal(negotiate(UINT32_MAX, UINT32_MAX), -EPROTONOSUPPORT);
	assert_int_equal(negotiate(UINT32_MAX, 0), -EPROTONOSUPPORT);
	assert_int_equal(negotiate(WIRE_PROTOCOL_MAX + 5, WIRE_PROTOCOL_MAX), -EPROTONOSUPPORT);
}

#define DECODE(test) cmocka_unit_test(test)
#define SOCKET(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

/* A peer that ends without having read all that it was sent is heard out as well. */
static void last_words_of_a_peer_that_did_not_listen_are_read(void **state)
{
	Upgraded__V1__WorkerAbort msg = UPGRADED__V1__WORKER_ABORT__INIT;
	struct scm_fds fds = SCM_FDS_INIT;
	struct fixture *f = *state;
	Envelope env = ENVELOPE_INIT, *got = NULL;

	env.body_case = UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT;
	env.worker_abort = &msg;
	assert_int_equal(wire_send(f->a, &env, NULL, 0), 0);
	assert_int_equal(wire_send(f->b, &env, NULL, 0), 0);
	closep(&f->b);
	assert_int_equal(wire_recv(f->a, &got, &fds), 0);
	assert_int_equal(got->body_case, UPGRADED__V1__ENVELOPE__BODY_WORKER_ABORT);
	envelope_freep(&got);
	assert_int_equal(wire_recv(f->a, &got, &fds), -ENOTCONN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SOCKET(what_was_sent_arrives),
		DECODE(nothing_is_no_message),
		DECODE(random_bytes_do_no_harm),
		DECODE(damaged_messages_do_no_harm),
		DECODE(a_message_cut_anywhere_is_refused),
		DECODE(an_unknown_member_is_refused),
		DECODE(an_unknown_field_beside_a_known_member_is_ignored),
		DECODE(of_two_members_the_last_counts),
		DECODE(a_length_that_lies_is_refused),
		DECODE(deep_nesting_does_not_exhaust_the_stack),
		DECODE(many_small_messages_are_bounded),
		DECODE(strings_that_are_none_end_at_their_nul),
		SOCKET(bad_bytes_with_fds_leave_nothing),
		SOCKET(an_unknown_member_with_fds_leaves_nothing),
		SOCKET(surplus_fds_are_refused),
		SOCKET(missing_fds_are_refused),
		SOCKET(an_empty_packet_ends_the_connection),
		SOCKET(the_longest_packet_passes),
		SOCKET(one_byte_more_does_not),
		SOCKET(too_many_fds_are_not_sent),
		SOCKET(a_closed_peer_is_an_error_on_both_sides),
		SOCKET(a_peer_that_closed_unread_is_gone_too),
		SOCKET(last_words_of_a_peer_that_did_not_listen_are_read),
		SOCKET(nothing_there_is_eagain),
		SOCKET(signals_do_not_push_the_deadline_away),
		SOCKET(waiting_ends_when_something_comes),
		DECODE(neighbouring_versions_understand_each_other),
		DECODE(nonsense_versions_are_refused),
	};

	return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
