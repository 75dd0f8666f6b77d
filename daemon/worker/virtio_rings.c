/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How large a QEMU makes the rings of virtio queues. Some releases (10.0.13)
 * give every queue the largest ring there is, 1024 entries, whatever its device
 * asks for; others (11.1) allocate what is asked for, and refuse a state whose
 * rings are larger ("vring.num 1024 exceeds allocated max 64"): too late, the
 * guest stands still by then. source_read() looks for the sign in the source,
 * probe_target() then looks how the target does it. Owns the name of the device
 * that it found; leaves nothing behind in either QEMU.
 *
 * The source runs a guest, so it is only asked what cannot hurt:
 *  - not x-query-virtio-status: QEMU 11.1.3 aborts in it;
 *  - not about a queue that a vhost-user process may serve: QEMU would ask that
 *    process for VHOST_USER_GET_VRING_BASE, which stops the queue;
 *  - nothing at all if it was told to treat experimental commands otherwise.
 */
#include "virtio_rings.h"

#include "cleanup.h"
#include "qmp_query.h"

#include <string.h>

#define QUEUES_MAX 1024 /* VIRTIO_QUEUE_MAX */

/*
 * What devices ask for. One queue of each tells: the behaviour is the binary's.
 * Sizes are part of the migration format and do not change. Of vhost devices
 * (other types: "vhost-user-blk") and crypto nothing is asked.
 */
static const struct asks {
	const char *type;
	const char *property; /* its size is a property of the device */
	unsigned queue;
	int64_t size;
	bool control; /* the last queue, which no vhost serves */
} asks[] = {
	{ "virtio-balloon-device", NULL, 0, 128 }, { "virtio-rng-device", NULL, 0, 8 },
	{ "virtio-serial-device", NULL, 0, 128 },  { "virtio-net-device", "ctrl_vq", 2, 64, true },
	{ "virtio-blk-device", "queue-size", 0 },  { "virtio-scsi-device", "virtqueue_size", 0 },
	{ "virtio-keyboard-device", NULL, 0, 64 }, { "virtio-mouse-device", NULL, 0, 64 },
	{ "virtio-tablet-device", NULL, 0, 64 },   { "virtio-gpu-device", NULL, 1, 16 },
	{ "virtio-9p-device", NULL, 0, 128 },
};

/* Devices are unplugged while we ask, and QEMUs differ in what they can tell. */
static int silently(int r, struct error *err)
{
	if (r != -EREMOTEIO && r != -ENOSYS)
		return r;
	error_clear(err);
	return 0;
}

/* *ret_size 0: there is no such queue. */
static int queue_size(struct qmp *q, const char *path, unsigned queue, int64_t *ret_size,
		      struct error *err)
{
	struct json_object *args = json_object_new_object(), *v = NULL;
	int r;

	json_object_object_add(args, "path", json_object_new_string(path));
	json_object_object_add(args, "queue", json_object_new_int((int)queue));
	r = qmp_execute(q, "x-query-virtio-queue-status", args, &v, err);
	*ret_size = r < 0 ? 0 : json_get_int(v, "vring-num");
	json_object_put(v);
	return silently(r, err);
}

/* The control queue is behind all pairs of queues. */
static int control_size(struct qmp *q, const char *path, unsigned first, unsigned *ret_queue,
			int64_t *ret_size, struct error *err)
{
	*ret_size = 0;
	for (unsigned i = first; i < QUEUES_MAX; i++) {
		int64_t size;
		int r = queue_size(q, path, i, &size, err);

		if (r < 0 || !size)
			return r;
		*ret_queue = i;
		*ret_size = size;
	}
	return 0;
}

/* A property as a number, true being 1; 0: there is none. */
static int property(struct qmp *q, const char *path, const char *name, int64_t *ret_value,
		    struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_qom_get(q, path, name, &v, err);
	*ret_value = r < 0 ? 0 : json_object_get_int64(v);
	json_object_put(v);
	return silently(r, err);
}

