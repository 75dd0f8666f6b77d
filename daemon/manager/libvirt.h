/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The domains of libvirt: see libvirt.c. */
#ifndef UPGRADED_LIBVIRT_H
#define UPGRADED_LIBVIRT_H

#include "context.h"
#include "manager.h"
#include "server.h"

struct libvirt;

int libvirt_new(struct context *ctx, struct libvirt **ret_libvirt);
void libvirt_freep(struct libvirt **libvirt);

extern const struct manager_driver manager_libvirt;

/* Makes every running domain known that is not, and drops those that run no more. */
void libvirt_look(struct context *ctx);

/* libvirt's daemon asks whether it may start; answered when it may. */
int libvirt_starting(struct context *ctx, const struct requester *from, struct error *err);

/* The connection @client has ended: if it was who asked, libvirt's daemon does not wait any more. */
void libvirt_closed(struct context *ctx, uint64_t client);

#endif
