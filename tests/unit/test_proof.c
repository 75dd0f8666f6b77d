/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Proves the proof: what tests/vmm/proof.c is to catch is caught. Another VMM is
 * another process, as in the tests that rely on it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proof.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int setup(void **state)
{
	int fd = memfd_create("proof", MFD_CLOEXEC);

	*state = proof_map(fd);
	close(fd);
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	return munmap(*state, sizeof(struct proof));
}

/* Another VMM runs vCPU 0, from @epoch on, and dies in the middle of it if @leave is not set. */
static void elsewhere(struct proof *p, uint64_t epoch, int leave)
{
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		proof_enter(p, 0, &epoch);
		if (leave)
			proof_leave(p, 0);
		_exit(0);
	}
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static void one_runner_after_another_is_fine(void **state)
{
	struct proof *p = *state;
	uint64_t epoch = 0, other = 0;

	for (int i = 0; i < 5; i++) {
		proof_enter(p, 0, &epoch);
		proof_leave(p, 0);
		proof_enter(p, 1, &other);
		proof_leave(p, 1);
	}
	assert_int_equal(epoch, 5);
	/* The state moves: the other one goes on from there. */
	elsewhere(p, epoch, 1);
	assert_int_equal(p->violations, 0);
}

static void two_at_once_are_seen(void **state)
{
	struct proof *p = *state;
	uint64_t epoch = 0;

	proof_enter(p, 0, &epoch);
	elsewhere(p, epoch, 1);
	assert_true(p->violations > 0);
}

static void going_on_after_another_has_run_is_seen(void **state)
{
	struct proof *p = *state;
	uint64_t epoch = 0;

	proof_enter(p, 0, &epoch);
	proof_leave(p, 0);
	elsewhere(p, epoch, 1);
	assert_int_equal(p->violations, 0);
	proof_enter(p, 0, &epoch);
	proof_leave(p, 0);
	assert_int_equal(p->violations, 1);
}

static void a_vmm_that_died_while_it_ran_is_followed_by_none(void **state)
{
	struct proof *p = *state;
	uint64_t epoch = 1;

	elsewhere(p, 0, 0);
	assert_int_equal(p->violations, 0);
	proof_enter(p, 0, &epoch);
	assert_true(p->violations > 0);
}

static void gaps_are_the_longest_between_two_ticks(void **state)
{
	struct proof *p = *state;

	proof_tick(p, 0, 0);
	assert_int_equal(p->vcpu[0].gap_ns, 0);
	usleep(20000);
	proof_tick(p, 0, 0);
	proof_tick(p, 0, 3);
	assert_true(p->vcpu[0].gap_ns >= 20000000);
	assert_int_equal(p->vcpu[0].ticks, 3);
	assert_int_equal(p->vcpu[0].errors, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(one_runner_after_another_is_fine),
		TEST(two_at_once_are_seen),
		TEST(going_on_after_another_has_run_is_seen),
		TEST(a_vmm_that_died_while_it_ran_is_followed_by_none),
		TEST(gaps_are_the_longest_between_two_ticks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
