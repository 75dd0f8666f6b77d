/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The open fds of the source: see source_fds.c. */
#ifndef UPGRADED_SOURCE_FDS_H
#define UPGRADED_SOURCE_FDS_H

#include "argv_plan.h"

#include <sys/types.h>

/* Describes every open fd of @pid. Freed with source_fds_free(). */
int source_fds_read(pid_t pid, int pidfd, struct source_fd **ret_fds, size_t *ret_n,
		    struct error *err);

void source_fds_free(struct source_fd *fds, size_t n);

#endif
