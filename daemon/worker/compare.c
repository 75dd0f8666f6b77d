/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Is the finished target the same machine as the source? The target is built
 * from the source's command line, but a QEMU does not stay what its command
 * line says: a snapshot puts a new image on top, a medium is changed, a device
 * is plugged in or out by its monitor. Loading the state would notice a missing
 * device; it would never notice the wrong disk. So both are asked, while the
 * guest still runs in the source. Called by the driver's verify(); owns nothing.
 */
#include "compare.h"

#include "qmp_query.h"

#include <string.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

/* "what is plugged where": an object that maps a name to a string. */
typedef int (*survey_fn)(struct qmp *q, struct json_object *into, struct error *err);

static int add_property(struct qmp *q, const char *path, const char *property,
			struct json_object *into, struct error *err)
{
	struct json_object *value = NULL;
	int r;

	r = qmp_qom_get(q, path, property, &value, err);
	if (r >= 0)
		json_object_object_add(into, property, value);
	return r;
}

static int survey_machine(struct qmp *q, struct json_object *into, struct error *err)
{
	return add_property(q, "/machine", "type", into, err);
}

static int survey_memory(struct qmp *q, struct json_object *into, struct error *err)
{
	struct json_object *sizes = NULL;
	int r;

	r = qmp_execute(q, "query-memory-size-summary", NULL, &sizes, err);
	if (r < 0)
		return r;
	json_object_object_add(into, "base",
			       json_object_new_int64(json_get_int(sizes, "base-memory")));
	json_object_object_add(into, "plugged",
			       json_object_new_int64(json_get_int(sizes, "plugged-memory")));
	json_object_put(sizes);
	return 0;
}

/* The user's own devices by id; those without one only by their number. */
static int survey_devices(struct qmp *q, struct json_object *into, struct error *err)
{
	static const char *const paths[] = { "/machine/peripheral", "/machine/peripheral-anon" };
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(paths) && r >= 0; i++) {
		struct json_object *list = NULL;

		r = qmp_qom_list(q, paths[i], &list, err);
		for (size_t j = 0; r >= 0 && j < json_array_size(json_get_array(list, NULL)); j++) {
			struct json_object *p = json_object_array_get_idx(list, j);
			const char *name = json_get_string(p, "name");
			const char *type = json_get_string(p, "type");

			if (name && type && !strncmp(type, "child<", 6))
				json_object_object_add(into, name, json_object_new_string(type));
		}
		json_object_put(list);
	}
	return r;
}

static int survey_disks(struct qmp *q, struct json_object *into, struct error *err)
{
	struct json_object *list = NULL;
	int r;

	r = qmp_execute(q, "query-block", NULL, &list, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(list, NULL)); i++) {
		struct json_object *drive = json_object_array_get_idx(list, i), *inserted = NULL;
		const char *name = json_get_string(drive, "qdev");
		const char *file = NULL;

		/* A -drive has a name of its own, a -blockdev only its device's. */
		if (json_get_string(drive, "device") && *json_get_string(drive, "device"))
			name = json_get_string(drive, "device");
		if (json_object_object_get_ex(drive, "inserted", &inserted))
			file = json_get_string(inserted, "file");
		json_object_object_add(into, name ?: "?",
				       json_object_new_string(file ?: "no medium"));
	}
	json_object_put(list);
	return r;
}

static const struct {
	const char *code;
	const char *noun;
	const char *remedy;
	survey_fn survey;
} questions[] = {
	{ "target.machine-type", "machine type", "Choose a target that has the same machine",
	  survey_machine },
	{ "target.memory", "memory", "Unplug memory that was plugged in while the guest ran",
	  survey_memory },
	{ "target.devices", "device",
	  "Bring the running VM and its command line together again: unplug what was plugged in, "
	  "or restart the VM with the devices that it has now",
	  survey_devices },
	{ "target.disk", "disk",
	  "The running VM uses another image than its command line names (a snapshot, a changed "
	  "medium): commit the snapshot or change the medium back",
	  survey_disks },
};

/* A QEMU may answer anything, also null. */
static const char *text_of(struct json_object *value)
{
	return json_object_get_string(value) ?: "nothing";
}

static int differ(const char *code, const char *noun, const char *remedy,
		  struct json_object *source, struct json_object *target, struct findings *f)
{
	int r = 0;

	json_object_object_foreach(source, name, there)
	{
		struct json_object *here = NULL;

		if (!json_object_object_get_ex(target, name, &here))
			r = findings_add(f, BLOCKER, code, name, remedy,
					 "The source has this %s (%s), the target does not", noun,
					 text_of(there));
		else if (strcmp(text_of(there), text_of(here)))
			r = findings_add(f, BLOCKER, code, name, remedy,
					 "This %s is %s in the source and %s in the target", noun,
					 text_of(there), text_of(here));
		if (r < 0)
			return r;
	}
	json_object_object_foreach(target, extra, what)
	{
		if (json_object_object_get_ex(source, extra, NULL))
			continue;
		r = findings_add(f, BLOCKER, code, extra, remedy,
				 "The target has this %s (%s), the source does not", noun,
				 text_of(what));
		if (r < 0)
			return r;
	}
	return 0;
}

int compare_machines(struct qmp *source, struct qmp *target, struct findings *f,
		     struct error *err)
{
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(questions) && r >= 0; i++) {
		struct json_object *there = json_object_new_object();
		struct json_object *here = json_object_new_object();

		r = questions[i].survey(source, there, err);
		if (r >= 0)
			r = questions[i].survey(target, here, err);
		if (r >= 0)
			r = differ(questions[i].code, questions[i].noun, questions[i].remedy,
				   there, here, f);
		json_object_put(there);
		json_object_put(here);
	}
	return r;
}
