/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The verbs with which the rules build a plan: words, findings, descriptors,
 * renames, commands. Everything made here belongs to the plan. An allocation
 * that fails is remembered in the planner (see argv_planner.h) and makes the
 * verb a no-op, so no rule has to unwind.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <string.h>
#include <sys/un.h>

/* Numbers from here on are free in the target: nothing of its own runs yet. */
#define FIRST_FD 100

static void append_string(struct planner *p, char ***v, size_t *n, const char *s)
{
	char **new, *copy;

	new = reallocarray(*v, *n + 2, sizeof(*new));
	if (!new) {
		p->rc = -ENOMEM;
		return;
	}
	*v = new;
	copy = strdup(s);
	if (!copy)
		p->rc = -ENOMEM;
	new[*n] = copy;
	if (copy)
		(*n)++;
	new[*n] = NULL;
}

void plan_emit(struct planner *p, const char *option, const char *arg)
{
	append_string(p, &p->plan->argv, &p->n_argv, option);
	if (arg)
		append_string(p, &p->plan->argv, &p->n_argv, arg);
}

void plan_keep(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_free_ char *word = plan_format(p, "-%s", o->name);

	if (word)
		plan_emit(p, word, arg);
}

void plan_emit_opts(struct planner *p, const char *option, const struct opts *opts)
{
	_cleanup_free_ char *word = plan_format(p, "-%s", option), *text = NULL;

	if (!word || opts_print(opts, &text) < 0)
		p->rc = -ENOMEM;
	else
		plan_emit(p, word, text);
}

struct opts *plan_parse(struct planner *p, const struct argv_option *o, const char *arg,
			const char *implied)
{
	struct opts *opts;
	int r = opts_parse(arg, implied, &opts);

	if (r == 0)
		return opts;
	if (r == -ENOMEM)
		p->rc = r;
	else
		plan_block(p, "argv.syntax", arg, "Report this command line: it was not understood",
			   "The argument of -%s is not valid JSON", o->name);
	return NULL;
}

void plan_set(struct planner *p, struct opts *o, const char *key, const char *value)
{
	if (!value || opts_set(o, key, value) < 0)
		p->rc = -ENOMEM;
}

static void finding(struct planner *p, Upgraded__V1__Severity severity, const char *code,
		    const char *subject, const char *remedy, const char *fmt, va_list ap)
{
	_cleanup_free_ char *text = NULL;

	if (vasprintf(&text, fmt, ap) < 0) {
		text = NULL;
		p->rc = -ENOMEM;
		return;
	}
	if (findings_add(&p->plan->findings, severity, code, subject, remedy, "%s", text) < 0)
		p->rc = -ENOMEM;
}

void plan_note(struct planner *p, const char *code, const char *subject, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	finding(p, UPGRADED__V1__SEVERITY__SEVERITY_NOTE, code, subject, NULL, fmt, ap);
	va_end(ap);
}

void plan_warn(struct planner *p, const char *code, const char *subject, const char *remedy,
	       const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	finding(p, UPGRADED__V1__SEVERITY__SEVERITY_WARNING, code, subject, remedy, fmt, ap);
	va_end(ap);
}

void plan_block(struct planner *p, const char *code, const char *subject, const char *remedy,
		const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	finding(p, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, code, subject, remedy, fmt, ap);
	va_end(ap);
}

int plan_carry_fd(struct planner *p, int source, bool tap)
{
	struct argv_plan *plan = p->plan;
	struct plan_fd *v = reallocarray(plan->fds, plan->n_fds + 1, sizeof(*v));

	if (!v) {
		p->rc = -ENOMEM;
		return -1;
	}
	if (!p->next_fd)
		p->next_fd = FIRST_FD;
	plan->fds = v;
	v[plan->n_fds++] = (struct plan_fd){
		.source = source, .target = p->next_fd, .tap = tap,
	};
	return p->next_fd++;
}

int plan_find_fd(const struct planner *p, int fd)
{
	for (size_t i = 0; i < p->in->n_fds; i++)
		if (p->in->fds[i].fd == fd)
			return (int)i;
	return -ENOENT;
}

