/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counting this process's fds, for the tests of what may leave one behind. Owns nothing. */
#include "count_fds.h"

#include "cleanup.h"

#include <stdlib.h>

size_t count_fds(void)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	if (!dir)
		abort();
	while (readdir(dir))
		n++;
	return n;
}
