/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Telling one process from a later one with the same pid. A pid is reused, the
 * pair (pid, start time) is not before the next boot. Called wherever a process
 * is remembered across the death of the one who knew it; owns nothing.
 */
#include "process.h"

#include "cleanup.h"
#include "procfs.h"

int process_start_time(pid_t pid, uint64_t *ret_ticks)
{
	_cleanup_free_ char *stat = NULL;
	const char *field;
	int r;

	r = proc_read(pid, "stat", &stat, NULL);
	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	field = proc_stat_field(stat, PROC_STAT_START_TIME);
	if (!field)
		return -EBADMSG;
	*ret_ticks = strtoull(field, NULL, 10);
	return 0;
}
