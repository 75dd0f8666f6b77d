/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must outlive a worker: see custody.c. */
#ifndef UPGRADED_CUSTODY_H
#define UPGRADED_CUSTODY_H

#include "error.h"
#include "fd_store.h"
#include "message.h"
#include "scm_rights.h"

#include <stdbool.h>

#define CUSTODY_FDS_MAX	  4096
#define CUSTODY_BYTES_MAX (64 * 1024 * 1024)

struct custody_item {
	CustodyPut *put; /* all but the payload */
	uint8_t *payload;
	size_t len;
	int *fds;
	size_t n_fds;
	bool open;     /* more packets of it follow */
	int whole;     /* memfd with a HeldItem; -EBADF while it is open */
	char **stored; /* NULL-terminated names in the fd store: its own, then one for each fd */
};

/* Of one upgrade. */
struct custody {
	struct fd_store *store; /* borrowed; NULL: none */
	uint64_t id;		/* of the upgrade */
	struct custody_item **items;
	size_t n;
};

#define CUSTODY_INIT { 0 }

/*
 * Takes what one packet brought, and the fds out of @fds. @more: further
 * packets of the same name follow and add to it. A put of a name that is held
 * and complete replaces it. On failure nothing changed but an item that was
 * open, which is gone.
 */
int custody_put(struct custody *c, const CustodyPut *put, bool more, struct scm_fds *fds,
		struct error *err);

/*
 * Takes back what an earlier daemon held, from the fd store. What is not whole
 * is as if it had never been put. On failure, for want of memory or descriptors,
 * systemd has all of it still.
 */
int custody_restore(struct custody *c, struct error *err);

/* Lets go of one item, here and in the fd store; none of that name is fine. */
void custody_drop(struct custody *c, const char *name);

/* The complete item of that name, or NULL. */
const struct custody_item *custody_find(const struct custody *c, const char *name);

/* For Vm.custody: *ret_items has c->n entries; freed with custody_free_items(). */
int custody_describe(const struct custody *c, CustodyItem ***ret_items);
void custody_free_items(CustodyItem **items, size_t n);

/* Closes and frees all of it, and takes it out of the fd store. */
void custody_clear(struct custody *c);

/* As custody_clear(), but systemd keeps it for the next daemon. */
void custody_leave(struct custody *c);

#endif
