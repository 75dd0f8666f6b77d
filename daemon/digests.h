/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The SHA-256 of files that a worker has read: see digests.c. */
#ifndef UPGRADED_DIGESTS_H
#define UPGRADED_DIGESTS_H

#include "message.h"

/* The last ones; a fleet runs few different binaries at a time. */
#define DIGESTS_MAX 16

struct digests {
	FileDigest *v[DIGESTS_MAX];
	size_t n;
	size_t oldest; /* once there are DIGESTS_MAX */
};

void digests_clear(struct digests *digests);

/* Takes those among @read over; NULL is left in their place. */
void digests_learn(struct digests *digests, FileDigest **read, size_t n);

#endif
