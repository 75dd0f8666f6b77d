/* SPDX-License-Identifier: GPL-2.0-or-later */
/* upgraded.conf: what counts, where it comes from, and what is said of a line that is wrong. */
#include "config.h"
#include "temp_dir.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[TEMP_DIR];

static void run(const char *command)
{
	char *line;

	assert_true(asprintf(&line, command, root) > 0);
	assert_int_equal(system(line), 0);
	free(line);
}

static int setup(void **state)
{
	temp_dir_make(root);
	run("cd %s && mkdir -p etc/upgraded/upgraded.conf.d run/upgraded/upgraded.conf.d "
	    "usr/lib/upgraded/upgraded.conf.d");
	return 0;
}

static int teardown(void **state)
{
	temp_dir_remove(root);
	return 0;
}

static void put(const char *path, const char *text)
{
	char *whole;
	FILE *f;

	assert_true(asprintf(&whole, "%s/%s", root, path) > 0);
	f = fopen(whole, "we");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
	free(whole);
}

#define ETC "etc/upgraded/upgraded.conf"

static void expect(enum config_key key, const char *text, const char *origin)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct config c = CONFIG_INIT;

	if (config_load(root, &c, &err) < 0)
		fail_msg("%s", err.text);
	assert_string_equal(c.value[key].text, text);
	if (origin)
		assert_string_equal(c.value[key].origin + strlen(root), origin);
	else
		assert_null(c.value[key].origin);
	config_clear(&c);
}

static void without_files_the_defaults_count(void **state)
{
	for (int key = 0; key < CONFIG_KEYS; key++)
		expect(key, config_default(key), NULL);
}

static void the_last_line_counts(void **state)
{
	put(ETC, "# comment\n; another\n\n[Daemon]\nMaxRunning=2\n  MaxRunning = 3  \n"
		 "[Outdated]\nMode=ask\n[Daemon]\n");
	expect(CONFIG_MAX_RUNNING, "3", "/" ETC ":6");
	expect(CONFIG_OUTDATED_MODE, "ask", "/" ETC ":8");
}

static void drop_ins_come_later_in_the_order_of_their_names(void **state)
{
	put(ETC, "[Daemon]\nMaxRunning=2\n");
	put("usr/lib/upgraded/upgraded.conf.d/20-b.conf", "[Daemon]\nMaxRunning=20\n");
	put("etc/upgraded/upgraded.conf.d/10-a.conf", "[Daemon]\nMaxRunning=10\n");
	put("etc/upgraded/upgraded.conf.d/99.conf~", "[Daemon]\nMaxRunning=99\n");
	expect(CONFIG_MAX_RUNNING, "20", "/usr/lib/upgraded/upgraded.conf.d/20-b.conf:2");
}

static void etc_hides_what_has_the_same_name(void **state)
{
	put("usr/lib/upgraded/upgraded.conf.d/20.conf", "[Daemon]\nMaxRunning=20\n");
	put("run/upgraded/upgraded.conf.d/20.conf", "[Daemon]\nMaxRunning=21\n");
	expect(CONFIG_MAX_RUNNING, "21", "/run/upgraded/upgraded.conf.d/20.conf:2");
	put("etc/upgraded/upgraded.conf.d/20.conf", "");
	expect(CONFIG_MAX_RUNNING, "4", NULL);
}

static void values_that_are_within_their_range_are_taken(void **state)
{
	put(ETC, "[Outdated]\nMode=auto\nWindow=22:00-06:00\nMaxParallel=1000\nCanary=0\n");
	expect(CONFIG_OUTDATED_WINDOW, "22:00-06:00", "/" ETC ":3");
	expect(CONFIG_OUTDATED_MAX_PARALLEL, "1000", "/" ETC ":4");
	put(ETC, "[Outdated]\nWindow=\n");
	expect(CONFIG_OUTDATED_WINDOW, "", "/" ETC ":2");
}

