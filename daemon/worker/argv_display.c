/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Screens. VNC listens on a TCP port which the source has bound: the target
 * gets a private unix socket in its place and takes the port over by a QMP
 * command when the source is dead. Viewers connect again in any case. SPICE
 * cannot change its port at run time, and the kinds that live in a terminal or
 * on a bus belong to one process.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

#define VNC_PORT 5900

static void vnc_password(struct planner *p, const struct opts *o, const char *subject)
{
	if (opts_on(o, "password", false))
		plan_warn(p, "argv.vnc-password", subject,
			  "Set it again after the upgrade (set_password), or use password-secret=",
			  "The password was set at run time; the target has none and lets nobody in");
}

/* {"execute":"display-update","arguments":{"type":"vnc","addresses":[...]}} */
static void give_back(struct planner *p, const struct opts *o, const char *host, int port)
{
	struct json_object *address = json_object_new_object(), *list = json_object_new_array();
	struct json_object *arguments = json_object_new_object();
	struct json_object *command = json_object_new_object();
	_cleanup_free_ char *text = plan_format(p, "%d", port);

	json_object_object_add(address, "type", json_object_new_string("inet"));
	json_object_object_add(address, "host", json_object_new_string(host));
	json_object_object_add(address, "port", json_object_new_string(text ?: ""));
	if (opts_get(o, "ipv4"))
		json_object_object_add(address, "ipv4",
				       json_object_new_boolean(opts_on(o, "ipv4", false)));
	if (opts_get(o, "ipv6"))
		json_object_object_add(address, "ipv6",
				       json_object_new_boolean(opts_on(o, "ipv6", false)));
	json_object_array_add(list, address);
	json_object_object_add(arguments, "type", json_object_new_string("vnc"));
	json_object_object_add(arguments, "addresses", list);
	json_object_object_add(command, "execute", json_object_new_string("display-update"));
	json_object_object_add(command, "arguments", arguments);
	plan_command(p, command);
}

static bool vnc_private(struct planner *p, struct opts *o)
{
	_cleanup_free_ char *path = plan_private_path(p, "vnc.sock"), *vnc = NULL;

	vnc = path ? plan_format(p, "unix:%s", path) : NULL;
	plan_set(p, o, "vnc", vnc);
	return true;
}

/* "host:display[,to=N]". True: @o was changed. */
static bool vnc_tcp(struct planner *p, struct opts *o, const char *where)
{
	const char *colon = strrchr(where, ':'), *to = opts_get(o, "to"), *start = where;
	size_t len = colon ? (size_t)(colon - where) : 0;
	_cleanup_free_ char *host = NULL, *subject = plan_format(p, "%s", where);
	struct listen_want want = { 0 };
	int port;

	if (!subject)
		return false;
	if (!colon || p->vnc_tcp || opts_on(o, "websocket", false) ||
	    (opts_get(o, "websocket") && strcmp(opts_get(o, "websocket"), "off")) ||
	    opts_on(o, "reverse", false)) {
		plan_block(p, "argv.vnc", subject,
			   "Use one -vnc HOST:DISPLAY or -vnc unix:PATH (a proxy such as websockify "
			   "serves web sockets)",
			   "Only the port of one plain VNC server can be handed over");
		return false;
	}
	if (len > 1 && *start == '[' && start[len - 1] == ']') {
		start++;
		len -= 2;
	}
	host = strndup(start, len);
	if (!host) {
		p->rc = -ENOMEM;
		return false;
	}
	port = VNC_PORT + atoi(colon + 1);
	if (to) {
		want = (struct listen_want){ host, port, VNC_PORT + atoi(to) };
		if (listen_find_tcp(p, subject, &want, &port) < 0) {
			plan_block(p, "argv.vnc", subject, "Leave out to=",
				   "Which port the source took was not found");
			return false;
		}
		opts_del(o, "to");
	}
	p->vnc_tcp = true;
	vnc_password(p, o, subject);
	plan_note(p, "argv.vnc", subject,
		  "Listens on its port %d once the source is dead; viewers have to connect again",
		  port);
	give_back(p, o, host, port);
	return vnc_private(p, o);
}

