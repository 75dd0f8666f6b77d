/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Protobuf messages that live longer than a packet: see message.c. */
#ifndef UPGRADED_MESSAGE_H
#define UPGRADED_MESSAGE_H

#include "cleanup.h"
#include "upgraded.pb-c.h"

#include <stddef.h>
#include <stdint.h>

typedef Upgraded__V1__Vm Vm;
typedef Upgraded__V1__Process Process;
typedef Upgraded__V1__Event Event;
typedef Upgraded__V1__Report Report;
typedef Upgraded__V1__CheckReport CheckReport;
typedef Upgraded__V1__CustodyItem CustodyItem;
typedef Upgraded__V1__CustodyPut CustodyPut;
typedef Upgraded__V1__WorkerStart WorkerStart;
typedef Upgraded__V1__WorkerDone WorkerDone;
typedef Upgraded__V1__FileDigest FileDigest;
typedef Upgraded__V1__JournalRecord JournalRecord;
typedef Upgraded__V1__FinishRequest FinishRequest;
typedef Upgraded__V1__ErrorCode ErrorCode;
typedef Upgraded__V1__Phase Phase;
typedef Upgraded__V1__Metrics Metrics;

#define ERROR_CODE(x) UPGRADED__V1__ERROR_CODE__ERROR_##x
#define PHASE(x)      UPGRADED__V1__PHASE__PHASE_##x
#define OUTCOME(x)    UPGRADED__V1__OUTCOME__OUTCOME_##x
#define BODY(x)	      UPGRADED__V1__ENVELOPE__BODY_##x

/* An empty message on the heap, or NULL. */
void *message_new(const ProtobufCMessageDescriptor *type);

/* A deep copy of any message, or NULL. */
void *message_copy(const void *message);

/* Frees a message made by these two, or unpacked; NULL is fine. */
void message_free(void *message);

/* Replaces a string field of a message on the heap. 0 or -ENOMEM. */
int message_set_string(char **field, const char *value);

/* Packs into malloc()ed memory. 0 or -ENOMEM. */
int message_pack(const void *message, uint8_t **ret_data, size_t *ret_len);

static inline void message_freep(void *p)
{
	message_free(*(void **)p);
}
#define _cleanup_message_ _cleanup_(message_freep)

/* "COMMITTED" of OUTCOME_COMMITTED; only for types whose prefix is one word. */
const char *enum_name(const ProtobufCEnumDescriptor *type, int value);
/* "CHECK", for logs. */
const char *phase_name(Phase phase);

#endif
