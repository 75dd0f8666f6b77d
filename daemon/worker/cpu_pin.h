/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeping the guest's CPU what it is in another QEMU: see cpu_pin.c. */
#ifndef UPGRADED_CPU_PIN_H
#define UPGRADED_CPU_PIN_H

#include "findings.h"
#include "source.h"

/*
 * Reads the vCPUs of the source. Sets s->cpu_model, s->cpu_options and
 * s->cpu_props if the model means something else in another QEMU.
 */
int cpu_pin_read(struct source *s, struct qmp *qmp, struct error *err);

/*
 * Asks @target what it makes of that model and sets s->cpu, which makes it
 * what the source has. What @target cannot do is a finding.
 */
int cpu_pin_resolve(struct source *s, struct qmp *target, struct findings *f,
		    struct error *err);

#endif
