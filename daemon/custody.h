/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must outlive a worker: see custody.c. */
#ifndef UPGRADED_CUSTODY_H
#define UPGRADED_CUSTODY_H

#include "error.h"
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
	bool open; /* more packets of it follow */
};

/* Of one upgrade. */
struct custody {
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

/* The complete item of that name, or NULL. */
const struct custody_item *custody_find(const struct custody *c, const char *name);

/* For Vm.custody: *ret_items has c->n entries; freed with custody_free_items(). */
int custody_describe(const struct custody *c, CustodyItem ***ret_items);
void custody_free_items(CustodyItem **items, size_t n);

/* Closes and frees all of it. */
void custody_clear(struct custody *c);

#endif
