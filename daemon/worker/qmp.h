/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A QMP client for one monitor: see qmp.c. */
#ifndef UPGRADED_QMP_H
#define UPGRADED_QMP_H

#include "error.h"
#include "wait.h"

#include <json-c/json.h>

struct qmp;

/* An event as it came; owned by the client until the next qmp_* call. */
struct qmp_event {
	const char *name;              /* "STOP" */
	struct json_object *data;      /* may be NULL */
	uint64_t qemu_us;              /* QEMU's own timestamp, CLOCK_REALTIME */
};

/*
 * Connects to the UNIX socket @path, reads the greeting, leaves negotiation
 * mode. A monitor serves one client: if another one holds it, no greeting
 * comes, and the error says so. All waiting is done by wait_for(@w) within
 * w->deadline_us; @w is borrowed for the client's life.
 * @name is used in messages ("the source", "the target").
 */
int qmp_connect(const char *path, const char *name, struct waiter *w, struct qmp **ret_qmp,
		struct error *err);

/* As qmp_connect(), on a connected socket or pipe pair that it takes. */
int qmp_open(int in, int out, const char *name, struct waiter *w, struct qmp **ret_qmp,
	     struct error *err);

/* QEMU's version from the greeting: "10.0.13". */
const char *qmp_version(const struct qmp *q);

/*
 * Runs a command. Takes @args (may be NULL). *ret_value, if asked for, is a
 * reference of the caller's. -EREMOTEIO: QEMU answered with an error, whose
 * text is in @err. -ENOSYS: QEMU does not know the command.
 */
int qmp_execute(struct qmp *q, const char *command, struct json_object *args,
		struct json_object **ret_value, struct error *err);

/* One of several commands that are sent at once, and what came of it. */
struct qmp_call {
	const char *command;
	struct json_object *args;  /* may be NULL; taken, and NULL afterwards */
	struct json_object *value; /* a reference of the caller's; NULL if r < 0 */
	int r;                     /* 0, -EREMOTEIO, -ENOSYS: as qmp_execute() */
};

/*
 * Sends all commands, then reads all replies: one wait instead of @n. QEMU runs
 * them in this order, whatever comes of those before. 0: all were answered,
 * each by its own r; a negative errno: the monitor failed, and those that were
 * not answered have -ECANCELED.
 */
int qmp_execute_all(struct qmp *q, struct qmp_call *calls, size_t n, struct error *err);

/* Drops what the calls hold. */
void qmp_calls_clear(struct qmp_call *calls, size_t n);

/*
 * Takes the oldest event that has not been looked at, waiting for one until
 * the deadline. 0 or as wait_for().
 */
int qmp_next_event(struct qmp *q, struct qmp_event *ret_event, struct error *err);

/* The same, waits for one named @name and drops the others before it. */
int qmp_wait_event(struct qmp *q, const char *name, struct qmp_event *ret_event,
		   struct error *err);

/*
 * Gives QEMU a copy of @fd (borrowed) under @name, for a command that takes the
 * name. Needs a monitor on a UNIX socket.
 */
int qmp_pass_fd(struct qmp *q, const char *name, int fd, struct error *err);

/* Forgets all events that came so far. */
void qmp_drop_events(struct qmp *q);

void qmp_freep(struct qmp **q);
#define _cleanup_qmp_ __attribute__((cleanup(qmp_freep)))

#endif
