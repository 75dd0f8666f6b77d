/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Options about the process rather than the guest: files that hold its pid or
 * its log, descriptors that it was started with, its identity. The identity
 * (user, groups, namespaces, limits) is given to the target by the spawn, so
 * nothing here may change it a second time.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

void argv_pidfile(struct planner *p, const struct argv_option *o, const char *arg)
{
	/* The source holds a lock on it, and removes it when it ends in good order. */
	plan_pidfile(p, arg);
	plan_note(p, "argv.pidfile", arg, "Gets the target's pid once the source is dead");
}

/* QEMU empties the file that it opens; "%d" in its name is the pid. */
static char *own_log(struct planner *p, const char *path)
{
	_cleanup_free_ char *plain = NULL;

	if (strstr(path, "%d") || !strncmp(path, "/dev/", 5))
		return plan_format(p, "%s", path);
	plain = plan_plain_path(p, path);
	return plain ? plan_format(p, "%s%s", plain, p->in->suffix) : NULL;
}

void argv_logfile(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_free_ char *now = own_log(p, arg);

	if (!now)
		return;
	plan_keep(p, o, now);
	if (strcmp(now, arg))
		plan_warn(p, "argv.logfile", arg, "Use %d in the name: every process has its own then",
			  "The target logs to %s: QEMU would empty the source's log", now);
}

void argv_trace(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "enable");
	_cleanup_free_ char *now = NULL;

	if (!opts)
		return;
	if (!opts_get(opts, "file")) {
		plan_keep(p, o, arg);
		return;
	}
	now = own_log(p, opts_get(opts, "file"));
	plan_set(p, opts, "file", now);
	plan_emit_opts(p, o->name, opts);
	plan_warn(p, "argv.trace", arg, NULL, "The target traces to %s: QEMU would empty the source's",
		  now ?: "");
}

void argv_run_with(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, NULL);
	bool changed;

	if (!opts)
		return;
	if (opts_get(opts, "chroot"))
		plan_block(p, "argv.chroot", arg, "Start the guest without chroot=, in a mount namespace",
			   "Inside its chroot the target could not open what the source opened outside");
	changed = opts_del(opts, "user");
	if (changed)
		plan_note(p, "argv.user", arg, "The target is started as the user that the source is");
	if (opts_del(opts, "exit-with-parent")) {
		changed = true;
		plan_warn(p, "argv.exit-with-parent", arg, NULL,
			  "The target has another parent and does not end with the source's");
	}
	if (!changed)
		plan_keep(p, o, arg);
	else if (opts->n)
		plan_emit_opts(p, o->name, opts);
}

/* Does anything name /dev/fdset/N? */
static bool fdset_used(const struct planner *p, const char *set)
{
	static const char dir[] = "/dev/fdset/";
	size_t len = strlen(set);

	for (char **a = p->in->argv + 1; *a; a++)
		for (const char *s = strstr(*a, dir); s; s = strstr(s + 1, dir)) {
			const char *number = s + sizeof(dir) - 1;

			if (!strncmp(number, set, len) &&
			    !strspn(number + len, "0123456789"))
				return true;
		}
	return false;
}

/*
 * QEMU moved the descriptor to another number when it put it into the set, so
 * the number on the line is long gone; query-fdsets knows the one of now.
 */
static int find_in_set(const struct planner *p, int64_t set, const char *opaque)
{
	const struct source_fdset *v = p->in->fdsets;
	int first = -ENOENT;

	for (size_t i = 0; i < p->in->n_fdsets; i++) {
		if (p->fdset_claimed[i] || v[i].set != set)
			continue;
		if (opaque && v[i].opaque && !strcmp(opaque, v[i].opaque))
			return (int)i;
		if (first < 0)
			first = (int)i;
	}
	return first;
}

void argv_add_fd(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, NULL);
	_cleanup_free_ char *subject = NULL, *number = NULL;
	const char *set = opts ? opts_get(opts, "set") : NULL;
	int i;

	if (!opts)
		return;
	if (!set) {
		plan_keep(p, o, arg);
		plan_block(p, "argv.add-fd", arg, "Write it as -add-fd fd=FD,set=SET",
			   "-add-fd without set=");
		return;
	}
	subject = plan_format(p, "fdset %s", set);
	i = find_in_set(p, strtoll(set, NULL, 10), opts_get(opts, "opaque"));
	if (!subject)
		return;
	if (i < 0 && fdset_used(p, set)) {
		plan_keep(p, o, arg);
		plan_block(p, "argv.add-fd", subject, "Restart the guest",
			   "The source has closed this set, but the command line opens a file from it");
		return;
	}
	if (i < 0) {
		plan_note(p, "argv.add-fd", subject, "Closed by the source and not needed any more");
		return;
	}
	p->fdset_claimed[i] = true;
	number = plan_format(p, "%d", plan_carry_fd(p, p->in->fdsets[i].fd, false));
	plan_set(p, opts, "fd", number);
	plan_note(p, "argv.add-fd", subject, "Gets the source's descriptor %d",
		  p->in->fdsets[i].fd);
	plan_emit_opts(p, o->name, opts);
}

void add_fd_finish(struct planner *p)
{
	for (size_t i = 0; i < p->in->n_fdsets; i++) {
		_cleanup_free_ char *subject = NULL;

		if (p->fdset_claimed[i])
			continue;
		subject = plan_format(p, "fdset %lld", (long long)p->in->fdsets[i].set);
		if (subject)
			plan_warn(p, "argv.add-fd", subject, "Unplug what uses it",
				  "This set was added while the guest ran; the target does not get it");
	}
}

void argv_icount(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "shift");

	if (!opts)
		return;
	plan_keep(p, o, arg);
	if (opts_get(opts, "rr"))
		plan_block(p, "argv.icount", arg, "End the recording or the replay first",
			   "A recording belongs to one process");
}

void argv_set(struct planner *p, const struct argv_option *o, const char *arg)
{
	plan_keep(p, o, arg);
	if (!strncmp(arg, "chardev.", 8) || !strncmp(arg, "netdev.", 7))
		plan_block(p, "argv.set", arg, "Write the setting into the -chardev or -netdev itself",
			   "-set changes an option that has to be rewritten");
}

void argv_nodefaults(struct planner *p, const struct argv_option *o, const char *arg)
{
	p->nodefaults = true;
	plan_keep(p, o, arg);
}
