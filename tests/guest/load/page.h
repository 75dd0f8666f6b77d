/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_PAGE_H
#define LOAD_PAGE_H

#include <stdint.h>

#define LOAD_PAGE_SIZE 4096
#define LOAD_PAGE_FILL (LOAD_PAGE_SIZE / 8 - 3)

struct load_page {
	uint64_t checksum; /* of all that follows */
	uint64_t index;
	uint64_t generation;
	uint64_t fill[LOAD_PAGE_FILL];
};

_Static_assert(sizeof(struct load_page) == LOAD_PAGE_SIZE, "a load page is one page");

enum page_verdict {
	PAGE_OK,
	PAGE_BAD_CHECKSUM,   /* some bits are not what was written */
	PAGE_BAD_INDEX,	     /* a good page, but another one's */
	PAGE_BAD_GENERATION, /* this page, but of another time: a write was lost or came back */
};

void page_write(struct load_page *page, uint64_t index, uint64_t generation);
enum page_verdict page_check(const struct load_page *page, uint64_t index, uint64_t generation);
const char *page_verdict_name(enum page_verdict verdict);

#endif
