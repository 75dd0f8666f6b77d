/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All that the daemon is, made once in main(). */
#ifndef UPGRADED_CONTEXT_H
#define UPGRADED_CONTEXT_H

#include "digests.h"
#include "config.h"
#include "error.h"
#include "metrics.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

struct options {
	const char *runtime_dir;
	const char *state_dir;
	const char *worker;
	const char *group;
	const char *config_root; /* upgraded.conf is below this */
	size_t max_running; /* upgrades and checks at once; 0: as configured */
};

struct context {
	struct options options;
	struct config config;
	struct error config_wrong; /* what is wrong with it, if anything */
	int lock;		   /* runtime_lock.c */
	sd_event *event;
	struct registry *registry;
	struct journal *journal;
	struct history *history;
	struct fd_store *fd_store;
	struct server *server;
	struct upgrade *upgrades; /* waiting and under way, oldest first */
	struct check *checks;	  /* likewise */
	struct systemd *systemd;  /* manager/systemd.c */
	struct polkit *polkit;	  /* requests that polkit is asked about */
	struct native *native;	  /* VMMs on vmm.sock */
	struct digests digests;
	struct metrics metrics;
	struct libvirt *libvirt;  /* manager/libvirt.c */
	uint64_t next_id;	  /* of upgrades */
};

#endif
