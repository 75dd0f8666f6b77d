/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl: the operator's command. It finds the verb in a table, and the
 * verb (one verb_*.c each) asks the daemon one thing over control.sock and
 * prints the answer. Nothing is decided here and no state is kept: if this
 * process dies, the daemon and an upgrade under way go on.
 */
#include "cli.h"

#include "options.h"
#include "version.h"

#include <langinfo.h>
#include <locale.h>
#include <string.h>
#include <sys/ioctl.h>

const char *argp_program_version = "upgradectl " UPGRADED_VERSION;

static const struct verb verbs[] = {
	{ "run", "NAME -- QEMU ARGS...", "start a VM that can be upgraded later", verb_run },
	{ "adopt", "[NAME] --pid PID|--qmp PATH", "take a running QEMU under care", verb_adopt },
	{ "list", "", "list the VMs that are known", verb_list },
	{ "show", "VM", "show one VM", verb_show },
	{ "check", "VM [--vmm PATH]", "say what forbids an upgrade, if anything", verb_check },
	{ "upgrade", "VM... [--vmm PATH]", "replace the VMM under the running guest", verb_upgrade },
	{ "abort", "VM", "undo the upgrade under way", verb_abort },
	{ "watch", "[VM]", "follow upgrades as they happen", verb_watch },
	{ "history", "[VM]", "list past upgrades", verb_history },
	{ "report", "VM|ID [--html FILE]", "show one past upgrade", verb_report },
	{ "metrics", "[--output FILE]", "print counters for Prometheus", verb_metrics },
	{ "config", "", "show each setting, and where it is set", verb_config },
	{ "forget", "VM", "drop a VM from the list, not its process", verb_forget },
};

static const char exit_codes[] =
	"Exit codes:\n"
	"  0  done\n"
	"  1  failed, for a reason not listed here\n"
	"  2  wrong usage\n"
	"  3  refused by blockers, nothing was touched; or an abort came too late\n"
	"  4  rolled back; the guest runs on in the old VMM\n"
	"  5  no such VM\n"
	"  6  the daemon is not there (systemctl start upgraded.socket)\n"
	"  7  not permitted\n"
	"  8  the guest was lost\n"
	"  9  of several VMs only some were upgraded\n"
	"  10  of several VMs none was\n"
	"  130  left by a second Ctrl-C while an upgrade went on\n"
	"\n"
	"'upgradectl VERB --help' explains a verb, upgradectl(1) all of them.";

/* The table of verbs goes where argp puts the text before the options. */
static char *help_filter(int key, const char *text, void *input)
{
	char *help = NULL;
	size_t size = 0;
	FILE *f;

	if (key != ARGP_KEY_HELP_PRE_DOC)
		return (char *)text;
	f = open_memstream(&help, &size);
	if (!f)
		return (char *)text;
	fprintf(f, "%s\n\nVerbs:", text);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		char usage[64];

		snprintf(usage, sizeof(usage), "%s %s", verbs[i].name, verbs[i].args);
		fprintf(f, "\n  %-35s%s", usage, verbs[i].summary);
	}
	fclose(f);
	return help;
}

struct invocation {
	struct cli *cli;
	int verb; /* its index in argv, 0 if there is none */
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct invocation *in = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = in->cli;
		return 0;
	case ARGP_KEY_ARG:
		in->verb = state->next - 1;
		state->next = state->argc; /* the rest is the verb's */
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_usage(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void look_at_terminal(struct cli *cli)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
	const char *columns = getenv("COLUMNS");
	struct winsize size;

	cli->terminal = isatty(STDOUT_FILENO);
	cli->color = cli->terminal && !cli->no_color && !(no_color && *no_color) &&
		     !(term && !strcmp(term, "dumb"));
	if (columns && atoi(columns) > 0)
		cli->width = (size_t)atoi(columns);
	else if (cli->terminal)
		cli->width =
			!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
	if (!cli->width)
		return;
	if (cli->width < 80)
		cli->width = 80;
	if (cli->width > 200)
		cli->width = 200;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.parser = parse,
		.args_doc = "VERB [ARGUMENTS...]",
		.doc = "Replace the VMM under a running guest, without copying its memory.\v",
		.children = cli_options,
		.help_filter = help_filter,
	};
	struct argp with_codes = argp;
	_cleanup_free_ char *doc = NULL, *name = NULL;
	struct cli cli = { .socket = CLIENT_CONTROL_SOCKET };
	struct invocation in = { .cli = &cli };
	const char *verb;
	int r;

	setlocale(LC_CTYPE, "");
	argp_err_exit_status = CLI_USAGE;
	if (getenv("UPGRADED_SOCKET") && *getenv("UPGRADED_SOCKET"))
		cli.socket = getenv("UPGRADED_SOCKET");
	if (asprintf(&doc, "%s%s", argp.doc, exit_codes) < 0)
		doc = NULL;
	with_codes.doc = doc ?: argp.doc;
	r = argp_parse(&with_codes, argc, argv, ARGP_IN_ORDER, NULL, &in);
	if (r)
		return CLI_USAGE;

	verb = argv[in.verb];
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strcmp(verbs[i].name, verb))
			continue;
		/* argp takes the name that it prints in messages from argv[0]. */
		if (asprintf(&name, "upgradectl %s", verb) < 0)
			return CLI_FAILED;
		argv[in.verb] = name;
		look_at_terminal(&cli);
		r = verbs[i].run(&cli, argc - in.verb, argv + in.verb);
		if (fflush(stdout) || ferror(stdout)) {
			fprintf(stderr, "upgradectl: cannot write the output: %m\n");
			return r ?: CLI_FAILED;
		}
		return r;
	}
	fprintf(stderr, "upgradectl: there is no verb '%s'\n  try: upgradectl --help\n", verb);
	return CLI_USAGE;
}
