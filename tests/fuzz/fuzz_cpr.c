/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes the receipt of a source's cpr state: the channel that brings the
 * descriptors of a guest's memory, from a QEMU that may be anything. The input is
 * a row of pieces: how many fds, how many bytes, the bytes; an odd first byte ends
 * the stream by a reset instead of a half-close. What must hold: all bytes and all fds in their
 * order, or an error with a text; and no fd is left.
 */
#include "channel.h"
#include "cleanup.h"

#include "count_fds.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SOON_US 20000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct cpr_state state = CPR_STATE_INIT;
	struct waiter w = WAITER_INIT;
	size_t before = count_fds();
	int sv[2], fd[16];
	size_t sent = 0, sent_fds = 0;
	bool reset;

	if (!size || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return 0;
	memset(fd, 0, sizeof(fd));
	reset = data[0] & 1;
	for (data++, size--; size >= 2;) {
		size_t n_fds = data[0] % (ARRAY_SIZE(fd) + 1), len = data[1];
		ssize_t n;

		data += 2;
		size -= 2;
		len = len < size ? len : size;
		n = scm_send(sv[1], data, len, fd, len ? n_fds : 0);
		if (n > 0) {
			sent += (size_t)n;
			sent_fds += n_fds;
		}
		data += len;
		size -= len;
	}
	if (reset)
		close(sv[1]);
	else
		shutdown(sv[1], SHUT_WR);
	w.what = "the fuzzer";
	w.deadline_us = now_us() + SOON_US;
	if (channel_receive_cpr(&w, sv[0], &state, &err) < 0) {
		if (!err.text)
			abort();
	} else if (state.len != sent || state.fds.n != sent_fds) {
		abort();
	}
	cpr_state_clear(&state);
	close(sv[0]);
	if (!reset)
		close(sv[1]);
	if (count_fds() != before)
		abort();
	return 0;
}
