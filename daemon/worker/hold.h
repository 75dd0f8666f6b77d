/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The two VMMs as processes, whatever kind of VMM they are: see hold.c. */
#ifndef UPGRADED_HOLD_H
#define UPGRADED_HOLD_H

#include "upgrade.h"

struct spawn;

/*
 * Starts the target. u->target says who it is, u->target_pidfd is the upgrade's,
 * and from here on its end ends every wait. How it is started and who it is are in
 * custody when this returns. @qmp: its monitor, or NULL.
 */
int hold_start(struct upgrade *u, const struct spawn *spawn, char *qmp, struct error *err);

/* As hold_start(), from custody: ends the target of before, which nobody needs. */
int hold_start_again(struct upgrade *u, struct error *err);

/* Stops every thread of the source. One that is gone is as good. @pidfd is borrowed. */
int hold_stop(int pidfd, struct error *err);

/*
 * The source is about to be told to go on: the device state is used from here on.
 * -ESRCH: it has ended, or was killed and is still ending; then the state is not
 * used, and good for another target.
 */
int hold_let_go(struct upgrade *u, struct error *err);

/* The same for the target, after COMMIT. */
int hold_let_run(struct upgrade *u, struct error *err);

/*
 * Waits for the end of a source that was killed but is still exiting: only when it has
 * ended can the daemon start a target from custody.
 */
void hold_see_out(struct upgrade *u);

/* Waits until every thread of @pid is stopped or gone. 0 or as wait_for(). */
int hold_wait(struct waiter *w, pid_t pid, struct error *err);

/*
 * Kills the process and waits for its end, until the waiter's deadline and no
 * matter who else dies. @who is for the sentence; @pidfd is borrowed, -EBADF:
 * there is none.
 */
int hold_end(struct waiter *w, int pidfd, const char *who, struct error *err);

/* A step failed with @err: if that is because a VMM ended, says so, and how. */
void hold_explain(struct upgrade *u, struct error *err);

#endif
