/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Upgrades of many VMs in one go. The daemon knows of single upgrades only; which VMs,
 * how many at once, who goes first and when to stop is decided here, one poll loop
 * over a connection for each upgrade under way.
 *
 * What if this process dies? Those under way are the daemon's and go on; the others
 * have not begun. The same command again begins with what is left (fleet_choose.c).
 */
#include "fleet.h"

#include "ask.h"
#include "findings.h"
#include "print.h"
#include "proto_json.h"
#include "report.h"
#include "text.h"

#include <poll.h>
#include <stdarg.h>
#include <string.h>

#define NO_TIMEOUT    -1
#define LOOK_AGAIN_MS 1000 /* whether the daemon has taken a request in time */

struct run {
	const struct cli *cli;
	const struct fleet_options *options;
	const struct upgrade_how *how;
	Envelope *list; /* what the members point into */
	struct member *member;
	size_t n;
	size_t next; /* the first that may wait still */
	int signals;
	char *stopped; /* why nobody else begins */
};

static size_t count(const struct run *r, int state)
{
	size_t n = 0;

	for (size_t i = 0; i < r->n; i++)
		n += r->member[i].state == (unsigned)state;
	return n;
}

static size_t count_failed(const struct run *r)
{
	size_t n = 0;

	for (size_t i = 0; i < r->n; i++)
		n += r->member[i].state == MEMBER_OVER && r->member[i].code != CLI_DONE;
	return n;
}

__attribute__((format(printf, 2, 3))) static void stop(struct run *r, const char *fmt, ...)
{
	va_list ap;

	if (r->stopped)
		return;
	va_start(ap, fmt);
	if (vasprintf(&r->stopped, fmt, ap) < 0)
		r->stopped = NULL;
	va_end(ap);
	/* Whatever the reason was. */
	r->stopped = r->stopped ?: strdup("");
}

/* ---- the end of one ---- */

static void end(struct run *r, struct member *m, int code)
{
	m->state = MEMBER_OVER;
	m->code = code;
	client_close(&m->client);
	fleet_print_end(r->cli, m);
	if (code == CLI_LOST)
		stop(r, "the guest of %s was lost", m->vm->name);
	if (code == CLI_UNREACHABLE)
		stop(r, "the daemon is away");
	if (r->options->stop_after && count_failed(r) >= r->options->stop_after)
		stop(r, "%zu failed", count_failed(r));
}

static void end_with_error(struct run *r, struct member *m)
{
	/* A typed error is the daemon's answer; anything else its absence. */
	int code = m->client.error ? exit_code(m->err.code) : CLI_UNREACHABLE;

	m->last = TAKE_PTR(m->client.error);
	end(r, m, code);
}

static void take(struct run *r, struct member *m, Envelope **message)
{
	const Envelope *e = *message;

	switch ((int)e->body_case) {
	case UPGRADED__V1__ENVELOPE__BODY_UPGRADE_STARTED:
		m->accepted = true;
		return;
	case UPGRADED__V1__ENVELOPE__BODY_EVENT:
		if (r->cli->json)
			(void)print_json_line(&e->event->base);
		if (!e->event->report)
			return;
		m->last = TAKE_PTR(*message);
		end(r, m, report_exit_code(e->event->report));
		return;
	case UPGRADED__V1__ENVELOPE__BODY_REPORT:
		m->last = TAKE_PTR(*message);
		end(r, m, report_exit_code(e->report));
		return;
	default:
		error_set(&m->err, -EPROTO, "the daemon sent \"%s\"", envelope_name(e));
		end(r, m, CLI_UNREACHABLE);
	}
}

static void hear(struct run *r, struct member *m)
{
	_cleanup_envelope_ Envelope *message = NULL;

	if (client_recv(&m->client, 0, &message, &m->err) < 0)
		end_with_error(r, m);
	else
		take(r, m, &message);
}

/* ---- the beginning of one ---- */

