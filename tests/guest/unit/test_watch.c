/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arithmetic of loadwatch: lost and doubled ticks, gaps, windows, brownout, with a clock made
 * by hand.
 *
 * Run natively by `meson test`; it owns nothing outside its memory.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../watch/watch.h"

#define MS UINT64_C(1000000)

struct clockwork {
	struct watch *w;
	uint64_t now;
	uint8_t next;
};

static struct clockwork begin(void)
{
	struct clockwork c = { .now = 1000 * MS };

	assert_int_equal(watch_new(c.now, &c.w), 0);
	return c;
}

/* One tick each ms. */
static void run_ms(struct clockwork *c, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint8_t byte = c->next++;

		c->now += MS;
		watch_ticks(c->w, &byte, 1, c->now);
	}
}

static struct json_object *get(struct json_object *o, const char *path)
{
	char key[64];

	while (o && *path) {
		size_t n = strcspn(path, ".");

		snprintf(key, sizeof(key), "%.*s", (int)n, path);
		if (!json_object_object_get_ex(o, key, &o))
			fail_msg("there is no %s in the answer", key);
		path += n + (path[n] == '.');
	}
	return o;
}

static double ask(struct clockwork *c, const char *command, const char *path)
{
	struct json_object *o = answer(c->w, command, c->now), *v = get(o, path);
	double d = v ? json_object_get_double(v) : -1;

	json_object_put(o);
	return d;
}

static void assert_near(double a, double b)
{
	if (fabs(a - b) > 0.01)
		fail_msg("%f is not %f", a, b);
}

static void an_even_heartbeat_has_no_fault(void **state)
{
	struct clockwork c = begin();

	c.next = 77; /* wherever it begins */
	run_ms(&c, 1000);
	assert_near(ask(&c, "status", "ticks.seen"), 1000);
	assert_near(ask(&c, "status", "ticks.lost"), 0);
	assert_near(ask(&c, "status", "ticks.duplicated"), 0);
	assert_near(ask(&c, "status", "ticks.reordered"), 0);
	assert_near(ask(&c, "status", "longest_gap.ms"), 1);
	assert_near(ask(&c, "status", "gaps"), 0);
	watch_free(c.w);
}

static void lost_ticks_are_counted_across_the_wrap(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 250);
	c.next += 12;
	run_ms(&c, 100);
	assert_near(ask(&c, "status", "ticks.lost"), 12);
	assert_near(ask(&c, "status", "ticks.seen"), 350);
	watch_free(c.w);
}

static void a_tick_made_twice_is_counted(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 100);
	c.next--;
	run_ms(&c, 100);
	assert_near(ask(&c, "status", "ticks.duplicated"), 1);
	assert_near(ask(&c, "status", "ticks.lost"), 0);
	assert_near(ask(&c, "status", "ticks.reordered"), 0);
	watch_free(c.w);
}

static void a_guest_that_went_back_in_time_is_counted_once(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 100);
	c.next -= 40;
	run_ms(&c, 100);
	assert_near(ask(&c, "status", "ticks.reordered"), 1);
	assert_near(ask(&c, "status", "ticks.lost"), 0);
	watch_free(c.w);
}

static void a_blackout_is_the_longest_gap_of_its_window(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 100);
	c.now += 49 * MS;
	run_ms(&c, 100);
	json_object_put(answer(c.w, "mark upgrade 1", c.now));
	run_ms(&c, 100);
	c.now += 29 * MS;
	run_ms(&c, 100);
	json_object_put(answer(c.w, "mark after", c.now));
	run_ms(&c, 10);
	assert_near(ask(&c, "window start", "longest_gap.ms"), 50);
	assert_near(ask(&c, "window upgrade 1", "longest_gap.ms"), 30);
	assert_near(ask(&c, "window upgrade 1", "ticks.seen"), 200);
	assert_near(ask(&c, "window upgrade 1", "ticks.lost"), 0);
	assert_near(ask(&c, "window after", "longest_gap.ms"), 1);
	assert_near(ask(&c, "window", "longest_gap.ms"), 1);
	assert_near(ask(&c, "status", "longest_gap.ms"), 50);
	assert_near(ask(&c, "status", "gaps"), 2);
	watch_free(c.w);
}

