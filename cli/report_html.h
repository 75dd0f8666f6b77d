/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The report of an upgrade as a page for a browser: see report_html.c, report_svg.c. */
#ifndef UPGRADED_REPORT_HTML_H
#define UPGRADED_REPORT_HTML_H

#include "print.h"
#include "work_rate.h"

/* Writes the whole page. @work may be empty. What could not be written, ferror() says. */
void report_html(FILE *f, const Upgraded__V1__Report *report, const struct work_rate *work);

/* Text that no markup comes out of; what is not printable is '?'. */
void html_text(FILE *f, const char *text);

/* ---- figures: report_svg.c ---- */

/* All phases, one below the other, on the scale of the whole upgrade. */
void svg_phases(FILE *f, const Upgraded__V1__Report *report);

/* FREEZE to RUN alone, on a scale of its own, and how long the guest stood still. */
bool svg_switch_is_known(const Upgraded__V1__Report *report);
/* When the target ran, since the upgrade began; only of a switch that is known. */
uint64_t svg_runs_at_us(const Upgraded__V1__Report *report);
void svg_switch(FILE *f, const Upgraded__V1__Report *report);

/* What the guest got done around the switch, relative to the time before. */
void svg_work(FILE *f, const Upgraded__V1__Report *report, const struct work_rate *work);

#endif
