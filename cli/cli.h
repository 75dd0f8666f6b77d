/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every verb of upgradectl knows: see main.c. */
#ifndef UPGRADED_CLI_H
#define UPGRADED_CLI_H

#include "client.h"

#include <argp.h>

/* Exit codes; documented in --help and upgradectl(1). */
enum {
	CLI_DONE = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_REFUSED = 3,     /* by blockers, nothing was touched; or an abort came too late */
	CLI_ROLLED_BACK = 4, /* the guest runs on in the old VMM */
	CLI_NO_SUCH_VM = 5,
	CLI_UNREACHABLE = 6, /* the daemon is not there, or went away */
	CLI_DENIED = 7,
	CLI_LOST = 8,	    /* the guest runs nowhere */
	CLI_SOME = 9,	    /* of a fleet, also one of one VM, not all were upgraded */
	CLI_NONE = 10,	    /* none was */
	CLI_DETACHED = 130, /* by a second Ctrl-C: the outcome is not known yet */
};

struct cli {
	const char *socket;
	bool json;
	bool no_color;
	bool terminal; /* stdout is one */
	bool color;
	size_t width; /* columns of the terminal, 80..200; 0: no limit */
};

struct verb {
	const char *name;
	const char *args;    /* "VM [--vmm PATH]", for the overview */
	const char *summary; /* one line, for the overview */
	int (*run)(struct cli *cli, int argc, char **argv);
};

int verb_run(struct cli *cli, int argc, char **argv);
int verb_adopt(struct cli *cli, int argc, char **argv);
int verb_list(struct cli *cli, int argc, char **argv);
int verb_show(struct cli *cli, int argc, char **argv);
int verb_check(struct cli *cli, int argc, char **argv);
int verb_upgrade(struct cli *cli, int argc, char **argv);
int verb_abort(struct cli *cli, int argc, char **argv);
int verb_watch(struct cli *cli, int argc, char **argv);
int verb_history(struct cli *cli, int argc, char **argv);
int verb_report(struct cli *cli, int argc, char **argv);
int verb_metrics(struct cli *cli, int argc, char **argv);
int verb_config(struct cli *cli, int argc, char **argv);
int verb_forget(struct cli *cli, int argc, char **argv);

/*
 * The options that every verb takes, as children of its argp. A verb hands
 * its struct cli to them in ARGP_KEY_INIT (state->child_inputs[0]).
 */
extern const struct argp_child cli_options[];

#endif
