/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Golden lines of daemon/manager/run_argv.c: what `run` makes of a command
 * line. Arguments are joined by blanks, so that a failure reads like a shell.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "manager/run_argv.h"

#include <string.h>

#define QMP	  " -qmp unix:/q,server=on,wait=off"
#define RAM(size) " -object memory-backend-memfd,id=upgraded-ram,size=" size ",share=on"

static const struct {
	const char *in, *out;
} golden[] = {
	{ "/q -m 1G", "/q -m 1G -machine aux-ram-share=on,memory-backend=upgraded-ram" RAM(
			      "1G") " -name guest=vm" QMP },
	{ "/q -machine q35,accel=kvm -m 512",
	  "/q -machine q35,accel=kvm,aux-ram-share=on,memory-backend=upgraded-ram -m 512" RAM(
		  "512M") " -name guest=vm" QMP },
	{ "/q -M pc -m size=2G,slots=2,maxmem=8G -name web",
	  "/q -M pc,aux-ram-share=on,memory-backend=upgraded-ram -m size=2G,slots=2,maxmem=8G "
	  "-name web" RAM("2G") QMP },
	{ "/q -m slots=2,maxmem=8G,size=768",
	  "/q -m slots=2,maxmem=8G,size=768 -machine "
	  "aux-ram-share=on,memory-backend=upgraded-ram" RAM("768M") " -name guest=vm" QMP },
	{ "/q", "/q -machine aux-ram-share=on,memory-backend=upgraded-ram" RAM(
			"128M") " -name guest=vm" QMP },
	{ "/q --daemonize -nographic",
	  "/q -nographic -machine aux-ram-share=on,memory-backend=upgraded-ram" RAM(
		  "128M") " -name guest=vm" QMP },
	{ "/q -object memory-backend-file,id=r,size=1G,share=on,mem-path=/dev/shm -machine "
	  "q35,memory-backend=r",
	  "/q -object memory-backend-file,id=r,size=1G,share=on,mem-path=/dev/shm "
	  "-machine q35,memory-backend=r,aux-ram-share=on -name guest=vm" QMP },
	{ "/q -m 1G -numa node,memdev=r -machine q35,aux-ram-share=on",
	  "/q -m 1G -numa node,memdev=r -machine q35,aux-ram-share=on -name guest=vm" QMP },
};

static char *join(char **argv)
{
	char *s = strdup("");

	for (; *argv; argv++) {
		char *more;

		assert_true(asprintf(&more, "%s%s%s", s, *s ? " " : "", *argv) >= 0);
		free(s);
		s = more;
	}
	return s;
}

static int make(const char *line, char **ret_out, struct error *err)
{
	_cleanup_strv_ char **out = NULL, **notes = NULL;
	_cleanup_free_ char *copy = strdup(line);
	char *argv[32], *save;
	size_t n = 0;
	int r;

	for (char *s = strtok_r(copy, " ", &save); s; s = strtok_r(NULL, " ", &save))
		argv[n++] = s;
	r = run_argv_make(argv, n, "vm", "/q", &out, &notes, err);
	if (r >= 0)
		*ret_out = join(out);
	return r;
}

static void command_lines_become_what_they_must(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(golden); i++) {
		_cleanup_free_ char *out = NULL;

		assert_int_equal(make(golden[i].in, &out, NULL), 0);
		assert_string_equal(out, golden[i].out);
	}
}

static void lines_that_cannot_be_upgraded_are_refused_with_a_way_out(void **state)
{
	static const char *const bad[] = { "qemu -m 1G", "/q -m 1G -mem-path /dev/hugepages" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_error_ struct error err = ERROR_INIT;
		char *out = NULL;

		assert_int_equal(make(bad[i], &out, &err), -EINVAL);
		assert_non_null(err.hint);
	}
}

static void empty_line_is_refused(void **state)
{
	char **out, **notes;

	assert_int_equal(run_argv_make(NULL, 0, "vm", "/q", &out, &notes, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(command_lines_become_what_they_must),
		cmocka_unit_test(lines_that_cannot_be_upgraded_are_refused_with_a_way_out),
		cmocka_unit_test(empty_line_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
