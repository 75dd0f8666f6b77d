/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where a test may have the daemon or a worker die: see fault_point.c. */
#ifndef UPGRADED_FAULT_POINT_H
#define UPGRADED_FAULT_POINT_H

#include <stdbool.h>

/*
 * Every one of them, once; tests read this list. In the order in which they are passed. Some
 * are passed several times in one upgrade: "daemon.custody-fds#3" is the third pass.
 */
#define FAULT_POINTS(POINT)                                          \
	/* the daemon */                                             \
	POINT(INTENT_DUE, "daemon.intent-due")                       \
	POINT(INTENT, "daemon.intent")                               \
	POINT(WORKER_STARTED, "daemon.worker-started")               \
	POINT(CUSTODY_FDS, "daemon.custody-fds")                     \
	POINT(CUSTODY_WHOLE, "daemon.custody-whole")                 \
	POINT(CUSTODY_JOURNALED, "daemon.custody-journaled")         \
	POINT(COMMIT_DUE, "daemon.commit-due")                       \
	POINT(COMMIT_JOURNALED, "daemon.commit-journaled")           \
	POINT(COMMIT_TOLD, "daemon.commit-told")                     \
	POINT(REPORT_RECEIVED, "daemon.report-received")             \
	POINT(END_DUE, "daemon.end-due")                             \
	POINT(END_JOURNALED, "daemon.end-journaled")                 \
	POINT(CUSTODY_CLEARED, "daemon.custody-cleared")             \
	/* the worker */                                             \
	POINT(ORDERED, "worker.ordered")                             \
	POINT(EXAMINED, "worker.examined")                           \
	POINT(PUT_SENT, "worker.put-sent")                           \
	POINT(PUT_ACKNOWLEDGED, "worker.put-acknowledged")           \
	POINT(TARGET_STARTED, "worker.target-started")               \
	POINT(PREPARED, "worker.prepared")                           \
	POINT(VERIFIED, "worker.verified")                           \
	POINT(STATE_WHOLE, "worker.state-whole")                     \
	POINT(FROZEN, "worker.frozen")                               \
	POINT(LOADED, "worker.loaded")                               \
	POINT(HELD, "worker.held")                                   \
	POINT(COMMIT_ASKED, "worker.commit-asked")                   \
	POINT(COMMITTED, "worker.committed")                         \
	POINT(RAN, "worker.ran")                                     \
	POINT(FINISHED, "worker.finished")                           \
	POINT(DONE, "worker.done")                                   \
	/* a worker that undoes or rebuilds */                       \
	POINT(UNDO, "worker.undo")                                   \
	POINT(LET_GO, "worker.let-go")                               \
	POINT(UNDONE, "worker.undone")                               \
	POINT(REBUILD_STARTED, "worker.rebuild-started")

enum fault_point {
#define FAULT_POINT_ID(id, name) FAULT_##id,
	FAULT_POINTS(FAULT_POINT_ID)
#undef FAULT_POINT_ID
	FAULT_COUNT
};

/* Set once, before main(), from the environment. */
extern bool fault_points_on;

void fault_point_passed(enum fault_point point);

static inline void fault_point(enum fault_point point)
{
	if (__builtin_expect(fault_points_on, false))
		fault_point_passed(point);
}

#endif
