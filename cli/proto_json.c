/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any message of the protocol as JSON, by reflection over its descriptor: a
 * field that is added to the .proto appears here by itself. Every verb's
 * --json goes through it. The rules, which the man page repeats:
 *
 *   - names are those of the .proto; every field is there, also at its default,
 *     except a message that was not sent, which is null;
 *   - enum values are lower case without the prefix of the enum: "rolled_back";
 *   - 64-bit numbers are JSON numbers;
 *   - every duration NAME_us is there a second time as NAME_ms, with three
 *     decimals; times of day (NAME_at_us, since_us) are not durations;
 *   - bytes are base64; what is not UTF-8 in a string becomes U+FFFD.
 *
 * Owns nothing between calls.
 */
#include "proto_json.h"

#include "cleanup.h"
#include "text.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

void proto_json_enum(const ProtobufCEnumDescriptor *type, int value, char *buf, size_t size)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(type, value);
	const char *name;
	size_t i, prefix = 0;

	if (!v) {
		snprintf(buf, size, "unknown");
		return;
	}
	/*
	 * The prefix is what the values have in common up to an underscore:
	 * OUTCOME_COMMITTED and OUTCOME_ROLLED_BACK.
	 */
	name = v->name;
	for (i = 0; name[i]; i++) {
		for (unsigned k = 0; k < type->n_values; k++)
			if (strncmp(type->values[k].name, name, i + 1))
				goto differs;
		if (name[i] == '_')
			prefix = i + 1;
	}
differs:
	name += prefix;
	for (i = 0; name[i] && i + 1 < size; i++)
		buf[i] = (char)tolower((unsigned char)name[i]);
	buf[i] = '\0';
}

static json_object *from_bytes(const ProtobufCBinaryData *data)
{
	static const char digit[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	_cleanup_free_ char *text = malloc(4 * ((data->len + 2) / 3) + 1);
	char *p = text;

	if (!text)
		return NULL;
	for (size_t i = 0; i < data->len; i += 3) {
		size_t left = data->len - i;
		uint32_t w = (uint32_t)data->data[i] << 16;

		if (left > 1)
			w |= (uint32_t)data->data[i + 1] << 8;
		if (left > 2)
			w |= data->data[i + 2];
		*p++ = digit[w >> 18];
		*p++ = digit[w >> 12 & 63];
		*p++ = left > 1 ? digit[w >> 6 & 63] : '=';
		*p++ = left > 2 ? digit[w & 63] : '=';
	}
	return json_object_new_string_len(text, (int)(p - text));
}

static json_object *from_string(const char *s)
{
	_cleanup_free_ char *valid = text_utf8(s);

	return valid ? json_object_new_string(valid) : NULL;
}

static json_object *from_double(double value)
{
	return json_object_new_double(value);
}

/* One value of a field, at @p; *ret_ok is false if memory ran out. */
static json_object *from_value(const ProtobufCFieldDescriptor *field, const void *p, bool *ret_ok)
{
	json_object *value = NULL;
	char name[64];

	switch (field->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		value = json_object_new_int(*(const int32_t *)p);
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		value = json_object_new_int64(*(const uint32_t *)p);
		break;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		value = json_object_new_int64(*(const int64_t *)p);
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		value = json_object_new_uint64(*(const uint64_t *)p);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		value = from_double((double)*(const float *)p);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		value = from_double(*(const double *)p);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		value = json_object_new_boolean(*(const protobuf_c_boolean *)p);
		break;
	case PROTOBUF_C_TYPE_ENUM:
		proto_json_enum(field->descriptor, *(const int *)p, name, sizeof(name));
		value = json_object_new_string(name);
		break;
	case PROTOBUF_C_TYPE_STRING:
		value = from_string(*(const char *const *)p ?: "");
		break;
	case PROTOBUF_C_TYPE_BYTES:
		value = from_bytes(p);
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		if (!*(const ProtobufCMessage *const *)p)
			return NULL; /* JSON null */
		value = proto_json(*(const ProtobufCMessage *const *)p);
		break;
	}
	if (!value)
		*ret_ok = false;
	return value;
}

static size_t value_size(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static json_object *from_repeated(const ProtobufCFieldDescriptor *field, size_t n,
				  const uint8_t *values, bool *ret_ok)
{
	json_object *array = json_object_new_array();

	if (!array) {
		*ret_ok = false;
		return NULL;
	}
	for (size_t i = 0; i < n && *ret_ok; i++) {
		json_object *value = from_value(field, values + i * value_size(field), ret_ok);

		if (*ret_ok && json_object_array_add(array, value) < 0) {
			json_object_put(value);
			*ret_ok = false;
		}
	}
	return array;
}

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && !strcmp(s + n - m, end);
}

/* NAME_us as NAME_ms, for people and scripts that plot. */
static bool add_milliseconds(json_object *object, const char *name, uint64_t us)
{
	char key[64], number[32];
	json_object *value;

	if (!ends_with(name, "_us") || ends_with(name, "_at_us") || !strcmp(name, "since_us") ||
	    !strcmp(name, "at_us"))
		return true;
	snprintf(key, sizeof(key), "%.*s_ms", (int)(strlen(name) - 3), name);
	snprintf(number, sizeof(number), "%" PRIu64 ".%03u", us / 1000, (unsigned)(us % 1000));
	value = json_object_new_double_s((double)us / 1000, number);
	if (!value || json_object_object_add(object, key, value) < 0) {
		json_object_put(value);
		return false;
	}
	return true;
}

static bool add_field(json_object *object, const ProtobufCMessage *message,
		      const ProtobufCFieldDescriptor *field)
{
	const uint8_t *base = (const uint8_t *)message;
	const void *p = base + field->offset;
	json_object *value;
	bool ok = true;

	if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF &&
	    *(const uint32_t *)(base + field->quantifier_offset) != field->id)
		return true;
	if (field->label == PROTOBUF_C_LABEL_REPEATED)
		value = from_repeated(field, *(const size_t *)(base + field->quantifier_offset),
				      *(const uint8_t *const *)p, &ok);
	else
		value = from_value(field, p, &ok);
	if (!ok || json_object_object_add(object, field->name, value) < 0) {
		json_object_put(value);
		return false;
	}
	if (field->type == PROTOBUF_C_TYPE_UINT64 && field->label != PROTOBUF_C_LABEL_REPEATED)
		return add_milliseconds(object, field->name, *(const uint64_t *)p);
	return true;
}

json_object *proto_json(const ProtobufCMessage *message)
{
	const ProtobufCMessageDescriptor *type = message->descriptor;
	json_object *object = json_object_new_object();

	for (unsigned i = 0; object && i < type->n_fields; i++)
		if (!add_field(object, message, &type->fields[i])) {
			json_object_put(object);
			object = NULL;
		}
	return object;
}

const char *proto_json_line(json_object *object)
{
	return json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN |
							      JSON_C_TO_STRING_NOSLASHESCAPE);
}

const char *proto_json_document(json_object *object)
{
	return json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
							      JSON_C_TO_STRING_SPACED |
							      JSON_C_TO_STRING_NOSLASHESCAPE);
}
