/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl check: what an upgrade would do and what forbids it. Nothing is
 * changed; the daemon may start the target's binary to ask it what it can do.
 */
#include "ask.h"
#include "findings.h"
#include "options.h"
#include "text.h"

struct args {
	struct one_target vm;
	bool verbose;
};

static const char doc[] =
	"Say what an upgrade of VM would do and everything that forbids it, and change nothing.\v"
	"Blockers come first, then warnings, each with its remedy. The exit code is 0 if the "
	"upgrade "
	"would be tried and 3 if it would be refused.";

static const struct argp_option options[] = {
	OPTION_VMM_ROW,
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
	case 'v':
		args->verbose = true;
		return 0;
	default:
		return options_target(&args->vm, key, arg, state);
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
	const struct cli *cli = args->vm.cli;
	size_t blockers = findings_count(report->findings, report->n_findings,
					 UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER);
	size_t warnings = findings_count(report->findings, report->n_findings,
					 UPGRADED__V1__SEVERITY__SEVERITY_WARNING);

	print_text(cli, stdout, STYLE_BOLD, 0, args->vm.name);
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

	check_request.name = args->vm.name;
	if (args->vm.vmm)
		check_request.binary = args->vm.vmm;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_CHECK;
	request.check = &check_request;
	r = ask(args->vm.cli, &request, UPGRADED__V1__ENVELOPE__BODY_CHECK_REPORT,
		ASK_SLOW_TIMEOUT_MS, &answer);
	if (r != CLI_DONE)
		return r;
	report = answer->check_report;
	if (!args->vm.cli->json)
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
	struct args args = { .vm.cli = cli };
	int r;

	options_parse(options, parse, "VM", doc, argc, argv, &args);
	r = check(&args);
	free(args.vm.vmm);
	return r;
}
