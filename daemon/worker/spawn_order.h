/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All that it takes to start a process, as it is kept: see spawn_order.c. */
#ifndef UPGRADED_SPAWN_ORDER_H
#define UPGRADED_SPAWN_ORDER_H

#include "identity.h"
#include "upgraded.pb-c.h"

#include <stdbool.h>

/* An fd, and the number that the new process has it by; 0 to 2 are its stdio. */
struct spawn_fd {
	int fd; /* owned */
	int number;
	bool anew; /* a device that belongs to one process: opened anew for each, through fd */
};

struct spawn_order {
	char **argv;
	struct identity *id;
	struct spawn_fd *fds;
	size_t n_fds;
};

int spawn_order_new(struct spawn_order **ret_order);
void spawn_order_freep(struct spawn_order **order);

/* Takes @fd, also when it fails. */
int spawn_order_add_fd(struct spawn_order *o, int fd, int number, bool anew);

/*
 * As custody keeps it: *ret_packed is a TargetStart, *ret_fds are borrowed from
 * @o and go with it. Both are the caller's to free.
 */
int spawn_order_pack(const struct spawn_order *o, uint8_t **ret_packed, size_t *ret_len,
		     int **ret_fds, size_t *ret_n_fds);

/* The way back: @fds are borrowed. -EBADMSG: it is none. */
int spawn_order_unpack(const uint8_t *packed, size_t len, const int *fds, size_t n_fds,
		       struct spawn_order **ret_order);

#endif
