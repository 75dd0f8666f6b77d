/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Network backends: -netdev, -nic and the old -net. A tap is an open file of
 * the source: the target gets that same file, so the interface never goes away
 * and no script runs. What QEMU itself is the end of (slirp, sockets) has state
 * that lives in the process.
 *
 * vhost: /dev/vhost-net belongs to the process that set it up, until that
 * closes it; a duplicate would be refused. A source that opened it has a target that
 * opens it too; one that was given it may not be able to, and its target is given one
 * as well, a new one.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

static bool is_tap(const struct opts *o)
{
	const char *type = opts_get(o, "type");

	return type && (!strcmp(type, "tap") || !strcmp(type, "bridge"));
}

/* Calls @fn for each number of "25:26". False: it is no such list. */
static bool each_fd(struct planner *p, const char *list, void (*fn)(struct planner *, int, void *),
		    void *arg)
{
	while (*list) {
		char *end;
		long fd = strtol(list, &end, 10);

		if (end == list || (*end && *end != ':') || fd < 0 || fd > 1 << 20)
			return false;
		fn(p, (int)fd, arg);
		list = *end ? end + 1 : end;
	}
	return true;
}

static void claim(struct planner *p, int fd, void *arg)
{
	int i = plan_find_fd(p, fd);

	if (i >= 0)
		p->fd_claimed[i] = true;
}

/* A tap that is named somewhere is not the one that a nameless netdev made. */
static void survey_one(struct planner *p, const struct opts *o)
{
	const char *ifname = opts_get(o, "ifname"), *fds = opts_get(o, "fds") ?: opts_get(o, "fd");

	if (!is_tap(o))
		return;
	if (fds)
		each_fd(p, fds, claim, NULL);
	for (size_t i = 0; ifname && i < p->in->n_fds; i++)
		if (p->in->fds[i].tap && !strcmp(p->in->fds[i].tap, ifname))
			p->fd_claimed[i] = true;
}

void net_survey(struct planner *p)
{
	for (char **a = p->in->argv + 1; *a; a++) {
		const struct argv_option *o = argv_option_find(*a);
		_cleanup_opts_ struct opts *opts = NULL;

		if (!o || !o->has_arg || !a[1])
			continue;
		a++;
		if (o->rewrite == argv_net && opts_parse(*a, "type", &opts) == 0)
			survey_one(p, opts);
	}
}

struct fd_list {
	char *text;
	int n;
	const char *missing;
};

static void carry_one(struct planner *p, int fd, void *arg)
{
	struct fd_list *l = arg;
	char *text;
	int i = plan_find_fd(p, fd);

	if (i < 0 || !p->in->fds[i].tap) {
		l->missing = "is not a tap of the source";
		return;
	}
	text = plan_format(p, "%s%s%d", l->text ?: "", l->text ? ":" : "",
			   plan_carry_fd(p, fd, true));
	free(l->text);
	l->text = text;
	l->n++;
}

/* The source's open files of @ifname, or of the only tap that has no name on the line. */
static const char *find_tap(struct planner *p, const char *ifname, struct fd_list *l)
{
	const char *only = ifname;

	for (size_t i = 0; i < p->in->n_fds && !ifname; i++) {
		const struct source_fd *fd = &p->in->fds[i];

		if (!fd->tap || p->fd_claimed[i])
			continue;
		if (only && strcmp(only, fd->tap))
			return NULL; /* which of the two? */
		only = fd->tap;
	}
	for (size_t i = 0; i < p->in->n_fds && only; i++) {
		const struct source_fd *fd = &p->in->fds[i];

		if (fd->tap && !strcmp(fd->tap, only)) {
			p->fd_claimed[i] = true;
			carry_one(p, fd->fd, l);
		}
	}
	return l->n ? only : NULL;
}

static bool tap_by_number(struct planner *p, const char *subject, const char *fds,
			  struct fd_list *l)
{
	if (each_fd(p, fds, carry_one, l) && !l->missing && l->n)
		return true;
	plan_block(p, "argv.netdev", subject, "Start the guest with ifname=NAME,script=no,downscript=no",
		   "fd %s %s", fds, l->missing ?: "is not a number");
	return false;
}

static bool tap_by_name(struct planner *p, const char *subject, const struct opts *o,
			struct fd_list *l)
{
	const char *ifname = opts_get(o, "ifname"), *script = opts_get(o, "downscript");
	const char *queues = opts_get(o, "queues"), *tap = find_tap(p, ifname, l);

