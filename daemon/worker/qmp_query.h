/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a QEMU is asked, and told, in more places than one: see qmp_query.c. */
#ifndef UPGRADED_QMP_QUERY_H
#define UPGRADED_QMP_QUERY_H

#include "qmp.h"

#include <stdbool.h>

/* The member @key as a string / boolean / number; NULL / false / 0 if there is none. */
const char *json_get_string(struct json_object *object, const char *key);
bool json_get_bool(struct json_object *object, const char *key);
int64_t json_get_int(struct json_object *object, const char *key);
/* The member @key if it is an array (or @object itself without a key), else an empty one: NULL. */
struct json_object *json_get_array(struct json_object *object, const char *key);
size_t json_array_size(struct json_object *array);

/* The run state: "running", "postmigrate". *ret_status is the caller's to free. */
int qmp_status(struct qmp *q, char **ret_status, struct error *err);

/* @mode: "normal", "cpr-transfer". It stays set, also for migrations that are not ours. */
int qmp_set_migration_mode(struct qmp *q, const char *mode, struct error *err);

/* Reads a QOM property. *ret_value is the caller's reference. */
int qmp_qom_get(struct qmp *q, const char *path, const char *property,
		struct json_object **ret_value, struct error *err);

/* Lists the properties of a QOM object: [{name, type}]. */
int qmp_qom_list(struct qmp *q, const char *path, struct json_object **ret_list,
		 struct error *err);

/* All types that implement @interface, as an object whose keys they are. */
int qmp_types(struct qmp *q, const char *interface, struct json_object **ret_set,
	      struct error *err);

/* Can it migrate in mode cpr-transfer? (QEMU 10.0 and later.) */
int qmp_knows_cpr_transfer(struct qmp *q, bool *ret_knows, struct error *err);

#endif
