/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Holds daemon/manager/libvirt_status.c to its word, with the samples that the fuzzer starts from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cleanup.h"
#include "manager/libvirt_status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define _cleanup_status_ __attribute__((cleanup(libvirt_status_freep)))

static char *sample(const char *name, size_t *ret_len)
{
	char path[256], *text = calloc(1, 65536);
	FILE *f;

	snprintf(path, sizeof(path), SAMPLES "/%s", name);
	f = fopen(path, "re");
	assert_non_null(f);
	*ret_len = fread(text, 1, 65535, f);
	fclose(f);
	return text;
}

static struct libvirt_status *parsed(const char *name)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct libvirt_status *s = NULL;
	size_t len;
	char *text = sample(name, &len);

	if (libvirt_status_parse(text, len, &s, &err) < 0)
		fail_msg("%s: %s", name, err.text);
	free(text);
	return s;
}

static void what_is_in_it_is_found(void **state)
{
	_cleanup_status_ struct libvirt_status *s = parsed("running");

	assert_int_equal(s->pid, 4711);
	assert_string_equal(s->name, "web");
	assert_string_equal(s->uuid, "0c8f1f9e-6c0b-4a64-9f0e-1b1f4a1d2c3b");
	assert_string_equal(s->state, "running");
	assert_string_equal(s->monitor, "/var/lib/libvirt/qemu/domain-1-web/monitor.sock");
	assert_string_equal(s->lib_dir, "/var/lib/libvirt/qemu/domain-1-web");
	assert_string_equal(s->emulator, "/usr/bin/qemu-system-x86_64");
	assert_int_equal(s->n_vcpus, 2);
	assert_int_equal(s->vcpus[1].id, 1);
	assert_int_equal(s->vcpus[1].tid, 4721);
}

/* Every line as libvirt wrote it, but for those that are to change. */
static void only_what_is_to_change_changes(void **state)
{
	static const struct libvirt_vcpu vcpus[] = { { 1, 811 }, { 0, 810 } };
	_cleanup_status_ struct libvirt_status *s = parsed("running");
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *before = NULL, *after = NULL;
	char *a, *b, *a_rest, *b_rest;
	size_t len;
	int changed = 0;

	assert_int_equal(libvirt_status_format(s, &before, &len), 0);
	assert_int_equal(libvirt_status_move(s, 800, vcpus, 2, "/opt/a&b/qemu", false, &err), 0);
	assert_int_equal(libvirt_status_format(s, &after, &len), 0);
	for (a = strtok_r(before, "\n", &a_rest), b = strtok_r(after, "\n", &b_rest); a && b;
	     a = strtok_r(NULL, "\n", &a_rest), b = strtok_r(NULL, "\n", &b_rest))
		changed += !!strcmp(a, b);
	assert_true(!a && !b);
	assert_int_equal(changed, 4);
	assert_int_equal(s->pid, 800);
	assert_int_equal(s->vcpus[0].tid, 810);
	assert_int_equal(s->vcpus[1].tid, 811);
	assert_string_equal(s->emulator, "/opt/a&b/qemu");
}

static void emulator_stays_unless_asked(void **state)
{
	static const struct libvirt_vcpu vcpus[] = { { 0, 810 }, { 1, 811 } };
	_cleanup_status_ struct libvirt_status *s = parsed("running");
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *text = NULL;
	size_t len;

	assert_int_equal(libvirt_status_move(s, 800, vcpus, 2, NULL, false, &err), 0);
	assert_int_equal(libvirt_status_format(s, &text, &len), 0);
	assert_non_null(strstr(text, "<emulator>/usr/bin/qemu-system-x86_64</emulator>"));
	assert_non_null(strstr(text, "shop &amp; mail"));
	assert_non_null(strstr(text, "xmlns:qemu"));
	assert_null(strstr(text, "<?xml"));
}

/* A serial port that is the console as well stands there twice. */
static void terminals_are_the_targets(void **state)
{
	_cleanup_status_ struct libvirt_status *s = parsed("running");
	_cleanup_free_ char *text = NULL;
	size_t len;

	assert_int_equal(libvirt_status_set_pty(s, "charserial1", "/dev/pts/7"), 0);
	assert_int_equal(libvirt_status_set_pty(s, "serial0", "/dev/pts/8"), 0);
	assert_int_equal(libvirt_status_set_pty(s, "charserial0", "/dev/pts/../sda"), 0);
	assert_int_equal(libvirt_status_set_pty(s, "charserial0", "/dev/pts/"), 0);
	assert_int_equal(libvirt_status_set_pty(s, "charserial0", "/dev/pts/9"), 0);
	assert_int_equal(libvirt_status_format(s, &text, &len), 0);
	assert_null(strstr(text, "/dev/pts/2"));
	assert_null(strstr(text, "/dev/pts/7"));
	assert_null(strstr(text, "/dev/pts/8"));
	assert_null(strstr(text, "sda"));
	assert_non_null(strstr(text, "<console type=\"pty\" tty=\"/dev/pts/9\">"));
}

