/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Upgrades of many VMs in one go: see fleet.c. */
#ifndef UPGRADED_FLEET_H
#define UPGRADED_FLEET_H

#include "upgrade_request.h"
#include "window.h"

struct fleet_options {
	char **patterns; /* names, or as a shell would match them */
	size_t n_patterns;
	bool all, outdated;
	bool again; /* also those that run the target's binary already */
	bool dry_run;
	size_t at_once;	   /* at least 1 */
	size_t canary;	   /* so many first, and all of them must do well */
	size_t stop_after; /* failures; 0: only a lost guest, or a daemon that is away */
	struct window window;
};

/* A VM that was chosen. */
struct member {
	Upgraded__V1__Vm *vm;
	enum { MEMBER_WAITS, MEMBER_RUNS, MEMBER_OVER, MEMBER_UP_TO_DATE } state;
	struct client client;
	bool accepted;	 /* the daemon said that it will be upgraded */
	time_t start_by; /* CLOCK_MONOTONIC: when it must have said so */
	int code;	 /* CLI_*, once it is over */
	Envelope *last;	 /* with its report, or NULL */
	struct error err;
};

/*
 * The members among @list, ordered by name; they borrow from it. @binary: the target's,
 * as the daemon has it of a VM that runs it; NULL: that which each runs from. -ENOENT:
 * nobody is called so, or a pattern matches none; err says which.
 */
int fleet_choose(const struct fleet_options *options, const char *binary,
		 const Upgraded__V1__VmList *list, struct member **ret_members, size_t *ret_n,
		 struct error *err);
void fleet_free(struct member *members, size_t n);

/* Chooses, upgrades (or checks), and sums up. Returns the exit code. */
int fleet_run(const struct cli *cli, const struct fleet_options *options,
	      const struct upgrade_how *how);

/* fleet_summary.c */
void fleet_print_name(const struct cli *cli, const struct member *m);
void fleet_print_end(const struct cli *cli, const struct member *m);
/* @none: why, when @n is 0. @stopped: why not all of them began, or NULL. The exit code. */
int fleet_sum_up(const struct cli *cli, const struct member *members, size_t n, const char *none,
		 const char *stopped);

#endif
