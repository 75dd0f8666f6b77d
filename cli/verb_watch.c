/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl watch: events of upgrades as they happen, one line each, and the
 * report of each upgrade that ends. Runs until it is interrupted or the daemon
 * goes away; it changes nothing.
 */
#include "ask.h"
#include "options.h"
#include "progress.h"
#include "report.h"

static const char doc[] = "Follow the upgrades of VM, or of every VM, as they happen.\v"
			  "Runs until Ctrl-C. With --json each event is one line, and so is the "
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
	return follow(&c, cli, &err);
}
