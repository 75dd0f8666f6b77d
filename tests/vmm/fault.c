/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mishaps that a test orders, before and after the callbacks of an upgrade. The test writes
 * lines "ROLE POINT ACTION [MS]" to a file; ACTION is kill, stop, fail, exit or sleep, which
 * the removal of the file ends. When one is about to happen, "PATH.seen" gets the line, so
 * that the test knows when and can kill somebody else meanwhile. Nothing is kept.
 */
#include "fault.h"

#include "clock.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STEP_MS 5

static int act(const char *path, const char *action, long ms)
{
	struct timespec step = { .tv_nsec = STEP_MS * 1000000 };

	if (!strcmp(action, "kill"))
		kill(getpid(), SIGKILL);
	else if (!strcmp(action, "stop"))
		kill(getpid(), SIGSTOP);
	else if (!strcmp(action, "exit"))
		_exit(9);
	else if (!strcmp(action, "sleep"))
		for (uint64_t end = now_us() + (uint64_t)ms * 1000;
		     now_us() < end && access(path, F_OK) == 0;)
			nanosleep(&step, NULL);
	else if (!strcmp(action, "fail"))
		return -EIO;
	return 0;
}

static void tell(const char *path, const char *line)
{
	char seen[4096];
	FILE *f;

	snprintf(seen, sizeof(seen), "%s.seen", path);
	f = fopen(seen, "ae");
	if (!f)
		return;
	fprintf(f, "%d %s\n", (int)getpid(), line);
	fclose(f);
}

/*
 * Does what the file @path orders for @role ("source", "target") at @point. 0, or the -EIO
 * of an ordered failure.
 */
static int fault_at(const char *path, const char *role, const char *point)
{
	char line[256];
	FILE *f;
	int r = 0;

	/* Without memory or descriptors, which the test may have taken away since. */
	if (!path || access(path, F_OK) < 0)
		return 0;
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (r == 0 && fgets(line, sizeof(line), f)) {
		char who[32], where[32], action[32];
		long ms = 0;

		if (sscanf(line, "%31s %31s %31s %ld", who, where, action, &ms) < 3 ||
		    strcmp(who, role) != 0 || strcmp(where, point) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		tell(path, line);
		r = act(path, action, ms);
	}
	fclose(f);
	return r;
}

/* ---- the callbacks ---- */

static int on_freeze(struct upgraded *u, int state, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "source", "freeze");

	if (r >= 0)
		r = f->ops->freeze(u, state, f->userdata);
	return r < 0 ? r : fault_at(f->path, "source", "frozen");
}

static int on_reclaim(struct upgraded *u, int target_vm, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "source", "reclaim");

	if (r >= 0)
		r = f->ops->reclaim(u, target_vm, f->userdata);
	return r;
}

static int on_thaw(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "source", "thaw");

	if (r >= 0)
		r = f->ops->thaw(u, f->userdata);
	return r;
}

static int on_quit(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;

	(void)fault_at(f->path, "source", "quit");
	return f->ops->quit(u, f->userdata);
}

static int on_accept(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "accept");

	if (r >= 0)
		r = f->ops->accept(u, f->userdata);
	return r < 0 ? r : fault_at(f->path, "target", "accepted");
}

static int on_verify(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "verify");

	if (r >= 0)
		r = f->ops->verify(u, f->userdata);
	return r;
}

static int on_load(struct upgraded *u, int state, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "load");

	if (r >= 0)
		r = f->ops->load(u, state, f->userdata);
	return r < 0 ? r : fault_at(f->path, "target", "loaded");
}

static int on_own(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "own");

	if (r >= 0)
		r = f->ops->own(u, f->userdata);
	return r < 0 ? r : fault_at(f->path, "target", "owned");
}

static int on_run(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "run");

	if (r >= 0)
		r = f->ops->run(u, f->userdata);
	return r < 0 ? r : fault_at(f->path, "target", "running");
}

static int on_finish(struct upgraded *u, void *userdata)
{
	const struct faulty *f = userdata;
	int r = fault_at(f->path, "target", "finish");

	if (r >= 0)
		r = f->ops->finish(u, f->userdata);
	return r;
}

const struct upgraded_ops faulty_ops = {
	.size = sizeof(faulty_ops),
	.freeze = on_freeze,
	.reclaim = on_reclaim,
	.thaw = on_thaw,
	.quit = on_quit,
	.accept = on_accept,
	.verify = on_verify,
	.load = on_load,
	.own = on_own,
	.run = on_run,
	.finish = on_finish,
};