static void a_gap_is_found_by_its_time(void **state)
{
	struct clockwork c = begin();
	char command[64];
	uint64_t second;

	run_ms(&c, 100);
	c.now += 99 * MS;
	run_ms(&c, 100);
	second = c.now;
	c.now += 49 * MS;
	run_ms(&c, 100);
	snprintf(command, sizeof(command), "gap %f %f", (double)second / MS + 10,
		 (double)second / MS + 20);
	assert_near(ask(&c, command, "ms"), 50);
	assert_near(ask(&c, "gap 0 1e9", "ms"), 100);
	json_object_put(answer(c.w, "gap 1", c.now));
	watch_free(c.w);
}

static void a_guest_that_fell_silent_does_not_look_good(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 100);
	c.now += 700 * MS;
	assert_near(ask(&c, "status", "longest_gap.ms"), 700);
	assert_near(ask(&c, "status", "longest_gap.open"), 1);
	assert_near(ask(&c, "window", "longest_gap.ms"), 700);
	watch_free(c.w);
}

static void a_late_reader_is_not_taken_for_a_gap(void **state)
{
	struct clockwork c = begin();
	uint8_t burst[40];

	run_ms(&c, 100);
	for (unsigned i = 0; i < sizeof(burst); i++)
		burst[i] = c.next++;
	c.now += 40 * MS; /* 40 ticks in 40 ms, read at once */
	watch_ticks(c.w, burst, sizeof(burst), c.now);
	assert_near(ask(&c, "window", "longest_gap.ms"), 2);
	/* but a real gap is found in a burst as well: 10 ticks in 60 ms */
	for (unsigned i = 0; i < 10; i++)
		burst[i] = c.next++;
	c.now += 60 * MS;
	watch_ticks(c.w, burst, 10, c.now);
	assert_near(ask(&c, "window", "longest_gap.ms"), 52);
	assert_near(ask(&c, "status", "ticks.lost"), 0);
	watch_free(c.w);
}

static void report(struct clockwork *c, uint64_t guest_ms, uint64_t first, unsigned n,
		   unsigned pages, unsigned errors)
{
	char line[1024];
	int at = snprintf(line, sizeof(line),
			  "{\"load\":1,\"state\":\"READY\",\"guest_ms\":%lu.0,\"errors\":%u,"
			  "\"slices\":{\"ms\":100,\"first\":%lu,\"pages\":[",
			  guest_ms, errors, first);

	for (unsigned i = 0; i < n; i++)
		at += snprintf(line + at, sizeof(line) - (size_t)at, "%s%u", i ? "," : "", pages);
	at += snprintf(line + at, sizeof(line) - (size_t)at, "]}}\n");
	/* in two parts, as a FIFO may give it */
	watch_report_bytes(c->w, line, 20, c->now);
	watch_report_bytes(c->w, line + 20, (size_t)at - 20, c->now);
}

static void the_brownout_after_a_gap_is_measured(void **state)
{
	struct clockwork c = begin();
	uint64_t guest_ms = 100000;

	/* the guest's clock is 100 s ahead and stands still in the gap; a report comes after every
	 * 100 ms */
	for (unsigned i = 0; i < 20; i++, guest_ms += 100) {
		run_ms(&c, 100);
		report(&c, guest_ms + 100, guest_ms / 100, 1, 1000, 0);
	}
	json_object_put(answer(c.w, "mark m", c.now));
	c.now += 80 * MS;
	for (unsigned i = 0; i < 20; i++, guest_ms += 100) {
		run_ms(&c, 100);
		report(&c, guest_ms + 100, guest_ms / 100, 1, i < 5 ? 500 : 1000, 0);
	}
	assert_near(ask(&c, "window m", "longest_gap.ms"), 81);
	/* 81 ms of the host's, of which the guest's clock knows but one */
	assert_near(ask(&c, "window m", "work.guest_advance_ms"), 1);
	assert_near(ask(&c, "window m", "work.before_pages_per_s"), 10000);
	/* the slice in which it resumed is on neither side: four slow ones of ten */
	assert_near(ask(&c, "window m", "work.after_pages_per_s"), 8000);
	assert_near(ask(&c, "window m", "work.lost_ms"), 200);
	assert_near(ask(&c, "window m", "work.recovery_ms"), 599);
	assert_near(ask(&c, "window m", "work.complete"), 1);
	watch_free(c.w);
}

