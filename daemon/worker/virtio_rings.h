/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How large a QEMU makes the rings of virtio queues: see virtio_rings.c. */
#ifndef UPGRADED_VIRTIO_RINGS_H
#define UPGRADED_VIRTIO_RINGS_H

#include "qmp.h"

#include <stddef.h>

/* A queue whose ring is larger than its device asks for; n 0: there is none. */
struct virtio_rings {
	char *device; /* "virtio-rng-device 'rng0'" */
	unsigned queue;
	int64_t size; /* entries that the ring has */
	int64_t own;  /* entries that the device asks for */
	size_t n;     /* devices with such a queue; the above is of the first */
};

/*
 * Looks for such queues in a QEMU with a guest. A QEMU that cannot tell has
 * none. @argv is its command line. 0 or a negative errno.
 */
int virtio_rings_read(struct qmp *q, char **argv, struct virtio_rings *ret_rings,
		      struct error *err);

void virtio_rings_clear(struct virtio_rings *rings);

/* The -device that a QEMU needs for virtio_rings_probed(), for a source with these @devices. */
const char *virtio_rings_device(char **devices);

/* *ret_size: how many entries the only virtio device of a probe got; 0: it does not tell. */
int virtio_rings_probed(struct qmp *q, int64_t *ret_size, struct error *err);

#endif
