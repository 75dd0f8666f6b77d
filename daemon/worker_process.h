/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One upgraded-worker, seen from the daemon: see worker_process.c. */
#ifndef UPGRADED_WORKER_PROCESS_H
#define UPGRADED_WORKER_PROCESS_H

#include "message.h"
#include "wire.h"

#include <stdbool.h>
#include <systemd/sd-event.h>

struct worker_process;

struct worker_ops {
	/* A message came; takes what it wants of @fds. Negative: it broke the
	 * contract, and is killed. Must not free the worker. */
	int (*message)(Envelope *env, struct scm_fds *fds, void *userdata);
	/* It is dead and all it sent was delivered. The callee frees it. @how says
	 * what became of it ("ended with status 1"). */
	void (*ended)(const char *how, void *userdata);
	/*
	 * For how long it may say nothing, from its last message on: then it is killed. That
	 * it waits (WorkerWaits) is no message.
	 */
	uint64_t (*silence_us)(void *userdata);
	/* The same for when it does not even wait; UINT64_MAX, or no such function: no limit. */
	uint64_t (*stuck_us)(void *userdata);
};

struct worker_order {
	const char *program;
	WorkerStart *start;  /* borrowed */
	int source_pidfd;    /* borrowed */
	int target_pidfd;    /* borrowed; -EBADF: none */
	bool noted;	     /* in the order's work directory, for a daemon that comes later */
	const struct worker_ops *ops;
	void *userdata;
};

/*
 * A worker keeps its own deadlines; one that says nothing for so long hangs.
 * @last_resort: it may be undoing, finishing or starting a target from custody by now.
 */
uint64_t worker_silence_us(const WorkerStart *start, bool last_resort);

/* Starts one and gives it its order. Nothing is left running on failure. */
int worker_process_start(sd_event *event, const struct worker_order *order,
			 struct worker_process **ret_worker, struct error *err);

/* Sends; if it does not read (the socket is full) it is killed. */
int worker_process_send(struct worker_process *w, Envelope *env);
int worker_process_ack(struct worker_process *w, uint64_t id);
int worker_process_refuse(struct worker_process *w, uint64_t id, const struct error *err);
int worker_process_abort(struct worker_process *w);

/*
 * Gives it one item of custody: the memfd @whole and the item's fds, all borrowed.
 * WorkerStart has said how many come.
 */
int worker_process_give(struct worker_process *w, int whole, const int *fds, size_t n);

/* Answers VmmBorrow with the connection @fd, which is borrowed. */
int worker_process_lend(struct worker_process *w, uint64_t id, int fd);

/* It should be gone soon: kills it unless it ends within @us. */
void worker_process_expect_end(struct worker_process *w, uint64_t us);

/* Delivers what it has sent, and lets it send nothing more: what it asks for now is not answered. */
void worker_process_hear_out(struct worker_process *w);

/* Lets go of it without killing it: it sees the end of the socket. */
void worker_process_freep(struct worker_process **w);

#endif
