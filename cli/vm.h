/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One VM as text: see vm.c. */
#ifndef UPGRADED_VM_H
#define UPGRADED_VM_H

#include "print.h"

/* "running", "outdated", "gone", or the phase of its upgrade. */
const char *vm_state(const Upgraded__V1__Vm *vm);
enum style vm_style(const Upgraded__V1__Vm *vm);

void vm_print(const struct cli *cli, const Upgraded__V1__Vm *vm);

#endif
