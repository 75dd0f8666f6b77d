/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An upgrade as it happens. On a terminal the phase under way is one line that
 * is redrawn in place with the time it takes so far, and that stays with its
 * final time when the next one begins; elsewhere each event is one plain line
 * that is never touched again, fit for a log. Called by upgrade and watch.
 */
#include "progress.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <string.h>

void progress_line(const struct cli *cli, const Upgraded__V1__Event *event)
{
	char when[TEXT_NUMBER];

	text_time(when, event->at_us);
	print_text(cli, stdout, STYLE_DIM, 0, when);
	fputs("  ", stdout);
	print_text(cli, stdout, STYLE_BOLD, 0, event->vm);
	printf("  #%" PRIu64 "  ", event->upgrade_id);
	print_text(cli, stdout, STYLE_PLAIN, 8, phase_name(event->phase));
	printf("  %6" PRIu64 ".%03u s", event->elapsed_us / 1000000,
	       (unsigned)(event->elapsed_us / 1000 % 1000));
	if (event->text[0]) {
		fputs("  ", stdout);
		print_text(cli, stdout, STYLE_PLAIN, 0, event->text);
	}
	fputc('\n', stdout);
	fflush(stdout);
}

static void draw(const struct progress *p, uint64_t took_us, bool final)
{
	char number[TEXT_NUMBER], tenths[TEXT_NUMBER];

	/* While it runs, more than tenths of a second would only flicker. */
	snprintf(tenths, sizeof(tenths), "%" PRIu64 ".%u s", took_us / 1000000,
		 (unsigned)(took_us / 100000 % 10));
	fputs("\r\033[K  ", stdout);
	print_text(p->cli, stdout, final ? STYLE_PLAIN : STYLE_BOLD, 8, phase_name(p->phase));
	printf("  %12s", final ? text_duration(number, took_us) : tenths);
	if (p->text && p->text[0]) {
		size_t room = p->cli->width > 26 ? p->cli->width - 26 : 0;
		_cleanup_free_ char *safe = text_printable(p->text);
		_cleanup_free_ char *cut = safe ? text_cut_middle(safe, room) : NULL;

		fputs("  ", stdout);
		print_text(p->cli, stdout, STYLE_DIM, 0, cut ?: "");
	}
	if (final)
		fputc('\n', stdout);
	fflush(stdout);
}

void progress_event(struct progress *p, const Upgraded__V1__Event *event)
{
	if (!p->cli->terminal) {
		progress_line(p->cli, event);
		return;
	}
	if (p->drawn && event->phase != p->phase) {
		draw(p, event->elapsed_us > p->entered_us ? event->elapsed_us - p->entered_us : 0,
		     true);
		p->drawn = false;
	}
	if (!p->drawn) {
		p->phase = event->phase;
		p->entered_us = event->elapsed_us;
		p->seen_us = now_us();
	}
	free(p->text);
	p->text = strdup(event->text);
	p->drawn = event->phase != UPGRADED__V1__PHASE__PHASE_DONE &&
		   event->phase != UPGRADED__V1__PHASE__PHASE_IDLE;
	progress_tick(p);
}

void progress_tick(struct progress *p)
{
	if (p->drawn)
		draw(p, now_us() - p->seen_us, false);
}

void progress_end(struct progress *p)
{
	if (p->drawn)
		draw(p, now_us() - p->seen_us, true);
	p->drawn = false;
}

void progress_free(struct progress *p)
{
	free(p->text);
	p->text = NULL;
}
