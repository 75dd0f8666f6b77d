/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The target's command line. It must describe the same guest as the source's,
 * for a process that starts while the source still runs: with the source's
 * disks, taps and sockets, but without truncating a log, taking a port or
 * unlinking a socket from under it. So the line is walked once, option by
 * option; a table (argv_table.c) says of each how it is carried, the rules in
 * argv_SUBJECT.c do what a table cannot, and some questions (is the memory
 * shared at all?) are judged when the whole line was seen.
 *
 * Called by the worker in `check` and before the spawn; it looks at nothing
 * but its input, changes nothing in the world and owns only its result. What
 * cannot be carried is a finding: all of them are reported, not the first.
 *
 * Upgrades follow each other: a plan made from the line of a target must again
 * name the original paths. plan_plain_path() and argv_carried.c see to it.
 */
#include "argv_plan.h"

#include "argv_planner.h"
#include "cleanup.h"

#include <string.h>

static void planner_clear(struct planner *p)
{
	for (size_t i = 0; i < p->n_memory; i++) {
		free(p->memory[i].id);
		free(p->memory[i].type);
		free(p->memory[i].path);
	}
	free(p->memory);
	for (char **s = p->memdevs; s && *s; s++)
		free(*s);
	free(p->memdevs);
	free(p->ram_size);
	free(p->ram_backend);
	free(p->fd_claimed);
	free(p->fdset_claimed);
}

void argv_plan_freep(struct argv_plan **plan)
{
	struct argv_plan *a = *plan;

	if (!a)
		return;
	strv_freep(&a->argv);
	strv_freep(&a->pidfiles);
	strv_freep(&a->commands);
	for (size_t i = 0; i < a->n_renames; i++) {
		free(a->renames[i].from);
		free(a->renames[i].to);
	}
	free(a->renames);
	free(a->fds);
	free(a->qmp);
	findings_clear(&a->findings);
	free(a);
	*plan = NULL;
}

static void carry_option(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_free_ char *name = plan_format(p, "-%s", o->name);
	const char *subject = arg ?: name;

	if (!name)
		return;
	switch (o->class) {
	case ARGV_KEEP:
		plan_keep(p, o, arg);
		break;
	case ARGV_DROP:
		plan_note(p, "argv.dropped", name, "%s", o->reason);
		break;
	case ARGV_REWRITE:
		o->rewrite(p, o, arg);
		break;
	case ARGV_WARN:
		plan_keep(p, o, arg);
		plan_warn(p, "argv.option", subject, o->remedy, "-%s: %s", o->name, o->reason);
		break;
	case ARGV_BLOCK:
		plan_keep(p, o, arg);
		plan_block(p, "argv.option", subject, o->remedy, "-%s: %s", o->name, o->reason);
		break;
	}
}

/* What earlier upgrades noted is wanted before the first option is judged. */
static void read_carried(struct planner *p)
{
	const struct argv_option *o;

	for (char **a = p->in->argv + 1; *a; a++) {
		o = argv_option_find(*a);
		if (!o || !o->has_arg || !a[1])
			continue;
		a++;
		if (!strcmp(o->name, "object") && carried_is(*a))
			carried_read(p, *a);
	}
}

static int walk(struct planner *p, struct error *err)
{
	for (char **a = p->in->argv + 1; *a && !p->rc; a++) {
		const struct argv_option *o = argv_option_find(*a);

		if (o && o->has_arg && !a[1])
			return error_set(err, -EINVAL, "The source's command line ends after %s, "
					 "which needs an argument: it is not one of QEMU", *a);
		if (o) {
			carry_option(p, o, o->has_arg ? *++a : NULL);
		} else if (**a == '-') {
			/* Whether the next word belongs to it is not known either. */
			plan_emit(p, *a, NULL);
			plan_block(p, "argv.unknown-option", *a,
				   "Start the guest without it, or update upgraded",
				   "%s is not an option of the QEMU versions known here (10.0 to 11.1)",
				   *a);
		} else {
			plan_emit(p, *a, NULL); /* a disk image */
		}
	}
	return 0;
}

static void add_incoming(struct planner *p, const char *type, const char *path)
{
	struct json_object *channel = json_object_new_object(), *addr = json_object_new_object();
	const char *text;

	json_object_object_add(addr, "transport", json_object_new_string("socket"));
	json_object_object_add(addr, "type", json_object_new_string("unix"));
	json_object_object_add(addr, "path", json_object_new_string(path));
	json_object_object_add(channel, "channel-type", json_object_new_string(type));
	json_object_object_add(channel, "addr", addr);
	text = json_object_to_json_string_ext(channel, JSON_C_TO_STRING_PLAIN |
							       JSON_C_TO_STRING_NOSLASHESCAPE);
	if (text)
		plan_emit(p, "-incoming", text);
	else
		p->rc = -ENOMEM;
	json_object_put(channel);
}

/* Judges what only the whole line shows, and adds what every target gets. */
static void finish(struct planner *p)
{
	const struct plan_input *in = p->in;

	if (!p->machine_type && in->machine) {
		plan_emit(p, "-machine", in->machine);
		plan_note(p, "argv.machine", in->machine,
			  "The source names no machine type; the target gets the one that it runs");
	}
	if (!p->cpu && in->cpu)
		plan_emit(p, "-cpu", in->cpu);
	memory_finish(p);
	net_finish(p);
	display_finish(p);
	add_fd_finish(p);
	if (!p->plan->qmp)
		plan_block(p, "argv.qmp", in->qmp,
			   "Start the guest with a monitor socket of its own: "
			   "-qmp unix:PATH,server=on,wait=off",
			   "No monitor on the command line is the QMP socket of this guest, so the "
			   "target would have none");
	carried_write(p);
	plan_emit(p, "-S", NULL);
	add_incoming(p, "main", in->incoming_main);
	add_incoming(p, "cpr", in->incoming_cpr);
}

int argv_plan_make(const struct plan_input *in, struct argv_plan **ret_plan, struct error *err)
{
	_cleanup_(argv_plan_freep) struct argv_plan *plan = NULL;
	_cleanup_(planner_clear) struct planner p = { .in = in };
	int r;

	if (!in->argv || !in->argv[0])
		return error_set(err, -EINVAL, "The source's command line is empty");
	if (!in->target_binary || !in->suffix || !in->incoming_main || !in->incoming_cpr)
		return error_set(err, -EINVAL, "The plan lacks the target, the suffix or a channel");
	p.plan = plan = calloc(1, sizeof(*plan));
	p.fd_claimed = calloc(in->n_fds + 1, sizeof(bool));
	p.fdset_claimed = calloc(in->n_fdsets + 1, sizeof(bool));
	if (!plan || !p.fd_claimed || !p.fdset_claimed)
		return error_set(err, -ENOMEM, "Out of memory");

	plan_emit(&p, in->target_binary, NULL);
	read_carried(&p);
	net_survey(&p);
	r = walk(&p, err);
	if (r < 0)
		return r;
	finish(&p);
	if (p.rc < 0)
		return error_set(err, p.rc, "Out of memory");
	*ret_plan = TAKE_PTR(plan);
	return 0;
}