/* libvirt saw it stop; that it runs again was said to nobody. */
static void what_runs_is_running(void **state)
{
	static const struct libvirt_vcpu vcpus[] = { { 0, 810 }, { 1, 811 } };
	_cleanup_status_ struct libvirt_status *s = parsed("busy");
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ char *text = NULL;
	size_t len;

	assert_int_equal(libvirt_status_move(s, 800, vcpus, 2, NULL, false, &err), 0);
	assert_string_equal(s->state, "paused");
	assert_int_equal(libvirt_status_move(s, 800, vcpus, 2, NULL, true, &err), 0);
	assert_string_equal(s->state, "running");
	assert_int_equal(libvirt_status_format(s, &text, &len), 0);
	assert_non_null(strstr(text, "state=\"running\" reason=\"unpaused\""));
}

static void other_vcpus_are_refused(void **state)
{
	static const struct libvirt_vcpu other[] = { { 0, 810 }, { 2, 811 } };
	_cleanup_status_ struct libvirt_status *s = parsed("running");
	_cleanup_error_ struct error err = ERROR_INIT;

	assert_int_equal(libvirt_status_move(s, 800, other, 1, NULL, false, &err), -EINVAL);
	error_clear(&err);
	assert_int_equal(libvirt_status_move(s, 800, other, 2, "/x", false, &err), -EINVAL);
	assert_non_null(strstr(err.text, "no vCPU 1"));
	assert_int_equal(s->pid, 4711);
	assert_int_equal(s->vcpus[0].tid, 4720);
	assert_string_equal(s->emulator, "/usr/bin/qemu-system-x86_64");
}

static bool found(const struct findings *f, const char *code)
{
	for (size_t i = 0; i < f->n; i++)
		if (!strcmp(f->v[i]->code, code))
			return true;
	return false;
}

static void what_is_in_the_way_is_named(void **state)
{
	static const char *const in_the_way[] = { "libvirt.block-job", "libvirt.backup",
						  "libvirt.monitor", "libvirt.status-unknown" };
	struct libvirt_status *s = parsed("running");
	struct findings f = FINDINGS_INIT;

	assert_int_equal(libvirt_status_check(s, &f), 0);
	assert_int_equal(f.n, 0);
	libvirt_status_freep(&s);

	s = parsed("busy");
	assert_int_equal(libvirt_status_check(s, &f), 0);
	assert_int_equal(f.n, 2);
	assert_true(found(&f, "libvirt.job") && found(&f, "libvirt.state"));
	findings_clear(&f);
	libvirt_status_freep(&s);

	s = parsed("in-the-way");
	assert_int_equal(libvirt_status_check(s, &f), 0);
	assert_int_equal(f.n, ARRAY_SIZE(in_the_way));
	for (size_t i = 0; i < ARRAY_SIZE(in_the_way); i++)
		if (!found(&f, in_the_way[i]))
			fail_msg("%s is not named", in_the_way[i]);
	for (size_t i = 0; i < f.n; i++)
		if (!*f.v[i]->remedy)
			fail_msg("what to do about %s?", f.v[i]->code);
	findings_clear(&f);
	libvirt_status_freep(&s);
}

static void what_is_no_status_is_refused(void **state)
{
	static const char *const names[] = { "doctype", "numbers", "torn" };
	struct libvirt_status *s = NULL;
	struct error err = ERROR_INIT;
	char *text;
	size_t len;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		text = sample(names[i], &len);
		assert_int_equal(libvirt_status_parse(text, len, &s, &err), -EINVAL);
		assert_non_null(err.text);
		error_clear(&err);
		free(text);
	}
	assert_int_equal(libvirt_status_parse("", 0, &s, &err), -EINVAL);
	error_clear(&err);
	assert_int_equal(libvirt_status_parse("", LIBVIRT_STATUS_MAX + 1, &s, &err), -E2BIG);
	error_clear(&err);
	assert_null(s);
}

#define DEFINITION(emulator) \
	"<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n-->\n<domain type=\"kvm\">\n" \
	"  <name>web</name>\n  <devices>\n    " emulator "\n    <disk/>\n  </devices>\n</domain>\n"

static void a_definition_gets_another_emulator(void **state)
{
	static const char before[] = DEFINITION("<emulator>/usr/bin/old</emulator>");
	_cleanup_error_ struct error err = ERROR_INIT;
	char *text = NULL;
	size_t len;

	assert_int_equal(libvirt_config_set_emulator(before, strlen(before), "/opt/a&b", &text, &len,
						     &err),
			 0);
	assert_string_equal(text, DEFINITION("<emulator>/opt/a&amp;b</emulator>"));
	free(text);
}

static void what_is_no_definition_is_left_alone(void **state)
{
	static const char *const wrong[] = { "", "<domain>", "<domstatus><devices><emulator/></devices></domstatus>",
					     "<domain><emulator>/x</emulator></domain>",
					     "<!DOCTYPE domain><domain><devices><emulator/></devices></domain>" };

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		_cleanup_error_ struct error err = ERROR_INIT;
		char *text = NULL;
		size_t len;

		assert_int_equal(libvirt_config_set_emulator(wrong[i], strlen(wrong[i]), "/new", &text,
							     &len, &err),
				 -EINVAL);
		assert_null(text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_in_it_is_found),
		cmocka_unit_test(only_what_is_to_change_changes),
		cmocka_unit_test(emulator_stays_unless_asked),
		cmocka_unit_test(terminals_are_the_targets),
		cmocka_unit_test(what_runs_is_running),
		cmocka_unit_test(other_vcpus_are_refused),
		cmocka_unit_test(what_is_in_the_way_is_named),
		cmocka_unit_test(what_is_no_status_is_refused),
		cmocka_unit_test(a_definition_gets_another_emulator),
		cmocka_unit_test(what_is_no_definition_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
