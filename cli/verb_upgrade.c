/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl upgrade: starts an upgrade and stays with it to its end. The
 * upgrade belongs to the daemon: if this process dies, or its connection, it
 * goes on, and `watch` and `history` tell the rest.
 *
 * SIGINT and SIGTERM are read from a signalfd between messages: the first asks
 * the daemon, over a connection of its own, to roll back, the second leaves.
 */
#include "ask.h"
#include "options.h"
#include "progress.h"
#include "report.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>

#define ABORT_TIMEOUT_MS 5000
/* The daemon takes a request or refuses it before it does anything slow. */
#define START_TIMEOUT_S (ASK_SLOW_TIMEOUT_MS / 1000)

enum { OPTION_BLACKOUT = 0x200, OPTION_TIMEOUT, OPTION_NO_WAIT, OPTION_NO_STAGE2 };

struct args {
	struct one_target vm;
	uint64_t blackout_us;
	uint64_t timeout_us;
	bool no_wait;
	bool no_stage2;
};

static const char doc[] =
	"Replace the VMM of VM under the running guest, without copying its memory.\v"
	"If anything fails before the new VMM runs the guest, the old one goes on with it: exit "
	"code 4. The first Ctrl-C asks for that; a second one leaves the upgrade to the daemon.";

static const struct argp_option options[] = {
	OPTION_VMM_ROW,
	{ "max-blackout", OPTION_BLACKOUT, "MS", 0,
	  "Roll back rather than let the guest stand still for longer", 0 },
	{ "timeout", OPTION_TIMEOUT, "S", 0, "Roll back if a phase takes longer", 0 },
	{ "no-wait", OPTION_NO_WAIT, NULL, 0, "Return as soon as the upgrade is under way", 0 },
	{ "no-stage2", OPTION_NO_STAGE2, NULL, 0,
	  "Leave the guest's page tables behind, tier gmem at most", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_BLACKOUT:
		args->blackout_us = options_time(arg, 1e3, "--max-blackout", state);
		return 0;
	case OPTION_TIMEOUT:
		args->timeout_us = options_time(arg, 1e6, "--timeout", state);
		return 0;
	case OPTION_NO_WAIT:
		args->no_wait = true;
		return 0;
	case OPTION_NO_STAGE2:
		args->no_stage2 = true;
		return 0;
	default:
		return options_target(&args->vm, key, arg, state);
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

static time_t now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* Blocks SIGINT and SIGTERM and returns an fd that reads them. */
static int open_signals(struct error *err)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return error_errno(err, -errno, "cannot block signals");
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "cannot make a signalfd");
	return fd;
}

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
	abort_request.name = u->args->vm.name;
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
	print_text(u->cli, stderr, STYLE_PLAIN, 0, u->args->vm.name);
	fputs(" goes on\n  try: upgradectl watch ", stderr);
	print_text(u->cli, stderr, STYLE_PLAIN, 0, u->args->vm.name);
	fputc('\n', stderr);
	return CLI_DETACHED;
}

/* The daemon went away, or said what it may not say, while the upgrade ran. */
static int lost_daemon(struct upgrade *u, struct error *cause)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	error_set(&err, cause->code,
		  "%s while the upgrade of %s was under way; its outcome is not known here",
		  cause->text ?: "the connection broke", u->args->vm.name);
	error_hint(&err, "upgradectl history %s", u->args->vm.name);
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
	print_text(u->cli, stdout, STYLE_BOLD, 0, u->args->vm.name);
	fputs(" is under way\n  follow it with: upgradectl watch ", stdout);
	print_text(u->cli, stdout, STYLE_PLAIN, 0, u->args->vm.name);
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
	struct signalfd_siginfo info;

	if (poll(p, ARRAY_SIZE(p), timeout_ms) < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	/* Messages first: an outcome that is there already counts. */
	if (p[0].revents)
		return 0;
	if (p[1].revents && read(u->signals, &info, sizeof(info)) == (ssize_t)sizeof(info))
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
			if (u->id || now_s() < u->start_by)
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
	Upgraded__V1__UpgradeRequest upgrade = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;
	int r;

	upgrade.name = u->args->vm.name;
	if (u->args->vm.vmm)
		upgrade.binary = u->args->vm.vmm;
	upgrade.max_blackout_us = u->args->blackout_us;
	upgrade.phase_timeout_us = u->args->timeout_us;
	upgrade.no_stage2 = u->args->no_stage2;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_UPGRADE;
	request.upgrade = &upgrade;
	r = client_connect(&u->client, u->cli->socket, "upgradectl", err);
	if (r < 0)
		return r;
	u->signals = open_signals(err);
	if (u->signals < 0)
		return u->signals;
	u->start_by = now_s() + START_TIMEOUT_S;
	return client_send(&u->client, &request, err);
}

int verb_upgrade(struct cli *cli, int argc, char **argv)
{
	static const struct argp argp = { .options = options,
					  .parser = parse,
					  .args_doc = "VM",
					  .doc = doc,
					  .children = cli_options };
	_cleanup_error_ struct error err = ERROR_INIT;
	struct args args = { .vm.cli = cli };
	struct upgrade u = {
		.args = &args,
		.cli = cli,
		.client = CLIENT_INIT,
		.progress = { .cli = cli },
		.signals = -EBADF,
	};
	int r;

	argp_parse(&argp, argc, argv, 0, NULL, &args);
	r = start(&u, &err) < 0 ? fail(cli, &u.client, &err) : follow(&u);
	progress_free(&u.progress);
	client_close(&u.client);
	closep(&u.signals);
	free(args.vm.vmm);
	return r;
}
