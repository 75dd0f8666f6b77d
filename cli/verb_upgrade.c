/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl upgrade: starts an upgrade and stays with it to its end; several VMs are
 * fleet.c's. The upgrade belongs to the daemon: if this process dies, or its connection,
 * it goes on, and `watch` and `history` tell the rest.
 *
 * SIGINT and SIGTERM are read from a signalfd between messages: the first asks
 * the daemon, over a connection of its own, to roll back, the second leaves.
 */
#include "ask.h"
#include "fleet.h"
#include "options.h"
#include "progress.h"
#include "report.h"
#include "upgrade_request.h"

#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#define ABORT_TIMEOUT_MS 5000
#define AT_ONCE_MAX	 1000

enum {
	OPTION_BLACKOUT = 0x200,
	OPTION_TIMEOUT,
	OPTION_NO_WAIT,
	OPTION_NO_STAGE2,
	OPTION_SET_EMULATOR,
	OPTION_ALL,
	OPTION_OUTDATED,
	OPTION_AGAIN,
	OPTION_DRY_RUN,
	OPTION_AT_ONCE,
	OPTION_CANARY,
	OPTION_STOP_AFTER,
	OPTION_WINDOW,
};

struct args {
	struct cli *cli;
	struct upgrade_how how;
	struct fleet_options fleet;
	bool is_fleet;
	bool no_wait;
};

static const char doc[] =
	"Replace the VMM of VM under the running guest, without copying its memory.\v"
	"If anything fails before the new VMM runs the guest, the old one goes on with it: exit "
	"code 4. The first Ctrl-C asks for that; a second one leaves the upgrade to the daemon.\n"
	"\n"
	"VM may be several names, or patterns as of a shell (in quotes). VMs that run the target's "
	"binary already are left alone then, so after an interruption the same command goes on "
	"with what is left. Exit code, also of one VM with an option that is for several: 0: all "
	"were upgraded, or there was nothing to upgrade, 9: some, 10: none, 8: a guest was lost; "
	"with --dry-run the same of those that can be upgraded.";

static const struct argp_option options[] = {
	OPTION_VMM_ROW,
	{ "max-blackout", OPTION_BLACKOUT, "MS", 0,
	  "Roll back rather than let the guest stand still for longer", 0 },
	{ "timeout", OPTION_TIMEOUT, "S", 0,
	  "Roll back if a phase in which the guest still runs takes longer", 0 },
	{ "no-wait", OPTION_NO_WAIT, NULL, 0,
	  "Return when the daemon has taken the request; one VM only", 0 },
	{ "no-stage2", OPTION_NO_STAGE2, NULL, 0,
	  "Leave the guest's page tables behind, tier gmem at most", 0 },
	{ "set-emulator", OPTION_SET_EMULATOR, NULL, 0,
	  "Have libvirt start the domain with this binary the next time, too", 0 },
	{ NULL, 0, NULL, 0, "Several VMs:", 1 },
	{ "all", OPTION_ALL, NULL, 0, "Every VM that runs", 0 },
	{ "all-outdated", OPTION_OUTDATED, NULL, 0,
	  "Every VM whose binary was replaced or removed on disk", 0 },
	{ "max-parallel", OPTION_AT_ONCE, "N", 0, "So many at once (default: 1)", 0 },
	{ "canary", OPTION_CANARY, "N", 0,
	  "N of them first; the others only if all of these were upgraded", 0 },
	{ "stop-after", OPTION_STOP_AFTER, "N", 0,
	  "Begin no more after N have failed (default: only after a guest was lost)", 0 },
	{ "window", OPTION_WINDOW, "HH:MM-HH:MM", 0,
	  "Begin only within these hours: waits for them, and stops when they are over", 0 },
	{ "again", OPTION_AGAIN, NULL, 0, "Also VMs that run the target's binary already", 0 },
	{ "dry-run", OPTION_DRY_RUN, NULL, 0, "Only check each of them, and change nothing", 0 },
	{ 0 },
};

static void take_name(struct args *args, char *name, struct argp_state *state)
{
	struct fleet_options *f = &args->fleet;

	if (!*name)
		argp_error(state, "the name of a VM is not empty");
	f->patterns[f->n_patterns++] = name;
	if (f->n_patterns > 1 || name[strcspn(name, "*?[")])
		args->is_fleet = true;
}

static void check_args(const struct args *args, struct argp_state *state)
{
	const struct fleet_options *f = &args->fleet;

	if (!f->n_patterns && !f->all && !f->outdated)
		argp_error(state, "which VM?");
	if (f->all && f->n_patterns)
		argp_error(state, "--all is every VM, not also '%s'", f->patterns[0]);
	if (args->is_fleet && args->no_wait)
		argp_error(state, "--no-wait is for one VM: somebody has to count the others");
}

