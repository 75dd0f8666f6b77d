/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What workers have read of the files that VMMs run, so that a binary which a hundred
 * VMs have in common is read once and not two hundred times. A worker is told of all
 * with its order and tells what it read with its end (worker/executable.c). In memory
 * only: the next daemon's workers read anew.
 */
#include "digests.h"

#include "cleanup.h"

void digests_clear(struct digests *d)
{
	for (size_t i = 0; i < d->n; i++)
		message_free(d->v[i]);
	*d = (struct digests){ 0 };
}

void digests_learn(struct digests *d, FileDigest **read, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		size_t at = d->n < DIGESTS_MAX ? d->n++ : d->oldest++ % DIGESTS_MAX;

		message_free(d->v[at]);
		d->v[at] = TAKE_PTR(read[i]);
	}
}
