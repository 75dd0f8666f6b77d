/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one plan has to tell the plan of the next upgrade. A pidfile, a port
 * that was given back by a QMP command: they hold for the running VM but do
 * not stand on the target's command line, so the next plan, which is made from
 * that line, would lose them. They are written into a `secret` object, which
 * QEMU keeps, never looks into and does not show to the guest. This way no
 * state file has to agree with the process.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

#define CARRIED_ID "upgraded-carried"

bool carried_is(const char *arg)
{
	_cleanup_opts_ struct opts *o = NULL;
	const char *type, *id;

	if (!strstr(arg, CARRIED_ID) || opts_parse(arg, "qom-type", &o) < 0)
		return false;
	type = opts_get(o, "qom-type");
	id = opts_get(o, "id");
	return type && id && !strcmp(type, "secret") && !strcmp(id, CARRIED_ID);
}

static struct json_object *list_of(struct json_object *from, const char *key)
{
	struct json_object *list = NULL;

	json_object_object_get_ex(from, key, &list);
	return json_object_is_type(list, json_type_array) ? list : NULL;
}

static bool is_vnc(struct json_object *command)
{
	struct json_object *execute = NULL;

	return json_object_object_get_ex(command, "execute", &execute) &&
	       !strcmp(json_object_get_string(execute) ?: "", "display-update");
}

void carried_read(struct planner *p, const char *arg)
{
	_cleanup_opts_ struct opts *o = NULL, *data = NULL;
	struct json_object *list;
	const char *text;

	if (opts_parse(arg, "qom-type", &o) < 0)
		return;
	text = opts_get(o, "data");
	if (!text || *text != '{' || opts_parse(text, NULL, &data) < 0) {
		plan_warn(p, "argv.carried", CARRIED_ID, NULL,
			  "What an earlier upgrade noted on the command line cannot be read");
		return;
	}
	list = list_of(data->json, "pidfiles");
	for (size_t i = 0; list && i < json_object_array_length(list); i++) {
		const char *path = json_object_get_string(json_object_array_get_idx(list, i));

		plan_pidfile(p, path ?: "");
		plan_note(p, "argv.pidfile", path, "Gets the target's pid once the source is dead");
	}
	list = list_of(data->json, "commands");
	for (size_t i = 0; list && i < json_object_array_length(list); i++) {
		struct json_object *command = json_object_array_get_idx(list, i);

		if (!json_object_is_type(command, json_type_object))
			continue;
		p->carried_vnc |= is_vnc(command);
		plan_note(p, "argv.carried", json_object_to_json_string_ext(command, 0),
			  "Done again once the source is dead, as by the upgrade before");
		plan_command(p, json_object_get(command));
	}
}

void carried_write(struct planner *p)
{
	struct json_object *object, *data, *list;
	_cleanup_opts_ struct opts *o = NULL;

	if (!p->n_pidfiles && !p->n_commands)
		return;
	data = json_object_new_object();
	if (p->n_pidfiles) {
		list = json_object_new_array();
		for (size_t i = 0; i < p->n_pidfiles; i++)
			json_object_array_add(list, json_object_new_string(p->plan->pidfiles[i]));
		json_object_object_add(data, "pidfiles", list);
	}
	if (p->n_commands) {
		list = json_object_new_array();
		for (size_t i = 0; i < p->n_commands; i++)
			json_object_array_add(list, json_tokener_parse(p->plan->commands[i]));
		json_object_object_add(data, "commands", list);
	}
	object = json_object_new_object();
	json_object_object_add(object, "qom-type", json_object_new_string("secret"));
	json_object_object_add(object, "id", json_object_new_string(CARRIED_ID));
	json_object_object_add(object, "data",
			       json_object_new_string(json_object_to_json_string_ext(
				       data, JSON_C_TO_STRING_PLAIN |
						     JSON_C_TO_STRING_NOSLASHESCAPE)));
	json_object_put(data);
	o = calloc(1, sizeof(*o));
	if (!o) {
		json_object_put(object);
		p->rc = -ENOMEM;
		return;
	}
	o->json = object;
	plan_emit_opts(p, "object", o);
}
