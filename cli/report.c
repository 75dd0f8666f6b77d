/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The report of one upgrade, as text: the last thing that `upgrade` prints,
 * and what `watch` prints when one ends. It answers, in this order: how did it
 * end, where does the guest run now, how long did it stand still, and what to
 * type next. Owns nothing.
 */
#include "report.h"

#include "findings.h"
#include "table.h"
#include "text.h"

#include <inttypes.h>

int report_exit_code(const Upgraded__V1__Report *report)
{
	switch ((int)report->outcome) {
	case UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED:
		return CLI_DONE;
	case UPGRADED__V1__OUTCOME__OUTCOME_ROLLED_BACK:
		return CLI_ROLLED_BACK;
	case UPGRADED__V1__OUTCOME__OUTCOME_REFUSED:
		return CLI_REFUSED;
	case UPGRADED__V1__OUTCOME__OUTCOME_LOST:
		return CLI_LOST;
	default:
		return CLI_FAILED;
	}
}

static const char *or_unknown(const char *s)
{
	return s[0] ? s : "unknown";
}

static void print_headline(const struct cli *cli, const Upgraded__V1__Report *report)
{
	print_text(cli, stdout, STYLE_BOLD, 0, report->vm);
	fputs(": ", stdout);
	print_text(cli, stdout, outcome_style(report->outcome), 0, outcome_name(report->outcome));
	fputs(", ", stdout);
	print_text(cli, stdout, STYLE_PLAIN, 0, or_unknown(report->source_version));
	fputs(" -> ", stdout);
	print_text(cli, stdout, STYLE_PLAIN, 0, or_unknown(report->target_version));
	printf(", tier %s, upgrade %" PRIu64 "\n", tier_name(report->tier), report->upgrade_id);
}

static void print_phases(const struct cli *cli, const Upgraded__V1__Report *report)
{
	static const struct column column[] = {
		{ .title = "PHASE" },
		{ .title = "BEGAN", .right = true },
		{ .title = "TOOK", .right = true },
	};
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	t.indent = 2;
	for (size_t i = 0; i < report->n_phases; i++) {
		const Upgraded__V1__PhaseTime *p = report->phases[i];

		table_add(&t,
			  report->failed_phase && p->phase == report->failed_phase ? STYLE_BAD
										   : STYLE_PLAIN,
			  phase_name(p->phase));
		table_add(&t, STYLE_DIM, text_duration(number, p->start_us));
		table_add(&t, STYLE_PLAIN, text_duration(number, p->duration_us));
	}
	if (report->n_phases)
		table_print(&t, stdout);
}

static void add_process(struct table *t, const char *what, const char *version,
			const Upgraded__V1__Process *process, const char *binary)
{
	table_add(t, STYLE_DIM, what);
	if (process && process->pid)
		table_addf(t, STYLE_PLAIN, "%s, pid %d, %s", or_unknown(version), process->pid,
			   or_unknown(binary));
	else
		table_addf(t, STYLE_PLAIN, "%s, %s", or_unknown(version), or_unknown(binary));
}

static void add_handover(struct table *t, const Upgraded__V1__Handover *h)
{
	table_add(t, STYLE_DIM, "memory");
	table_addf(t, STYLE_PLAIN,
		   "%u of %u memory slots, %" PRIu64 " page tables handed over, %" PRIu64
		   " entries dropped, %.2f ms in the kernel",
		   h->matched, h->slots, h->tables, h->zapped, (double)h->ioctl_ns / 1e6);
}

static void print_facts(const struct cli *cli, const Upgraded__V1__Report *report)
{
	static const struct column column[] = { { .title = "" }, { .title = "", .min = 20 } };
	bool committed = report->outcome == UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED;
	bool refused = report->outcome == UPGRADED__V1__OUTCOME__OUTCOME_REFUSED;
	_cleanup_table_ struct table t;
	char number[TEXT_NUMBER];

	table_init(&t, cli, column, ARRAY_SIZE(column));
	t.indent = 2;
	add_process(&t, "from", report->source_version, report->source, report->source_binary);
	add_process(&t, "to", report->target_version, report->target, report->target_binary);
	if (!refused) {
		table_add(&t, STYLE_DIM, committed ? "blackout" : "pause");
		table_add(&t, STYLE_BOLD, text_duration(number, report->blackout_us));
		table_add(&t, STYLE_DIM, "total");
		table_add(&t, STYLE_PLAIN, text_duration(number, report->total_us));
		table_add(&t, STYLE_DIM, "carried");
		table_addf(&t, STYLE_PLAIN, "%u fds, %s of device state", report->fds,
			   text_bytes(number, report->state_bytes));
		if (report->handover)
			add_handover(&t, report->handover);
	}
	table_print(&t, stdout);
}

/* Prints "  LABEL: TEXT", wrapped under the text. */
static void print_labelled(const struct cli *cli, const char *label, const char *text)
{
	printf("  %s: ", label);
	print_wrapped(cli, stdout, 4 + text_width(label), text);
}

static void print_why(const struct cli *cli, const Upgraded__V1__Report *report)
{
	_cleanup_free_ char *next = NULL, *where = NULL;
	const char *name = report->vm;
	int r = 0, w = 0;

	if (report->failed_phase)
		printf("  failed in phase %s\n", phase_name(report->failed_phase));
	if (report->error[0])
		print_labelled(cli, "reason", report->error);
	switch ((int)report->outcome) {
	case UPGRADED__V1__OUTCOME__OUTCOME_ROLLED_BACK:
		w = report->source && report->source->pid
			    ? asprintf(&where, "runs on in the source, %s (pid %d)",
				       or_unknown(report->source_version), report->source->pid)
			    : asprintf(&where, "runs on in the source, %s",
				       or_unknown(report->source_version));
		r = asprintf(&next, "upgradectl check %s --vmm %s", name,
			     or_unknown(report->target_binary));
		break;
	case UPGRADED__V1__OUTCOME__OUTCOME_REFUSED:
		w = asprintf(&where, "runs on in the source, untouched");
		r = asprintf(&next, "upgradectl check %s --vmm %s", name,
			     or_unknown(report->target_binary));
		break;
	default:
		w = asprintf(&where, "runs in neither of the two");
		r = asprintf(&next, "upgradectl show %s; journalctl -u upgraded.service", name);
		break;
	}
	if (w >= 0)
		print_labelled(cli, "guest", where);
	if (r >= 0)
		print_labelled(cli, "next", next);
}

void report_print(const struct cli *cli, const Upgraded__V1__Report *report)
{
	print_headline(cli, report);
	print_phases(cli, report);
	print_facts(cli, report);
	if (report->outcome != UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED)
		print_why(cli, report);
	findings_print(cli, stdout, report->findings, report->n_findings, false);
	fflush(stdout);
}
