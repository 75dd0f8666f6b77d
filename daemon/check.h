/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Looking at a VM without touching it: see check.c. */
#ifndef UPGRADED_CHECK_H
#define UPGRADED_CHECK_H

#include "context.h"
#include "registry.h"
#include "server.h"

struct check;

/*
 * Has a worker look whether @vm can be upgraded to @binary (empty: what it
 * runs now). Answers @from (NULL: nobody asked, the registry learns) later.
 */
int check_request(struct context *ctx, struct vm *vm, const char *binary,
		  const struct requester *from, struct error *err);

/* Starts the oldest that may run, for schedule(). False: there is none. */
bool check_start_next(struct context *ctx);

/* Lets go of all; their workers see the end of the socket. */
void check_free_all(struct context *ctx);

#endif
