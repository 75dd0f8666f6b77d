/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a fleet's upgrade says: a line when a VM is done with, at the end a table and the
 * one sentence that counts, which the exit code repeats: all, some, none. Owns nothing.
 */
#include "fleet.h"

#include "proto_json.h"
#include "table.h"
#include "text.h"

#include <string.h>

/* On a terminal; the rest of the line has room then. */
#define NAME_WIDTH 28

enum result {
	COMMITTED,
	READY, /* of --dry-run */
	UP_TO_DATE,
	ROLLED_BACK,
	REFUSED,
	FAILED, /* to be asked for, or its outcome is not known */
	LOST,
	NOT_BEGUN,
	RESULTS
};

static const struct {
	const char *text, *json;
	enum style style;
} results[RESULTS] = {
	[COMMITTED] = { "committed", "committed", STYLE_GOOD },
	[READY] = { "ready", "ready", STYLE_GOOD },
	[UP_TO_DATE] = { "up to date", "up_to_date", STYLE_DIM },
	[ROLLED_BACK] = { "rolled back", "rolled_back", STYLE_WARN },
	[REFUSED] = { "refused", "refused", STYLE_WARN },
	[FAILED] = { "failed", "failed", STYLE_BAD },
	[LOST] = { "lost", "lost", STYLE_BAD },
	[NOT_BEGUN] = { "not begun", "not_begun", STYLE_DIM },
};

static const Upgraded__V1__Report *report_of(const struct member *m)
{
	if (!m->last)
		return NULL;
	if (m->last->body_case == UPGRADED__V1__ENVELOPE__BODY_EVENT)
		return m->last->event->report;
	return m->last->body_case == UPGRADED__V1__ENVELOPE__BODY_REPORT ? m->last->report : NULL;
}

static const Upgraded__V1__CheckReport *check_of(const struct member *m)
{
	return m->last && m->last->body_case == UPGRADED__V1__ENVELOPE__BODY_CHECK_REPORT
		       ? m->last->check_report
		       : NULL;
}

static enum result result_of(const struct member *m)
{
	if (m->state == MEMBER_UP_TO_DATE)
		return UP_TO_DATE;
	if (m->state != MEMBER_OVER)
		return NOT_BEGUN;
	switch (m->code) {
	case CLI_DONE:
		return check_of(m) ? READY : COMMITTED;
	case CLI_ROLLED_BACK:
		return ROLLED_BACK;
	case CLI_REFUSED:
		return REFUSED;
	case CLI_LOST:
		return LOST;
	default:
		return FAILED;
	}
}

/* Of a check the first blocker. */
static const char *why(const struct member *m)
{
	const Upgraded__V1__CheckReport *check = check_of(m);
	const Upgraded__V1__Report *report = report_of(m);

	for (size_t i = 0; check && i < check->n_findings; i++)
		if (check->findings[i]->severity == UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER)
			return check->findings[i]->text;
	return report ? report->error : m->err.text ?: "";
}

static const char *to_version(const struct member *m)
{
	const Upgraded__V1__CheckReport *check = check_of(m);
	const Upgraded__V1__Report *report = report_of(m);

	return report ? report->target_version : check ? check->target_version : "";
}

static Upgraded__V1__Tier tier_of(const struct member *m)
{
	const Upgraded__V1__CheckReport *check = check_of(m);
	const Upgraded__V1__Report *report = report_of(m);

	return report ? report->tier : check ? check->tier : UPGRADED__V1__TIER__TIER_UNSPECIFIED;
}

static json_object *as_json(const struct member *m)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "vm", json_object_new_string(m->vm->name));
	json_object_object_add(o, "result", json_object_new_string(results[result_of(m)].json));
	json_object_object_add(o, "error", json_object_new_string(why(m)));
	return o;
}

static void print_line(json_object *o)
{
	puts(proto_json_line(o));
	fflush(stdout);
	json_object_put(o);
}

void fleet_print_name(const struct cli *cli, const struct member *m)
{
	_cleanup_free_ char *name = text_printable(m->vm->name);
	_cleanup_free_ char *cut = name ? text_cut_middle(name, NAME_WIDTH) : NULL;

	print_text(cli, stdout, STYLE_BOLD, 0, (cli->width ? cut : name) ?: "?");
	fputs(": ", stdout);
}