static error_t parse_fleet(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;
	struct fleet_options *f = &args->fleet;

	switch (key) {
	case OPTION_ALL:
		f->all = true;
		break;
	case OPTION_OUTDATED:
		f->outdated = true;
		break;
	case OPTION_AGAIN:
		f->again = true;
		break;
	case OPTION_DRY_RUN:
		f->dry_run = true;
		break;
	case OPTION_AT_ONCE:
		f->at_once = (size_t)options_number(arg, 1, AT_ONCE_MAX, "--max-parallel", state);
		break;
	case OPTION_CANARY:
		f->canary = (size_t)options_number(arg, 1, INT_MAX, "--canary", state);
		break;
	case OPTION_STOP_AFTER:
		f->stop_after = (size_t)options_number(arg, 1, INT_MAX, "--stop-after", state);
		break;
	case OPTION_WINDOW:
		if (window_parse(arg, &f->window) < 0)
			argp_error(state, "--window wants hours as 22:00-06:00, not '%s'", arg);
		break;
	default:
		return options_rest(args->cli, NULL, key, arg, state);
	}
	args->is_fleet = true;
	return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_VMM:
		options_take_vmm(&args->how.vmm, arg, state);
		return 0;
	case OPTION_BLACKOUT:
		args->how.blackout_us = options_time(arg, 1e3, "--max-blackout", state);
		return 0;
	case OPTION_TIMEOUT:
		args->how.timeout_us = options_time(arg, 1e6, "--timeout", state);
		return 0;
	case OPTION_NO_WAIT:
		args->no_wait = true;
		return 0;
	case OPTION_NO_STAGE2:
		args->how.no_stage2 = true;
		return 0;
	case OPTION_SET_EMULATOR:
		args->how.set_emulator = true;
		return 0;
	case ARGP_KEY_ARG:
		take_name(args, arg, state);
		return 0;
	case ARGP_KEY_END:
		check_args(args, state);
		return 0;
	default:
		return parse_fleet(key, arg, state);
	}
}

/* What one run of the verb holds. */
struct upgrade {
	const struct args *args;
	const struct cli *cli;
	struct client client;
	struct progress progress;
	uint64_t id;	 /* 0 until the daemon said that it is under way */
	time_t start_by; /* CLOCK_MONOTONIC: when it must have said so */
	int signals;
	bool abort_asked;
};

static void ask_to_abort(struct upgrade *u)
{
	Upgraded__V1__AbortRequest abort_request = UPGRADED__V1__ABORT_REQUEST__INIT;
	_cleanup_client_ struct client second = CLIENT_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_envelope_ Envelope *answer = NULL;
	Envelope request = ENVELOPE_INIT;
	int r;

	progress_end(&u->progress);
	fprintf(stderr, "Asking the daemon to roll back; Ctrl-C again leaves the upgrade to it.\n");
	abort_request.name = u->args->fleet.patterns[0];
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_ABORT;
	request.abort = &abort_request;
	r = client_connect(&second, u->cli->socket, "upgradectl", &err);
	if (r >= 0)
		r = client_call(&second, &request, UPGRADED__V1__ENVELOPE__BODY_ACK,
				ABORT_TIMEOUT_MS, &answer, &err);
	if (r < 0) {
		fputs("upgradectl: the daemon did not: ", stderr);
		print_text(u->cli, stderr, STYLE_PLAIN, 0, err.text ?: "unknown reason");
		fputs("\n  still waiting for the outcome\n", stderr);
	}
}

static int detach(struct upgrade *u)
{
	progress_end(&u->progress);
	fputs("upgradectl: left; the upgrade of ", stderr);
	print_text(u->cli, stderr, STYLE_PLAIN, 0, u->args->fleet.patterns[0]);
	fputs(" goes on\n  try: upgradectl watch ", stderr);
	print_text(u->cli, stderr, STYLE_PLAIN, 0, u->args->fleet.patterns[0]);
	fputc('\n', stderr);
	return CLI_DETACHED;
}

/* The daemon went away, or said what it may not say, while the upgrade ran. */
static int lost_daemon(struct upgrade *u, struct error *cause)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	error_set(&err, cause->code,
		  "%s while the upgrade of %s was under way; its outcome is not known here",
		  cause->text ?: "the connection broke", u->args->fleet.patterns[0]);
	error_hint(&err, "upgradectl history %s", u->args->fleet.patterns[0]);
	return fail(u->cli, NULL, &err);
}

static int finish(struct upgrade *u, const Upgraded__V1__Report *report)
{
	int r;

	progress_end(&u->progress);
	if (!u->cli->json) {
		report_print(u->cli, report);
		return report_exit_code(report);
	}
	r = print_json_line(&report->base);
	return r != CLI_DONE ? r : report_exit_code(report);
}

