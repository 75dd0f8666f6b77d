/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fault points: the moments at which a test may have the daemon or a worker die,
 * hang or be slow. They are named once, in fault_point.h, and cost one branch that is
 * never taken unless UPGRADED_FAULTS names a file. The file has lines "POINT ACTION
 * [MS]"; ACTION is kill, stop or sleep. A line counts once: when it is about to
 * happen, "PATH.seen" gets the pid and the point, and a line that is there is not
 * obeyed again, by whichever process comes next.
 *
 * Called all over the daemon and the worker; owns nothing. Root alone can set the
 * environment of either.
 */
#include "fault_point.h"

#include "cleanup.h"

#include <signal.h>
#include <string.h>
#include <time.h>

/* The one variable of its kind: a test's hand reaches in from outside of main(). */
bool fault_points_on;

static const char *const names[FAULT_COUNT] = {
#define FAULT_POINT_NAME(id, name) [FAULT_##id] = name,
	FAULT_POINTS(FAULT_POINT_NAME)
};

__attribute__((constructor)) static void read_environment(void)
{
	fault_points_on = getenv("UPGRADED_FAULTS") != NULL;
}

/* Does a line of the file begin with @name? *ret_rest is what follows. */
static bool has_line(const char *path, const char *name, char *ret_rest, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char line[256], where[64], rest[64];

	while (f && fgets(line, sizeof(line), f)) {
		rest[0] = '\0';
		if (sscanf(line, "%63s %63[^\n]", where, rest) < 1 || strcmp(where, name) != 0)
			continue;
		snprintf(ret_rest, size, "%s", rest);
		return true;
	}
	return false;
}

static void tell(const char *path, const char *name)
{
	_cleanup_fclose_ FILE *f = fopen(path, "ae");

	if (f)
		fprintf(f, "%s %d\n", name, (int)getpid());
}

void fault_point_passed(enum fault_point point)
{
	const char *path = getenv("UPGRADED_FAULTS");
	char action[64], rest[64], seen[4096];
	struct timespec t = { 0 };
	long ms = 0;

	snprintf(seen, sizeof(seen), "%s.seen", path);
	if (!has_line(path, names[point], action, sizeof(action)) ||
	    has_line(seen, names[point], rest, sizeof(rest)))
		return;
	tell(seen, names[point]);
	if (!strncmp(action, "kill", 4))
		raise(SIGKILL);
	else if (!strncmp(action, "stop", 4))
		raise(SIGSTOP);
	else if (sscanf(action, "sleep %ld", &ms) == 1) {
		t.tv_sec = ms / 1000;
		t.tv_nsec = ms % 1000 * 1000000;
		nanosleep(&t, NULL);
	}
}
