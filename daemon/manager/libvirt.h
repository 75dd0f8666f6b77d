/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The domains of libvirt: see libvirt.c. */
#ifndef UPGRADED_LIBVIRT_H
#define UPGRADED_LIBVIRT_H

#include "context.h"
#include "manager.h"

extern const struct manager_driver manager_libvirt;

/* Makes every running domain known that is not, and drops those that run no more. */
void libvirt_look(struct context *ctx);

#endif
