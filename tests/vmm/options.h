/* SPDX-License-Identifier: GPL-2.0-or-later */
/* tinyvmm's command line: see options.c. */
#ifndef TINYVMM_OPTIONS_H
#define TINYVMM_OPTIONS_H

#include "machine.h"

/* Ends the process when something is wrong with it. */
void parse_options(struct vm *vm, int argc, char **argv);

#endif
