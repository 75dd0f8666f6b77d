/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One page of the memory writer: how it is filled and how it is judged.
 *
 * Called by mem.c. It owns nothing; the pages belong to the caller.
 *
 * A page says which page it is and of which pass, and both are under the checksum. So three
 * different faults are told apart: damaged bits, a page at the wrong place, and an old page at the
 * right place. The last one is what a lost dirty page looks like, and a checksum alone would call
 * it good.
 */
#include "page.h"

#include "checksum.h"

void page_write(struct load_page *page, uint64_t index, uint64_t generation)
{
	uint64_t x = mix64(index * 0x9e3779b97f4a7c15ULL + generation);

	page->index = index;
	page->generation = generation;
	for (unsigned i = 0; i < LOAD_PAGE_FILL; i++) {
		x = sequence_next(x);
		page->fill[i] = x;
	}
	page->checksum = checksum64(&page->index, LOAD_PAGE_FILL + 2);
}

enum page_verdict page_check(const struct load_page *page, uint64_t index, uint64_t generation)
{
	if (page->checksum != checksum64(&page->index, LOAD_PAGE_FILL + 2))
		return PAGE_BAD_CHECKSUM;
	if (page->index != index)
		return PAGE_BAD_INDEX;
	if (page->generation != generation)
		return PAGE_BAD_GENERATION;
	return PAGE_OK;
}

const char *page_verdict_name(enum page_verdict verdict)
{
	switch (verdict) {
	case PAGE_OK:
		return "right";
	case PAGE_BAD_CHECKSUM:
		return "damaged";
	case PAGE_BAD_INDEX:
		return "another page";
	case PAGE_BAD_GENERATION:
		return "of another pass";
	}
	return "?";
}
