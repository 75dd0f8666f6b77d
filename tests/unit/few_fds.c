/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes this process short of descriptors, for the tests of what becomes of who is. Owns nothing. */
#include "few_fds.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct rlimit few_fds(int n)
{
	int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct rlimit old, limit;

	if (lowest < 0 || getrlimit(RLIMIT_NOFILE, &old) < 0)
		abort();
	close(lowest);
	limit = old;
	limit.rlim_cur = (rlim_t)(lowest + n);
	enough_fds(&limit);
	return old;
}

void enough_fds(const struct rlimit *limit)
{
	if (setrlimit(RLIMIT_NOFILE, limit) < 0)
		abort();
}
