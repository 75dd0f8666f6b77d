/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The figures of report_html.c: bars on a scale of time, and a curve. Drawn here and not
 * by a script in the page, so that the page shows in a ticket's preview, in a mail and on
 * paper. Classes, not colours: the page has those, for light and dark. Owns nothing.
 */
#include "report_html.h"

#include "text.h"

#include <inttypes.h>

#define WIDTH	   900
#define LEFT	   110 /* of the scale; names stand before it */
#define RIGHT	   770 /* and times after it */
#define ROW	   26
#define BAR	   16
#define AXIS	   24
#define PLOT	   180
#define NARROWEST  1.5 /* what is there is seen */
#define TICKS	   8
#define WORK_STEPS 200

#define SECOND 1000000ULL

#define PHASE(p) UPGRADED__V1__PHASE__PHASE_##p

struct scale {
	uint64_t from_us, to_us; /* what LEFT and RIGHT are */
};

static double x_of(const struct scale *s, uint64_t us)
{
	uint64_t at = us < s->from_us ? s->from_us : us > s->to_us ? s->to_us : us;

	return LEFT +
	       (double)(RIGHT - LEFT) * (double)(at - s->from_us) / (double)(s->to_us - s->from_us);
}

static void begin(FILE *f, unsigned height, const char *label)
{
	fprintf(f,
		"<svg viewBox=\"0 0 %d %u\" width=\"%d\" height=\"%u\" role=\"img\" "
		"aria-label=\"%s\">\n",
		WIDTH, height, WIDTH, height, label);
}

static void end(FILE *f)
{
	fputs("</svg>\n", f);
}

/* 1, 2 or 5 of a power of ten: so that there are at most TICKS of them. */
static uint64_t tick_us(const struct scale *s)
{
	static const unsigned factor[] = { 1, 2, 5 };

	for (uint64_t power = 1;; power *= 10)
		for (size_t i = 0; i < ARRAY_SIZE(factor); i++)
			if ((s->to_us - s->from_us) / (power * factor[i]) <= TICKS)
				return power * factor[i];
}

static void tick(FILE *f, const struct scale *s, unsigned bottom, uint64_t at_us, int64_t since_us)
{
	bool seconds = tick_us(s) >= SECOND / 10;
	double x = x_of(s, at_us);

	fprintf(f, "<line class=\"grid\" x1=\"%.1f\" y1=\"0\" x2=\"%.1f\" y2=\"%u\"/>", x, x,
		bottom);
	fprintf(f, "<text class=\"tick\" x=\"%.1f\" y=\"%u\">%g %s</text>\n", x, bottom + 16,
		(double)since_us / (seconds ? 1e6 : 1e3), seconds ? "s" : "ms");
}

/* Lines at round times before and after @zero_us. */
static void axis(FILE *f, const struct scale *s, unsigned bottom, uint64_t zero_us)
{
	uint64_t step = tick_us(s);

	for (uint64_t back = (zero_us - s->from_us) / step * step; back; back -= step)
		tick(f, s, bottom, zero_us - back, -(int64_t)back);
	for (uint64_t at = zero_us; at <= s->to_us; at += step)
		tick(f, s, bottom, at, (int64_t)(at - zero_us));
}

static void bar(FILE *f, const struct scale *s, unsigned row, const char *class, const char *name,
		uint64_t start_us, uint64_t took_us)
{
	double x = x_of(s, start_us), width = x_of(s, start_us + took_us) - x;
	unsigned y = row * ROW + (ROW - BAR) / 2;
	char number[TEXT_NUMBER];

	text_duration(number, took_us);
	fprintf(f, "<text class=\"name\" x=\"%d\" y=\"%u\">%s</text>", LEFT - 10, y + BAR - 4,
		name);
	fprintf(f,
		"<rect class=\"%s\" x=\"%.1f\" y=\"%u\" width=\"%.1f\" height=\"%d\" rx=\"2\">"
		"<title>%s: %s</title></rect>",
		class, x, y, width < NARROWEST ? NARROWEST : width, BAR, name, number);
	fprintf(f, "<text class=\"took\" x=\"%d\" y=\"%u\">%s</text>\n", WIDTH, y + BAR - 4,
		number);
}

static const char *class_of(const Upgraded__V1__Report *report, Upgraded__V1__Phase phase)
{
	if (report->failed_phase && phase == report->failed_phase)
		return "failed";
	if (phase == PHASE(ROLLBACK))
		return "back";
	return phase >= PHASE(FREEZE) && phase <= PHASE(RUN) ? "still" : "runs";
}

