/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a QEMU is asked, and told, in more places than one. Owns nothing but the
 * answer that it hands out; nothing here changes a QEMU but the mode of its next
 * migration. An answer of another shape than the documented one reads as empty:
 * what is missing in it then shows in the findings.
 */
#include "qmp_query.h"

#include <string.h>

static struct json_object *member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	if (json_object_is_type(object, json_type_object))
		json_object_object_get_ex(object, key, &value);
	return value;
}

const char *json_get_string(struct json_object *object, const char *key)
{
	struct json_object *value = member(object, key);

	return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

bool json_get_bool(struct json_object *object, const char *key)
{
	struct json_object *value = member(object, key);

	return json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
}

int64_t json_get_int(struct json_object *object, const char *key)
{
	struct json_object *value = member(object, key);

	return json_object_is_type(value, json_type_int) ? json_object_get_int64(value) : 0;
}

struct json_object *json_get_array(struct json_object *object, const char *key)
{
	struct json_object *value = key ? member(object, key) : object;

	return json_object_is_type(value, json_type_array) ? value : NULL;
}

size_t json_array_size(struct json_object *array)
{
	return array ? json_object_array_length(array) : 0;
}

int qmp_status(struct qmp *q, char **ret_status, struct error *err)
{
	struct json_object *value = NULL;
	const char *status;
	int r;

	r = qmp_execute(q, "query-status", NULL, &value, err);
	if (r < 0)
		return r;
	status = json_get_string(value, "status");
	if (!status)
		r = error_set(err, -EBADMSG, "query-status answered without status");
	else if (!(*ret_status = strdup(status)))
		r = -ENOMEM;
	json_object_put(value);
	return r;
}

int qmp_set_migration_mode(struct qmp *q, const char *mode, struct error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "mode", json_object_new_string(mode));
	return qmp_execute(q, "migrate-set-parameters", args, NULL, err);
}

int qmp_qom_get(struct qmp *q, const char *path, const char *property,
		struct json_object **ret_value, struct error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "path", json_object_new_string(path));
	json_object_object_add(args, "property", json_object_new_string(property));
	return qmp_execute(q, "qom-get", args, ret_value, err);
}

int qmp_qom_list(struct qmp *q, const char *path, struct json_object **ret_list, struct error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "path", json_object_new_string(path));
	return qmp_execute(q, "qom-list", args, ret_list, err);
}

int qmp_types(struct qmp *q, const char *interface, struct json_object **ret_set, struct error *err)
{
	struct json_object *args = json_object_new_object(), *list = NULL, *set;
	int r;

	json_object_object_add(args, "implements", json_object_new_string(interface));
	r = qmp_execute(q, "qom-list-types", args, &list, err);
	if (r < 0)
		return r;
	set = json_object_new_object();
	for (size_t i = 0; i < json_array_size(json_get_array(list, NULL)); i++) {
		const char *name = json_get_string(json_object_array_get_idx(list, i), "name");

		if (name)
			json_object_object_add(set, name, json_object_new_boolean(1));
	}
	json_object_put(list);
	*ret_set = set;
	return 0;
}

int qmp_knows_cpr_transfer(struct qmp *q, bool *ret_knows, struct error *err)
{
	struct json_object *schema = NULL;
	bool knows = false;
	int r;

	r = qmp_execute(q, "query-qmp-schema", NULL, &schema, err);
	if (r < 0)
		return r;
	/* The names of enums are hidden there, their values are not. */
	for (size_t i = 0; i < json_array_size(json_get_array(schema, NULL)) && !knows; i++) {
		struct json_object *values =
			json_get_array(json_object_array_get_idx(schema, i), "values");

		for (size_t j = 0; j < json_array_size(values) && !knows; j++) {
			const char *value =
				json_object_get_string(json_object_array_get_idx(values, j));

			knows = value && !strcmp(value, "cpr-transfer");
		}
	}
	json_object_put(schema);
	*ret_knows = knows;
	return 0;
}
