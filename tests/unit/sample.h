/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages as a daemon would send them, for the tests of what reads them: see sample.c. */
#ifndef UPGRADED_TESTS_SAMPLE_H
#define UPGRADED_TESTS_SAMPLE_H

#include "upgraded.pb-c.h"

#define SAMPLE_VMS 4
#define SAMPLE_REPORTS 3
#define SAMPLE_FINDINGS 5

/* Everything is static: built by sample_make(), owned by nobody. */
struct sample {
	Upgraded__V1__Vm *vm[SAMPLE_VMS]; /* vm[0] is "vm1" */
	Upgraded__V1__Report *committed, *rolled_back, *lost;
	Upgraded__V1__CheckReport *ready, *blocked;
};

void sample_make(struct sample *ret);

#endif