/* True: @o was changed. */
static bool carry_vnc(struct planner *p, struct opts *o)
{
	_cleanup_free_ char *where = plan_format(p, "%s", opts_get(o, "vnc") ?: "none");
	_cleanup_free_ char *now = NULL, *vnc = NULL;

	if (!where || !strcmp(where, "none"))
		return false;
	if (strncmp(where, "unix:", 5))
		return vnc_tcp(p, o, where);
	vnc_password(p, o, where);
	if (p->carried_vnc && !p->vnc_tcp) { /* ours of the last upgrade */
		p->vnc_tcp = true;
		return vnc_private(p, o);
	}
	now = plan_rename_path(p, where + 5);
	vnc = now ? plan_format(p, "unix:%s", now) : NULL;
	plan_set(p, o, "vnc", vnc);
	plan_note(p, "argv.vnc", where, "Listens there once the source is dead; viewers have to "
					"connect again");
	return true;
}

void argv_vnc(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "vnc");

	p->display = true;
	if (!opts)
		return;
	if (carry_vnc(p, opts))
		plan_emit_opts(p, o->name, opts);
	else
		plan_keep(p, o, arg);
}

void argv_display(struct planner *p, const struct argv_option *o, const char *arg)
{
	static const char *const windows[] = { "gtk", "sdl", "cocoa", "default", NULL };
	_cleanup_opts_ struct opts *opts = NULL;
	const char *type;

	p->display = true;
	if (!strncmp(arg, "vnc=", 4)) { /* the same as -vnc */
		argv_vnc(p, argv_option_find("-vnc"), arg + 4);
		return;
	}
	plan_keep(p, o, arg);
	opts = plan_parse(p, o, arg, "type");
	type = opts ? opts_get(opts, "type") : NULL;
	if (!type || !strcmp(type, "none") || !strcmp(type, "egl-headless"))
		return;
	if (plan_word_in(type, windows))
		plan_warn(p, "argv.display", arg, NULL,
			  "The target opens a window of its own, the source's window closes");
	else
		plan_block(p, "argv.display", arg, "Use -display none with -vnc",
			   "A %s display belongs to the source's process", type);
}

void argv_nographic(struct planner *p, const struct argv_option *o, const char *arg)
{
	p->display = true;
	plan_keep(p, o, arg);
	plan_note(p, "argv.nographic", "-nographic",
		  "Source and target share the terminal: input during the upgrade can get lost");
}

void argv_spice(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, NULL);
	_cleanup_free_ char *now = NULL;

	p->display = true;
	if (!opts)
		return;
	if (!opts_on(opts, "unix", false) || !opts_get(opts, "addr") ||
	    opts_get(opts, "tls-port")) {
		plan_keep(p, o, arg);
		plan_block(p, "argv.spice", arg, "Use VNC, or -spice unix=on,addr=PATH",
			   "The SPICE server's port is bound by the source and cannot be moved");
		return;
	}
	if (!opts_on(opts, "disable-ticketing", false) && !opts_get(opts, "password-secret"))
		plan_warn(p, "argv.spice", arg, "Set it again after the upgrade (set_password)",
			  "A password that was set at run time is not known to the target");
	now = plan_rename_path(p, opts_get(opts, "addr"));
	plan_set(p, opts, "addr", now);
	plan_note(p, "argv.spice", arg, "Listens there once the source is dead; viewers have to "
					"connect again");
	plan_emit_opts(p, o->name, opts);
}

void display_finish(struct planner *p)
{
	if (!p->display)
		plan_warn(p, "argv.display", "-display", "Add -display none or -vnc",
			  "QEMU chooses the default display itself: a window, or VNC on the next free port");
}
