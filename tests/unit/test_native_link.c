/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds the worker to its word against a VMM that means harm: what is not the
 * answer is no answer, and no descriptor is left. The VMM's words are in the
 * socket before the worker asks, so nothing here waits but for deadlines.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "count_fds.h"
#include "native_link.h"

#include <string.h>
#include <sys/socket.h>

#define BODY(x) UPGRADED__V1__ENVELOPE__BODY_##x

struct fixture {
	size_t fds;
	struct native_link link;
	struct waiter wait;
	int vmm;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int pair[2];

	if (!f)
		return -1;
	f->fds = count_fds();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -1;
	f->link = (struct native_link)NATIVE_LINK_INIT("the source");
	native_link_open(&f->link, pair[0]);
	f->link.id = 41;
	f->vmm = pair[1];
	f->wait = (struct waiter)WAITER_INIT;
	f->wait.deadline_us = now_us() + 200000;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	size_t before = f->fds;

	native_link_close(&f->link);
	closep(&f->vmm);
	free(f);
	return count_fds() == before ? 0 : -1;
}

static void answer(struct fixture *f, uint64_t id, Upgraded__V1__Envelope__BodyCase body, size_t n)
{
	Upgraded__V1__VmmDone done = UPGRADED__V1__VMM_DONE__INIT;
	Upgraded__V1__VmmAccepted accepted = UPGRADED__V1__VMM_ACCEPTED__INIT;
	Envelope env = ENVELOPE_INIT;
	int fds[] = { 0, 1, 2 };

	env.id = id;
	env.body_case = body;
	if (body == BODY(VMM_DONE))
		env.vmm_done = &done;
	else
		env.vmm_accepted = &accepted;
	assert_int_equal(wire_send(f->vmm, &env, fds, n), 0);
}

static int ask(struct fixture *f, Upgraded__V1__Envelope__BodyCase expected,
	       struct scm_fds *ret_fds, struct error *err)
{
	_cleanup_envelope_ Envelope *got = NULL;
	Upgraded__V1__VmmThaw thaw = UPGRADED__V1__VMM_THAW__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(VMM_THAW);
	env.vmm_thaw = &thaw;
	return native_ask(&f->link, &f->wait, &env, NULL, 0, expected, &got, ret_fds, err);
}

static void the_answer_is_found_behind_those_for_a_worker_that_is_gone(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	answer(f, 7, BODY(VMM_DONE), 0);
	answer(f, 41, BODY(VMM_ACCEPTED), 3);
	answer(f, 42, BODY(VMM_DONE), 0);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), 0);
	/* And the next one has its own. */
	answer(f, 42, BODY(VMM_DONE), 0);
	answer(f, 43, BODY(VMM_DONE), 0);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), 0);
}

static void another_answer_than_the_one_that_is_due_is_none(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	answer(f, 42, BODY(VMM_ACCEPTED), 0);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -EPROTO);
	assert_non_null(strstr(err.text, "vmm_accepted"));
}

static void descriptors_that_are_not_due_are_closed_and_no_answer(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	answer(f, 42, BODY(VMM_DONE), 3);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -EPROTO);
}

static void descriptors_that_are_due_are_the_askers(void **state)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	struct fixture *f = *state;

	answer(f, 42, BODY(VMM_ACCEPTED), 3);
	assert_int_equal(ask(f, BODY(VMM_ACCEPTED), &fds, NULL), 0);
	assert_int_equal(fds.n, 3);
}

static void an_error_is_told_in_the_vmms_own_words(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	Upgraded__V1__Error msg = UPGRADED__V1__ERROR__INIT;
	struct fixture *f = *state;
	Envelope env = ENVELOPE_INIT;

	msg.text = (char *)"the disk is on fire";
	env.id = 42;
	env.body_case = BODY(ERROR);
	env.error = &msg;
	assert_int_equal(wire_send(f->vmm, &env, NULL, 0), 0);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -EREMOTEIO);
	assert_string_equal(err.text, "the source could not do vmm_thaw: the disk is on fire");
}

static void noise_is_no_answer(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	assert_int_equal(send(f->vmm, "\xff\xff", 2, 0), 2);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -EBADMSG);
}

static void the_end_of_the_connection_is_told_apart(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT, again = ERROR_INIT;
	struct fixture *f = *state;

	closep(&f->vmm);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -ECONNRESET);
	native_link_close(&f->link);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &again), -ECONNRESET);
}

static void silence_ends_at_the_deadline(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	f->wait.what = "the source to go on";
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "the source to go on"));
}

static void a_stream_of_other_answers_does_not_move_the_deadline(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;

	for (int i = 0; i < 100; i++)
		answer(f, 7, BODY(VMM_DONE), 0);
	assert_int_equal(ask(f, BODY(VMM_DONE), NULL, &err), -ETIMEDOUT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(the_answer_is_found_behind_those_for_a_worker_that_is_gone),
		TEST(another_answer_than_the_one_that_is_due_is_none),
		TEST(descriptors_that_are_not_due_are_closed_and_no_answer),
		TEST(descriptors_that_are_due_are_the_askers),
		TEST(an_error_is_told_in_the_vmms_own_words),
		TEST(noise_is_no_answer),
		TEST(the_end_of_the_connection_is_told_apart),
		TEST(silence_ends_at_the_deadline),
		TEST(a_stream_of_other_answers_does_not_move_the_deadline),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
