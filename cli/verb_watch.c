/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl watch: upgrades as they happen. Of every VM, on a terminal, a table that
 * is drawn in place; else one line for each event, and the report of each upgrade that
 * ends. Runs until it is interrupted or the daemon goes away; it changes nothing.
 */
#include "ask.h"
#include "options.h"
#include "progress.h"
#include "report.h"
#include "watch_view.h"

static const char doc[] = "Follow the upgrades of VM, or of every VM, as they happen.\v"
			  "Runs until Ctrl-C. Of every VM, on a terminal, it is a table with a "
			  "row for each; else a line for each event. With --json each event is one line, and so is the "
			  "report of each upgrade "
			  "that ends.";

static int print_event(const struct cli *cli, const Upgraded__V1__Event *event)
{
	int r;

	if (!cli->json) {
		progress_line(cli, event);
		if (event->report)
			report_print(cli, event->report);
		return CLI_DONE;
	}
	r = print_json_line(&event->base);
	if (r == CLI_DONE && event->report)
		r = print_json_line(&event->report->base);
	return r;
}

static int follow(struct client *c, const struct cli *cli, struct error *err)
{
	for (;;) {
		_cleanup_envelope_ Envelope *message = NULL;
		int r;

		/* Without a deadline: nothing may happen for months. */
		r = client_recv(c, -1, &message, err);
		if (r < 0)
			return fail(cli, c, err);
		if (message->body_case != UPGRADED__V1__ENVELOPE__BODY_EVENT)
			continue;
		r = print_event(cli, message->event);
		if (r != CLI_DONE)
			return r;
	}
}

static int follow_on_terminal(struct client *c, const struct cli *cli, struct error *err)
{
	_cleanup_watch_view_ struct watch_view view = { .cli = cli };

	puts("Waiting for upgrades; Ctrl-C ends it.");
	for (;;) {
		_cleanup_envelope_ Envelope *message = NULL;
		int r;

		r = client_recv(c, watch_view_is_busy(&view) ? PROGRESS_TICK_MS : -1, &message,
				err);
		if (r == -ETIMEDOUT)
			error_clear(err);
		else if (r < 0)
			return fail(cli, c, err);
		else if (message->body_case == UPGRADED__V1__ENVELOPE__BODY_EVENT &&
			 watch_view_event(&view, message->event) < 0)
			return CLI_FAILED;
		watch_view_draw(&view);
	}
}

int verb_watch(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__WatchRequest watch = UPGRADED__V1__WATCH_REQUEST__INIT;
	_cleanup_client_ struct client c = CLIENT_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct one_vm args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;
	int r;

	options_one_vm(&args, true, doc, argc, argv);
	if (args.name)
		watch.name = args.name;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_WATCH;
	request.watch = &watch;
	r = client_connect(&c, cli->socket, "upgradectl", &err);
	if (r >= 0)
		r = client_send(&c, &request, &err);
	if (r < 0)
		return fail(cli, &c, &err);
	return cli->terminal && !cli->json && !args.name ? follow_on_terminal(&c, cli, &err)
							 : follow(&c, cli, &err);
}
