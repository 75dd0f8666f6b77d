/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files of records: u32 length, u32 CRC-32C of the data, the data; little
 * endian. The journal and the history are made of them. A process or host
 * that dies while it appends leaves a torn tail, which the checksum finds; the
 * reader says where the good part ends and its caller decides what to do.
 * Owns nothing; the fd is borrowed.
 */
#include "frames.h"

#include "cleanup.h"

#include <endian.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

struct frame_header {
	uint32_t len;
	uint32_t crc;
};

/* Bitwise: records are small and few. */
uint32_t crc32c(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t crc = ~0U;

	while (len--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78U : 0);
	}
	return ~crc;
}

int frame_append(int fd, const void *data, size_t len)
{
	struct frame_header h = { htole32((uint32_t)len), htole32(crc32c(data, len)) };
	struct iovec iov[] = { { &h, sizeof(h) }, { (void *)data, len } };
	struct stat st;
	ssize_t n;
	int r;

	if (!len || len > FRAME_MAX)
		return -EMSGSIZE;
	if (fstat(fd, &st) < 0)
		return -errno;
	n = pwritev(fd, iov, ARRAY_SIZE(iov), st.st_size);
	if (n == (ssize_t)(sizeof(h) + len))
		return 0;
	r = n < 0 ? -errno : -ENOSPC;
	/* Half a record would hide all later ones from the reader. */
	if (n > 0 && ftruncate(fd, st.st_size) < 0)
		return -errno;
	return r;
}

/* 1: read; 0: the file ends before @len bytes; or a negative errno. */
static int read_at(int fd, void *buf, size_t len, off_t at)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = pread(fd, (char *)buf + got, len - got, at + (off_t)got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return 0;
		got += (size_t)n;
	}
	return 1;
}

int frame_read(int fd, frame_fn fn, void *userdata, off_t *ret_end, off_t *ret_torn)
{
	_cleanup_free_ uint8_t *buf = malloc(FRAME_MAX);
	struct stat st;
	off_t at = 0;
	int r;

	if (!buf)
		return -ENOMEM;
	if (fstat(fd, &st) < 0)
		return -errno;
	for (;;) {
		struct frame_header h;
		uint32_t len;

		r = read_at(fd, &h, sizeof(h), at);
		if (r < 0)
			return r;
		len = le32toh(h.len);
		/* Zeros, which a file may end with when its host died, would be records of nothing. */
		if (r == 0 || !len || len > FRAME_MAX)
			break;
		r = read_at(fd, buf, len, at + (off_t)sizeof(h));
		if (r < 0)
			return r;
		if (r == 0 || crc32c(buf, len) != le32toh(h.crc))
			break;
		r = fn(buf, len, userdata);
		if (r < 0)
			return r;
		at += (off_t)(sizeof(h) + len);
	}
	*ret_end = at;
	*ret_torn = st.st_size - at;
	return 0;
}
