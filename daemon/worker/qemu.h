/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the driver of QEMU share: see driver_qemu.c. */
#ifndef UPGRADED_QEMU_H
#define UPGRADED_QEMU_H

#include "channel.h"
#include "gmem.h"
#include "source.h"
#include "upgrade.h"

struct qemu {
	struct qmp *source_qmp;
	struct qmp *target_qmp;
	struct source *source;
	struct argv_plan *plan;
	Upgraded__V1__TargetPlan wire_plan; /* borrows from plan */
	Upgraded__V1__TargetPlan__Rename *rename;
	Upgraded__V1__TargetPlan__Rename **renames;

	/* Sockets in the work directory. */
	char *source_cpr, *source_main; /* where the source connects */
	char *target_cpr, *target_main; /* where the target listens */
	int cpr_listener, main_listener;
	int cpr_held; /* the source's cpr connection: closing it is the freeze */
	int main_target;
	struct spool spool; /* the device state */
	struct gmem gmem;   /* when there is no source */
};

/* Of @u; made at the first call. NULL: out of memory. */
struct qemu *qemu_of(struct upgrade *u);

pid_t qemu_source_pid(const struct upgrade *u);
bool qemu_is_libvirts(const struct upgrade *u);

/* What is known of the memory: of the source, or of a target without one. */
struct gmem *qemu_gmem(struct qemu *q);

int qemu_make_paths(struct upgrade *u, struct qemu *q);
int qemu_connect_source(struct upgrade *u, struct qemu *q, struct error *err);

/* CLOCK_REALTIME of an event that came, or comes soon; 0 if it does not. */
uint64_t qemu_event_time(struct upgrade *u, struct qmp *qmp, const char *name);

/* qemu_target.c: the steps of a target, with or without a source. */
int qemu_build_target(struct upgrade *u, struct qemu *q, const struct cpr_state *state,
		      struct error *err);
int qemu_connect_target(struct upgrade *u, struct qemu *q, struct error *err);

/* The steps of struct driver, by file. */
int qemu_rebuild(struct upgrade *u, struct error *err); /* qemu_target.c */
int qemu_prepare(struct upgrade *u, struct error *err); /* qemu_carry.c */
int qemu_verify(struct upgrade *u, struct error *err);
int qemu_freeze(struct upgrade *u, struct error *err);
int qemu_load(struct upgrade *u, struct error *err);
int qemu_hold(struct upgrade *u, struct error *err);
int qemu_run(struct upgrade *u, struct error *err); /* qemu_commit.c */
int qemu_finish(struct upgrade *u, struct error *err);
int qemu_undo(struct upgrade *u, struct error *err); /* qemu_undo.c */

#endif
