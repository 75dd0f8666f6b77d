/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The memfd with a guest's device state: see device_state.c. */
#ifndef UPGRADED_DEVICE_STATE_H
#define UPGRADED_DEVICE_STATE_H

#include <stdint.h>

/* What its name is in custody. */
#define DEVICE_STATE "device-state"

enum device_state {
	DEVICE_STATE_PART,  /* being written, or never will be whole */
	DEVICE_STATE_WHOLE, /* a target that loads it is the guest */
	DEVICE_STATE_USED,  /* somebody was told to run from it: it is the past */
};

/* An empty one; *ret_fd is the caller's. */
int device_state_make(int *ret_fd);

/* A negative errno if @fd is no such memfd. */
int device_state_get(int fd, enum device_state *ret_state);

/* When it was last written to, CLOCK_REALTIME: the guest has stood still since. 0: never. */
uint64_t device_state_written_us(int fd);

/* Its writer is done, and its size is final. */
int device_state_complete(int fd);

/* Before anybody is told to run. -EBADF is fine: there is none to mark. */
int device_state_use(int fd);

#endif
