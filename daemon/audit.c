/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The audit trail: a record in systemd's journal of every request that changes
 * something and of every one that was refused, and one of every upgrade that has
 * ended. Each kind has a MESSAGE_ID of its own (systemd/upgraded.catalog explains
 * them), and fields that a program can read:
 *
 *   journalctl -o verbose MESSAGE_ID=0deee85b92c94f71ae6d74d24d60a662 UPGRADED_VM=vm1
 *
 * server.c and upgrade_end.c call in. Owns nothing. The record of an upgrade comes before
 * END in the daemon's own journal: a daemon that dies in between has the next one write it
 * once more, rather than not at all.
 */
#include "audit.h"

#include "log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define DENIED	"d10c975cd2cc4195ac2fad9089caa2ed"
#define GRANTED "922201bc05284128904df43a0bac9c9e"
#define ENDED	"0deee85b92c94f71ae6d74d24d60a662"

#define FIELDS_MAX 24

struct record {
	char *field[FIELDS_MAX + 1]; /* NULL-terminated */
	size_t n;
};

static void record_clear(struct record *r)
{
	for (size_t i = 0; i < r->n; i++)
		free(r->field[i]);
}

/* One for which there is no memory is left out. */
__attribute__((format(printf, 2, 3))) static void add(struct record *r, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (r->n >= FIELDS_MAX)
		return;
	va_start(ap, fmt);
	n = vasprintf(&r->field[r->n], fmt, ap);
	va_end(ap);
	if (n < 0)
		r->field[r->n] = NULL;
	else
		r->n++;
}

/* In small letters, as upgradectl --json has it. */
static void add_enum(struct record *r, const char *field, const ProtobufCEnumDescriptor *type,
		     int value)
{
	size_t before = r->n;

	add(r, "%s=%s", field, enum_name(type, value));
	for (char *p = before < r->n ? strchr(r->field[before], '=') : NULL; p && *p; p++)
		if (*p >= 'A' && *p <= 'Z')
			*p = (char)(*p - 'A' + 'a');
}

/* The VM that it is about; NULL: none. */
static const char *about(const Envelope *request)
{
	switch (request->body_case) {
	case BODY(CHECK):
		return request->check->name;
	case BODY(UPGRADE):
		return request->upgrade->name;
	case BODY(ABORT):
		return request->abort->name;
	case BODY(RUN):
		return request->run->name;
	case BODY(ADOPT):
		return request->adopt->name;
	case BODY(FORGET):
		return request->forget->name;
	default:
		return NULL;
	}
}

void audit_request(const struct peer *peer, const Envelope *request, const struct error *denied)
{
	__attribute__((cleanup(record_clear))) struct record r = { 0 };
	const char *vm = about(request);

	/* Who only looks is no decision, unless he may not. */
	if (!denied && (!vm || request->body_case == BODY(CHECK)))
		return;
	add(&r, "MESSAGE_ID=%s", denied ? DENIED : GRANTED);
	add(&r, "UPGRADED_VM=%s", vm ?: "");
	add(&r, "UPGRADED_REQUEST=%s", envelope_name(request));
	add(&r, "UPGRADED_DECISION=%s", denied ? "denied" : "granted");
	add(&r, "UPGRADED_UID=%u", peer->uid);
	add(&r, "UPGRADED_GID=%u", peer->gid);
	add(&r, "UPGRADED_PID=%d", (int)peer->pid);
	if (denied)
		log_record(LOG_NOTICE, r.field, "%s refused to uid %u, process %d: %s",
			   envelope_name(request), peer->uid, (int)peer->pid,
			   denied->text ?: "out of memory");
	else
		log_record(LOG_INFO, r.field, "%s%s%s by uid %u, process %d", vm, *vm ? ": " : "",
			   envelope_name(request), peer->uid, (int)peer->pid);
}

static void add_phases(struct record *r, const Report *report)
{
	_cleanup_free_ char *text = strdup("");

	for (size_t i = 0; text && i < report->n_phases; i++) {
		_cleanup_free_ char *before = text;

		if (asprintf(&text, "%s%s%s=%" PRIu64, before, i ? " " : "",
			     phase_name(report->phases[i]->phase),
			     report->phases[i]->duration_us) < 0)
			text = NULL;
	}
	add(r, "UPGRADED_PHASES_USEC=%s", text ?: "");
}

void audit_report(const Report *report, const char *text)
{
	__attribute__((cleanup(record_clear))) struct record r = { 0 };

	add(&r, "MESSAGE_ID=" ENDED);
	add(&r, "UPGRADED_VM=%s", report->vm);
	add(&r, "UPGRADED_ID=%" PRIu64, report->upgrade_id);
	add(&r, "UPGRADED_UID=%u", report->requested_by);
	add_enum(&r, "UPGRADED_OUTCOME", &upgraded__v1__outcome__descriptor, (int)report->outcome);
	add_enum(&r, "UPGRADED_TIER", &upgraded__v1__tier__descriptor, (int)report->tier);
	add(&r, "UPGRADED_SOURCE_PID=%d", report->source ? report->source->pid : 0);
	add(&r, "UPGRADED_SOURCE_BINARY=%s", report->source_binary);
	add(&r, "UPGRADED_SOURCE_VERSION=%s", report->source_version);
	add(&r, "UPGRADED_SOURCE_SHA256=%s", report->source_sha256);
	add(&r, "UPGRADED_TARGET_PID=%d", report->target ? report->target->pid : 0);
	add(&r, "UPGRADED_TARGET_BINARY=%s", report->target_binary);
	add(&r, "UPGRADED_TARGET_VERSION=%s", report->target_version);
	add(&r, "UPGRADED_TARGET_SHA256=%s", report->target_sha256);
	add_phases(&r, report);
	add(&r, "UPGRADED_BLACKOUT_USEC=%" PRIu64, report->blackout_us);
	add(&r, "UPGRADED_TOTAL_USEC=%" PRIu64, report->total_us);
	add(&r, "UPGRADED_ERROR=%s", report->error);
	log_record(report->outcome == OUTCOME(LOST)	   ? LOG_CRIT
		   : report->outcome == OUTCOME(COMMITTED) ? LOG_NOTICE
							   : LOG_WARNING,
		   r.field,
		   "%s: upgrade %" PRIu64 " to %s %s: %s%s%s (%" PRIu64 " ms, blackout %" PRIu64
		   " ms)",
		   report->vm, report->upgrade_id, report->target_binary, report->target_version,
		   text, report->error[0] ? ": " : "", report->error, report->total_us / 1000,
		   report->blackout_us / 1000);
}
