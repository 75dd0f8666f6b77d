/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Character devices, wherever they stand: -chardev, and the short spelling of
 * -serial, -parallel, -monitor, -qmp and -debugcon. While both processes live:
 * a file must be appended to, for opening it afresh would empty it; a unix
 * socket of that name exists already, so the target listens beside it and the
 * name is put right when the source is dead; a bound port or a socket that the
 * source was given is duplicated; and a client connection is what it is: the
 * peer would see a second one.
 *
 * A short spelling that has no words for what is needed becomes a -chardev
 * with an id of ours and a reference to it.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

enum change {
	SAME,
	CHANGED, /* the options are different, their kind is not */
	LONG,    /* needs words that only -chardev has */
};

/* The target's socket for us is where the source's was. */
static void found_qmp(struct planner *p, const char *now)
{
	free(p->plan->qmp);
	p->plan->qmp = strdup(now);
	if (!p->plan->qmp)
		p->rc = -ENOMEM;
}

static bool is_qmp(struct planner *p, const char *path)
{
	_cleanup_free_ char *plain = plan_plain_path(p, path), *ours = NULL;

	if (!p->in->qmp || !plain)
		return false;
	ours = plan_plain_path(p, p->in->qmp);
	return ours && !strcmp(plain, ours);
}

static void set_fd(struct planner *p, struct opts *o, const char *subject, int fd)
{
	_cleanup_free_ char *number = plan_format(p, "%d", plan_carry_fd(p, fd, false));

	plan_set(p, o, "fd", number);
	plan_note(p, "argv.chardev", subject,
		  "Gets the source's listening socket (fd %d); clients have to connect again", fd);
}

static enum change server_fd(struct planner *p, struct opts *o, const char *subject)
{
	const char *word = opts_get(o, "fd");
	char *end;
	long fd = strtol(word, &end, 10);
	int i = *end || end == word ? -ENOENT : plan_find_fd(p, (int)fd);
	const char *listen;

	if (i < 0 || !p->in->fds[i].listen) {
		plan_block(p, "argv.chardev", subject, "Start the guest with path= instead of fd=",
			   "fd %s is not a listening socket of the source", word);
		return SAME;
	}
	listen = p->in->fds[i].listen;
	if (!strncmp(listen, "unix:", 5) && is_qmp(p, listen + 5))
		found_qmp(p, listen + 5);
	set_fd(p, o, subject, (int)fd);
	return CHANGED;
}

static enum change server_unix(struct planner *p, struct opts *o, const char *subject)
{
	_cleanup_free_ char *path = strdup(opts_get(o, "path")), *now = NULL;

	if (!path) {
		p->rc = -ENOMEM;
		return SAME;
	}
	now = plan_rename_path(p, path);
	if (!now)
		return SAME;
	if (is_qmp(p, path))
		found_qmp(p, now);
	plan_set(p, o, "path", now);
	plan_note(p, "argv.chardev", subject,
		  "Listens on %s until the source is dead, then on %s; clients have to connect again",
		  now, p->plan->renames[p->plan->n_renames - 1].to);
	return CHANGED;
}

static enum change server_abstract(struct planner *p, struct opts *o, const char *subject)
{
	_cleanup_free_ char *name = plan_format(p, "@%s", opts_get(o, "path"));
	int fd = name ? listen_find_unix(p, name) : -ENOENT;

	if (fd < 0) {
		plan_block(p, "argv.chardev", subject, "Use a socket with a path",
			   "The source's abstract socket %s was not found", name ?: "");
		return SAME;
	}
	opts_del(o, "path");
	opts_del(o, "abstract");
	opts_del(o, "tight");
	set_fd(p, o, subject, fd);
	return LONG;
}

static enum change server_tcp(struct planner *p, struct opts *o, const char *subject)
{
	static const char *const address[] = { "host", "port", "to", "ipv4", "ipv6", "mptcp",
					       "keep-alive" };
	const char *host = opts_get(o, "host"), *port = opts_get(o, "port"),
		   *to = opts_get(o, "to");
	const struct listen_want want = {
		.host = host ?: "", .port = atoi(port ?: "0"), .to = atoi(to ?: "0"),
	};
	int got, fd = want.port > 0 ? listen_find_tcp(p, subject, &want, &got) : -ENOENT;