static const struct asks *find(const char *type)
{
	for (size_t i = 0; type && i < ARRAY_SIZE(asks); i++)
		if (!strcmp(asks[i].type, type))
			return &asks[i];
	return NULL;
}

/* "/machine/peripheral/rng0/virtio-backend" is known as rng0. */
static char *describe(const char *type, const char *path)
{
	static const char before[] = "/machine/", by_id[] = "peripheral/",
			  after[] = "/virtio-backend";
	size_t len = strlen(path);
	char *text;

	if (len > strlen(after) && !strcmp(path + len - strlen(after), after))
		len -= strlen(after);
	if (!strncmp(path, before, strlen(before))) {
		path += strlen(before);
		len -= strlen(before);
	}
	if (!strncmp(path, by_id, strlen(by_id))) {
		path += strlen(by_id);
		len -= strlen(by_id);
	}
	return asprintf(&text, "%s '%.*s'", type, (int)len, path) < 0 ? NULL : text;
}

static int read_device(struct qmp *q, const char *path, struct virtio_rings *rings,
		       struct error *err)
{
	struct json_object *type = NULL;
	const struct asks *a = NULL;
	int64_t size = 0, own = 0;
	unsigned queue;
	int r;

	r = qmp_qom_get(q, path, "type", &type, err);
	if (r >= 0)
		a = find(json_object_get_string(type));
	json_object_put(type);
	if (!a)
		return silently(r, err);
	queue = a->queue;
	if (a->property) {
		r = property(q, path, a->property, &own, err);
		if (r < 0 || !own)
			return r;
	}
	if (a->control)
		r = control_size(q, path, queue, &queue, &size, err);
	else
		r = queue_size(q, path, queue, &size, err);
	if (a->size)
		own = a->size;
	if (r < 0 || size <= own)
		return r;
	if (rings->n++)
		return 0;
	rings->queue = queue;
	rings->size = size;
	rings->own = own;
	rings->device = describe(a->type, path);
	return rings->device ? 0 : -ENOMEM;
}

int virtio_rings_read(struct qmp *q, char **argv, struct virtio_rings *ret_rings, struct error *err)
{
	struct json_object *list = NULL;
	struct virtio_rings rings = { 0 };
	int r;

	*ret_rings = rings;
	for (; *argv; argv++)
		if (strstr(*argv, "unstable-input"))
			return 0;
	r = silently(qmp_execute(q, "x-query-virtio", NULL, &list, err), err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(list, NULL)); i++) {
		const char *path = json_get_string(json_object_array_get_idx(list, i), "path");

		if (path)
			r = read_device(q, path, &rings, err);
	}
	json_object_put(list);
	if (r < 0) {
		virtio_rings_clear(&rings);
		return r;
	}
	*ret_rings = rings;
	return 0;
}

void virtio_rings_clear(struct virtio_rings *rings)
{
	free(rings->device);
	*rings = (struct virtio_rings){ 0 };
}

const char *virtio_rings_device(char **devices)
{
	static const char *const transports[][2] = {
		{ "-pci", "virtio-rng-pci" },
		{ "-ccw", "virtio-rng-ccw" },
	};

	for (; *devices; devices++)
		for (size_t i = 0; i < ARRAY_SIZE(transports); i++) {
			size_t len = strlen(*devices), tail = strlen(transports[i][0]);

			if (len > tail && !strncmp(*devices, "virtio-", 7) &&
			    !strcmp(*devices + len - tail, transports[i][0]))
				return transports[i][1];
		}
	return "virtio-rng-device"; /* virtio-mmio: the machine has the bus */
}

int virtio_rings_probed(struct qmp *q, int64_t *ret_size, struct error *err)
{
	struct json_object *list = NULL;
	const char *path = NULL;
	int r;

	*ret_size = 0;
	r = silently(qmp_execute(q, "x-query-virtio", NULL, &list, err), err);
	if (r >= 0 && json_array_size(json_get_array(list, NULL)))
		path = json_get_string(json_object_array_get_idx(list, 0), "path");
	if (path)
		r = queue_size(q, path, 0, ret_size, err);
	json_object_put(list);
	return r;
}
