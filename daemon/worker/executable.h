/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which program a process runs, for the records: see executable.c. */
#ifndef UPGRADED_EXECUTABLE_H
#define UPGRADED_EXECUTABLE_H

#include "wire.h"

#include <stdbool.h>
#include <sys/types.h>

/* SHA-256 as hexadecimal digits, and a 0. */
#define SHA256_TEXT 65

/* The file that the process of @pidfd executes, deleted or not; the caller's. -EBADF: unknown. */
int executable_open(pid_t pid, int pidfd);

/* What tells @fd (borrowed) from every other file and every other state of it; sha256 stays. */
bool executable_stat(int fd, Upgraded__V1__FileDigest *ret);

/* Of all of @fd (borrowed); "" if it cannot be had. Takes 0.1 s for a QEMU. */
void executable_sha256(int fd, char ret[SHA256_TEXT]);

#endif
