/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who may ask for what: see access.c. */
#ifndef UPGRADED_ACCESS_H
#define UPGRADED_ACCESS_H

#include "error.h"
#include "wire.h"

#include <sys/types.h>

/* Who is at the other end, as the kernel says. */
struct peer {
	uid_t uid;
	gid_t gid;
	pid_t pid;
};

/* 0, or -EACCES with the reason. */
int access_check(const struct peer *peer, const Envelope *request, struct error *err);

#endif
