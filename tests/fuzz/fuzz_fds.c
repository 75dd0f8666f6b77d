/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes the receipt of descriptors with whatever a peer's kernel would carry for
 * it. The first byte: bit 0, a stream instead of packets; bits 1 to 7, the room
 * that the receiver has. Then messages: how many fds, in how many control
 * messages, how many bytes. What must hold: an error or the whole message, with
 * all fds and all of them closed on exec; never more fds open than were given out.
 */
#include "cleanup.h"
#include "scm_rights.h"

#include "count_fds.h"

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FDS_MAX	   255 /* one byte says how many; the kernel takes 253 */
#define GROUPS_MAX 4

/* As a hostile peer may: several control messages, each with its share of the fds. */
static ssize_t send_groups(int sock, const void *buf, size_t len, size_t n_fds, size_t n_groups)
{
	_Alignas(struct cmsghdr) char control[GROUPS_MAX * CMSG_SPACE(FDS_MAX * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)buf, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	size_t used = 0;

	for (size_t g = 0; g < n_groups; g++) {
		size_t n = n_fds / n_groups + (g < n_fds % n_groups);
		struct cmsghdr *c = (struct cmsghdr *)(control + used);

		if (!n)
			continue;
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memset(CMSG_DATA(c), 0, n * sizeof(int)); /* standard input, that many times */
		used += CMSG_SPACE(n * sizeof(int));
	}
	if (used) {
		msg.msg_control = control;
		msg.msg_controllen = used;
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void receive(int sock, size_t room)
{
	struct scm_fds fds;
	uint8_t buf[256];
	ssize_t n = scm_recv(sock, buf, room, &fds);

	if (n > (ssize_t)room)
		abort();
	if (n <= 0)
		return;
	for (size_t i = 0; i < fds.n; i++)
		if (!(fcntl(fds.fd[i], F_GETFD) & FD_CLOEXEC))
			abort();
	if (fds.n)
		close(scm_fds_take(&fds, 0));
	scm_fds_close(&fds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t before = count_fds();
	int sv[2];
	size_t room;

	if (!size || socketpair(AF_UNIX, (data[0] & 1 ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC | SOCK_NONBLOCK,
				0, sv) < 0)
		return 0;
	room = data[0] >> 1;
	for (data++, size--; size >= 3;) {
		size_t n_fds = data[0], n_groups = 1 + data[1] % GROUPS_MAX, len = data[2];

		data += 3;
		size -= 3;
		len = len < size ? len : size;
		(void)send_groups(sv[0], data, len, n_fds, n_groups);
		data += len;
		size -= len;
		receive(sv[1], room);
	}
	close(sv[0]);
	receive(sv[1], room);
	close(sv[1]);
	if (count_fds() != before)
		abort();
	return 0;
}
