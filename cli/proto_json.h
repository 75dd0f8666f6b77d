/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Any message of the protocol as JSON: see proto_json.c. */
#ifndef UPGRADED_PROTO_JSON_H
#define UPGRADED_PROTO_JSON_H

#include <json-c/json.h>
#include <protobuf-c/protobuf-c.h>

/* The message as a JSON object, owned by the caller; NULL without memory. */
json_object *proto_json(const ProtobufCMessage *message);

/* "committed" for OUTCOME_COMMITTED; "unknown" for a value this version does not know. */
void proto_json_enum(const ProtobufCEnumDescriptor *type, int value, char *buf, size_t size);

/* One line, without a newline; valid as long as @object. */
const char *proto_json_line(json_object *object);

/* Indented, for one document; valid as long as @object. */
const char *proto_json_document(json_object *object);

#endif
