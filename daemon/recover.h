/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Upgrades that were running when the daemon ended: see recover.c. */
#ifndef UPGRADED_RECOVER_H
#define UPGRADED_RECOVER_H

#include "context.h"
#include "error.h"

/* Reads the journal and takes them up again; also sets ctx->next_id beyond them. */
int recover_all(struct context *ctx, struct error *err);

#endif
