/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What stands in the way of an upgrade, as text: for check, and for an upgrade
 * that was refused. Owns nothing.
 */
#include "findings.h"

#include "text.h"

static const struct {
	const char *name;
	enum style style;
} severity[] = {
	[UPGRADED__V1__SEVERITY__SEVERITY_NOTE] = { "note", STYLE_DIM },
	[UPGRADED__V1__SEVERITY__SEVERITY_WARNING] = { "warning", STYLE_WARN },
	[UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER] = { "blocker", STYLE_BAD },
};

/* A severity that this version does not know must be seen: a warning. */
static Upgraded__V1__Severity severity_of(const Upgraded__V1__Finding *finding)
{
	int s = (int)finding->severity;

	return s >= UPGRADED__V1__SEVERITY__SEVERITY_NOTE &&
			       s <= UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
		       ? finding->severity
		       : UPGRADED__V1__SEVERITY__SEVERITY_WARNING;
}

size_t findings_count(Upgraded__V1__Finding **findings, size_t n, Upgraded__V1__Severity wanted)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++)
		count += severity_of(findings[i]) == wanted;
	return count;
}

static void print_one(const struct cli *cli, FILE *f, const Upgraded__V1__Finding *finding)
{
	Upgraded__V1__Severity s = severity_of(finding);

	print_text(cli, f, severity[s].style, 0, severity[s].name);
	fputs("  ", f);
	print_text(cli, f, STYLE_BOLD, 0, finding->subject[0] ? finding->subject : finding->code);
	if (finding->subject[0] && finding->code[0]) {
		fputs("  ", f);
		print_text(cli, f, STYLE_DIM, 0, finding->code);
	}
	fputs("\n    ", f);
	print_wrapped(cli, f, 4, finding->text);
	if (finding->remedy[0]) {
		fputs("    remedy: ", f);
		print_wrapped(cli, f, 12, finding->remedy);
	}
}

void findings_print(const struct cli *cli, FILE *f, Upgraded__V1__Finding **findings, size_t n,
		    bool notes)
{
	int least = notes ? UPGRADED__V1__SEVERITY__SEVERITY_NOTE
			  : UPGRADED__V1__SEVERITY__SEVERITY_WARNING;

	for (int s = UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER; s >= least; s--)
		for (size_t i = 0; i < n; i++)
			if ((int)severity_of(findings[i]) == s)
				print_one(cli, f, findings[i]);
}
