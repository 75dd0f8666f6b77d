/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef UPGRADED_SOURCE_WATCH_H
#define UPGRADED_SOURCE_WATCH_H

#include <sys/types.h>
#include <systemd/sd-event.h>

struct source_watch;

/* @pidfd stays the caller's, and must outlive the watch. @name, @id: for the log. */
int source_watch_new(sd_event *event, const char *name, uint64_t id, pid_t pid, int pidfd,
		     struct source_watch **ret_watch);

void source_watch_freep(struct source_watch **w);

#endif
