/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long a worker may take for what. upgrade.c keeps to it; the daemon goes by it when
 * it takes a worker that says nothing for one that hangs (worker_process.c).
 */
#ifndef UPGRADED_DEADLINES_H
#define UPGRADED_DEADLINES_H

/* A guest must not stand still for long because somebody hangs. */
#define DEFAULT_BLACKOUT_LIMIT_US (10 * 1000000ULL)
#define DEFAULT_PHASE_LIMIT_US	  (60 * 1000000ULL)
/* Undoing and finishing have no alternative: they get time of their own. */
#define LAST_RESORT_US (60 * 1000000ULL)
/* A VMM that is dying or does not let itself be reached is waited for on top of that. */
#define LAST_RESORT_MORE_US (20 * 1000000ULL)
/* Nor has this, but another try may do better than a target that hangs. */
#define REBUILD_LEAST_US (5 * 1000000ULL)

/* While it waits, a worker says so this often; see wait_pulse(). */
#define PULSE_US (2 * 1000000ULL)
/* Without a word for so long while the guest stands still it hangs: others can do better. */
#define STUCK_US (15 * 1000000ULL)

#endif
