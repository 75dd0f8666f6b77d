/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking for an upgrade: see upgrade_request.c. */
#ifndef UPGRADED_UPGRADE_REQUEST_H
#define UPGRADED_UPGRADE_REQUEST_H

#include "cli.h"

/* The daemon takes a request or refuses it before it does anything slow. */
#define UPGRADE_START_TIMEOUT_S 120

/* How a VM is to be upgraded; for all of a fleet the same. */
struct upgrade_how {
	char *vmm;	      /* absolute path; NULL: the one that the VM runs from */
	uint64_t blackout_us; /* 0: as configured */
	uint64_t timeout_us;  /* of a phase in which the guest still runs; 0: as configured */
	bool no_stage2;
	bool set_emulator; /* libvirt's domains only */
};

/*
 * Connects @c and asks for an upgrade of @vm. What follows are UpgradeStarted, Events
 * with the phases, the last with the Report; or a typed error.
 */
int upgrade_request(struct client *c, const struct cli *cli, char *vm,
		    const struct upgrade_how *how, struct error *err);

/*
 * SIGINT and SIGTERM, blocked from now on, as an fd to poll: an upgrade belongs to the
 * daemon, so what they mean is said to it. Negative errno.
 */
int upgrade_signals(struct error *err);

/* One of them is there, and taken. */
bool upgrade_signalled(int signals);

/* CLOCK_MONOTONIC, for UPGRADE_START_TIMEOUT_S. */
time_t upgrade_now_s(void);

#endif
