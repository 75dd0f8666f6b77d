/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes a QEMU command line into one that can be upgraded later: guest RAM in
 * a shared memfd, QEMU's own small RAM blocks shared too, a monitor that
 * belongs to upgraded. Used by `run`, before the VM's first start. Pure: owns
 * nothing, looks at nothing but its arguments; golden tests hold it.
 *
 * What the user chose stays: with a memory backend of their own, RAM is left
 * as it is, and `check` says whether it can be carried.
 */
#include "run_argv.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#define RAM_ID	    "upgraded-ram"
#define RAM_DEFAULT "128M" /* QEMU's, without -m */

struct line {
	char **v;
	size_t n;
};

struct seen {
	size_t machine;	    /* index of the last -machine's value in the result, 0: none */
	const char *memory; /* value of the last -m */
	bool name;
	bool own_backend;
	bool aux_ram_share;
};

__attribute__((format(printf, 2, 3))) static int add(struct line *l, const char *fmt, ...)
{
	char **v = reallocarray(l->v, l->n + 2, sizeof(*v));
	va_list ap;
	int r;

	if (!v)
		return -ENOMEM;
	l->v = v;
	va_start(ap, fmt);
	r = vasprintf(&v[l->n], fmt, ap);
	va_end(ap);
	if (r < 0) {
		v[l->n] = NULL;
		return -ENOMEM;
	}
	v[++l->n] = NULL;
	return 0;
}

static bool is_option(const char *arg, const char *name)
{
	if (*arg++ != '-')
		return false;
	return !strcmp(arg + (*arg == '-'), name);
}

/* "size=2G,slots=4" and "2G,slots=4" are "2G"; without a unit it is MiB. */
static int memory_size(const char *value, char **ret_size)
{
	const char *size = !strncmp(value, "size=", 5) ? value + 5 : strstr(value, ",size=");
	size_t len;
	bool bare;

	if (!size)
		size = value;
	else if (*size == ',')
		size += strlen(",size=");
	len = strcspn(size, ",");
	bare = strspn(size, "0123456789") == len;
	return asprintf(ret_size, "%.*s%s", (int)len, size, bare ? "M" : "") < 0 ? -ENOMEM : 0;
}

static int look(struct seen *seen, const char *option, const char *value, size_t value_at,
		struct error *err)
{
	if (is_option(option, "m"))
		seen->memory = value;
	else if (is_option(option, "name"))
		seen->name = true;
	else if (is_option(option, "numa") && strstr(value, "memdev="))
		seen->own_backend = true;
	else if (is_option(option, "mem-path")) {
		error_set(err, -EINVAL, "-mem-path memory is private to one process");
		error_hint(err,
			   "use -object memory-backend-file,id=ram,share=on,mem-path=%s,size=... "
			   "with -machine memory-backend=ram",
			   value);
		return -EINVAL;
	} else if (is_option(option, "machine") || is_option(option, "M")) {
		seen->machine = value_at;
		seen->own_backend |= strstr(value, "memory-backend=") != NULL;
		seen->aux_ram_share |= strstr(value, "aux-ram-share=") != NULL;
	}
	return 0;
}

static int add_machine(struct line *l, size_t at, const char *properties)
{
	char *joined;

	if (!at)
		return add(l, "-machine") < 0 ? -ENOMEM : add(l, "%s", properties);
	if (asprintf(&joined, "%s,%s", l->v[at], properties) < 0)
		return -ENOMEM;
	free(l->v[at]);
	l->v[at] = joined;
	return 0;
}

static int add_memory(struct line *l, struct line *notes, const struct seen *seen)
{
	_cleanup_free_ char *size = NULL;
	int r;

	if (seen->own_backend)
		return add(notes,
			   "the command line has its own memory backend, which is left as it is");
	r = seen->memory		   ? memory_size(seen->memory, &size)
	    : (size = strdup(RAM_DEFAULT)) ? 0
					   : -ENOMEM;
	if (r >= 0)
		r = add(l, "-object");
	if (r >= 0)
		r = add(l, "memory-backend-memfd,id=" RAM_ID ",size=%s,share=on", size);
	if (r >= 0)
		r = add_machine(l, seen->machine ?: 0, "memory-backend=" RAM_ID);
	return r >= 0 ? add(notes, "guest RAM (%s) is a shared memfd", size) : r;
}

static int add_what_is_missing(struct line *l, struct line *notes, struct seen *seen,
			       const char *name, const char *qmp)
{
	int r = 0;

	if (!seen->aux_ram_share) {
		r = add_machine(l, seen->machine, "aux-ram-share=on");
		if (r >= 0 && !seen->machine)
			seen->machine = l->n - 1;
	}
	if (r >= 0)
		r = add_memory(l, notes, seen);
	if (r >= 0 && !seen->name) {
		r = add(l, "-name");
		r = r < 0 ? r : add(l, "guest=%s", name);
	}
	if (r >= 0)
		r = add(l, "-qmp");
	return r < 0 ? r : add(l, "unix:%s,server=on,wait=off", qmp);
}

int run_argv_make(char **argv, size_t n, const char *name, const char *qmp, char ***ret_argv,
		  char ***ret_notes, struct error *err)
{
	_cleanup_strv_ char **line = NULL, **said = NULL;
	struct line l = { 0 }, notes = { 0 };
	struct seen seen = { 0 };
	int r = 0;

	if (!n || argv[0][0] != '/') {
		error_set(err, -EINVAL,
			  "the command line must begin with the absolute path of a QEMU");
		error_hint(err, "upgradectl run %s -- /usr/bin/qemu-system-x86_64 -m 1G ...", name);
		return -EINVAL;
	}
	for (size_t i = 0; i < n && r >= 0; i++) {
		if (i && is_option(argv[i], "daemonize")) {
			r = add(&notes,
				"-daemonize is left out: systemd keeps the VM in the background");
			continue;
		}
		r = add(&l, "%s", argv[i]);
		if (r >= 0 && i && i + 1 < n)
			r = look(&seen, argv[i], argv[i + 1], l.n, err);
	}
	if (r >= 0)
		r = add_what_is_missing(&l, &notes, &seen, name, qmp);
	line = l.v;
	said = notes.v;
	if (r < 0)
		return error_set(err, r, "out of memory");
	*ret_argv = TAKE_PTR(line);
	*ret_notes = TAKE_PTR(said);
	return 0;
}
