/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What can be asked of the daemon: see control.c. */
#ifndef UPGRADED_CONTROL_H
#define UPGRADED_CONTROL_H

#include "registry.h"
#include "server.h"

/* The server_request_fn; @userdata is the struct context. */
void control_request(const struct requester *from, enum server_socket socket,
		     const Envelope *request, void *userdata);

/* @vm as it is now, to be freed with message_free(); NULL: out of memory. */
Vm *control_describe(struct vm *vm);

/* Answers with the Vm. */
void control_reply_vm(struct server *s, const struct requester *to, struct vm *vm);

/* Which ErrorCode a negative errno is. */
ErrorCode control_error_code(int code);

#endif
