/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One VM as text: for show, and for what run and adopt made. Owns nothing.
 */
#include "vm.h"

#include "table.h"
#include "text.h"

#include <inttypes.h>

const char *vm_state(const Upgraded__V1__Vm *vm)
{
	if (vm->phase != UPGRADED__V1__PHASE__PHASE_IDLE)
		return phase_name(vm->phase);
	if (!vm->alive)
		return "gone";
	return vm->outdated ? "outdated" : "running";
}

enum style vm_style(const Upgraded__V1__Vm *vm)
{
	if (vm->phase != UPGRADED__V1__PHASE__PHASE_IDLE)
		return STYLE_BOLD;
	if (!vm->alive)
		return STYLE_BAD;
	return vm->outdated ? STYLE_WARN : STYLE_GOOD;
}

static void add(struct table *t, const char *key, const char *value)
{
	if (!value[0])
		return;
	table_add(t, STYLE_DIM, key);
	table_add(t, STYLE_PLAIN, value);
}

static void print_custody(const struct cli *cli, const Upgraded__V1__Vm *vm)
{
	static const struct column column[] = {
		{ .title = "CUSTODY", .min = 12 },
		{ .title = "FDS", .right = true },
		{ .title = "HELD", .right = true },
		{ .title = "KEEPS ALIVE", .right = true },
	};
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	t.indent = 2;
	for (size_t i = 0; i < vm->n_custody; i++) {
		table_add(&t, STYLE_PLAIN, vm->custody[i]->name);
		table_addf(&t, STYLE_PLAIN, "%u", vm->custody[i]->fds);
		table_add(&t, STYLE_PLAIN, text_bytes(number, vm->custody[i]->bytes));
		table_add(&t, STYLE_PLAIN, text_bytes(number, vm->custody[i]->pinned));
	}
	if (vm->n_custody)
		table_print(&t, stdout);
}

void vm_print(const struct cli *cli, const Upgraded__V1__Vm *vm)
{
	static const struct column column[] = { { .title = "" }, { .title = "", .min = 20 } };
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	print_text(cli, stdout, STYLE_BOLD, 0, vm->name);
	fputs(": ", stdout);
	print_text(cli, stdout, vm_style(vm), 0, vm_state(vm));
	fputc('\n', stdout);

	table_init(&t, cli, column, ARRAY_SIZE(column));
	t.indent = 2;
	add(&t, "driver", vm->driver);
	add(&t, "version", vm->version);
	add(&t, "binary", vm->binary);
	if (vm->outdated)
		add(&t, "", "replaced or removed on disk since the VM was started");
	if (vm->process && vm->process->pid) {
		table_add(&t, STYLE_DIM, "process");
		table_addf(&t, STYLE_PLAIN, "pid %d, since %s", vm->process->pid,
			   text_time(number, vm->since_us));
	}
	add(&t, "manager", vm->manager);
	add(&t, "unit", vm->unit);
	add(&t, "machine", vm->machine);
	if (vm->memory)
		add(&t, "memory", text_bytes(number, vm->memory));
	add(&t, "tier", tier_name(vm->tier));
	add(&t, "monitor", vm->qmp);
	table_add(&t, STYLE_DIM, "upgrades");
	table_addf(&t, STYLE_PLAIN, "%u committed", vm->generation);
	if (vm->upgrade_id) {
		table_add(&t, STYLE_DIM, "under way");
		table_addf(&t, STYLE_PLAIN, "upgrade %" PRIu64 ", in phase %s", vm->upgrade_id,
			   phase_name(vm->phase));
	}
	table_print(&t, stdout);
	print_custody(cli, vm);
}
