/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of upgradectl watch: who is on it, and who has no room. */
#include "watch_view.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

static const struct cli cli = { .width = 100 };

static void event(struct watch_view *v, const char *vm, uint64_t id, int outcome)
{
	Upgraded__V1__Event e = UPGRADED__V1__EVENT__INIT;
	Upgraded__V1__Report report = UPGRADED__V1__REPORT__INIT;

	e.vm = (char *)vm;
	e.upgrade_id = id;
	e.phase = UPGRADED__V1__PHASE__PHASE_LOAD;
	e.elapsed_us = 1000000;
	report.outcome = (Upgraded__V1__Outcome)outcome;
	report.error = "because";
	if (outcome)
		e.report = &report;
	assert_int_equal(watch_view_event(v, &e), 0);
}

/* What it draws, from a file in place of a terminal: 24 lines then. */
static char *draw(struct watch_view *v)
{
	int fd = memfd_create("terminal", MFD_CLOEXEC), out = dup(STDOUT_FILENO);
	char *text = calloc(1, 1 << 16);

	fflush(stdout);
	assert_true(dup2(fd, STDOUT_FILENO) >= 0);
	watch_view_draw(v);
	assert_true(dup2(out, STDOUT_FILENO) >= 0);
	assert_true(pread(fd, text, (1 << 16) - 1, 0) >= 0);
	close(out);
	close(fd);
	return text;
}

static unsigned count(const char *text, const char *word)
{
	unsigned n = 0;

	while ((text = strstr(text, word))) {
		text++;
		n++;
	}
	return n;
}

static void a_vm_has_one_row(void **state)
{
	_cleanup_watch_view_ struct watch_view v = { .cli = &cli };
	_cleanup_free_ char *text = NULL, *again = NULL;

	event(&v, "web", 1, UPGRADED__V1__OUTCOME__OUTCOME_ROLLED_BACK);
	event(&v, "db", 2, 0);
	assert_true(watch_view_is_busy(&v));
	text = draw(&v);
	assert_int_equal(count(text, "web"), 1);
	assert_int_equal(count(text, "rolled back"), 1);
	assert_int_equal(count(text, "because"), 1);
	assert_true(strstr(text, "web") < strstr(text, "db"));
	/* Once more: it is the newest now. */
	event(&v, "web", 3, 0);
	again = draw(&v);
	assert_int_equal(count(again, "web"), 1);
	assert_int_equal(count(again, "rolled back"), 0);
	assert_true(strstr(again, "web") > strstr(again, "db"));
	event(&v, "web", 3, UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED);
	event(&v, "db", 2, UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED);
	assert_false(watch_view_is_busy(&v));
}

static void who_ended_first_has_no_room_first(void **state)
{
	_cleanup_watch_view_ struct watch_view v = { .cli = &cli };
	_cleanup_free_ char *text = NULL;
	char name[16];

	event(&v, "under-way", 100, 0);
	for (int i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "vm%02d.", i);
		event(&v, name, (uint64_t)i, UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED);
	}
	text = draw(&v);
	assert_int_equal(count(text, "under-way"), 1);
	assert_int_equal(count(text, "vm39."), 1);
	assert_int_equal(count(text, "vm00."), 0);
	assert_int_equal(count(text, "... and 20 more"), 1);
	/* The titles, 21 rows and the last line; the cursor's has to be there as well. */
	assert_int_equal(count(text, "\n"), 23);
	assert_int_equal(v.drawn, 23);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_vm_has_one_row),
		cmocka_unit_test(who_ended_first_has_no_room_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