static void begin(struct run *r, struct member *m)
{
	m->state = MEMBER_RUNS;
	m->start_by = upgrade_now_s() + UPGRADE_START_TIMEOUT_S;
	if (!r->cli->json) {
		fleet_print_name(r->cli, m);
		printf("begins, %zu of %zu\n", (size_t)(m - r->member) + 1, r->n);
		fflush(stdout);
	}
	if (upgrade_request(&m->client, r->cli, m->vm->name, r->how, &m->err) < 0)
		end_with_error(r, m);
}

/* How many of the first ones may have begun by now. */
static size_t allowed(struct run *r)
{
	size_t canary = 0, seen = 0;

	while (canary < r->n && seen < r->options->canary)
		seen += r->member[canary++].state != MEMBER_UP_TO_DATE;
	for (size_t i = 0; i < canary; i++) {
		const struct member *m = &r->member[i];

		if (m->state == MEMBER_OVER && m->code != CLI_DONE)
			stop(r, "%s, which went first, failed", m->vm->name);
		if (m->state == MEMBER_RUNS || m->state == MEMBER_WAITS)
			return canary;
	}
	return r->n;
}

static void begin_more(struct run *r)
{
	while (!r->stopped) {
		while (r->next < r->n && r->member[r->next].state != MEMBER_WAITS)
			r->next++;
		if (r->next >= allowed(r) || r->stopped ||
		    count(r, MEMBER_RUNS) >= r->options->at_once)
			return;
		if (window_opens_in(&r->options->window, time(NULL)))
			stop(r, "the window has closed");
		else
			begin(r, &r->member[r->next]);
	}
}

/* ---- the loop ---- */

static void look_at_starts(struct run *r)
{
	for (size_t i = 0; i < r->n; i++) {
		struct member *m = &r->member[i];

		if (m->state != MEMBER_RUNS || m->accepted || upgrade_now_s() < m->start_by)
			continue;
		error_set(&m->err, -ETIMEDOUT, "the daemon does not answer");
		end(r, m, CLI_UNREACHABLE);
	}
}

/* 0, or CLI_DETACHED. */
static int interrupted(struct run *r)
{
	size_t left = count(r, MEMBER_RUNS);

	if (r->stopped && left)
		return CLI_DETACHED;
	stop(r, "interrupted");
	if (left)
		fprintf(stderr,
			"Nobody else begins; waiting for %zu. Ctrl-C again leaves %s to the "
			"daemon.\n",
			left, left == 1 ? "it" : "them");
	return 0;
}

/* Waits, and deals with what has come. 0, or CLI_DETACHED. */
static int wait_and_hear(struct run *r, struct pollfd *p)
{
	int timeout_ms = NO_TIMEOUT;
	size_t n = 1;

	p[0] = (struct pollfd){ .fd = r->signals, .events = POLLIN };
	for (size_t i = r->n; i-- > 0;)
		if (r->member[i].state == MEMBER_RUNS) {
			p[n++] =
				(struct pollfd){ .fd = r->member[i].client.sock, .events = POLLIN };
			if (!r->member[i].accepted)
				timeout_ms = LOOK_AGAIN_MS;
		}
	if (poll(p, n, timeout_ms) < 0)
		return 0;
	for (size_t k = 1; k < n; k++)
		for (size_t i = 0; p[k].revents && i < r->n; i++)
			if (r->member[i].state == MEMBER_RUNS &&
			    r->member[i].client.sock == p[k].fd) {
				hear(r, &r->member[i]);
				break;
			}
	look_at_starts(r);
	return p[0].revents && upgrade_signalled(r->signals) ? interrupted(r) : 0;
}

static int sum_up(const struct run *r)
{
	return fleet_sum_up(r->cli, r->member, r->n,
			    r->options->outdated ? "no VM is outdated" : "no VM runs", r->stopped);
}

