/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds cli/proto_json.c to what the man page says of --json: scripts depend
 * on it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "golden.h"
#include "proto_json.h"
#include "sample.h"

#include "cleanup.h"

#include <string.h>

static void assert_json(const ProtobufCMessage *message, const char *file)
{
	json_object *object = proto_json(message), *again;
	_cleanup_free_ char *text = NULL;

	assert_non_null(object);
	assert_true(asprintf(&text, "%s\n", proto_json_document(object)) > 0);
	again = json_tokener_parse(text);
	assert_non_null(again);
	assert_true(json_object_equal(object, again));
	json_object_put(again);
	json_object_put(object);
	assert_golden(GOLDEN_DIR, file, text);
}

static void a_report_is_complete(void **state)
{
	struct sample sample;

	sample_make(&sample);
	assert_json(&sample.committed->base, "report.json");
	assert_json(&sample.rolled_back->base, "report_rolled_back.json");
}

static void a_check_report_is_complete(void **state)
{
	struct sample sample;

	sample_make(&sample);
	assert_json(&sample.blocked->base, "check_report.json");
}

static json_object *member(json_object *object, const char *name)
{
	json_object *value = NULL;

	if (!json_object_object_get_ex(object, name, &value))
		fail_msg("no member \"%s\" in %s", name, proto_json_line(object));
	return value;
}

/* What scripts of the demo and the benchmark read. */
static void what_scripts_need_is_there(void **state)
{
	json_object *object;
	struct sample sample;

	sample_make(&sample);
	object = proto_json(&sample.rolled_back->base);
	assert_string_equal(json_object_get_string(member(object, "outcome")), "rolled_back");
	assert_string_equal(json_object_get_string(member(object, "tier")), "memfd");
	assert_string_equal(json_object_get_string(member(object, "source_version")), "10.0.13");
	assert_string_equal(json_object_get_string(member(object, "target_version")), "11.1.0");
	assert_string_equal(json_object_to_json_string(member(object, "blackout_ms")), "38.214");
	assert_int_equal(json_object_get_int64(member(object, "blackout_us")), 38214);
	assert_int_equal(json_object_array_length(member(object, "phases")), 4);
	/* A time of day is no duration. */
	assert_false(json_object_object_get_ex(object, "started_at_ms", NULL));
	json_object_put(object);
}

static void a_default_is_said_and_an_absent_message_is_null(void **state)
{
	Upgraded__V1__Vm vm = UPGRADED__V1__VM__INIT;
	json_object *object = proto_json(&vm.base);

	assert_string_equal(json_object_get_string(member(object, "name")), "");
	assert_string_equal(json_object_get_string(member(object, "phase")), "idle");
	assert_string_equal(json_object_get_string(member(object, "tier")), "unspecified");
	assert_int_equal(json_object_get_type(member(object, "alive")), json_type_boolean);
	assert_null(member(object, "process"));
	assert_int_equal(json_object_array_length(member(object, "custody")), 0);
	assert_false(json_object_object_get_ex(object, "since_ms", NULL));
	json_object_put(object);
}

static void large_numbers_keep_every_digit(void **state)
{
	Upgraded__V1__Vm vm = UPGRADED__V1__VM__INIT;
	Upgraded__V1__Process process = UPGRADED__V1__PROCESS__INIT;
	json_object *object;

	vm.memory = UINT64_MAX;
	process.pid = INT32_MIN;
	vm.process = &process;
	vm.generation = UINT32_MAX;
	object = proto_json(&vm.base);
	assert_string_equal(json_object_to_json_string(member(object, "memory")),
			    "18446744073709551615");
	assert_string_equal(json_object_to_json_string(member(object, "generation")), "4294967295");
	assert_string_equal(json_object_to_json_string(member(member(object, "process"), "pid")),
			    "-2147483648");
	json_object_put(object);
}

