/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes what a stranger's packet meets first: wire_decode(), and what
 * upgradectl does with a message that decoded, its conversion to JSON. The
 * first byte is the number of fds that came with the packet.
 */
#include "proto_json.h"
#include "wire.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_envelope_ Envelope *env = NULL;
	_cleanup_free_ uint8_t *packed = NULL;
	json_object *object, *parsed;
	size_t len;

	if (!size || wire_decode(data + 1, size - 1, data[0], &env) < 0)
		return 0;
	if (env->fds != data[0] || !strcmp(envelope_name(env), "nothing"))
		abort();

	/*
	 * What was accepted can be packed. (It need not decode again: protobuf-c
	 * keeps an unknown field of number 0, which it does not accept back.)
	 */
	len = upgraded__v1__envelope__get_packed_size(env);
	packed = malloc(len ?: 1);
	if (!packed || upgraded__v1__envelope__pack(env, packed) != len)
		abort();

	/* Whatever the strings hold, the JSON is JSON. */
	object = proto_json(&env->base);
	if (!object)
		abort();
	parsed = json_tokener_parse(proto_json_line(object));
	if (!parsed)
		abort();
	json_object_put(parsed);
	json_object_put(object);
	return 0;
}
