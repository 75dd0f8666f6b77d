/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What systemd keeps open for the next daemon: see fd_store.c. */
#ifndef UPGRADED_FD_STORE_H
#define UPGRADED_FD_STORE_H

#include "cleanup.h"

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

/* Every name of ours begins with it: "upgrade-17.cpr.4". */
#define FD_STORE_PREFIX "upgrade-"
#define FD_STORE_NAME	256

struct fd_store;

/* @event: where it tries again to put in and take out what could not be, every second. */
int fd_store_new(sd_event *event, struct fd_store **ret_store);

/* Closes everything here; systemd keeps what it has. */
void fd_store_freep(struct fd_store **store);

/*
 * What systemd passed at the start. Takes @fd if the name is one of ours;
 * else -ENOENT, and it is still the caller's.
 */
int fd_store_inherit(struct fd_store *s, const char *name, int fd);

/*
 * Stores @fd (borrowed) as "upgrade-@id.@item.N"; if the same open file is there,
 * that one gets another user. *ret_name is the caller's to free. What systemd cannot be
 * given now it is given later.
 */
int fd_store_add(struct fd_store *s, uint64_t id, const char *item, int fd, char **ret_name);

/* The fd of that name, borrowed, which has one user more from here on; -ENOENT. */
int fd_store_use(struct fd_store *s, const char *name);

/* One user less; the last one takes it out of systemd's store. */
void fd_store_drop(struct fd_store *s, const char *name);

/* Takes out what nobody uses: what a daemon left between two steps. */
void fd_store_drop_unused(struct fd_store *s);

/* The name at or after *@at (0 at first) that begins with @prefix, or NULL. */
const char *fd_store_next(const struct fd_store *s, const char *prefix, size_t *at);

/* Borrowed; -ENOENT. */
int fd_store_peek(const struct fd_store *s, const char *name);

#endif
