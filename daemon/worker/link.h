/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The worker's side of its socket to the daemon: see link.c. */
#ifndef UPGRADED_LINK_H
#define UPGRADED_LINK_H

#include "error.h"
#include "scm_rights.h"
#include "upgraded.pb-c.h"
#include "wait.h"

/*
 * Receives WorkerStart. *ret_env owns *ret_start; free it with
 * envelope_freep(). The fds are the caller's.
 */
int link_receive_start(int sock, Upgraded__V1__Envelope **ret_env,
		       Upgraded__V1__WorkerStart **ret_start, struct scm_fds *ret_fds,
		       struct error *err);

/* Tells the daemon that a phase was entered. Never fails the upgrade. */
void link_event(struct waiter *w, Upgraded__V1__Event *event);

/*
 * Gives something into the daemon's custody; @fds are borrowed. Returns once
 * the daemon has it: 0, or as wait_for().
 */
int link_put(struct waiter *w, Upgraded__V1__CustodyPut *put, const int *fds, size_t n,
	     struct error *err);

/* Lets go of what is in custody by that name. 0, or as wait_for(). */
int link_drop(struct waiter *w, const char *name, struct error *err);

/*
 * Borrows the connection of the native VMM @process, once it is connected.
 * *ret_fd is the caller's, non-blocking. 0, or as wait_for().
 */
int link_borrow(struct waiter *w, const Upgraded__V1__Process *process, int *ret_fd,
		struct error *err);

/*
 * Asks for the COMMIT record, and waits for the answer however long it takes.
 * @parked: the kernel keeps the source from running.
 * 0: it is written, there is no way back, whatever else happened meanwhile.
 * Any error: it is not (or, with -EOWNERDEAD, the daemon died before it
 * answered and the journal must be asked).
 */
int link_commit(struct waiter *w, bool parked, struct error *err);

/* Asks whether the upgrade may end now. -EOWNERDEAD: the daemon died; the next worker asks. */
int link_finish(struct waiter *w, Upgraded__V1__FinishRequest *request, struct error *err);

/* The worker's last message. What does not fit into a packet is left out of @done. */
int link_done(struct waiter *w, Upgraded__V1__WorkerDone *done);

#endif
