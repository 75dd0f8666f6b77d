/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How many fds this process has open, to see whether a test left one: see count_fds.c. */
#ifndef UPGRADED_COUNT_FDS_H
#define UPGRADED_COUNT_FDS_H

#include <stddef.h>

/* The same number before and after means that none was left; it counts itself, too. */
size_t count_fds(void);

#endif