/*
 * The source may be the target of an earlier upgrade: its line then names
 * "qmp.sock.upgraded-17" although the socket has been renamed to "qmp.sock".
 * Only the number at the end of the suffix changes from upgrade to upgrade.
 */
char *plan_plain_path(struct planner *p, const char *path)
{
	const char *suffix = p->in->suffix;
	size_t stem = strlen(suffix), len = strlen(path), end = len;
	char *plain;

	while (stem > 0 && isdigit((unsigned char)suffix[stem - 1]))
		stem--;
	while (end > 0 && isdigit((unsigned char)path[end - 1]))
		end--;
	if (stem > 0 && end < len && end >= stem && !strncmp(path + end - stem, suffix, stem))
		len = end - stem;
	plain = strndup(path, len);
	if (!plain)
		p->rc = -ENOMEM;
	return plain;
}

char *plan_rename_path(struct planner *p, const char *path)
{
	struct argv_plan *plan = p->plan;
	_cleanup_free_ char *to = plan_plain_path(p, path), *from = NULL, *ret = NULL;
	struct plan_rename *v;

	if (!to)
		return NULL;
	from = plan_format(p, "%s%s", to, p->in->suffix);
	ret = plan_format(p, "%s%s", to, p->in->suffix);
	v = reallocarray(plan->renames, plan->n_renames + 1, sizeof(*v));
	if (!v || !from || !ret) {
		if (v)
			plan->renames = v;
		p->rc = -ENOMEM;
		return NULL;
	}
	if (strlen(ret) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
		plan_block(p, "argv.path-too-long", to, "Use a shorter path for this socket",
			   "The socket's path is too long to get \"%s\" behind it", p->in->suffix);
	plan->renames = v;
	v[plan->n_renames++] = (struct plan_rename){ .from = TAKE_PTR(from), .to = TAKE_PTR(to) };
	return TAKE_PTR(ret);
}

char *plan_private_path(struct planner *p, const char *name)
{
	const char *slash = strrchr(p->in->incoming_cpr, '/');
	int dir = slash ? (int)(slash - p->in->incoming_cpr + 1) : 0;

	return plan_format(p, "%.*s%s%s", dir, p->in->incoming_cpr, name, p->in->suffix);
}

char *plan_new_id(struct planner *p, const char *what)
{
	for (;;) {
		_cleanup_free_ char *id = plan_format(p, "upgraded-%s%d", what, p->next_id++);
		bool used = false;

		if (!id)
			return NULL;
		for (char **a = p->in->argv; *a && !used; a++)
			used = strstr(*a, id);
		if (!used)
			return TAKE_PTR(id);
	}
}

char *plan_format(struct planner *p, const char *fmt, ...)
{
	char *s;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n >= 0)
		return s;
	p->rc = -ENOMEM;
	return NULL;
}

void plan_pidfile(struct planner *p, const char *path)
{
	append_string(p, &p->plan->pidfiles, &p->n_pidfiles, path);
}

void plan_command(struct planner *p, struct json_object *command)
{
	const char *text = json_object_to_json_string_ext(
		command, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);

	if (text)
		append_string(p, &p->plan->commands, &p->n_commands, text);
	else
		p->rc = -ENOMEM;
	json_object_put(command);
}

void plan_hmp(struct planner *p, const char *line)
{
	struct json_object *command = json_object_new_object();
	struct json_object *arguments = json_object_new_object();

	json_object_object_add(arguments, "command-line", json_object_new_string(line));
	json_object_object_add(command, "execute", json_object_new_string("human-monitor-command"));
	json_object_object_add(command, "arguments", arguments);
	plan_command(p, command);
}

bool plan_word_in(const char *word, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(word, *list))
			return true;
	return false;
}

bool plan_matches(const char *name, const char *const *patterns)
{
	for (; *patterns; patterns++)
		if (!fnmatch(*patterns, name, 0))
			return true;
	return false;
}
