/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_REPORT_H
#define LOAD_REPORT_H

#include <stddef.h>

#include "load.h"

#define REPORT_MAX  4000 /* below PIPE_BUF: a line goes whole into a pipe or not at all */
#define REPORT_PORT "org.upgraded.load"

/* Line output that never waits. What can not be taken now is kept; a newer line replaces one not
 * begun. */
struct report_out {
	int fd;
	size_t at, len; /* the line being written: [at, len) is still to go */
	size_t next_len;
	counter dropped;
	char line[REPORT_MAX], next[REPORT_MAX];
};

int report_open(const char *where, struct report_out *ret);
void report_put(struct report_out *out, const char *line, size_t len);
void report_push(struct report_out *out);
size_t report_format(struct load *l, uint64_t seq, const char *state, uint64_t dropped, char *buf,
		     size_t size);

#endif