static void what_nobody_understands_is_named_with_its_line(void **state)
{
	static const struct {
		const char *text, *says, *hint;
	} table[] = {
		{ "[Outdated]\nMaxParalel=2\n", ":2: there is no key MaxParalel",
		  "MaxParallel, perhaps" },
		{ "[Outdated]\nmode=ask\n", ":2: there is no key mode", "Mode, perhaps" },
		{ "[Outdated]\nMaxRunning=2\n", ":2: there is no key MaxRunning",
		  "upgradectl config" },
		{ "[Demon]\n", ":1: there is no section Demon", "Daemon, perhaps" },
		{ "[Nonsense]\n", ":1: there is no section Nonsense", "upgradectl config" },
		{ "[Daemon]\nMaxRunning=0\n", ":2: MaxRunning= is not '0'",
		  "MaxRunning=1 to 1000" },
		{ "[Daemon]\nMaxRunning=4x\n", "'4x'", "1 to 1000" },
		{ "[Daemon]\nMaxRunning=\n", "''", "1 to 1000" },
		{ "[Daemon]\nMaxRunning=99999999999999999999\n", "MaxRunning= is not",
		  "1 to 1000" },
		{ "[Outdated]\nMode=maybe\n", "Mode= is not 'maybe'", "Mode=off, ask or auto" },
		{ "[Outdated]\nWindow=22-6\n", "Window= is not '22-6'", "HH:MM-HH:MM" },
		{ "[Outdated]\nWindow=22:00-24:00\n", "Window=", "HH:MM" },
		{ "[Outdated]\nWindow=22:00-22:00\n", "Window=", "HH:MM" },
		{ "[Outdated]\nWindow=22:00-06:00 \n\nWindow=22:00-06:0\n",
		  ":4: Window=", "HH:MM" },
		{ "MaxRunning=2\n", ":1: MaxRunning= stands in no [section]", NULL },
		{ "[Daemon]\nMaxRunning\n", "neither a [section] nor a Key=value", NULL },
		{ "[Daemon\n", "'[Daemon' is no [section]", NULL },
		{ "[Daemon] x\n", "is no [section]", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		_cleanup_error_ struct error err = ERROR_INIT;
		struct config c = CONFIG_INIT;

		put(ETC, table[i].text);
		assert_int_equal(config_load(root, &c, &err), -EINVAL);
		assert_null(c.value[0].text);
		if (!strstr(err.text, table[i].says) || !strstr(err.text, ETC))
			fail_msg("'%s' says: %s", table[i].text, err.text);
		if (table[i].hint && !strstr(err.hint, table[i].hint))
			fail_msg("'%s' hints at: %s", table[i].text, err.hint);
	}
}

static void a_line_without_end_is_too_long(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct config c = CONFIG_INIT;
	char text[5000];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	put(ETC, text);
	assert_int_equal(config_load(root, &c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "too long"));
}

static char *read_all(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = calloc(1, 65536);

	assert_non_null(f);
	assert_true(fread(text, 1, 65535, f) > 0);
	fclose(f);
	return text;
}

static void the_manual_and_the_sample_have_every_key(void **state)
{
	char *manual = read_all(MANUAL), *sample = read_all(SAMPLE), *line;

	for (int key = 0; key < CONFIG_KEYS; key++) {
		char *entry, *next;

		assert_true(asprintf(&line, "\n.B %s=\n", config_name(key)) > 0);
		entry = strstr(manual, line);
		if (!entry)
			fail_msg("%s has no %s=", MANUAL, config_name(key));
		free(line);
		next = strstr(entry + 1, "\n.TP");
		if (next)
			*next = '\0';
		if (*config_default(key) && !strstr(entry, config_default(key)))
			fail_msg("%s does not have the default of %s=", MANUAL, config_name(key));
		if (next)
			*next = '\n';
		assert_true(asprintf(&line, "\n#%s=%s\n", config_name(key), config_default(key)) >
			    0);
		if (!strstr(sample, line))
			fail_msg("%s lacks %s", SAMPLE, line + 1);
		free(line);
	}
	free(manual);
	free(sample);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(without_files_the_defaults_count),
		TEST(the_last_line_counts),
		TEST(drop_ins_come_later_in_the_order_of_their_names),
		TEST(etc_hides_what_has_the_same_name),
		TEST(values_that_are_within_their_range_are_taken),
		TEST(what_nobody_understands_is_named_with_its_line),
		TEST(a_line_without_end_is_too_long),
		cmocka_unit_test(the_manual_and_the_sample_have_every_key),
	};

	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
