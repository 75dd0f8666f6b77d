/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Is the source still what its command line says? The target is started from
 * that line, so what was changed by QMP since would be missing there, or be
 * another: a snapshot's overlay, a changed medium, a device plugged in or out.
 * compare.c sees it when the target stands; this sees it before one is started.
 *
 * It is the rougher of the two, because a file can be named in many ways: it
 * holds a plain file name on top of a disk against all names on the line, and
 * stays silent about anything else. Called by source_check(); owns nothing.
 */
#include "argv_opts.h"
#include "qmp_query.h"
#include "source.h"

#include <string.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

static const char disk_remedy[] =
	"The running VM uses another image than its command line names (a snapshot, a changed "
	"medium): commit the snapshot or change the medium back";
static const char device_remedy[] =
	"Bring the running VM and its command line together again: unplug what was plugged in, or "
	"restart the VM with the devices that it has now";

/* What the command line names: objects whose keys are the names. */
struct line {
	struct json_object *files;  /* that may be on top of a disk */
	struct json_object *drives; /* of -drive: each of them is */
	struct json_object *devices;
};

static void note(struct json_object *set, const char *name)
{
	json_object_object_add(set, name, json_object_new_boolean(1));
}

static bool has(struct json_object *set, const char *name)
{
	return json_object_object_get_ex(set, name, NULL);
}

/* A path, and no description of something else ("json:...", "nbd://..."). */
static bool is_plain(const char *file)
{
	return !file[strcspn(file, ":/")] || file[strcspn(file, ":/")] == '/';
}

static const char *strip(const char *file)
{
	return strncmp(file, "file:", 5) ? file : file + 5;
}

static void note_json(struct line *l, struct json_object *j)
{
	if (!json_object_is_type(j, json_type_object))
		return;
	json_object_object_foreach(j, key, value)
	{
		const char *dot = strrchr(key, '.');

		if (json_object_is_type(value, json_type_object))
			note_json(l, value);
		else if (!strcmp(dot ? dot + 1 : key, "filename") &&
			 json_object_is_type(value, json_type_string))
			note(l->files, strip(json_object_get_string(value)));
	}
}

/* -blockdev, and what -drive says about its nodes. */
static void note_nodes(struct line *l, const struct opts *o)
{
	if (o->json)
		note_json(l, o->json);
	for (size_t i = 0; i < o->n; i++) {
		const char *dot = strrchr(o->v[i].key, '.');

		if (!strcmp(dot ? dot + 1 : o->v[i].key, "filename") && o->v[i].value)
			note(l->files, strip(o->v[i].value));
	}
}

static int note_option(struct line *l, const char *option, const char *value)
{
	_cleanup_opts_ struct opts *o = NULL, *json = NULL;
	const char *text;
	int r;

	if (strcmp(option, "drive") && strcmp(option, "blockdev") && strcmp(option, "device"))
		return 0;
	r = opts_parse(value, "driver", &o);
	/* What cannot be parsed is a blocker of its own. */
	if (r < 0)
		return r == -EINVAL ? 0 : r;
	if (!strcmp(option, "device")) {
		text = opts_get(o, "id");
		if (text && !opts_get(o, "failover_pair_id"))
			note(l->devices, text);
		return 0;
	}
	note_nodes(l, o);
	text = strcmp(option, "drive") ? NULL : opts_get(o, "file");
	if (!text)
		return 0;
	note(l->files, strip(text));
	if (is_plain(strip(text)))
		note(l->drives, strip(text));
	if (strncmp(text, "json:", 5))
		return 0;
	r = opts_parse(text + 5, NULL, &json);
	if (r >= 0)
		note_nodes(l, json);
	return r == -EINVAL ? 0 : r;
}

static int read_line(char **argv, struct line *l)
{
	int r = 0;

	for (char **a = argv; *a && r >= 0; a++) {
		/* -cdrom FILE, -hda FILE, and the FILE that stands alone. */
		note(l->files, *a);
		if (**a == '-' && a[1])
			r = note_option(l, *a + strspn(*a, "-"), a[1]);
	}
	return r;
}

static const char *drive_name(struct json_object *drive)
{
	const char *name = json_get_string(drive, "device");

	return name && *name ? name : json_get_string(drive, "qdev") ?: "?";
}

static int check_disks(const struct line *l, struct qmp *qmp, struct findings *f, struct error *err)
{
	struct json_object *list = NULL, *used = json_object_new_object();
	bool all_plain = true;
	size_t before = f->n;
	int r;

	r = qmp_execute(qmp, "query-block", NULL, &list, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(list, NULL)); i++) {
		struct json_object *drive = json_object_array_get_idx(list, i), *inserted = NULL;
		const char *file = NULL;

		if (json_object_object_get_ex(drive, "inserted", &inserted))
			file = json_get_string(inserted, "file");
		if (!file)
			continue;
		note(used, file);
		all_plain &= is_plain(file);
		if (is_plain(file) && !has(l->files, file))
			r = findings_add(
				f, BLOCKER, "source.disk", drive_name(drive), disk_remedy,
				"This disk is %s now, which the VM's command line does not "
				"name",
				file);
	}
	/* A name that QEMU writes in another way may be any of those on the line. */
	if (r >= 0 && all_plain && f->n == before) {
		json_object_object_foreach(l->drives, file, unused)
		{
			(void)unused;
			if (r >= 0 && !has(used, file))
				r = findings_add(f, BLOCKER, "source.disk", file, disk_remedy,
						 "No disk uses %s, which the VM's command line "
						 "names",
						 file);
		}
	}
	json_object_put(used);
	json_object_put(list);
	return r;
}

static int check_devices(const struct line *l, struct qmp *qmp, struct findings *f,
			 struct error *err)
{
	struct json_object *list = NULL, *there = json_object_new_object();
	int r;

	r = qmp_qom_list(qmp, "/machine/peripheral", &list, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(list, NULL)); i++) {
		struct json_object *p = json_object_array_get_idx(list, i);
		const char *name = json_get_string(p, "name"), *type = json_get_string(p, "type");

		if (!name || !type || strncmp(type, "child<", 6))
			continue;
		note(there, name);
		if (!has(l->devices, name))
			r = findings_add(f, BLOCKER, "source.device", name, device_remedy,
					 "This device (%s) was plugged in since the VM was started",
					 type);
	}
	json_object_object_foreach(l->devices, name, unused)
	{
		(void)unused;
		if (r >= 0 && !has(there, name))
			r = findings_add(f, BLOCKER, "source.device", name, device_remedy,
					 "This device was unplugged since the VM was started");
	}
	json_object_put(there);
	json_object_put(list);
	return r;
}

int source_check_drift(struct source *s, struct qmp *qmp, struct findings *f, struct error *err)
{
	struct line l = { .files = json_object_new_object(),
			  .drives = json_object_new_object(),
			  .devices = json_object_new_object() };
	int r;

	r = read_line(s->argv, &l);
	if (r >= 0)
		r = check_disks(&l, qmp, f, err);
	if (r >= 0)
		r = check_devices(&l, qmp, f, err);
	json_object_put(l.files);
	json_object_put(l.drives);
	json_object_put(l.devices);
	return r;
}
