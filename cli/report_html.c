/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The report of one upgrade as a page that stands for itself: no script, no font, no
 * picture from elsewhere, so that it can be attached to a ticket and read there years
 * later. It has what report.c prints, in the same order, with figures. Every string that
 * came from outside goes through html_text(). Owns nothing.
 */
#include "report_html.h"

#include "text.h"

#include <inttypes.h>

#define SECOND 1000000ULL

static const char style[] =
	":root{color-scheme:light dark;--ink:#1c2127;--dim:#66707c;--line:#d9dee4;--page:#fff;"
	"--good:#1a7f4b;--warn:#a15c00;--bad:#b3261e;--runs:#8fb4d9;--still:#e2a33b;"
	"--blackout:#b3261e}\n"
	"@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#97a1ac;--line:#3a424b;"
	"--page:#15191d;--good:#4cc38a;--warn:#e2a33b;--bad:#ff8a80;--runs:#4b7bab;"
	"--blackout:#e5534b}}\n"
	"body{margin:2em auto;max-width:920px;padding:0 1em;background:var(--page);"
	"color:var(--ink);font:15px/1.5 system-ui,sans-serif}\n"
	"h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin:2em 0 .5em}\n"
	"p.when,.dim{color:var(--dim)}.good{color:var(--good)}.warn{color:var(--warn)}"
	".bad{color:var(--bad)}\n"
	"table{border-collapse:collapse;width:100%}th{text-align:left;color:var(--dim);"
	"font-weight:normal;white-space:nowrap;vertical-align:top}\n"
	"td,th{padding:.25em 1em .25em 0;border-bottom:1px solid var(--line);"
	"overflow-wrap:anywhere}td.n{text-align:right;white-space:nowrap}\n"
	"code{font-size:.9em}svg{max-width:100%;height:auto}svg text{font-size:12px;"
	"fill:var(--dim)}svg .name,svg .took{text-anchor:end;fill:var(--ink)}"
	"svg .tick{text-anchor:middle}\n"
	".grid{stroke:var(--line)}.runs{fill:var(--runs)}.still{fill:var(--still)}"
	".back{fill:var(--warn)}.failed,.blackout{fill:var(--blackout)}"
	".work{fill:none;stroke:var(--good);stroke-width:2}\n";

void html_text(FILE *f, const char *text)
{
	_cleanup_free_ char *safe = text_printable(text);

	for (const char *s = safe ?: "?"; *s; s++) {
		switch (*s) {
		case '<':
			fputs("&lt;", f);
			break;
		case '>':
			fputs("&gt;", f);
			break;
		case '&':
			fputs("&amp;", f);
			break;
		case '"':
			fputs("&quot;", f);
			break;
		default:
			fputc(*s, f);
		}
	}
}

static const char *class_of(Upgraded__V1__Outcome outcome)
{
	switch (outcome_style(outcome)) {
	case STYLE_GOOD:
		return "good";
	case STYLE_WARN:
		return "warn";
	default:
		return "bad";
	}
}

static void fact(FILE *f, const char *name, const char *value)
{
	fprintf(f, "<tr><th>%s</th><td>", name);
	html_text(f, value);
	fputs("</td></tr>\n", f);
}

static void vmm(FILE *f, const char *name, const char *version,
		const Upgraded__V1__Process *process, const char *binary, const char *sha256)
{
	fprintf(f, "<tr><th>%s</th><td>", name);
	html_text(f, version[0] ? version : "unknown");
	if (process && process->pid)
		fprintf(f, ", process %d", process->pid);
	fputs("<br><code>", f);
	html_text(f, binary);
	fputs("</code>", f);
	if (sha256[0]) {
		fputs("<br><span class=\"dim\">SHA-256 <code>", f);
		html_text(f, sha256);
		fputs("</code></span>", f);
	}
	fputs("</td></tr>\n", f);
}

static void facts(FILE *f, const Upgraded__V1__Report *r)
{
	bool committed = r->outcome == UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED;
	bool refused = r->outcome == UPGRADED__V1__OUTCOME__OUTCOME_REFUSED;
	char number[TEXT_NUMBER], text[96];

	fputs("<table>\n", f);
	if (r->error[0])
		fact(f, "reason", r->error);
	if (r->failed_phase)
		fact(f, "failed in", phase_name(r->failed_phase));
	vmm(f, "from", r->source_version, r->source, r->source_binary, r->source_sha256);
	vmm(f, "to", r->target_version, r->target, r->target_binary, r->target_sha256);
	if (!refused) {
		fact(f, committed ? "blackout" : "pause", text_duration(number, r->blackout_us));
		fact(f, "total", text_duration(number, r->total_us));
		fact(f, "memory tier", tier_name(r->tier));
		snprintf(text, sizeof(text), "%u descriptors, %s of device state", r->fds,
			 text_bytes(number, r->state_bytes));
		fact(f, "carried", text);
	}
	snprintf(text, sizeof(text), "uid %u", r->requested_by);
	fact(f, "asked for by", text);
	fputs("</table>\n", f);
}