	if (fd < 0) {
		plan_block(p, "argv.chardev", subject,
			   "Use a unix socket (path=), or a port given as a number",
			   "The source's listening socket for port %s was not found", port ?: "?");
		return SAME;
	}
	for (size_t i = 0; i < ARRAY_SIZE(address); i++)
		opts_del(o, address[i]);
	set_fd(p, o, subject, fd);
	return LONG;
}

static enum change client(struct planner *p, const struct opts *o, const char *subject)
{
	const char *s = opts_get(o, "reconnect"), *ms = opts_get(o, "reconnect-ms");

	if (!opts_get(o, "fd") && ((s && atoi(s) > 0) || (ms && atoi(ms) > 0)))
		plan_warn(p, "argv.chardev-client", subject, NULL,
			  "The other side sees a second connection, then the end of the first");
	else
		plan_block(p, "argv.chardev-client", subject,
			   "Let QEMU listen (server=on,wait=off), or add reconnect-ms=1000 if the other "
			   "side accepts two connections at a time",
			   "QEMU is the client of this socket: its connection cannot be handed over");
	return SAME;
}

static enum change carry_socket(struct planner *p, struct opts *o, const char *subject)
{
	enum change change;

	if (!opts_on(o, "server", false))
		return client(p, o, subject);
	if (opts_get(o, "fd"))
		change = server_fd(p, o, subject);
	else if (!opts_get(o, "path"))
		change = server_tcp(p, o, subject);
	else if (opts_on(o, "abstract", false))
		change = server_abstract(p, o, subject);
	else
		change = server_unix(p, o, subject);
	/* A target that waits for a client would never get ready. */
	plan_set(p, o, "server", "on");
	plan_set(p, o, "wait", "off");
	return change == LONG ? LONG : CHANGED;
}

static enum change carry_pty(struct planner *p, struct opts *o, const char *subject)
{
	_cleanup_free_ char *now = NULL;

	plan_warn(p, "argv.chardev-pty", subject, "Open the new pty (virsh console does; query-chardev names it)",
		  "The target has another pty; who reads the old one sees its end");
	if (!opts_get(o, "path"))
		return SAME;
	now = plan_rename_path(p, opts_get(o, "path")); /* a link to the pty */
	plan_set(p, o, "path", now);
	return CHANGED;
}

static void carry_udp(struct planner *p, const struct opts *o, const char *subject)
{
	const char *port = opts_get(o, "localport");

	if (port && strcmp(port, "0"))
		plan_block(p, "argv.chardev", subject, "Leave out the local port, or use a unix socket",
			   "The local UDP port %s is bound by the source", port);
	else
		plan_warn(p, "argv.chardev", subject, NULL, "Sends from another UDP port");
}

static enum change carry_file(struct planner *p, struct opts *o, const char *subject)
{
	if (opts_on(o, "append", false))
		return SAME;
	plan_set(p, o, "append", "on");
	plan_note(p, "argv.chardev", subject, "Goes on at the end of the file (append=on)");
	return LONG;
}

/* What changes the options in no case: kept as they are, with a word about it. */
static void judge(struct planner *p, const char *backend, const struct opts *o, const char *subject)
{
	static const char *const plain[] = { "null", "vc", "msmouse", "wctablet", "testdev", "hub",
					     "spicevmc", "spiceport", "none", NULL };
	static const char *const shared[] = { "stdio", "pipe", "serial", "tty", NULL };
	static const char *const volatile_[] = { "ringbuf", "memory", NULL };
	static const char *const alone[] = { "parallel", "parport", "dbus", "braille", NULL };

	if (plan_word_in(backend, plain))
		return;
	if (plan_word_in(backend, shared))
		plan_warn(p, "argv.chardev-input", subject, NULL,
			  "Source and target read the same %s: input during the upgrade can get lost",
			  backend);
	else if (plan_word_in(backend, volatile_))
		plan_warn(p, "argv.chardev", subject, "Read it before the upgrade (ringbuf-read)",
			  "What is in the ring buffer now is lost");
	else if (plan_word_in(backend, alone))
		plan_block(p, "argv.chardev", subject, "Start the guest without it",
			   "A %s chardev serves one process at a time", backend);
	else if (!strcmp(backend, "udp"))
		carry_udp(p, o, subject);
	else
		plan_warn(p, "argv.chardev", subject, NULL,
			  "Chardevs of the kind %s are kept as they are written", backend);
}

