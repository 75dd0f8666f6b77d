/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One question to the daemon, and how a verb fails: see ask.c. */
#ifndef UPGRADED_ASK_H
#define UPGRADED_ASK_H

#include "cli.h"

#define ASK_TIMEOUT_MS 10000
/* The daemon starts programs to answer: a probe of the target, a new VM. */
#define ASK_SLOW_TIMEOUT_MS 120000

/*
 * Connects, asks, and says on stderr what went wrong. Returns CLI_DONE with
 * the answer, or the exit code.
 */
int ask(const struct cli *cli, Envelope *request, Upgraded__V1__Envelope__BodyCase expected,
	int timeout_ms, Envelope **ret_answer);

/* Asks for a VM, and prints it, or its JSON. The exit code. */
int ask_vm(const struct cli *cli, Envelope *request, int timeout_ms);

/* Asks for something that is only done or not, and prints "VM: SAID", or the Ack. The exit code. */
int ask_done(const struct cli *cli, Envelope *request, const char *vm, const char *said);

/*
 * Prints @err with its hint; with --json {"error": ...} goes to stdout, with the code
 * that the daemon's error in @c (may be NULL) has. Returns the exit code.
 */
int fail(const struct cli *cli, const struct client *c, const struct error *err);

/* The exit code for an errno of client_errno(), or of a connection that broke. */
int exit_code(int code);

#endif
