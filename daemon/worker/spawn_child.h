/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The half of spawn.c that runs in the new process: see spawn_child.c. */
#ifndef UPGRADED_SPAWN_CHILD_H
#define UPGRADED_SPAWN_CHILD_H

#include "error.h"

#include <stdbool.h>
#include <stddef.h>

struct identity;
struct spawn_fd;

/* Not a step that failed: the child waits at the gate. */
#define CHILD_READY 0

/* What the child writes into the gate before it gives up, or when it is ready. */
struct failure {
	int step;   /* see spawn_child.c, or CHILD_READY */
	int error;  /* errno */
	int detail; /* which namespace, limit, capability or fd */
};

struct child {
	const char *name; /* what is started, for messages */
	char **argv;
	const struct identity *id;
	struct spawn_fd *fds; /* a copy that the child may change */
	size_t n_fds;
	bool ends_with_us;
	int gate;		       /* the child's end */
	int (*work)(const void *data); /* instead of exec */
	const void *data;
};

/* Becomes c->argv, once the parent lets it through the gate. */
__attribute__((noreturn)) void child_main(struct child *c);

/* Does c->work(c->data) with nothing open but the gate. */
__attribute__((noreturn)) void child_work(struct child *c);

/* The sentence for a failure; the errno. *ret_no_exec, if asked for: it was the exec. */
int child_failed(const char *name, const struct failure *f, bool *ret_no_exec, struct error *err);

#endif
