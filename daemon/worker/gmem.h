/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest RAM that is in guest_memfds, and how it changes hands: see gmem.c. */
#ifndef UPGRADED_GMEM_H
#define UPGRADED_GMEM_H

#include "error.h"
#include "findings.h"
#include "qmp.h"
#include "upgraded.pb-c.h"

#include <stdbool.h>

struct gmem {
	bool source;   /* the source's RAM is in guest_memfds, bound to memory slots */
	bool kernel;   /* KVM can hand it from one VM to another */
	bool target;   /* the target's QEMU knows what a guest_memfd is */
	bool no_stage2; /* asked for: the page tables stay behind */
	bool enforced; /* it was handed over: the kernel keeps the source from running */
	Upgraded__V1__Handover *handover; /* the last comparison or transfer; NULL: none */
};

/* Asks the source. A QEMU without guest_memfds is no error: then all is false. */
int gmem_read(struct gmem *g, struct qmp *source, struct error *err);

/* Asks the target's binary, by the monitor of a probe, whether it knows. */
int gmem_probe(struct qmp *probe, bool *ret_knows, struct error *err);

/* What an upgrade can use, and why it is not more. */
int gmem_plan(const struct gmem *g, Upgraded__V1__Tier *ret_tier, struct findings *f);

/*
 * The kernel's dry run, by the target whose memory slots stand: what would not
 * be handed over becomes findings, *tier what is left.
 */
int gmem_verify(struct gmem *g, struct qmp *target, Upgraded__V1__Tier *tier, struct findings *f,
		struct error *err);

/*
 * SWITCH: the target's VM becomes the owner, if it can; g->enforced says so.
 * An error is only what makes an upgrade impossible.
 */
int gmem_switch(struct gmem *g, struct qmp *target, Upgraded__V1__Tier *tier, struct findings *f,
		struct error *err);

/*
 * The way back before the target has run: the source takes its memory from the
 * VM of the process behind @target_pidfd (borrowed), page tables included.
 */
int gmem_reverse(struct gmem *g, struct qmp *source, struct qmp *target, int target_pidfd,
		 struct error *err);

void gmem_clear(struct gmem *g);

#endif