static void new_errors_are_told_from_old_ones(void **state)
{
	struct clockwork c = begin();

	run_ms(&c, 10);
	report(&c, 100, 1, 1, 10, 2);
	json_object_put(answer(c.w, "mark m", c.now));
	/* no report yet is no zero */
	assert_near(ask(&c, "window m", "errors_new"), -1);
	report(&c, 200, 2, 1, 10, 5);
	assert_near(ask(&c, "window m", "errors_new"), 3);
	assert_near(ask(&c, "window m", "errors"), 5);
	assert_near(ask(&c, "status", "errors"), 5);
	watch_free(c.w);
}

static void garbled_reports_are_counted_and_survived(void **state)
{
	static char noise[3 * WATCH_LINE];
	struct clockwork c = begin();

	memset(noise, 'x', sizeof(noise));
	noise[sizeof(noise) - 1] = '\n';
	watch_report_bytes(c.w, noise, sizeof(noise), c.now);
	watch_report_bytes(c.w, "{\"load\":1,\n", 11, c.now);
	watch_report_bytes(c.w, "[]\n{}\n\n", 7, c.now);
	assert_near(ask(&c, "status", "reports.garbled"), 4);
	report(&c, 100, 1, 1, 10, 0);
	assert_near(ask(&c, "status", "reports.seen"), 1);
	watch_free(c.w);
}

static void a_wrong_command_is_answered(void **state)
{
	static const char *const wrong[] = {
		"", "mark", "mark ", "window nowhere", "gaps nowhere", "status now", "stat"
	};
	struct clockwork c = begin();

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct json_object *o = answer(c.w, wrong[i], c.now);

		assert_non_null(get(o, "error"));
		json_object_put(o);
	}
	watch_free(c.w);
}

static void a_thousand_marks_are_survived(void **state)
{
	struct clockwork c = begin();
	struct json_object *o;
	char command[32];

	for (unsigned i = 0; i < 1000; i++) {
		snprintf(command, sizeof(command), "mark %u", i);
		json_object_put(answer(c.w, command, c.now));
		run_ms(&c, 2);
		report(&c, 100 + i, 1, 1, 10, 0);
	}
	assert_near(ask(&c, "window 999", "ticks.seen"), 2);
	assert_near(ask(&c, "window 900", "ticks.seen"), 2);
	o = answer(c.w, "window 3", c.now);
	assert_non_null(get(o, "error"));
	json_object_put(o);
	watch_free(c.w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_even_heartbeat_has_no_fault),
		cmocka_unit_test(lost_ticks_are_counted_across_the_wrap),
		cmocka_unit_test(a_tick_made_twice_is_counted),
		cmocka_unit_test(a_guest_that_went_back_in_time_is_counted_once),
		cmocka_unit_test(a_blackout_is_the_longest_gap_of_its_window),
		cmocka_unit_test(a_gap_is_found_by_its_time),
		cmocka_unit_test(a_guest_that_fell_silent_does_not_look_good),
		cmocka_unit_test(a_late_reader_is_not_taken_for_a_gap),
		cmocka_unit_test(the_brownout_after_a_gap_is_measured),
		cmocka_unit_test(new_errors_are_told_from_old_ones),
		cmocka_unit_test(garbled_reports_are_counted_and_survived),
		cmocka_unit_test(a_wrong_command_is_answered),
		cmocka_unit_test(a_thousand_marks_are_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