void svg_phases(FILE *f, const Upgraded__V1__Report *report)
{
	unsigned bottom = (unsigned)report->n_phases * ROW;
	struct scale s = { 0, report->total_us };

	for (size_t i = 0; i < report->n_phases; i++) {
		const Upgraded__V1__PhaseTime *p = report->phases[i];

		if (p->start_us + p->duration_us > s.to_us)
			s.to_us = p->start_us + p->duration_us;
	}
	if (!s.to_us)
		s.to_us = 1;
	begin(f, bottom + AXIS, "the phases of the upgrade");
	axis(f, &s, bottom, 0);
	for (size_t i = 0; i < report->n_phases; i++) {
		const Upgraded__V1__PhaseTime *p = report->phases[i];

		bar(f, &s, (unsigned)i, class_of(report, p->phase), phase_name(p->phase),
		    p->start_us, p->duration_us);
	}
	end(f);
}

static const Upgraded__V1__PhaseTime *find(const Upgraded__V1__Report *report,
					   Upgraded__V1__Phase phase)
{
	for (size_t i = 0; i < report->n_phases; i++)
		if (report->phases[i]->phase == phase)
			return report->phases[i];
	return NULL;
}

bool svg_switch_is_known(const Upgraded__V1__Report *report)
{
	return report->outcome == UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED && report->blackout_us &&
	       find(report, PHASE(FREEZE)) && find(report, PHASE(RUN));
}

/* The target's first instruction is RUN's last act. */
uint64_t svg_runs_at_us(const Upgraded__V1__Report *report)
{
	const Upgraded__V1__PhaseTime *run = find(report, PHASE(RUN));

	return run->start_us + run->duration_us;
}

void svg_switch(FILE *f, const Upgraded__V1__Report *report)
{
	uint64_t end_us = svg_runs_at_us(report), start_us = find(report, PHASE(FREEZE))->start_us;
	uint64_t blackout = report->blackout_us < end_us ? report->blackout_us : end_us;
	struct scale s;
	unsigned row = 0;

	if (end_us - blackout < start_us)
		start_us = end_us - blackout;
	s = (struct scale){ start_us, end_us + (end_us - start_us) / 20 + 1 };
	begin(f, 5 * ROW + AXIS, "the switch");
	axis(f, &s, 5 * ROW, start_us);
	for (size_t i = 0; i < report->n_phases; i++) {
		const Upgraded__V1__PhaseTime *p = report->phases[i];

		if (p->phase >= PHASE(FREEZE) && p->phase <= PHASE(RUN) && row < 4)
			bar(f, &s, row++, "still", phase_name(p->phase), p->start_us,
			    p->duration_us);
	}
	bar(f, &s, row, "blackout", "blackout", end_us - blackout, report->blackout_us);
	end(f);
}

void svg_work(FILE *f, const Upgraded__V1__Report *report, const struct work_rate *work)
{
	uint64_t zero = report->started_at_us + svg_runs_at_us(report),
		 before = zero - report->blackout_us;
	struct scale s = { before - 2 * SECOND, zero + 4 * SECOND };
	uint64_t step = (s.to_us - s.from_us) / WORK_STEPS;
	double usual = work_done_by(work, before) - work_done_by(work, before - SECOND);
	double x = x_of(&s, before);

	begin(f, PLOT + AXIS, "the work of the guest around the switch");
	axis(f, &s, PLOT, zero);
	fprintf(f,
		"<rect class=\"blackout\" x=\"%.1f\" y=\"0\" width=\"%.1f\" height=\"%d\" "
		"opacity=\"0.3\"/>",
		x, x_of(&s, zero) - x, PLOT);
	/* The scale ends at one and a half times of what was usual. */
	fprintf(f, "<text class=\"name\" x=\"%d\" y=\"%d\">100 %%</text>", LEFT - 10, PLOT / 3 + 4);
	fprintf(f, "<line class=\"grid\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", LEFT,
		PLOT / 3, RIGHT, PLOT / 3);
	fputs("<polyline class=\"work\" points=\"", f);
	for (uint64_t at = s.from_us; at + step <= s.to_us && usual > 0; at += step) {
		double rate = (work_done_by(work, at + step) - work_done_by(work, at)) /
			      (double)step * SECOND / usual;

		fprintf(f, "%.1f,%.1f\n", x_of(&s, at + step / 2),
			PLOT - PLOT * (rate < 1.5 ? rate : 1.5) / 1.5);
	}
	fputs("\"/>\n", f);
	end(f);
}
