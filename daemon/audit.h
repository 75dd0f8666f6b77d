/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who did what to which VM, for those who must be able to tell later: see audit.c. */
#ifndef UPGRADED_AUDIT_H
#define UPGRADED_AUDIT_H

#include "access.h"
#include "message.h"

/* What was asked for; @denied says why it was refused, NULL: it was not. */
void audit_request(const struct peer *peer, const Envelope *request, const struct error *denied);

/* How an upgrade ended; @text is the sentence about it. */
void audit_report(const Report *report, const char *text);

#endif
