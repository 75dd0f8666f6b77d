/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which VMs a fleet's upgrade is about, and when it may begin. */
#include "fleet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char here[] = "/usr/bin/qemu", other[] = "/opt/qemu/bin/qemu";

#define VM(vm_name, vm_binary, is_outdated, is_alive)                                        \
	{                                                                                    \
		.base = PROTOBUF_C_MESSAGE_INIT(&upgraded__v1__vm__descriptor),              \
		.name = (char *)(vm_name), .binary = (vm_binary), .outdated = (is_outdated), \
		.alive = (is_alive)                                                          \
	}

static Upgraded__V1__Vm vm[] = {
	VM("web2", here, true, true),  VM("web1", here, true, true),   VM("db", other, false, true),
	VM("gone", here, true, false), VM("fresh", here, false, true),
};
static Upgraded__V1__Vm *vms[] = { &vm[0], &vm[1], &vm[2], &vm[3], &vm[4] };
static const Upgraded__V1__VmList list = { .n_vms = ARRAY_SIZE(vms), .vms = vms };

/* "web1 db=": the chosen, with a "=" behind who is left alone, or the error. */
static void chosen(const struct fleet_options *options, const char *binary, const char *wanted)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct member *member = NULL;
	char text[256] = "";
	size_t n = 0;

	if (fleet_choose(options, binary, &list, &member, &n, &err) < 0)
		strcpy(text, err.text);
	for (size_t i = 0; i < n; i++) {
		strcat(strcat(text, i ? " " : ""), member[i].vm->name);
		if (member[i].state == MEMBER_UP_TO_DATE)
			strcat(text, "=");
	}
	assert_string_equal(text, wanted);
	fleet_free(member, n);
}

#define WORDS(...)                             \
	.patterns = (char *[]){ __VA_ARGS__ }, \
	.n_patterns = sizeof((char *[]){ __VA_ARGS__ }) / sizeof(char *)

static void all_are_those_that_run(void **state)
{
	chosen(&(struct fleet_options){ .all = true }, NULL, "db= fresh= web1 web2");
	chosen(&(struct fleet_options){ .all = true, .again = true }, NULL, "db fresh web1 web2");
}

static void outdated_ones_run_another_file(void **state)
{
	chosen(&(struct fleet_options){ .outdated = true }, NULL, "web1 web2");
	chosen(&(struct fleet_options){ .outdated = true, WORDS("*2", "db") }, NULL, "web2");
}

static void another_binary_is_for_those_that_do_not_run_it(void **state)
{
	chosen(&(struct fleet_options){ .all = true }, other, "db= fresh web1 web2");
	chosen(&(struct fleet_options){ .all = true }, here, "db fresh= web1 web2");
}

static void names_and_patterns_match_somebody(void **state)
{
	chosen(&(struct fleet_options){ WORDS("web?") }, NULL, "web1 web2");
	chosen(&(struct fleet_options){ WORDS("db", "d*", "web1") }, NULL, "db= web1");
	chosen(&(struct fleet_options){ WORDS("db", "nobody") }, NULL, "no VM is called nobody");
	chosen(&(struct fleet_options){ WORDS("x*") }, NULL, "no VM's name matches x*");
}

static void one_that_has_ended_must_be_named(void **state)
{
	chosen(&(struct fleet_options){ WORDS("g*", "db") }, NULL, "db=");
	chosen(&(struct fleet_options){ WORDS("gone", "db") }, NULL, "db= gone");
}

/* ---- the window ---- */

static time_t at(int hour, int minute, int second)
{
	struct tm tm = { .tm_year = 126,
			 .tm_mon = 10,
			 .tm_mday = 20,
			 .tm_hour = hour,
			 .tm_min = minute,
			 .tm_sec = second,
			 .tm_isdst = -1 };

	return mktime(&tm);
}

static void window_says_how_long(void **state)
{
	struct window w = { 0 };

	assert_int_equal(window_opens_in(&w, at(12, 0, 0)), 0);
	assert_int_equal(window_parse("02:00-04:30", &w), 0);
	assert_int_equal(window_opens_in(&w, at(2, 0, 0)), 0);
	assert_int_equal(window_opens_in(&w, at(4, 29, 59)), 0);
	assert_int_equal(window_opens_in(&w, at(4, 30, 0)), (24 * 60 - 150) * 60);
	assert_int_equal(window_opens_in(&w, at(1, 59, 50)), 10);
}

static void window_goes_over_midnight(void **state)
{
	struct window w;

	assert_int_equal(window_parse("22:00-06:00", &w), 0);
	assert_int_equal(window_opens_in(&w, at(23, 59, 59)), 0);
	assert_int_equal(window_opens_in(&w, at(0, 0, 0)), 0);
	assert_int_equal(window_opens_in(&w, at(6, 0, 0)), 16 * 3600);
	assert_int_equal(window_opens_in(&w, at(21, 0, 1)), 3599);
}

static void window_is_two_times_of_day(void **state)
{
	static const char *const wrong[] = { "",
					     "22-6",
					     "22:00",
					     "22:00-",
					     "24:00-06:00",
					     "22:60-06:00",
					     "2:00-06:00",
					     "22:00-06:00x",
					     "22:00-22:00",
					     "-2:00-06:00",
					     "22:00 06:00",
					     "22:00-+6:00" };
	struct window w;

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		if (window_parse(wrong[i], &w) != -EINVAL)
			fail_msg("'%s' is a window", wrong[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_are_those_that_run),
		cmocka_unit_test(outdated_ones_run_another_file),
		cmocka_unit_test(another_binary_is_for_those_that_do_not_run_it),
		cmocka_unit_test(names_and_patterns_match_somebody),
		cmocka_unit_test(one_that_has_ended_must_be_named),
		cmocka_unit_test(window_says_how_long),
		cmocka_unit_test(window_goes_over_midnight),
		cmocka_unit_test(window_is_two_times_of_day),
	};

	setenv("TZ", "UTC", 1);
	return cmocka_run_group_tests_name("fleet", tests, NULL, NULL);
}
