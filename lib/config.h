/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* upgraded.conf and its drop-ins: see config.c. */
#ifndef UPGRADED_CONFIG_H
#define UPGRADED_CONFIG_H

#include "error.h"

#include <stddef.h>

/* The keys, each with its section, default and range in config.c. */
enum config_key {
	CONFIG_MAX_RUNNING,	/* upgrades and checks at once, of the daemon */
	CONFIG_MAX_BLACKOUT,	/* ms; 0: no budget */
	CONFIG_PHASE_TIMEOUT,	/* s */
	CONFIG_OUTDATED_MODE,	/* enum config_mode */
	CONFIG_OUTDATED_WINDOW, /* text: "22:00-06:00"; empty: always */
	CONFIG_OUTDATED_MAX_PARALLEL,
	CONFIG_OUTDATED_CANARY,	    /* 0: none */
	CONFIG_OUTDATED_STOP_AFTER, /* 0: only after a guest was lost */
	CONFIG_KEYS
};

enum config_mode { CONFIG_OFF, CONFIG_ASK, CONFIG_AUTO };

struct config_value {
	char *text;   /* as written; the default when nobody wrote it */
	char *origin; /* "/etc/upgraded/upgraded.conf:12"; NULL: the default */
	long number;  /* of a number or a word */
};

struct config {
	struct config_value value[CONFIG_KEYS];
};

#define CONFIG_INIT \
	{           \
		0   \
	}

/*
 * Reads what there is below @root ("" on a host). A file that is not there is no
 * error; a line that is none of ours is -EINVAL, and err names file, line, and what
 * may have been meant.
 */
int config_load(const char *root, struct config *ret, struct error *err);
/* What counts where there is no file. -ENOMEM. */
int config_defaults(struct config *ret);
void config_clear(struct config *config);

const char *config_section(enum config_key key);
const char *config_name(enum config_key key);
/* "1 to 1000", "off, ask or auto", "HH:MM-HH:MM". */
const char *config_range(enum config_key key);
const char *config_default(enum config_key key);

#endif
