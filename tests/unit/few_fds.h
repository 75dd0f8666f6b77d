/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process that is short of descriptors: see few_fds.c. */
#ifndef UPGRADED_FEW_FDS_H
#define UPGRADED_FEW_FDS_H

#include <sys/resource.h>

/* Leaves room for @n more descriptors; returns the limit as it was. */
struct rlimit few_fds(int n);

void enough_fds(const struct rlimit *limit);

#endif
