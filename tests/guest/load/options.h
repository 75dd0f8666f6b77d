/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOAD_OPTIONS_H
#define LOAD_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* Deliberate faults, to prove that a checker, and the way from it to the reader, can go red. */
enum load_inject {
	INJECT_MEM = 1 << 0,
	INJECT_DISK = 1 << 1,
	INJECT_NET = 1 << 2,
	INJECT_CLOCK = 1 << 3,
	INJECT_HB = 1 << 4,
};

struct load_options {
	uint64_t mem_mb;   /* 0: no memory writer */
	uint64_t mem_rate; /* pages per second at most, 0: as many as can be */
	char disk[128];	   /* empty: no disk writer */
	uint64_t disk_mb;
	uint64_t disk_pause_ms;
	char net[64];  /* ADDRESS/PREFIX for the guest's interface; empty: leave it as it is */
	char peer[64]; /* ADDRESS:PORT; empty: no TCP stream */
	uint64_t net_pause_us;
	bool clock;
	bool hb;
	uint64_t hb_port; /* 0: no port, only the guest's own view of the gaps */
	uint64_t hb_us;
	char report[128]; /* auto, stdout, a device path, none */
	uint64_t report_ms;
	uint64_t seconds;   /* 0: for ever */
	unsigned inject;    /* enum load_inject */
	uint64_t inject_ms; /* after READY */
};

void options_default(struct load_options *o, bool init);
int options_set(struct load_options *o, const char *key, const char *value);
int options_parse_cmdline(struct load_options *o, const char *cmdline, char *ret_bad,
			  unsigned bad_size);
int options_parse_argv(struct load_options *o, int argc, char **argv);
int options_split_address(const char *text, char separator, uint32_t *ret_address,
			  uint64_t *ret_number);

#endif
