/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fault points: the moments at which a test may have the daemon or a worker die,
 * hang or be slow. They are named once, in fault_point.h, and cost one branch that is
 * never taken unless UPGRADED_FAULTS names a file. The file has lines "POINT[#PASS]
 * ACTION [MS]"; ACTION is kill, stop or sleep, which the removal of the file ends.
 * Whenever a point is passed that a line names, "PATH.seen" gets "POINT[#PASS] PID"
 * first. That counts the passes, by whichever process. A line is obeyed in its pass
 * alone, without a number in the first.
 *
 * Called all over the daemon and the worker; owns nothing. Root alone can set the
 * environment of either.
 */
#include "fault_point.h"

#include "cleanup.h"
#include "clock.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STEP_MS 5

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

/* How many lines of the file are of @name; *ret_rest is what follows in that of @pass. */
static unsigned int lines_of(const char *path, const char *name, unsigned int pass,
			     char ret_rest[64])
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char line[256], where[64];
	unsigned int n = 0;

	ret_rest[0] = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		unsigned int of = 1;

		if (sscanf(line, "%63[^# \n]#%u", where, &of) < 1 || strcmp(where, name) != 0)
			continue;
		n++;
		if (of == pass)
			sscanf(line, "%*s %63[^\n]", ret_rest);
	}
	return n;
}

static void tell(const char *path, const char *name, unsigned int pass)
{
	_cleanup_fclose_ FILE *f = fopen(path, "ae");

	if (!f)
		return;
	if (pass == 1)
		fprintf(f, "%s %d\n", name, (int)getpid());
	else
		fprintf(f, "%s#%u %d\n", name, pass, (int)getpid());
}

void fault_point_passed(enum fault_point point)
{
	const char *path = getenv("UPGRADED_FAULTS");
	char action[64], seen[4096];
	struct timespec step = { .tv_nsec = STEP_MS * 1000000 };
	unsigned int pass;
	long ms = 0;

	/* Without memory or descriptors, which a test may have taken away since. */
	if (access(path, F_OK) < 0)
		return;
	snprintf(seen, sizeof(seen), "%s.seen", path);
	pass = lines_of(seen, names[point], 0, action) + 1;
	if (!lines_of(path, names[point], pass, action))
		return;
	tell(seen, names[point], pass);
	if (!strncmp(action, "kill", 4))
		raise(SIGKILL);
	else if (!strncmp(action, "stop", 4))
		raise(SIGSTOP);
	else if (sscanf(action, "sleep %ld", &ms) == 1)
		for (uint64_t end = now_us() + (uint64_t)ms * 1000;
		     now_us() < end && access(path, F_OK) == 0;)
			nanosleep(&step, NULL);
}
