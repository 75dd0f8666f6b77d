/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading an item of custody back. The daemon does it with what systemd kept for
 * it (custody.c), a worker with what the daemon hands on (inherited.c); who wrote
 * it may have been another version, or have died. Owns nothing.
 */
#include "held_item.h"

#include "cleanup.h"

#include <sys/stat.h>

int held_item_read(int fd, Upgraded__V1__HeldItem **ret_held)
{
	_cleanup_free_ uint8_t *data = NULL;
	Upgraded__V1__HeldItem *held;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size <= 0 || st.st_size > HELD_ITEM_MAX)
		return -EBADMSG;
	data = malloc((size_t)st.st_size);
	if (!data)
		return -ENOMEM;
	if (pread(fd, data, (size_t)st.st_size, 0) != st.st_size)
		return -EIO;
	held = upgraded__v1__held_item__unpack(NULL, (size_t)st.st_size, data);
	if (!held)
		return -EBADMSG;
	if (!held->put) {
		upgraded__v1__held_item__free_unpacked(held, NULL);
		return -EBADMSG;
	}
	*ret_held = held;
	return 0;
}