static enum change carry(struct planner *p, const char *backend, struct opts *o,
			 const char *subject)
{
	enum change change = SAME;

	if (!strcmp(backend, "socket"))
		change = carry_socket(p, o, subject);
	else if (!strcmp(backend, "file"))
		change = carry_file(p, o, subject);
	else if (!strcmp(backend, "pty"))
		change = carry_pty(p, o, subject);
	else
		judge(p, backend, o, subject);

	if (opts_get(o, "logfile") && !opts_on(o, "logappend", false)) {
		plan_set(p, o, "logappend", "on");
		plan_note(p, "argv.chardev", subject, "Goes on at the end of its log file");
		if (change == SAME)
			change = CHANGED;
	}
	return change;
}

void argv_chardev(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "backend");
	const char *backend = opts ? opts_get(opts, "backend") : NULL, *id;
	_cleanup_free_ char *subject = NULL;

	if (!opts)
		return;
	if (opts->json || !backend) {
		plan_keep(p, o, arg);
		plan_block(p, "argv.syntax", arg, "Write it as -chardev BACKEND,id=ID,...",
			   "The kind of this chardev cannot be seen");
		return;
	}
	id = opts_get(opts, "id");
	subject = plan_format(p, "%s", id ?: arg);
	if (!subject)
		return;
	if (carry(p, backend, opts, subject) == SAME)
		plan_keep(p, o, arg);
	else
		plan_emit_opts(p, o->name, opts);
}

/* host:port[,options] behind "tcp:" and its relatives; [::1]:port too. */
static int parse_tcp(const char *text, const char *kind, struct opts **ret_opts)
{
	_cleanup_opts_ struct opts *o = NULL;
	_cleanup_free_ char *host = NULL, *port = NULL;
	const char *comma = strchrnul(text, ','), *colon;
	int r;

	colon = memrchr(text, ':', (size_t)(comma - text));
	if (!colon)
		return -EINVAL;
	host = *text == '[' && colon > text + 1 && colon[-1] == ']' ?
		       strndup(text + 1, (size_t)(colon - text - 2)) :
		       strndup(text, (size_t)(colon - text));
	port = strndup(colon + 1, (size_t)(comma - colon - 1));
	if (!host || !port)
		return -ENOMEM;
	r = opts_parse(*comma ? comma + 1 : "", NULL, &o);
	if (r < 0)
		return r;
	/* The address goes first, where people look for it. */
	r = opts_set(o, "host", host);
	if (r == 0)
		r = opts_set(o, "port", port);
	if (r == 0 && strcmp(kind, "tcp"))
		r = opts_set(o, kind, "on");
	if (r == 0)
		*ret_opts = TAKE_PTR(o);
	return r;
}

/* The local half of "udp:[host]:port@[host]:port" is what matters. */
static int parse_udp(const char *text, struct opts **ret_opts)
{
	const char *at = strchr(text, '@'), *colon = at ? strchr(at, ':') : NULL;
	int r = opts_parse("", NULL, ret_opts);

	if (r == 0 && colon)
		r = opts_set(*ret_opts, "localport", colon + 1);
	return r;
}

/*
 * Reads the short spelling (without "mon:"): *ret_backend is the name that
 * -chardev has for it. 0, -ENOMEM or -EINVAL.
 */
static int parse_short(const char *s, const char **ret_backend, struct opts **ret_opts)
{
	static const char *const tcp[] = { "tcp", "telnet", "tn3270", "websocket" };
	static const char *const words[] = { "null", "pty", "msmouse", "wctablet", "braille",
					     "testdev", "stdio", "none" };

	*ret_backend = "socket";
	for (size_t i = 0; i < ARRAY_SIZE(tcp); i++) {
		size_t len = strlen(tcp[i]);

		if (!strncmp(s, tcp[i], len) && s[len] == ':')
			return parse_tcp(s + len + 1, tcp[i], ret_opts);
	}
	if (!strncmp(s, "unix:", 5))
		return opts_parse(s + 5, "path", ret_opts);
	if (!strncmp(s, "file:", 5)) {
		int r = opts_parse("", NULL, ret_opts);

		*ret_backend = "file";
		return r ?: opts_set(*ret_opts, "path", s + 5); /* commas and all */
	}
	if (!strncmp(s, "udp:", 4)) {
		*ret_backend = "udp";
		return parse_udp(s + 4, ret_opts);
	}
	*ret_backend = NULL;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (!strcmp(s, words[i]))
			*ret_backend = words[i];
	if (!strncmp(s, "vc", 2) && (!s[2] || s[2] == ':'))
		*ret_backend = "vc";
	else if (!strncmp(s, "pipe:", 5))
		*ret_backend = "pipe";
	else if (!strncmp(s, "/dev/parport", 12) || !strncmp(s, "/dev/ppi", 8))
		*ret_backend = "parallel";
	else if (!strncmp(s, "/dev/", 5))
		*ret_backend = "serial";
	return *ret_backend ? opts_parse("", NULL, ret_opts) : -EINVAL;
}

