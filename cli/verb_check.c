/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl check: what an upgrade would do and what forbids it. Nothing is
 * changed; the daemon may start the target's binary to ask it what it can do.
 */
#include "ask.h"
#include "findings.h"
#include "options.h"
#include "text.h"

enum { OPTION_VMM = 0x200 };

struct args {
	struct cli *cli;
	char *name;
	char *vmm;
	bool verbose;
};

static const char doc[] =
	"Say what an upgrade of VM would do and everything that forbids it, and change nothing.\v"
	"Blockers come first, then warnings, each with its remedy. The exit code is 0 if the "
	"upgrade "
	"would be tried and 3 if it would be refused.";

static const struct argp_option options[] = {
	{ "vmm", OPTION_VMM, "PATH", 0,
	  "Binary of the new VMM (default: the path that the VM runs from)", 0 },
	{ "verbose", 'v', NULL, 0,
	  "Also how each option and device is carried, and the new "
	  "command line",
	  0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = args->cli;
		return 0;
	case OPTION_VMM:
		free(args->vmm);
		args->vmm = options_program(arg);
		if (!args->vmm)
			argp_error(state, "there is no program '%s' in $PATH", arg);
		return 0;
	case 'v':
		args->verbose = true;
		return 0;
	case ARGP_KEY_ARG:
		options_take_vm(&args->name, arg, state);
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which VM?");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void print_argv(const struct cli *cli, const Upgraded__V1__CheckReport *report)
{
	puts("The command line of the new VMM:");
	for (size_t i = 0; i < report->n_argv; i++) {
		/* An option and its value on one line. */
		bool option = report->argv[i][0] == '-';
		bool value = i && !option && report->argv[i - 1][0] == '-' && i > 1;

		if (i && !value)
			putchar('\n');
		fputs(value ? " " : i ? "    " : "  ", stdout);
		print_text(cli, stdout, STYLE_PLAIN, 0, report->argv[i]);
	}
	putchar('\n');
}

static int print_check(const struct args *args, const Upgraded__V1__CheckReport *report)
{
	const struct cli *cli = args->cli;
	size_t blockers = findings_count(report->findings, report->n_findings,
					 UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER);
	size_t warnings = findings_count(report->findings, report->n_findings,
					 UPGRADED__V1__SEVERITY__SEVERITY_WARNING);

	print_text(cli, stdout, STYLE_BOLD, 0, args->name);
	fputs(": ", stdout);
	print_text(cli, stdout, STYLE_PLAIN, 0,
		   report->vm && report->vm->version[0] ? report->vm->version : "unknown");
	fputs(" -> ", stdout);
	print_text(cli, stdout, STYLE_PLAIN, 0,
		   report->target_version[0] ? report->target_version : "unknown");
	printf(", tier %s\n", tier_name(report->tier));
	fputs("  to  ", stdout);
	print_text(cli, stdout, STYLE_PLAIN, 0,
		   report->target_binary[0] ? report->target_binary : "unknown");
	putchar('\n');

	findings_print(cli, stdout, report->findings, report->n_findings, args->verbose);
	if (args->verbose && report->n_argv)
		print_argv(cli, report);

	if (blockers) {
		char verdict[80];

		snprintf(verdict, sizeof(verdict), "%zu blocker%s: the upgrade would be refused",
			 blockers, blockers == 1 ? "" : "s");
		print_text(cli, stdout, STYLE_BAD, 0, verdict);
		putchar('\n');
		return CLI_REFUSED;
	}
	print_text(cli, stdout, STYLE_GOOD, 0, "ready to upgrade");
	if (warnings)
		printf(" (%zu warning%s)", warnings, warnings == 1 ? "" : "s");
	putchar('\n');
	return CLI_DONE;
}

static int check(const struct args *args)
{
	Upgraded__V1__CheckRequest check_request = UPGRADED__V1__CHECK_REQUEST__INIT;
	_cleanup_envelope_ Envelope *answer = NULL;
	Envelope request = ENVELOPE_INIT;
	const Upgraded__V1__CheckReport *report;
	int r;

	check_request.name = args->name;
	if (args->vmm)
		check_request.binary = args->vmm;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_CHECK;
	request.check = &check_request;
	r = ask(args->cli, &request, UPGRADED__V1__ENVELOPE__BODY_CHECK_REPORT, ASK_SLOW_TIMEOUT_MS,
		&answer);
	if (r != CLI_DONE)
		return r;
	report = answer->check_report;
	if (!args->cli->json)
		return print_check(args, report);
	r = print_json(&report->base);
	if (r != CLI_DONE)
		return r;
	return findings_count(report->findings, report->n_findings,
			      UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER)
		       ? CLI_REFUSED
		       : CLI_DONE;
}

int verb_check(struct cli *cli, int argc, char **argv)
{
	static const struct argp argp = { .options = options,
					  .parser = parse,
					  .args_doc = "VM",
					  .doc = doc,
					  .children = cli_options };
	struct args args = { .cli = cli };
	int r;

	argp_parse(&argp, argc, argv, 0, NULL, &args);
	r = check(&args);
	free(args.vmm);
	return r;
}
