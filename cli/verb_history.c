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
};

static const char doc[] =
	"List past upgrades of VM, or of every VM, the newest first.\v"
	"Columns for which the terminal has no room are left out; --json has the whole reports, "
	"with the time of each phase.";

static const struct argp_option options[] = {
	{ "limit", 'n', "N", 0, "The last N upgrades (default: 20; 0: all)", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = args->cli;
		return 0;
	case 'n':
		args->limit = options_number(arg, 0, 1000000, "--limit", state);
		return 0;
	case ARGP_KEY_ARG:
		options_take_vm(&args->name, arg, state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
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

int verb_history(struct cli *cli, int argc, char **argv)
{
	static const struct argp argp = { .options = options,
					  .parser = parse,
					  .args_doc = "[VM]",
					  .doc = doc,
					  .children = cli_options };
	Upgraded__V1__HistoryRequest history = UPGRADED__V1__HISTORY_REQUEST__INIT;
	struct args args = { .cli = cli, .limit = DEFAULT_LIMIT };
	_cleanup_envelope_ Envelope *answer = NULL;
	Envelope request = ENVELOPE_INIT;
	int r;

	argp_parse(&argp, argc, argv, 0, NULL, &args);
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
	if (answer->history_reply->n_reports)
		print_history(cli, answer->history_reply);
	else
		fprintf(stderr, "No upgrade has been made yet.\n");
	return CLI_DONE;
}
