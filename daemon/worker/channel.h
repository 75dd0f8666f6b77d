/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU's two migration channels, with the worker in their middle: see channel.c. */
#ifndef UPGRADED_CHANNEL_H
#define UPGRADED_CHANNEL_H

#include "error.h"
#include "scm_rights.h"
#include "wait.h"

#include <stdint.h>
#include <sys/types.h>

/* The cpr state: what the source writes before it is stopped. */
struct cpr_state {
	uint8_t *bytes;
	size_t len;
	struct scm_fds fds; /* owned */
};

#define CPR_STATE_INIT { 0 }

void cpr_state_clear(struct cpr_state *s);
#define _cleanup_cpr_state_ __attribute__((cleanup(cpr_state_clear)))

/* Listens on the UNIX stream socket @path, owned by @uid. *ret_fd is the caller's. */
int channel_listen(const char *path, uid_t uid, int *ret_fd, struct error *err);

/* Accepts one connection of @listener. *ret_fd is the caller's, non-blocking. */
int channel_accept(struct waiter *w, int listener, int *ret_fd, struct error *err);

/* Connects to @path, trying again until somebody listens. *ret_fd is the caller's, non-blocking. */
int channel_connect(struct waiter *w, const char *path, int *ret_fd, struct error *err);

/* Reads the whole cpr state, up to the source's half-close. */
int channel_receive_cpr(struct waiter *w, int source, struct cpr_state *ret_state,
			struct error *err);

/* Writes the cpr state to the target and half-closes. The fds stay the caller's. */
int channel_send_cpr(struct waiter *w, int target, const struct cpr_state *state,
		     struct error *err);

/* Waits until the other side has closed @fd. */
int channel_wait_hup(struct waiter *w, int fd, struct error *err);

/* What is kept of the main stream: a memfd, written through its mapping. */
struct spool {
	int fd; /* owned; -EBADF: none */
	uint8_t *map;
	size_t size; /* of the mapping, and of the file until the stream has ended */
	size_t max;  /* it does not grow any more when it has come to this */
};

#define SPOOL_INIT { .fd = -EBADF }

/* Makes it with room for a usual stream, whose pages are there already. */
int spool_open(struct spool *s, struct error *err);
void spool_close(struct spool *s);

/*
 * Connects as channel_connect() to where the main stream goes. *ret_fd is the
 * caller's, and takes a usual stream whole.
 */
int channel_connect_main(struct waiter *w, const char *path, int *ret_fd, struct error *err);

/* Writes a main stream that was kept before, whole, to @target and half-closes. */
int channel_send_main(struct waiter *w, int target, int state, uint64_t *ret_bytes,
		      struct error *err);

/*
 * Passes the main stream from @source to @target as it comes and keeps it in
 * @spool, until the source closes. *ret_bytes: how many.
 */
int channel_relay_main(struct waiter *w, int source, int target, struct spool *spool,
		       uint64_t *ret_bytes, struct error *err);

#endif
