/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking polkit about requests that the group's rule denies: see polkit.c. */
#ifndef UPGRADED_POLKIT_H
#define UPGRADED_POLKIT_H

#include "context.h"
#include "server.h"

int polkit_new(struct polkit **ret_polkit);
void polkit_freep(struct polkit **polkit);

/*
 * A server_denied_fn of a context. True: the request is taken over, server_grant() or
 * server_deny() follows. False: there is no polkit, or nothing to ask it.
 */
bool polkit_ask(const struct requester *from, const Envelope *request, const struct error *denied,
		void *context);

/* The connection has ended: nobody waits for an answer any more. */
void polkit_closed(struct context *ctx, uint64_t client);

#endif