static int started(struct upgrade *u, const Upgraded__V1__UpgradeStarted *message, bool *ret_end)
{
	u->id = message->upgrade_id;
	*ret_end = u->args->no_wait;
	if (!u->args->no_wait)
		return CLI_DONE;
	if (u->cli->json)
		return print_json_line(&message->base);
	printf("upgrade %" PRIu64 " of ", u->id);
	print_text(u->cli, stdout, STYLE_BOLD, 0, u->args->fleet.patterns[0]);
	fputs(" is under way\n  follow it with: upgradectl watch ", stdout);
	print_text(u->cli, stdout, STYLE_PLAIN, 0, u->args->fleet.patterns[0]);
	putchar('\n');
	return CLI_DONE;
}

/* Handles one message. *ret_end: this was the last, the result is the exit code. */
static int handle(struct upgrade *u, const Envelope *message, bool *ret_end)
{
	int r = CLI_DONE;

	*ret_end = false;
	switch ((int)message->body_case) {
	case UPGRADED__V1__ENVELOPE__BODY_UPGRADE_STARTED:
		return started(u, message->upgrade_started, ret_end);
	case UPGRADED__V1__ENVELOPE__BODY_EVENT:
		if (u->id && message->event->upgrade_id != u->id)
			return CLI_DONE;
		if (u->cli->json)
			r = print_json_line(&message->event->base);
		else
			progress_event(&u->progress, message->event);
		if (r == CLI_DONE && message->event->report) {
			*ret_end = true;
			return finish(u, message->event->report);
		}
		*ret_end = r != CLI_DONE;
		return r;
	case UPGRADED__V1__ENVELOPE__BODY_REPORT:
		*ret_end = true;
		return finish(u, message->report);
	default: {
		_cleanup_error_ struct error err = ERROR_INIT;

		*ret_end = true;
		error_set(&err, -EPROTO, "the daemon sent \"%s\"", envelope_name(message));
		progress_end(&u->progress);
		return lost_daemon(u, &err);
	}
	}
}

/* Waits for a message (0), a signal (-EINTR), or the time to redraw (-EAGAIN). */
static int wait_for_message(struct upgrade *u, int timeout_ms)
{
	struct pollfd p[] = {
		{ .fd = u->client.sock, .events = POLLIN },
		{ .fd = u->signals, .events = POLLIN },
	};

	if (poll(p, ARRAY_SIZE(p), timeout_ms) < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	/* Messages first: an outcome that is there already counts. */
	if (p[0].revents)
		return 0;
	if (p[1].revents && upgrade_signalled(u->signals))
		return -EINTR;
	return -EAGAIN;
}

/* Until the daemon ends it: once it is under way, the deadlines are the daemon's. */
static int follow(struct upgrade *u)
{
	for (;;) {
		int tick = u->cli->terminal && !u->cli->json ? PROGRESS_TICK_MS : 1000;
		_cleanup_envelope_ Envelope *message = NULL;
		_cleanup_error_ struct error err = ERROR_INIT;
		bool end;
		int r;

		r = wait_for_message(u, tick);
		if (r == -EAGAIN) {
			progress_tick(&u->progress);
			if (u->id || upgrade_now_s() < u->start_by)
				continue;
			error_set(&err, -ETIMEDOUT, "the daemon does not answer");
			return lost_daemon(u, &err);
		}
		if (r == -EINTR) {
			if (u->abort_asked)
				return detach(u);
			u->abort_asked = true;
			ask_to_abort(u);
			continue;
		}
		if (r >= 0)
			r = client_recv(&u->client, 0, &message, &err);
		if (r < 0) {
			progress_end(&u->progress);
			/* A typed error is the daemon's answer; anything else its absence. */
			return u->client.error ? fail(u->cli, &u->client, &err)
					       : lost_daemon(u, &err);
		}
		r = handle(u, message, &end);
		if (end)
			return r;
	}
}

static int start(struct upgrade *u, struct error *err)
{
	u->signals = upgrade_signals(err);
	if (u->signals < 0)
		return u->signals;
	u->start_by = upgrade_now_s() + UPGRADE_START_TIMEOUT_S;
	return upgrade_request(&u->client, u->cli, u->args->fleet.patterns[0], &u->args->how, err);
}

static int upgrade_one(const struct args *args)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct upgrade u = {
		.args = args,
		.cli = args->cli,
		.client = CLIENT_INIT,
		.progress = { .cli = args->cli },
		.signals = -EBADF,
	};
	int r;

	r = start(&u, &err) < 0 ? fail(u.cli, &u.client, &err) : follow(&u);
	progress_free(&u.progress);
	client_close(&u.client);
	closep(&u.signals);
	return r;
}

int verb_upgrade(struct cli *cli, int argc, char **argv)
{
	struct args args = { .cli = cli, .fleet.at_once = 1 };
	int r;

	args.fleet.patterns = calloc((size_t)argc, sizeof(char *));
	if (!args.fleet.patterns)
		return CLI_FAILED;
	options_parse(options, parse, "VM...\n--all\n--all-outdated [VM...]", doc, argc, argv,
		      &args);
	r = args.is_fleet ? fleet_run(cli, &args.fleet, &args.how) : upgrade_one(&args);
	free(args.fleet.patterns);
	free(args.how.vmm);
	return r;
}
