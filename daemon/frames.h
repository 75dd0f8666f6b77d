/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files of checksummed records, only appended to: see frames.c. */
#ifndef UPGRADED_FRAMES_H
#define UPGRADED_FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FRAME_MAX (1024 * 1024)

uint32_t crc32c(const void *data, size_t len);

/* Appends one record, which is not empty, whole or not at all. 0 or a negative errno. */
int frame_append(int fd, const void *data, size_t len);

/* Called for each record; a negative value ends the reading and is returned. */
typedef int (*frame_fn)(const void *data, size_t len, void *userdata);

/*
 * Reads every record from the start. *ret_end is where the last whole record
 * ends; *ret_torn how many bytes after it are not a record.
 */
int frame_read(int fd, frame_fn fn, void *userdata, off_t *ret_end, off_t *ret_torn);

#endif
