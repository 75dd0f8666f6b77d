/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * After COMMIT the source stands still until it is ended. The worker sees to that;
 * this sees to the worker: a source that was made to go on, by a worker that is broken
 * or in somebody else's hands, or by whoever else may send it signals, is killed
 * within WATCH_US, before the guest is run twice for long. In the tier stage2 the
 * kernel does not let it run in the first place, and there is no watch.
 *
 * upgrade_worker.c begins one when COMMIT is in the journal. If the daemon dies here, the
 * worker goes on as told, and the next daemon watches again until it has ended.
 */
#include "source_watch.h"

#include "cleanup.h"
#include "log.h"
#include "oneshot.h"
#include "standstill.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <time.h>

#define WATCH_US (50 * 1000ULL)

struct source_watch {
	sd_event_source *timer;
	const char *name;
	uint64_t id;
	pid_t pid;
	int pidfd;
};

static int on_time(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct source_watch *w = userdata;

	/* From then on the pid may be somebody else's. */
	if (process_has_ended(w->pidfd))
		return 0;
	if (process_is_stopped(w->pid) == 0 && !process_is_dying(w->pid)) {
		(void)pidfd_send_signal(w->pidfd, SIGKILL, NULL, 0);
		log_vm(LOG_CRIT, w->name, w->id,
		       "process %d was made to go on after COMMIT, killed: the guest must not run "
		       "twice",
		       w->pid);
	}
	oneshot_arm(w->timer, WATCH_US);
	return 0;
}

int source_watch_new(sd_event *event, const char *name, uint64_t id, pid_t pid, int pidfd,
		     struct source_watch **ret_watch)
{
	struct source_watch *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	*w = (struct source_watch){ .name = name, .id = id, .pid = pid, .pidfd = pidfd };
	r = sd_event_add_time_relative(event, &w->timer, CLOCK_MONOTONIC, WATCH_US, 0, on_time, w);
	if (r < 0) {
		free(w);
		return r;
	}
	*ret_watch = w;
	return 0;
}

void source_watch_freep(struct source_watch **w)
{
	if (!*w)
		return;
	sd_event_source_disable_unref((*w)->timer);
	free(*w);
	*w = NULL;
}