	if (!tap && ifname) {
		plan_block(p, "argv.netdev", subject, "See whether the interface exists and is QEMU's",
			   "The source has no open tap %s", ifname);
		return false;
	}
	if (!tap) {
		plan_block(p, "argv.netdev", subject, "Name the interface: ifname=NAME",
			   "Which of the source's taps this is cannot be seen");
		return false;
	}
	if (queues && atoi(queues) != l->n) {
		plan_block(p, "argv.netdev", subject, "Start the guest with the queues that the interface has",
			   "%s has %d open queues instead of %s", tap, l->n, queues);
		return false;
	}
	plan_note(p, "argv.netdev", subject, "Gets the source's tap %s (%d queue%s)", tap, l->n,
		  l->n == 1 ? "" : "s");
	if (!opts_get(o, "br") && !opts_get(o, "helper") && (!script || strcmp(script, "no")) &&
	    strcmp(opts_get(o, "type"), "bridge"))
		plan_warn(p, "argv.netdev-script", subject, "Use downscript=no and an outside service",
			  "%s is not run when the guest ends after an upgrade",
			  script ?: "/etc/qemu-ifdown");
	return true;
}

static void give_vhost(struct planner *p, struct opts *o, const char *subject, int queues)
{
	_cleanup_free_ char *text = NULL;

	for (int i = 0; i < queues; i++) {
		_cleanup_free_ char *before = text;

		text = plan_format(p, "%s%s%d", before ?: "", before ? ":" : "",
				   plan_carry_fd(p, PLAN_NEW_VHOST, false));
	}
	plan_set(p, o, queues > 1 ? "vhostfds" : "vhostfd", text);
	plan_note(p, "argv.netdev-vhost", subject, "Gets a /dev/vhost-net of its own");
}

/* False: leave the option as it is, there is a blocker. */
static bool carry_tap(struct planner *p, struct opts *o, const char *subject)
{
	/* None of them goes together with fd=. */
	static const char *const made[] = { "ifname", "script", "downscript", "helper", "br",
					    "queues", "vnet_hdr", "fd", "fds" };
	const char *fds = opts_get(o, "fds") ?: opts_get(o, "fd");
	struct fd_list l = { 0 };
	_cleanup_free_ char *text = NULL;
	bool ok;

	ok = fds ? tap_by_number(p, subject, fds, &l) : tap_by_name(p, subject, o, &l);
	text = l.text;
	if (!ok)
		return false;
	if (fds)
		plan_note(p, "argv.netdev", subject, "Gets the source's tap (fd %s)", fds);
	for (size_t i = 0; i < ARRAY_SIZE(made); i++)
		opts_del(o, made[i]);
	if (strcmp(opts_get(o, "type"), "tap"))
		plan_set(p, o, "type", "tap");
	plan_set(p, o, l.n > 1 ? "fds" : "fd", text);
	if (opts_del(o, "vhostfd") | opts_del(o, "vhostfds"))
		give_vhost(p, o, subject, l.n);
	return true;
}

static void restore_forward(struct planner *p, const char *id, const char *rule)
{
	_cleanup_free_ char *line = plan_format(p, "hostfwd_add %s %s", id, rule);

	if (line)
		plan_hmp(p, line);
}

static bool carry_user(struct planner *p, const struct argv_option *option, struct opts *o,
		       const char *subject)
{
	_cleanup_free_ char *id = NULL;
	bool changed = false;

	for (size_t i = 0; i < o->n; i++)
		if (!strcmp(o->v[i].key, "guestfwd") && o->v[i].value &&
		    !strstr(o->v[i].value, "-cmd:"))
			plan_block(p, "argv.netdev", subject, "Use guestfwd=...-cmd:COMMAND",
				   "guestfwd to a chardev is a connection of the source");
	plan_warn(p, "argv.netdev-user", subject, "Use a tap",
		  "Connections through user-mode networking are cut: their sockets are the source's");
	if (!opts_get(o, "hostfwd"))
		return false;
	if (opts_get(o, "id")) {
		id = plan_format(p, "%s", opts_get(o, "id"));
	} else {
		id = plan_new_id(p, "net");
		plan_set(p, o, "id", id);
	}
	if (!id)
		return false;
	if (o->json) {
		struct json_object *list = json_object_object_get(o->json, "hostfwd");

		for (size_t i = 0; json_object_is_type(list, json_type_array) &&
				   i < json_object_array_length(list); i++) {
			struct json_object *e = json_object_array_get_idx(list, i);
			const char *rule = json_object_is_type(e, json_type_object) ?
				json_object_get_string(json_object_object_get(e, "str")) : NULL;

			restore_forward(p, id, rule ?: "");
		}
	}
	for (size_t i = 0; i < o->n; i++)
		if (!strcmp(o->v[i].key, "hostfwd"))
			restore_forward(p, id, o->v[i].value ?: "");
	changed = opts_del(o, "hostfwd");
	plan_note(p, "argv.netdev-user", subject,
		  "The forwarded ports are opened again once the source is dead");
	return changed;
}

