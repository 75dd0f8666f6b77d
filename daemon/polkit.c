/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the rule of access.c denies may be allowed by polkit, where there is one: by its
 * rules, or by an administrator's password (systemd/org.upgraded.policy has the actions).
 * It can only allow more, never less, and is asked only then; so a host without polkit,
 * and what root or a member of the group may do, do not depend on it.
 *
 * Called by server.c; the answer comes over D-Bus, within minutes when somebody types a
 * password. Owns the requests that wait, each with its call, and the bus. If this process
 * dies, or the client leaves, the request was never made.
 */
#include "polkit.h"

#include "log.h"
#include "standstill.h"
#include "vmm_process.h"

#include <string.h>
#include <systemd/sd-bus.h>

#define DESTINATION "org.freedesktop.PolicyKit1"
#define AUTHORITY   "/org/freedesktop/PolicyKit1/Authority"
#define INTERFACE   DESTINATION ".Authority"

#define ALLOW_INTERACTION 1
#define PATIENCE_US	  (300 * 1000000ULL)
#define WAITING_MAX	  64

struct appeal {
	struct appeal *next;
	struct context *ctx;
	struct requester from;
	Envelope *request;
	struct error denied;
	sd_bus_slot *call;
};

struct polkit {
	sd_bus *bus;
	struct appeal *appeals;
	size_t n;
};

int polkit_new(struct polkit **ret_polkit)
{
	*ret_polkit = calloc(1, sizeof(**ret_polkit));
	return *ret_polkit ? 0 : -ENOMEM;
}

static void appeal_end(struct appeal *a)
{
	struct polkit *p = a->ctx->polkit;
	struct appeal **at = &p->appeals;

	while (*at && *at != a)
		at = &(*at)->next;
	if (*at) {
		*at = a->next;
		p->n--;
	}
	sd_bus_slot_unref(a->call);
	envelope_freep(&a->request);
	error_clear(&a->denied);
	free(a);
}

void polkit_freep(struct polkit **polkit)
{
	struct polkit *p = *polkit;

	while (p && p->appeals)
		appeal_end(p->appeals);
	if (p)
		sd_bus_flush_close_unref(p->bus);
	free(p);
	*polkit = NULL;
}

void polkit_closed(struct context *ctx, uint64_t client)
{
	for (struct appeal *a = ctx->polkit->appeals, *next; a; a = next) {
		next = a->next;
		if (a->from.client == client)
			appeal_end(a);
	}
}

/* What polkit calls it; NULL: not to be had by asking. */
static const char *action_of(const Envelope *request)
{
	switch ((int)request->body_case) {
	case BODY(RUN):
		return "org.upgraded.run";
	case BODY(ADOPT):
	case BODY(FORGET):
		return "org.upgraded.manage";
	case BODY(CHECK):
	case BODY(UPGRADE):
		return "org.upgraded.any-binary";
	default:
		return NULL;
	}
}

static int on_answer(sd_bus_message *m, void *userdata, sd_bus_error *unused)
{
	const sd_bus_error *failure = sd_bus_message_get_error(m);
	struct appeal *a = userdata;
	int yes = 0, challenge;

	if (failure)
		log_line(LOG_WARNING, "polkit does not answer: %s",
			 failure->message ?: failure->name);
	/* The details that follow differ from version to version, and are not for us. */
	else if (sd_bus_message_enter_container(m, 'r', "bba{ss}") < 0 ||
		 sd_bus_message_read(m, "bb", &yes, &challenge) < 0)
		yes = 0;
	if (yes)
		server_grant(a->ctx->server, &a->from, a->request);
	else
		server_deny(a->ctx->server, &a->from, a->request, &a->denied);
	appeal_end(a);
	return 0;
}

static int connect_bus(struct context *ctx)
{
	struct polkit *p = ctx->polkit;
	sd_bus *bus = NULL;
	int r;

	if (p->bus && sd_bus_is_open(p->bus) > 0)
		return 0;
	p->bus = sd_bus_flush_close_unref(p->bus);
	r = sd_bus_open_system(&bus);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(bus, PATIENCE_US);
	if (r >= 0)
		r = sd_bus_attach_event(bus, ctx->event, SD_EVENT_PRIORITY_NORMAL);
	if (r < 0) {
		sd_bus_unref(bus);
		return r;
	}
	p->bus = bus;
	return 0;
}

/* Of the process that connected, and not of one that has its pid now. */
static int start_time(struct context *ctx, const struct requester *from, uint64_t *ret)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	_cleanup_error_ struct error ignored = ERROR_INIT;
	_cleanup_close_ int pidfd = -EBADF;
	int r;

	r = server_peer_pidfd(ctx->server, from->client, &pidfd);
	if (r < 0 && r != -ENODATA)
		return r;
	r = process_read(from->peer.pid, &facts, &ignored);
	if (r >= 0 && pidfd >= 0 && process_has_ended(pidfd))
		r = -ESRCH;
	*ret = facts.start_time;
	return r;
}

static int call(struct appeal *a, const char *action)
{
	uint64_t started = 0;
	int r;

	r = start_time(a->ctx, &a->from, &started);
	if (r >= 0)
		r = connect_bus(a->ctx);
	if (r < 0)
		return r;
	return sd_bus_call_method_async(
		a->ctx->polkit->bus, &a->call, DESTINATION, AUTHORITY, INTERFACE,
		"CheckAuthorization", on_answer, a, "(sa{sv})sa{ss}us", "unix-process", 3, "pid",
		"u", (uint32_t)a->from.peer.pid, "start-time", "t", started, "uid", "i",
		(int32_t)a->from.peer.uid, action, 0, ALLOW_INTERACTION, "");
}

bool polkit_ask(const struct requester *from, const Envelope *request, const struct error *denied,
		void *context)
{
	const char *action = action_of(request);
	struct context *ctx = context;
	struct appeal *a;

	if (!action || ctx->polkit->n >= WAITING_MAX)
		return false;
	a = calloc(1, sizeof(*a));
	if (!a)
		return false;
	a->ctx = ctx;
	a->from = *from;
	a->request = message_copy(request);
	error_set(&a->denied, denied->code, "%s, and polkit does not allow it either",
		  denied->text ?: "");
	if (denied->hint)
		error_hint(&a->denied, "%s", denied->hint);
	if (!a->request || call(a, action) < 0) {
		appeal_end(a);
		return false;
	}
	a->next = ctx->polkit->appeals;
	ctx->polkit->appeals = a;
	ctx->polkit->n++;
	return true;
}
