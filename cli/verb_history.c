/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl history: past upgrades, the newest first. Read-only.
 */
#include "ask.h"
#include "options.h"
#include "table.h"
#include "text.h"

#include <inttypes.h>

#define DEFAULT_LIMIT 20

struct args {
	struct cli *cli;
	char *name;
	long limit;
	bool phases;
};

static const char doc[] =
	"List past upgrades of VM, or of every VM, the newest first.\v"
	"Columns for which the terminal has no room are left out; --json has the whole reports.";

static const struct argp_option options[] = {
	{ "limit", 'n', "N", 0, "The last N upgrades (default: 20; 0: all)", 0 },
	{ "phases", 'p', NULL, 0, "How long each phase took", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case 'n':
		args->limit = options_number(arg, 0, 1000000, "--limit", state);
		return 0;
	case 'p':
		args->phases = true;
		return 0;
	default:
		return options_rest(args->cli, &args->name, key, arg, state);
	}
}

static void print_history(const struct cli *cli, const Upgraded__V1__History *history)
{
	static const struct column column[] = {
		{ .title = "ID", .right = true },
		{ .title = "VM", .min = 8 },
		{ .title = "STARTED" },
		{ .title = "OUTCOME" },
		{ .title = "FROM", .min = 6 },
		{ .title = "TO", .min = 6 },
		{ .title = "TIER", .drop = 2 },
		{ .title = "BLACKOUT", .right = true },
		{ .title = "TOTAL", .right = true, .drop = 1 },
		{ .title = "WHY", .min = 24, .drop = 3 },
	};
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	for (size_t i = 0; i < history->n_reports; i++) {
		const Upgraded__V1__Report *report = history->reports[i];

		table_addf(&t, STYLE_PLAIN, "%" PRIu64, report->upgrade_id);
		table_add(&t, STYLE_BOLD, report->vm);
		table_add(&t, STYLE_PLAIN, text_time(number, report->started_at_us));
		table_add(&t, outcome_style(report->outcome), outcome_name(report->outcome));
		table_add(&t, STYLE_PLAIN, report->source_version);
		table_add(&t, STYLE_PLAIN, report->target_version);
		table_add(&t, STYLE_PLAIN, tier_name(report->tier));
		table_add(&t, STYLE_PLAIN, text_duration(number, report->blackout_us));
		table_add(&t, STYLE_PLAIN, text_duration(number, report->total_us));
		if (report->failed_phase)
			table_addf(&t, STYLE_PLAIN, "%s: %s", phase_name(report->failed_phase),
				   report->error);
		else
			table_add(&t, STYLE_PLAIN, report->error);
	}
	table_print(&t, stdout);
}

static void add_phase(struct table *t, const Upgraded__V1__Report *report, int phase)
{
	uint64_t took = 0;
	bool there = false;
	char number[TEXT_NUMBER];

	for (size_t i = 0; i < report->n_phases; i++) {
		if ((int)report->phases[i]->phase != phase)
			continue;
		took += report->phases[i]->duration_us;
		there = true;
	}
	table_add(t, (int)report->failed_phase == phase ? STYLE_BAD : STYLE_PLAIN,
		  there ? text_duration(number, took) : "");
}

static void print_phases(const struct cli *cli, const Upgraded__V1__History *history)
{
	static const struct column column[] = {
		{ .title = "ID", .right = true, .drop = 9 },
		{ .title = "VM", .min = 8 },
		{ .title = "OUTCOME", .drop = 8 },
		{ .title = "PREPARE", .right = true },
		{ .title = "CHECK", .right = true },
		{ .title = "FREEZE", .right = true },
		{ .title = "LOAD", .right = true },
		{ .title = "SWITCH", .right = true },
		{ .title = "RUN", .right = true },
		{ .title = "DONE", .right = true, .drop = 7 },
		{ .title = "ROLLBACK", .right = true, .drop = 10 },
	};
	_cleanup_table_ struct table t;

	table_init(&t, cli, column, ARRAY_SIZE(column));
	for (size_t i = 0; i < history->n_reports; i++) {
		const Upgraded__V1__Report *report = history->reports[i];

		table_addf(&t, STYLE_PLAIN, "%" PRIu64, report->upgrade_id);
		table_add(&t, STYLE_BOLD, report->vm);
		table_add(&t, outcome_style(report->outcome), outcome_name(report->outcome));
		for (int phase = UPGRADED__V1__PHASE__PHASE_PREPARE;
		     phase <= UPGRADED__V1__PHASE__PHASE_ROLLBACK; phase++)
			add_phase(&t, report, phase);
	}
	table_print(&t, stdout);
}

int verb_history(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__HistoryRequest history = UPGRADED__V1__HISTORY_REQUEST__INIT;
	struct args args = { .cli = cli, .limit = DEFAULT_LIMIT };
	_cleanup_envelope_ Envelope *answer = NULL;
	Envelope request = ENVELOPE_INIT;
	int r;

	options_parse(options, parse, "[VM]", doc, argc, argv, &args);
	if (args.name)
		history.name = args.name;
	history.limit = (uint32_t)args.limit;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_HISTORY;
	request.history = &history;
	r = ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_HISTORY_REPLY, ASK_TIMEOUT_MS, &answer);
	if (r != CLI_DONE)
		return r;
	if (cli->json)
		return print_json(&answer->history_reply->base);
	if (answer->history_reply->n_reports && args.phases)
		print_phases(cli, answer->history_reply);
	else if (answer->history_reply->n_reports)
		print_history(cli, answer->history_reply);
	else
		fprintf(stderr, "No upgrade has been made yet.\n");
	return CLI_DONE;
}
