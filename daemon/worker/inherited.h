/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a worker gets of the custody of one before it: see inherited.c. */
#ifndef UPGRADED_INHERITED_H
#define UPGRADED_INHERITED_H

#include "error.h"
#include "upgraded.pb-c.h"

#include <stddef.h>

struct inherited_item {
	Upgraded__V1__HeldItem *held;
	int *fds;
	size_t n_fds;
};

struct inherited {
	struct inherited_item *v;
	size_t n;
};

#define INHERITED_INIT { 0 }

/* Receives @n items, which follow WorkerStart on @sock. */
int inherited_receive(int sock, size_t n, struct inherited *ret, struct error *err);

/* The item of that name, borrowed, or NULL. */
const struct inherited_item *inherited_find(const struct inherited *in, const char *name);

/* Its only fd, duplicated: the caller's. -ENOENT: it was not given. */
int inherited_fd(const struct inherited *in, const char *name, int *ret_fd);

void inherited_clear(struct inherited *in);

#endif