/* "-serial unix:PATH,..." can be said again in its own words. */
static void emit_short(struct planner *p, const struct argv_option *o, bool mon,
		       const struct opts *opts)
{
	_cleanup_free_ char *text = NULL, *word = NULL;

	if (opts_print(opts, &text) < 0) {
		p->rc = -ENOMEM;
		return;
	}
	word = plan_format(p, "%sunix:%s", mon ? "mon:" : "", text);
	if (word)
		plan_keep(p, o, word);
}

static void emit_long(struct planner *p, const struct argv_option *o, bool mon,
		      const char *backend, const struct opts *opts)
{
	/* QEMU's device for -debugcon looks for a chardev of that name. */
	_cleanup_free_ char *id = strcmp(o->name, "debugcon") ? plan_new_id(p, "chr") :
								plan_format(p, "debugcon");
	_cleanup_free_ char *text = NULL, *chardev = NULL, *ref = NULL;

	if (!id || opts_print(opts, &text) < 0) {
		p->rc = -ENOMEM;
		return;
	}
	chardev = plan_format(p, "%s,id=%s,%s%s", backend, id, text, mon ? ",mux=on" : "");
	if (!chardev)
		return;
	plan_emit(p, "-chardev", chardev);
	if (!strcmp(o->name, "monitor") || !strncmp(o->name, "qmp", 3)) {
		ref = plan_format(p, "chardev=%s,mode=%s%s", id,
				  *o->name == 'm' ? "readline" : "control",
				  !strcmp(o->name, "qmp-pretty") ? ",pretty=on" : "");
		if (ref)
			plan_emit(p, "-mon", ref);
		return;
	}
	if (mon) {
		_cleanup_free_ char *monitor = plan_format(p, "chardev=%s,mode=readline", id);

		if (monitor)
			plan_emit(p, "-mon", monitor);
	}
	ref = plan_format(p, "chardev:%s", id);
	if (ref)
		plan_keep(p, o, ref);
}

void argv_chardev_short(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = NULL;
	_cleanup_free_ char *subject = plan_format(p, "-%s %s", o->name, arg);
	bool mon = !strncmp(arg, "mon:", 4);
	const char *backend, *s = mon ? arg + 4 : arg;
	enum change change;
	int r;

	if (!subject)
		return;
	if (!strncmp(s, "chardev:", 8)) {
		plan_keep(p, o, arg);
		return;
	}
	r = parse_short(s, &backend, &opts);
	if (r == -ENOMEM) {
		p->rc = r;
		return;
	}
	if (r < 0) {
		plan_keep(p, o, arg);
		plan_block(p, "argv.syntax", subject, "Write it with -chardev",
			   "The kind of this character device is not known");
		return;
	}
	change = carry(p, backend, opts, subject);
	if (change == SAME)
		plan_keep(p, o, arg);
	else if (change == CHANGED && !strncmp(s, "unix:", 5))
		emit_short(p, o, mon, opts);
	else if (change == CHANGED && strcmp(backend, "socket") && strcmp(backend, "file"))
		plan_keep(p, o, arg);
	else
		emit_long(p, o, mon, backend, opts);
}

void argv_gdb(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_free_ char *line = NULL;

	arg = arg ?: "tcp::1234";
	if (!strcmp(arg, "none") || !strncmp(arg, "chardev:", 8)) {
		plan_keep(p, o, arg);
		return;
	}
	line = plan_format(p, "gdbserver %s", arg);
	if (line)
		plan_hmp(p, line);
	plan_warn(p, "argv.gdb", arg, "Attach the debugger again",
		  "The debugger's port is opened again once the source is dead");
}
