/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl run: has the daemon start a VM as a unit of systemd, with what
 * upgrading needs. The VM is systemd's from then on, not this process's.
 */
#include "ask.h"
#include "options.h"

struct args {
	struct cli *cli;
	char *name;
	char **argv; /* of QEMU */
	size_t argc;
};

static const char doc[] =
	"Start a VM named NAME as vmm@NAME.service, so that it can be upgraded later: its memory "
	"is "
	"shared and upgraded has a monitor of its own.\v"
	"QEMU is a path, or a name that is looked up in $PATH. Example:\n\n"
	"  upgradectl run web1 -- qemu-system-x86_64 -accel kvm -m 2G -drive file=/srv/web1.qcow2";

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		if (!args->name) {
			if (!*arg)
				argp_error(state, "the name of a VM is not empty");
			args->name = arg;
			return 0;
		}
		args->argv = state->argv + state->next - 1;
		args->argc = (size_t)(state->argc - state->next + 1);
		state->next = state->argc;
		return 0;
	case ARGP_KEY_END:
		if (!args->name || !args->argc)
			argp_error(state, "a name, '--', and the command line of QEMU are needed");
		return 0;
	default:
		return options_rest(args->cli, NULL, key, arg, state);
	}
}

int verb_run(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__RunRequest run = UPGRADED__V1__RUN_REQUEST__INIT;
	_cleanup_free_ char *program = NULL;
	struct args args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;

	options_parse(NULL, parse, "NAME -- QEMU ARGS...", doc, argc, argv, &args);
	program = options_program(args.argv[0]);
	if (!program) {
		fprintf(stderr, "upgradectl run: there is no program '%s' in $PATH\n",
			args.argv[0]);
		return CLI_USAGE;
	}
	args.argv[0] = program;
	run.name = args.name;
	run.argv = args.argv;
	run.n_argv = args.argc;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_RUN;
	request.run = &run;
	return ask_vm(cli, &request, ASK_SLOW_TIMEOUT_MS);
}
