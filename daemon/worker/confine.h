/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a worker gives up once it has started the target: see confine.c. */
#ifndef UPGRADED_CONFINE_H
#define UPGRADED_CONFINE_H

#include "error.h"

/* For good, and for what is forked from here on. The second time there is nothing to do. */
int confine(struct error *err);

#endif
