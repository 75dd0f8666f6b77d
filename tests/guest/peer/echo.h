/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef PEER_ECHO_H
#define PEER_ECHO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ECHO_BUFFER (256 * 1024)

/* Totals over all connections. */
struct echo_totals {
	uint64_t connections, open, bytes_in, bytes_out;
	uint64_t sequence_errors, bad_hellos, resets, closed;
	uint64_t longest_stall_us;
};

struct echo {
	int fd;
	bool hello_done, eof,
		broken; /* broken: not what was announced; read, but neither checked nor echoed */
	uint64_t seed, received;
	uint64_t last_rx_ns;
	size_t hello_len, start, len; /* [start, start + len) of buf is to be echoed */
	uint8_t hello[16];
	uint8_t buf[ECHO_BUFFER];
};

struct echo *echo_new(int fd, uint64_t now_ns, struct echo_totals *totals);
int echo_step(struct echo *e, uint64_t now_ns, struct echo_totals *totals, bool *ret_want_in,
	      bool *ret_want_out);
void echo_end(struct echo *e, int result, struct echo_totals *totals);
void echo_silence(struct echo *e, uint64_t now_ns, struct echo_totals *totals);

#endif
