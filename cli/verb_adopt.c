/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl adopt: tells the daemon of a QEMU that already runs. Nothing is
 * done to the VM but to ask it what it is.
 */
#include "ask.h"
#include "options.h"

#include <limits.h>

enum { OPTION_PID = 0x200, OPTION_QMP };

struct args {
	struct cli *cli;
	char *name;
	long pid;
	char *qmp;
};

static const char doc[] =
	"Take an already running QEMU under care, so that it can be upgraded. Without NAME it gets "
	"the one of QEMU's -name option.\v"
	"One of --pid and --qmp is enough: the other is found out. The monitor must not be in use "
	"by "
	"another program, unless it allows several connections.";

static const struct argp_option options[] = {
	{ "pid", OPTION_PID, "PID", 0, "The process", 0 },
	{ "qmp", OPTION_QMP, "PATH", 0, "The socket of its QMP monitor", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_PID:
		args->pid = options_number(arg, 1, INT_MAX, "--pid", state);
		return 0;
	case OPTION_QMP:
		if (!*arg)
			argp_error(state, "--qmp wants a path");
		free(args->qmp);
		args->qmp = options_absolute(arg);
		return 0;
	case ARGP_KEY_END:
		if (!args->pid && !args->qmp)
			argp_error(state, "which QEMU? --pid PID or --qmp PATH");
		return 0;
	default:
		return options_rest(args->cli, &args->name, key, arg, state);
	}
}

static int adopt(const struct args *args)
{
	Upgraded__V1__AdoptRequest adopt_request = UPGRADED__V1__ADOPT_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;

	if (args->name)
		adopt_request.name = args->name;
	if (args->qmp)
		adopt_request.qmp = args->qmp;
	adopt_request.pid = (int32_t)args->pid;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_ADOPT;
	request.adopt = &adopt_request;
	return ask_vm(args->cli, &request, ASK_SLOW_TIMEOUT_MS);
}

int verb_adopt(struct cli *cli, int argc, char **argv)
{
	struct args args = { .cli = cli };
	int r;

	options_parse(options, parse, "[NAME]", doc, argc, argv, &args);
	r = adopt(&args);
	free(args.qmp);
	return r;
}
