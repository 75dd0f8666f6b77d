/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The memfd that says what an item of custody is: see held_item.c. */
#ifndef UPGRADED_HELD_ITEM_H
#define UPGRADED_HELD_ITEM_H

#include "upgraded.pb-c.h"

/* What custody takes of one item, and its description. */
#define HELD_ITEM_MAX (65 * 1024 * 1024)

/*
 * Reads the HeldItem in the memfd @fd (borrowed) from its start. *ret_held is the
 * caller's and has a put. -EBADMSG: it is none; or another negative errno.
 */
int held_item_read(int fd, Upgraded__V1__HeldItem **ret_held);

#endif
