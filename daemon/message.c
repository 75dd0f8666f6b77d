/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Protobuf messages that live longer than the packet they came in: the
 * registry's VMs, the start message of an upgrade, what is in custody. Owns
 * nothing itself. A string field that was never set points to protobuf-c's
 * shared empty string, which must not be freed: message_set_string() knows.
 */
#include "message.h"

#include <string.h>

void *message_new(const ProtobufCMessageDescriptor *type)
{
	ProtobufCMessage *m = malloc(type->sizeof_message);

	if (m)
		protobuf_c_message_init(type, m);
	return m;
}

void *message_copy(const void *message)
{
	const ProtobufCMessage *m = message;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;

	if (message_pack(m, &data, &len) < 0)
		return NULL;
	return protobuf_c_message_unpack(m->descriptor, NULL, len, data);
}

void message_free(void *message)
{
	if (message)
		protobuf_c_message_free_unpacked(message, NULL);
}

int message_set_string(char **field, const char *value)
{
	char *copy = strdup(value ?: "");

	if (!copy)
		return -ENOMEM;
	if (*field && *field != (char *)protobuf_c_empty_string)
		free(*field);
	*field = copy;
	return 0;
}

int message_pack(const void *message, uint8_t **ret_data, size_t *ret_len)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *data = malloc(len ?: 1);

	if (!data)
		return -ENOMEM;
	protobuf_c_message_pack(message, data);
	*ret_data = data;
	*ret_len = len;
	return 0;
}

const char *enum_name(const ProtobufCEnumDescriptor *type, int value)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(type, value);
	const char *prefix = v ? strchr(v->name, '_') : NULL;

	return prefix ? prefix + 1 : "UNKNOWN";
}

const char *phase_name(Phase phase)
{
	return enum_name(&upgraded__v1__phase__descriptor, (int)phase);
}
