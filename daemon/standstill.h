/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef UPGRADED_STANDSTILL_H
#define UPGRADED_STANDSTILL_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * SIGKILL is pending, or it exits: none of its threads gets into the guest any more,
 * though it takes a while until it has ended, the longer the more memory it has.
 * Also true if there is no such process, but not if that cannot be seen.
 */
bool process_is_dying(pid_t pid);

/* 1: every thread is stopped or gone; 0: not so; or a negative errno of /proc. */
int process_is_stopped(pid_t pid);

/* @pidfd (borrowed; negative: of nobody) is of a process that is dead, or a zombie. */
bool process_has_ended(int pidfd);

/* The same, or it is so within @patience_ms. */
bool process_ends_within(int pidfd, int patience_ms);

#endif