static void enum_values_lose_their_prefix(void **state)
{
	char name[64];

	proto_json_enum(&upgraded__v1__error_code__descriptor,
			UPGRADED__V1__ERROR_CODE__ERROR_NO_SUCH_VM, name, sizeof(name));
	assert_string_equal(name, "no_such_vm");
	proto_json_enum(&upgraded__v1__severity__descriptor,
			UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, name, sizeof(name));
	assert_string_equal(name, "blocker");
	proto_json_enum(&upgraded__v1__tier__descriptor, UPGRADED__V1__TIER__TIER_STAGE2, name,
			sizeof(name));
	assert_string_equal(name, "stage2");
	proto_json_enum(&upgraded__v1__tier__descriptor, 77, name, sizeof(name));
	assert_string_equal(name, "unknown");
	/* No room: cut, and ended. */
	proto_json_enum(&upgraded__v1__severity__descriptor,
			UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, name, 4);
	assert_string_equal(name, "blo");
}

static void what_is_not_utf8_cannot_break_the_json(void **state)
{
	Upgraded__V1__ShowRequest show = UPGRADED__V1__SHOW_REQUEST__INIT;
	json_object *object;

	/* overlong, surrogate, lone, cut short; and what is valid stays */
	show.name = "\xc0\x80|\xed\xa0\x80|\xff|\xc3\xbc|\xe2\x82\xac|\xf0\x9f\x98\x80|\xe2\x82";
	object = proto_json(&show.base);
	assert_string_equal(json_object_get_string(member(object, "name")),
			    "\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|"
			    "\xef\xbf\xbd|\xc3\xbc|\xe2\x82\xac|\xf0\x9f\x98\x80|"
			    "\xef\xbf\xbd\xef\xbf\xbd");
	json_object_put(object);
	show.name = "quote \" backslash \\ newline \n escape \033";
	object = proto_json(&show.base);
	assert_string_equal(proto_json_line(object),
			    "{\"name\":\"quote \\\" backslash \\\\ newline \\n escape \\u001b\"}");
	json_object_put(object);
}

static void bytes_are_base64(void **state)
{
	static const struct {
		const char *bytes, *text;
	} pair[] = { { "", "" },
		     { "f", "Zg==" },
		     { "fo", "Zm8=" },
		     { "foo", "Zm9v" },
		     { "\xff\xfe\xfd\xfc", "//79/A==" } };

	for (size_t i = 0; i < ARRAY_SIZE(pair); i++) {
		Upgraded__V1__CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;
		json_object *object;

		put.payload.data = (uint8_t *)pair[i].bytes;
		put.payload.len = strlen(pair[i].bytes);
		object = proto_json(&put.base);
		assert_string_equal(json_object_get_string(member(object, "payload")),
				    pair[i].text);
		json_object_put(object);
	}
}

static void only_the_member_that_is_set_is_printed(void **state)
{
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	Upgraded__V1__Envelope env = UPGRADED__V1__ENVELOPE__INIT;
	json_object *object;

	env.id = 1;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
	env.ack = &ack;
	object = proto_json(&env.base);
	assert_string_equal(proto_json_line(object),
			    "{\"id\":1,\"fds\":0,\"batches_left\":0,\"ack\":{}}");
	json_object_put(object);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_report_is_complete),
		cmocka_unit_test(a_check_report_is_complete),
		cmocka_unit_test(what_scripts_need_is_there),
		cmocka_unit_test(a_default_is_said_and_an_absent_message_is_null),
		cmocka_unit_test(large_numbers_keep_every_digit),
		cmocka_unit_test(enum_values_lose_their_prefix),
		cmocka_unit_test(what_is_not_utf8_cannot_break_the_json),
		cmocka_unit_test(bytes_are_base64),
		cmocka_unit_test(only_the_member_that_is_set_is_printed),
	};

	return cmocka_run_group_tests_name("proto_json", tests, NULL, NULL);
}
