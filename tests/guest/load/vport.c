/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Finds a virtio-serial port by its name, as udev would for /dev/virtio-ports.
 *
 * Called by the reporter and the heartbeat when they start. It owns nothing.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "load.h"
#include "now.h"

#define CLASS	    "/sys/class/virtio-ports"
#define DEADLINE_MS 2000

static int find(const char *wanted, char *ret_path, size_t size)
{
	DIR *dir = opendir(CLASS);
	struct dirent *e;
	int r = -ENXIO;

	if (!dir)
		return -ENOENT;
	while (r < 0 && (e = readdir(dir))) {
		char path[512], name[64] = "";
		FILE *f;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), CLASS "/%s/name", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fgets(name, sizeof(name), f)) {
			name[strcspn(name, "\n")] = 0;
			if (!strcmp(name, wanted)) {
				snprintf(ret_path, size, "/dev/%.60s", e->d_name);
				r = 0;
			}
		}
		fclose(f);
	}
	closedir(dir);
	return r;
}

/* The name of a port comes in a message from the host, a moment after the driver is up: waits for
 * it. */
int vport_find(const char *name, char *ret_path, size_t size)
{
	uint64_t deadline = now_ns() + DEADLINE_MS * NSEC_PER_MSEC;
	int r;

	while ((r = find(name, ret_path, size)) == -ENXIO && now_ns() < deadline)
		sleep_ns(20 * NSEC_PER_MSEC);
	return r;
}
