/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One daemon for each runtime directory: see runtime_lock.c. */
#ifndef UPGRADED_RUNTIME_LOCK_H
#define UPGRADED_RUNTIME_LOCK_H

#include "error.h"

/*
 * Keeps others out of @dir until *ret_fd, the caller's, is closed. -EWOULDBLOCK: another
 * daemon has it. *ret_fd is -EBADF on a read-only file system that has no lock.
 */
int runtime_lock(const char *dir, int *ret_fd, struct error *err);

#endif