static void phases(FILE *f, const Upgraded__V1__Report *r)
{
	if (!r->n_phases)
		return;
	fputs("<h2>Phases</h2>\n", f);
	svg_phases(f, r);
	fputs("<p class=\"dim\">The guest runs in the blue ones.</p>\n", f);
	if (!svg_switch_is_known(r))
		return;
	fputs("<h2>The switch</h2>\n", f);
	svg_switch(f, r);
}

static void work(FILE *f, const Upgraded__V1__Report *r, const struct work_rate *w)
{
	uint64_t runs, stops;
	double brownout;

	if (!w->n || !svg_switch_is_known(r))
		return;
	fputs("<h2>The guest's work</h2>\n", f);
	svg_work(f, r, w);
	runs = r->started_at_us + svg_runs_at_us(r);
	stops = runs - r->blackout_us;
	brownout = work_relative(w, runs, runs + SECOND, stops);
	if (brownout >= 0)
		fprintf(f,
			"<p>In the first second after the switch the guest got %.0f %% done of "
			"what "
			"it had done in the second before.</p>\n",
			brownout * 100);
	else
		fputs("<p class=\"dim\">The samples do not cover a second before and after the "
		      "switch.</p>\n",
		      f);
}

static void handover(FILE *f, const Upgraded__V1__Handover *h)
{
	if (!h)
		return;
	fputs("<h2>Memory</h2>\n<table>\n", f);
	fprintf(f, "<tr><th>slots handed over</th><td>%u of %u</td></tr>\n", h->matched, h->slots);
	fprintf(f, "<tr><th>page tables</th><td>%" PRIu64 "</td></tr>\n", h->tables);
	fprintf(f, "<tr><th>entries dropped</th><td>%" PRIu64 "</td></tr>\n", h->zapped);
	fprintf(f, "<tr><th>in the kernel</th><td>%.2f ms</td></tr>\n", (double)h->ioctl_ns / 1e6);
	if (h->error[0])
		fact(f, "not all, because", h->error);
	fputs("</table>\n", f);
	if (!h->n_verdicts)
		return;
	fputs("<table>\n<tr><th>slot</th><th>at</th><th>size</th><th>verdict</th></tr>\n", f);
	for (size_t i = 0; i < h->n_verdicts; i++) {
		const Upgraded__V1__SlotVerdict *v = h->verdicts[i];
		char number[TEXT_NUMBER];

		fprintf(f, "<tr><td>%u:%u</td><td><code>%#" PRIx64 "</code></td><td>%s</td><td>",
			v->slot >> 16, v->slot & 0xffff, v->gpa, text_bytes(number, v->size));
		html_text(f, v->verdict);
		fputs("</td></tr>\n", f);
	}
	fputs("</table>\n", f);
}

static void findings(FILE *f, const Upgraded__V1__Report *r)
{
	static const struct {
		Upgraded__V1__Severity severity;
		const char *class, *name;
	} kind[] = {
		{ UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, "bad", "blocker" },
		{ UPGRADED__V1__SEVERITY__SEVERITY_WARNING, "warn", "warning" },
		{ UPGRADED__V1__SEVERITY__SEVERITY_NOTE, "dim", "note" },
	};

	if (!r->n_findings)
		return;
	fputs("<h2>Findings</h2>\n<table>\n", f);
	for (size_t k = 0; k < ARRAY_SIZE(kind); k++)
		for (size_t i = 0; i < r->n_findings; i++) {
			const Upgraded__V1__Finding *finding = r->findings[i];

			if (finding->severity != kind[k].severity)
				continue;
			fprintf(f, "<tr><th class=\"%s\">%s</th><td><code>", kind[k].class,
				kind[k].name);
			html_text(f, finding->subject[0] ? finding->subject : finding->code);
			fputs("</code><br>", f);
			html_text(f, finding->text);
			if (finding->remedy[0]) {
				fputs("<br><span class=\"dim\">remedy: </span>", f);
				html_text(f, finding->remedy);
			}
			fputs("</td></tr>\n", f);
		}
	fputs("</table>\n", f);
}

void report_html(FILE *f, const Upgraded__V1__Report *r, const struct work_rate *w)
{
	char when[TEXT_NUMBER];

	fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
	      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>",
	      f);
	html_text(f, r->vm);
	fprintf(f, ": upgrade %" PRIu64 ", %s</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>",
		r->upgrade_id, outcome_name(r->outcome), style);
	html_text(f, r->vm);
	fprintf(f, ": <span class=\"%s\">%s</span>, ", class_of(r->outcome),
		outcome_name(r->outcome));
	html_text(f, r->source_version[0] ? r->source_version : "unknown");
	fputs(" &rarr; ", f);
	html_text(f, r->target_version[0] ? r->target_version : "unknown");
	fprintf(f, "</h1>\n<p class=\"when\">Upgrade %" PRIu64 ", %s</p>\n", r->upgrade_id,
		text_time(when, r->started_at_us));
	facts(f, r);
	phases(f, r);
	work(f, r, w);
	handover(f, r->handover);
	findings(f, r);
	fputs("</body>\n</html>\n", f);
}