/* A datagram socket that QEMU was given is like a tap: the target gets it too. */
static bool carry_dgram(struct planner *p, struct opts *o, const char *subject)
{
	const char *local = opts_get(o, "local.type"), *host = opts_get(o, "remote.host");
	_cleanup_free_ char *number = NULL;

	if (local && !strcmp(local, "fd") && !o->json) {
		const char *fd = opts_get(o, "local.str");
		int i = fd ? plan_find_fd(p, atoi(fd)) : -ENOENT;

		if (i >= 0) {
			number = plan_format(p, "%d", plan_carry_fd(p, atoi(fd), false));
			plan_set(p, o, "local.str", number);
			plan_note(p, "argv.netdev", subject, "Gets the source's datagram socket");
			return true;
		}
	}
	if (host && !strncmp(host, "2", 1) && atoi(host) >= 224 && atoi(host) <= 239) {
		plan_note(p, "argv.netdev", subject, "Joins the multicast group as another member");
		return false;
	}
	plan_block(p, "argv.netdev", subject, "Use a tap",
		   "The source has bound the local address of this socket");
	return false;
}

static void judge(struct planner *p, const char *type, const struct opts *o, const char *subject)
{
	static const struct {
		const char *type, *text;
	} blocked[] = {
		{ "socket", "The connection of this socket cannot be handed over" },
		{ "stream", "The connection of this socket cannot be handed over" },
		{ "l2tpv3", "The source has bound the local address of the tunnel" },
		{ "vhost-user", "The rings belong to a process that serves one QEMU at a time" },
		{ "vhost-vdpa", "The vDPA device serves one process at a time" },
		{ "passt", "passt serves one QEMU at a time, and has bound the forwarded ports" },
		{ "af-xdp", "The queues of the interface are bound by the source" },
		{ "netmap", "The ports are bound by the source" },
	};

	if (!strcmp(type, "socket") && opts_get(o, "mcast")) {
		plan_note(p, "argv.netdev", subject, "Joins the multicast group as another member");
		return;
	}
	if (!strcmp(type, "vde") && !opts_get(o, "port")) {
		plan_warn(p, "argv.netdev", subject, NULL,
			  "The target is connected to another port of the VDE switch");
		return;
	}
	if (!strcmp(type, "vde"))
		plan_block(p, "argv.netdev", subject, "Leave out port=",
			   "The port of the VDE switch is taken by the source");
	if (!strcmp(type, "vde") || !strcmp(type, "nic") || !strcmp(type, "none") ||
	    !strcmp(type, "hubport"))
		return;
	for (size_t i = 0; i < ARRAY_SIZE(blocked); i++)
		if (!strcmp(type, blocked[i].type)) {
			plan_block(p, "argv.netdev", subject, "Use a tap", "%s", blocked[i].text);
			return;
		}
	plan_block(p, "argv.netdev", subject, "Use a tap",
		   "How to carry a network backend of the kind %s is not known", type);
}

void argv_net(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = NULL;
	_cleanup_free_ char *subject = NULL, *type = NULL;
	bool changed = false;

	p->net = true;
	opts = plan_parse(p, o, arg, "type");
	if (!opts)
		return;
	subject = plan_format(p, "%s", opts_get(opts, "id") ?: arg);
	type = plan_format(p, "%s", opts_get(opts, "type") ?: "");
	if (!subject || !type)
		return;
	if (is_tap(opts))
		changed = carry_tap(p, opts, subject);
	else if (!strcmp(type, "user"))
		changed = carry_user(p, o, opts, subject);
	else if (!strcmp(type, "dgram"))
		changed = carry_dgram(p, opts, subject);
	else
		judge(p, type, opts, subject);
	if (changed)
		plan_emit_opts(p, o->name, opts);
	else
		plan_keep(p, o, arg);
}

void net_finish(struct planner *p)
{
	if (!p->net && !p->nodefaults)
		plan_warn(p, "argv.netdev-user", "-nic user", "Add -nic none, or a tap",
			  "The default network card uses user-mode networking, whose connections are cut");
}
