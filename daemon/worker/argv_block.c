/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks. The target opens the same images while the source uses them: that is
 * what live migration does too, and QEMU is made for it: an image is inactive
 * on the side that waits, which neither reads, writes nor locks it. Only what
 * has private state in the source, or owns a device of the host, is different.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

static void judge_driver(struct planner *p, const char *subject, const char *driver)
{
	static const char *const alone[] = { "nvme", "nvme-io_uring", "virtio-blk-vfio-pci",
					     "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", NULL };
	static const char *const again[] = { "nbd", "ssh", "http", "https", "ftp", "ftps", "iscsi",
					     "nfs", "rbd", "gluster", NULL };

	if (plan_word_in(driver, alone))
		plan_block(p, "argv.disk", subject, "Attach the disk by a file or a kernel device",
			   "The driver %s owns its device: one process at a time", driver);
	else if (plan_word_in(driver, again))
		plan_note(p, "argv.disk", subject,
			  "The target makes a connection of its own; the server must accept two");
	else if (!strcmp(driver, "vvfat"))
		plan_warn(p, "argv.disk", subject, "Use an image instead of a directory",
			  "A writable vvfat disk cannot be carried");
	else if (!strcmp(driver, "blkreplay"))
		plan_block(p, "argv.disk", subject, "End the replay first",
			   "A replay cannot be carried");
}

static void judge_json(struct planner *p, const char *subject, struct json_object *j)
{
	if (!json_object_is_type(j, json_type_object))
		return;
	json_object_object_foreach (j, key, value) {
		if (!strcmp(key, "driver") && json_object_is_type(value, json_type_string))
			judge_driver(p, subject, json_object_get_string(value));
		else
			judge_json(p, subject, value);
	}
}

static void judge_opts(struct planner *p, const char *subject, const struct opts *o)
{
	if (o->json)
		judge_json(p, subject, o->json);
	for (size_t i = 0; i < o->n; i++) {
		const char *dot = strrchr(o->v[i].key, '.'), *key = dot ? dot + 1 : o->v[i].key;

		if (!strcmp(key, "driver") && o->v[i].value)
			judge_driver(p, subject, o->v[i].value);
	}
}

/* -drive file=nbd:... names its driver by the start of the file. */
static void judge_file(struct planner *p, const char *subject, const char *file)
{
	_cleanup_opts_ struct opts *json = NULL;
	_cleanup_free_ char *protocol = NULL;
	size_t len = strcspn(file, ":/+");

	if (!strncmp(file, "json:", 5)) {
		if (opts_parse(file + 5, NULL, &json) == 0 && json->json)
			judge_json(p, subject, json->json);
		return;
	}
	if (file[len] != ':' && file[len] != '+')
		return;
	protocol = plan_format(p, "%.*s", (int)len, file);
	if (protocol)
		judge_driver(p, subject, strcmp(protocol, "fat") ? protocol : "vvfat");
}

void argv_blockdev(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "driver");

	if (!opts)
		return;
	plan_keep(p, o, arg);
	judge_opts(p, opts_get(opts, "node-name") ?: arg, opts);
}

void argv_drive(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, NULL);
	const char *subject, *file;

	if (!opts)
		return;
	plan_keep(p, o, arg);
	subject = opts_get(opts, "id") ?: arg;
	file = opts_get(opts, "file");
	if (opts_on(opts, "snapshot", false))
		plan_block(p, "argv.disk", subject,
			   "Commit it (block-commit) and start the guest with a real overlay",
			   "The disk's changes are in a deleted temporary file of the source only");
	judge_opts(p, subject, opts);
	if (file)
		judge_file(p, subject, file);
}
