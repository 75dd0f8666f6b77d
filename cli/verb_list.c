/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl list: every VM that the daemon knows, one row each. Read-only.
 */
#include "ask.h"
#include "options.h"
#include "table.h"
#include "text.h"
#include "vm.h"

struct args {
	struct cli *cli;
	bool outdated;
};

static const char doc[] =
	"List the VMs that are known.\v"
	"STATE is \"running\", \"outdated\" (its binary was replaced on disk: upgrade it), the "
	"phase "
	"of the upgrade under way, or \"gone\". TIER is the memory tier that an upgrade would use. "
	"Columns for which the terminal has no room are left out; --json has them all.";

static const struct argp_option options[] = {
	{ "outdated", 'o', NULL, 0,
	  "Only those whose binary was replaced or removed on disk since they were started", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case 'o':
		args->outdated = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "list takes no name; see 'upgradectl show %s'", arg);
		return 0;
	default:
		return options_rest(args->cli, NULL, key, arg, state);
	}
}

static void print_list(const struct cli *cli, const Upgraded__V1__VmList *list)
{
	static const struct column column[] = {
		{ .title = "VM", .min = 20 },
		{ .title = "STATE" },
		{ .title = "VERSION", .min = 8 },
		{ .title = "TIER" },
		{ .title = "MEMORY", .right = true, .drop = 2 },
		{ .title = "UPGRADES", .right = true, .drop = 3 },
		{ .title = "PID", .right = true, .drop = 1 },
		{ .title = "MACHINE", .min = 12, .drop = 4 },
		{ .title = "MANAGER", .drop = 5 },
		{ .title = "BINARY", .min = 24 },
	};
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	for (size_t i = 0; i < list->n_vms; i++) {
		const Upgraded__V1__Vm *vm = list->vms[i];

		table_add(&t, STYLE_BOLD, vm->name);
		table_add(&t, vm_style(vm), vm_state(vm));
		table_add(&t, STYLE_PLAIN, vm->version);
		table_add(&t, STYLE_PLAIN, tier_name(vm->tier));
		table_add(&t, STYLE_PLAIN, vm->memory ? text_bytes(number, vm->memory) : "");
		table_addf(&t, STYLE_PLAIN, "%u", vm->generation);
		if (vm->process && vm->process->pid)
			table_addf(&t, STYLE_PLAIN, "%d", vm->process->pid);
		else
			table_add(&t, STYLE_PLAIN, "");
		table_add(&t, STYLE_PLAIN, vm->machine);
		table_add(&t, STYLE_PLAIN, vm->manager);
		table_add(&t, STYLE_PLAIN, vm->binary);
	}
	table_print(&t, stdout);
}

/* Makes it a list of these alone; the others are behind its end. */
static void outdated_first(Upgraded__V1__VmList *list)
{
	size_t n = 0;

	for (size_t i = 0; i < list->n_vms; i++) {
		Upgraded__V1__Vm *vm = list->vms[i];

		if (!vm->outdated)
			continue;
		list->vms[i] = list->vms[n];
		list->vms[n++] = vm;
	}
	list->n_vms = n;
}

static int print(const struct cli *cli, const Upgraded__V1__VmList *list, size_t known)
{
	if (cli->json)
		return print_json(&list->base);
	if (list->n_vms)
		print_list(cli, list);
	else if (known)
		fprintf(stderr, "No VM is outdated: each runs the binary that is on disk.\n");
	else
		fprintf(stderr,
			"No VM is known yet.\n"
			"  try: upgradectl adopt --pid PID, or upgradectl run NAME -- QEMU ARGS\n");
	return CLI_DONE;
}

int verb_list(struct cli *cli, int argc, char **argv)
{
	struct args args = { .cli = cli };
	_cleanup_envelope_ Envelope *answer = NULL;
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	Upgraded__V1__VmList *known;
	Envelope request = ENVELOPE_INIT;
	size_t all;
	int r;

	options_parse(options, parse, NULL, doc, argc, argv, &args);
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIST;
	request.list = &list;
	r = ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_VM_LIST, ASK_TIMEOUT_MS, &answer);
	if (r != CLI_DONE)
		return r;
	known = answer->vm_list;
	all = known->n_vms;
	if (args.outdated)
		outdated_first(known);
	r = print(cli, known, all);
	known->n_vms = all; /* as they were unpacked, so as to be freed */
	return r;
}
