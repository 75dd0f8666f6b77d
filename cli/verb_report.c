/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl report: one past upgrade once more, as text, as JSON, or as a page to attach
 * to a ticket. Read-only; the page appears under its name when it is whole.
 */
#include "ask.h"
#include "file.h"
#include "options.h"
#include "report.h"
#include "report_html.h"

#include <inttypes.h>
#include <string.h>

struct args {
	struct cli *cli;
	char *which;
	const char *html, *work;
};

static const char doc[] =
	"Show the report of an upgrade: the last one of VM, or the one that history calls ID.\v"
	"--html writes a page that stands for itself: phases, blackout, versions, what was "
	"carried. "
	"FILE of --work has lines \"SECONDS DONE\", seconds since 1970 and a counter of what the "
	"guest got done by then; the page then shows the guest's work around the switch.";

enum { OPTION_HTML = 0x190, OPTION_WORK };

static const struct argp_option options[] = {
	{ "html", OPTION_HTML, "FILE", 0, "Write a page for a browser to FILE (-: print it)", 0 },
	{ "work", OPTION_WORK, "FILE", 0, "What the guest got done over time, for that page", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_HTML:
		args->html = arg;
		return 0;
	case OPTION_WORK:
		args->work = arg;
		return 0;
	case ARGP_KEY_END:
		if (!args->which)
			argp_error(state, "of which VM, or which upgrade?");
		if (args->work && !args->html)
			argp_error(state, "--work is for the page of --html");
		return 0;
	default:
		return options_rest(args->cli, &args->which, key, arg, state);
	}
}

static int get_history(const struct cli *cli, char *name, uint32_t limit, Envelope **ret)
{
	Upgraded__V1__HistoryRequest history = UPGRADED__V1__HISTORY_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;

	if (name)
		history.name = name;
	history.limit = limit;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_HISTORY;
	request.history = &history;
	return ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_HISTORY_REPLY, ASK_TIMEOUT_MS, ret);
}

/* A VM of that name comes first: names may look like numbers. */
static int find(const struct cli *cli, char *which, Envelope **ret_answer,
		const Upgraded__V1__Report **ret_report)
{
	uint64_t id;
	char *end;
	int r;

	r = get_history(cli, which, 1, ret_answer);
	if (r != CLI_DONE)
		return r;
	if ((*ret_answer)->history_reply->n_reports) {
		*ret_report = (*ret_answer)->history_reply->reports[0];
		return CLI_DONE;
	}
	envelope_freep(ret_answer);
	id = strtoull(which, &end, 10);
	if (*end || which[0] < '0' || which[0] > '9')
		return CLI_DONE;
	r = get_history(cli, NULL, 0, ret_answer);
	for (size_t i = 0; r == CLI_DONE && i < (*ret_answer)->history_reply->n_reports; i++)
		if ((*ret_answer)->history_reply->reports[i]->upgrade_id == id)
			*ret_report = (*ret_answer)->history_reply->reports[i];
	return r;
}

static int write_page(const char *path, const Upgraded__V1__Report *report,
		      const struct work_rate *work, struct error *err)
{
	_cleanup_(file_abandon) struct file file = FILE_INIT;
	int r;

	r = file_begin(&file, path, err);
	if (r < 0)
		return r;
	report_html(file.f, report, work);
	return file_finish(&file, err);
}

/* A file of ours that is not there is not a VM that is not there. */
static int fail_at_file(const struct cli *cli, const struct error *err)
{
	int r = fail(cli, NULL, err);

	return r == CLI_USAGE ? CLI_USAGE : CLI_FAILED;
}

int verb_report(struct cli *cli, int argc, char **argv)
{
	_cleanup_work_rate_ struct work_rate work = { 0 };
	const Upgraded__V1__Report *report = NULL;
	_cleanup_envelope_ Envelope *answer = NULL;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct args args = { .cli = cli };
	int r;

	options_parse(options, parse, "VM|ID", doc, argc, argv, &args);
	if (args.work && work_rate_read(args.work, &work, &err) < 0)
		return fail_at_file(cli, &err);
	r = find(cli, args.which, &answer, &report);
	if (r != CLI_DONE)
		return r;
	if (!report) {
		error_set(&err, -ENOENT, "there is no upgrade of %s in the history", args.which);
		error_hint(&err, "upgradectl history");
		return fail(cli, NULL, &err);
	}
	if (args.html) {
		r = write_page(args.html, report, &work, &err);
		return r < 0 ? fail_at_file(cli, &err) : CLI_DONE;
	}
	if (cli->json)
		return print_json(&report->base);
	report_print(cli, report);
	return CLI_DONE;
}