static int upgrade_all(struct run *r)
{
	_cleanup_free_ struct pollfd *p = calloc(r->n + 1, sizeof(*p));
	_cleanup_error_ struct error err = ERROR_INIT;
	int code = 0;

	if (!p) {
		error_set(&err, -ENOMEM, "out of memory");
		return fail(r->cli, NULL, &err);
	}
	while (!code) {
		begin_more(r);
		if (!count(r, MEMBER_RUNS))
			return sum_up(r);
		code = wait_and_hear(r, p);
	}
	return code;
}

/* ---- --dry-run ---- */

static void check(struct run *r, struct member *m)
{
	Upgraded__V1__CheckRequest check_request = UPGRADED__V1__CHECK_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;
	const Upgraded__V1__CheckReport *report;
	int n;

	check_request.name = m->vm->name;
	if (r->how->vmm)
		check_request.binary = r->how->vmm;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_CHECK;
	request.check = &check_request;
	n = client_connect(&m->client, r->cli->socket, "upgradectl", &m->err);
	if (n >= 0)
		n = client_call(&m->client, &request, UPGRADED__V1__ENVELOPE__BODY_CHECK_REPORT,
				ASK_SLOW_TIMEOUT_MS, &m->last, &m->err);
	if (n < 0) {
		end_with_error(r, m);
		return;
	}
	report = m->last->check_report;
	end(r, m,
	    findings_count(report->findings, report->n_findings,
			   UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER)
		    ? CLI_REFUSED
		    : CLI_DONE);
}

static int check_all(struct run *r)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->member[i].state == MEMBER_WAITS)
			check(r, &r->member[i]);
	return sum_up(r);
}

/* ---- which, and when ---- */

static void forget(struct run *r)
{
	fleet_free(r->member, r->n);
	r->member = NULL;
	r->n = 0;
	envelope_freep(&r->list);
}

static int choose(struct run *r)
{
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	/* Of a VM the daemon has the name of the file, not of a link to it. */
	_cleanup_free_ char *binary = r->how->vmm ? realpath(r->how->vmm, NULL) : NULL;
	Envelope request = ENVELOPE_INIT;
	int code;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIST;
	request.list = &list;
	code = ask(r->cli, &request, UPGRADED__V1__ENVELOPE__BODY_VM_LIST, ASK_TIMEOUT_MS,
		   &r->list);
	if (code != CLI_DONE)
		return code;
	if (fleet_choose(r->options, binary ?: r->how->vmm, r->list->vm_list, &r->member, &r->n,
			 &err) < 0)
		return fail(r->cli, NULL, &err);
	return CLI_DONE;
}

/* Whether it had to wait. */
static bool wait_for_window(struct run *r)
{
	bool told = false;

	while (!r->stopped) {
		time_t closed = window_opens_in(&r->options->window, time(NULL));
		struct pollfd p = { .fd = r->signals, .events = POLLIN };

		if (!closed)
			break;
		if (!told)
			fprintf(stderr, "The window is closed for %ld min; waiting.\n",
				(long)(closed + 59) / 60);
		told = true;
		/* By small steps: the clock may be set. */
		if (poll(&p, 1, closed < 60 ? (int)closed * 1000 : 60000) > 0 &&
		    upgrade_signalled(r->signals))
			stop(r, "interrupted");
	}
	return told;
}

static int upgrade_in_time(struct run *r)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	r->signals = upgrade_signals(&err);
	if (r->signals < 0)
		return fail(r->cli, NULL, &err);
	/* A wrong name was an error before the wait; who is outdated may be another after it. */
	if (count(r, MEMBER_WAITS) && wait_for_window(r)) {
		int code;

		forget(r);
		code = choose(r);
		if (code != CLI_DONE)
			return code;
	}
	return upgrade_all(r);
}

int fleet_run(const struct cli *cli, const struct fleet_options *options,
	      const struct upgrade_how *how)
{
	struct run r = { .cli = cli, .options = options, .how = how, .signals = -EBADF };
	int code = choose(&r);

	if (code == CLI_DONE)
		code = options->dry_run ? check_all(&r) : upgrade_in_time(&r);
	forget(&r);
	closep(&r.signals);
	free(r.stopped);
	return code;
}