void fleet_print_end(const struct cli *cli, const struct member *m)
{
	const Upgraded__V1__Report *report = report_of(m);
	enum result result = result_of(m);
	char number[TEXT_NUMBER];

	if (cli->json) {
		/* With a report there was an event that had it. */
		if (!report)
			print_line(as_json(m));
		return;
	}
	fleet_print_name(cli, m);
	print_text(cli, stdout, results[result].style, 0, results[result].text);
	if (result == COMMITTED || result == READY) {
		fputs(", ", stdout);
		print_text(cli, stdout, STYLE_PLAIN, 0, m->vm->version[0] ? m->vm->version : "?");
		fputs(" -> ", stdout);
		print_text(cli, stdout, STYLE_PLAIN, 0, to_version(m)[0] ? to_version(m) : "?");
		if (report)
			printf(", blackout %s", text_duration(number, report->blackout_us));
	}
	putchar('\n');
	if (result != COMMITTED && why(m)[0]) {
		fputs("  ", stdout);
		print_wrapped(cli, stdout, 2, why(m));
	}
	fflush(stdout);
}

static void print_table(const struct cli *cli, const struct member *members, size_t n)
{
	static const struct column column[] = {
		{ .title = "VM", .min = 20 },
		{ .title = "RESULT" },
		{ .title = "FROM", .min = 8 },
		{ .title = "TO", .min = 8 },
		{ .title = "TIER", .drop = 2 },
		{ .title = "BLACKOUT", .right = true },
		{ .title = "TOTAL", .right = true, .drop = 3 },
		{ .title = "WHY", .min = 24, .drop = 1 },
	};
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	for (size_t i = 0; i < n; i++) {
		const Upgraded__V1__Report *report = report_of(&members[i]);
		enum result result = result_of(&members[i]);

		table_add(&t, STYLE_BOLD, members[i].vm->name);
		table_add(&t, results[result].style, results[result].text);
		table_add(&t, STYLE_PLAIN, members[i].vm->version);
		table_add(&t, STYLE_PLAIN, to_version(&members[i]));
		table_add(&t, STYLE_PLAIN, tier_name(tier_of(&members[i])));
		table_add(&t, STYLE_PLAIN,
			  report ? text_duration(number, report->blackout_us) : "");
		table_add(&t, STYLE_PLAIN, report ? text_duration(number, report->total_us) : "");
		table_add(&t, STYLE_PLAIN, why(&members[i]));
	}
	table_print(&t, stdout);
}

static void print_counts(const size_t counts[RESULTS], size_t wanted, const char *stopped)
{
	bool ready = counts[READY] > 0;

	printf("%zu of %zu %s", counts[COMMITTED] + counts[READY], wanted,
	       ready ? "can be upgraded" : "upgraded");
	for (int i = ROLLED_BACK; i < RESULTS; i++)
		if (counts[i])
			printf(", %zu %s", counts[i], results[i].text);
	if (counts[UP_TO_DATE])
		printf("; %zu ran the target's binary already", counts[UP_TO_DATE]);
	putchar('\n');
	if (stopped)
		printf("  stopped: %s\n", stopped[0] ? stopped : "for want of memory");
	if (counts[NOT_BEGUN])
		puts("  next: the same command once more begins with those that have not begun");
	else if (counts[ROLLED_BACK] + counts[REFUSED] + counts[FAILED] + counts[LOST])
		puts("  next: upgradectl check VM, upgradectl history VM");
}

static void print_summary_json(const struct member *members, size_t n, const size_t counts[RESULTS],
			       const char *stopped)
{
	json_object *document = json_object_new_object(), *fleet = json_object_new_object();
	json_object *count = json_object_new_object(), *vms = json_object_new_array();

	for (int i = 0; i < RESULTS; i++)
		json_object_object_add(count, results[i].json,
				       json_object_new_int64((int64_t)counts[i]));
	for (size_t i = 0; i < n; i++)
		json_object_array_add(vms, as_json(&members[i]));
	json_object_object_add(fleet, "counts", count);
	json_object_object_add(fleet, "stopped", json_object_new_string(stopped ?: ""));
	json_object_object_add(fleet, "vms", vms);
	json_object_object_add(document, "fleet", fleet);
	print_line(document);
}

int fleet_sum_up(const struct cli *cli, const struct member *members, size_t n, const char *none,
		 const char *stopped)
{
	size_t counts[RESULTS] = { 0 }, wanted, good;

	for (size_t i = 0; i < n; i++)
		counts[result_of(&members[i])]++;
	wanted = n - counts[UP_TO_DATE];
	good = counts[COMMITTED] + counts[READY];
	if (cli->json) {
		print_summary_json(members, n, counts, stopped);
	} else if (wanted) {
		print_table(cli, members, n);
		print_counts(counts, wanted, stopped);
	} else {
		fprintf(stderr, "Nothing to upgrade: %s.\n",
			n ? "each of them runs the target's binary already" : none);
	}
	if (counts[LOST])
		return CLI_LOST;
	return good == wanted ? CLI_DONE : good ? CLI_SOME : CLI_NONE;
}
