/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mishaps that a test orders, at the callbacks of an upgrade. The test writes
 * lines "ROLE POINT ACTION [MS]" to a file; ACTION is kill, stop, fail, exit or
 * sleep, which SIGUSR1 ends. When one is about to happen, "PATH.seen" gets the line, so that the
 * test knows when and can kill somebody else meanwhile. Nothing is kept.
 */
#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int act(const char *action, unsigned int ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	if (!strcmp(action, "kill"))
		kill(getpid(), SIGKILL);
	else if (!strcmp(action, "stop"))
		kill(getpid(), SIGSTOP);
	else if (!strcmp(action, "exit"))
		_exit(9);
	else if (!strcmp(action, "sleep"))
		nanosleep(&t, NULL);
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

int fault_at(const char *path, const char *role, const char *point)
{
	char line[256];
	FILE *f = path ? fopen(path, "re") : NULL;
	int r = 0;

	if (!f)
		return 0;
	while (r == 0 && fgets(line, sizeof(line), f)) {
		char who[32], where[32], action[32];
		unsigned int ms = 0;

		if (sscanf(line, "%31s %31s %31s %u", who, where, action, &ms) < 3 ||
		    strcmp(who, role) != 0 || strcmp(where, point) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		tell(path, line);
		r = act(action, ms);
	}
	fclose(f);
	return r;
}
