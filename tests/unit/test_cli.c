/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds upgradectl to what it promises an operator: the output of each verb
 * (golden files, at 80 and at 200 columns), JSON that parses, each exit code,
 * and what happens on a terminal and on Ctrl-C. It runs the real command
 * against a fake daemon.
 *
 * "test_cli --serve PATH" only runs the fake daemon, to try things by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cli.h"
#include "fake_daemon.h"
#include "golden.h"

#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define SOCKET	    "control.sock"
#define PATIENCE_MS 30000

struct context {
	char dir[32];
	int daemon, newer;
	const char *command;
	bool as_nobody;
};

struct result {
	char *out, *err;
	int code; /* exit code, or 1000 + the signal */
};

static void result_clear(struct result *r)
{
	free(r->out);
	free(r->err);
}
#define _cleanup_result_ __attribute__((cleanup(result_clear)))

static int setup(void **state)
{
	struct context *c = calloc(1, sizeof(*c));

	strcpy(c->dir, "/tmp/test-cli-XXXXXX");
	c->command = getenv("UPGRADECTL");
	/* The socket's path appears in messages: a relative one is always the same. */
	if (!mkdtemp(c->dir) || chdir(c->dir) < 0)
		return -1;
	if (mkdir("bin", 0700) < 0 || close(open("bin/qemu", O_CREAT | O_WRONLY, 0755)) < 0)
		return -1;
	c->daemon = fake_daemon_start(SOCKET);
	c->newer = fake_daemon_start("newer.sock");
	*state = c;
	return 0;
}

static int teardown(void **state)
{
	struct context *c = *state;

	fake_daemon_stop(c->daemon);
	fake_daemon_stop(c->newer);
	unlink(SOCKET);
	unlink(SOCKET ".abort");
	unlink("newer.sock");
	unlink("shut.sock");
	unlink("bin/qemu");
	rmdir("bin");
	if (chdir("/") < 0 || rmdir(c->dir) < 0)
		perror(c->dir);
	free(c);
	return 0;
}

/* In the child: an environment in which nothing of the caller's shows. */
static void become(const struct context *c, char *const argv[], const char *columns)
{
	const char *keep[] = { "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "NO_COLOR" };
	char *value[ARRAY_SIZE(keep)];
	char path[64];

	for (size_t i = 0; i < ARRAY_SIZE(keep); i++)
		value[i] = getenv(keep[i]);
	clearenv();
	for (size_t i = 0; i < ARRAY_SIZE(keep); i++)
		if (value[i])
			setenv(keep[i], value[i], 1);
	snprintf(path, sizeof(path), "%s/bin", c->dir);
	setenv("PATH", path, 1);
	setenv("TZ", "UTC", 1);
	setenv("LC_ALL", "C.UTF-8", 1);
	setenv("UPGRADED_SOCKET", SOCKET, 1);
	setenv("TERM", "xterm", 1);
	if (columns)
		setenv("COLUMNS", columns, 1);
	if (c->as_nobody && setresuid(65534, 65534, 65534) < 0)
		_exit(127);
	execv(c->command, argv);
	_exit(127);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/*
 * Reads @n fds to their ends into texts. Once the first holds @cue, sends
 * SIGINT to @pid (@interrupts times, as far as the text of the second says
 * that the one before was understood).
 */
static void drain(int *fd, char **text, size_t n, pid_t pid, const char *cue, int interrupts)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	size_t len[2] = { 0 }, open_fds = n;
	int sent = 0;

	for (size_t i = 0; i < n; i++)
		text[i] = calloc(1, 1 << 18);
	while (open_fds) {
		struct pollfd p[2];

		for (size_t i = 0; i < n; i++)
			p[i] = (struct pollfd){ .fd = fd[i], .events = POLLIN };
		poll(p, n, 100);
		if (now_ms() > deadline) {
			kill(pid, SIGKILL);
			fail_msg("no end after %d ms:\n%s", PATIENCE_MS, text[0]);
		}
		for (size_t i = 0; i < n; i++) {
			ssize_t got;

			if (!p[i].revents)
				continue;
			got = read(fd[i], text[i] + len[i], (1 << 18) - 1 - len[i]);
			if (got > 0) {
				len[i] += (size_t)got;
				continue;
			}
			closep(&fd[i]);
			open_fds--;
		}
		if (sent < interrupts &&
		    (sent ? strstr(text[n - 1], "Asking the daemon") : strstr(text[0], cue))) {
			kill(pid, SIGINT);
			sent++;
		}
	}
}

static int status_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void run_interrupted(const struct context *c, struct result *ret, const char *columns,
			    const char *cue, int interrupts, char *const argv[])
{
	int out[2], err[2];
	char *text[2];
	pid_t pid;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		dup2(out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		become(c, argv, columns);
	}
	close(out[1]);
	close(err[1]);
	drain((int[]){ out[0], err[0] }, text, 2, pid, cue, interrupts);
	ret->out = text[0];
	ret->err = text[1];
	ret->code = status_of(pid);
}

#define ARGV(...)		  ((char *[]){ "upgradectl", __VA_ARGS__, NULL })
#define RUN(c, ret, columns, ...) run_interrupted(c, ret, columns, "", 0, ARGV(__VA_ARGS__))

static void assert_code(const struct result *r, int code)
{
	if (r->code != code)
		fail_msg("exit code %d, not %d\n%s%s", r->code, code, r->out, r->err);
}

static void assert_says(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("\"%s\" is not in:\n%s", part, text);
}

/* One golden file holds everything that one command says. */
static void check_golden(const struct context *c, const char *name, const char *columns,
			 char *const argv[])
{
	_cleanup_result_ struct result r = { 0 };
	_cleanup_free_ char *all = NULL, *file = NULL;
	int widest = atoi(columns);

	run_interrupted(c, &r, columns, "", 0, argv);
	assert_true(asprintf(&all, "%s--- stderr\n%s--- exit %d\n", r.out, r.err, r.code) > 0);
	assert_true(asprintf(&file, "%s.%s", name, columns) > 0);
	assert_golden(GOLDEN_DIR, file, all);
	for (char *save, *line = strtok_r(r.out, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		int width = 0;

		for (char *p = line; *p; p++)
			width += (*p & 0xc0) != 0x80;
		if (width > widest)
			fail_msg("%s: %d columns are too many for %d:\n%s", file, width, widest,
				 line);
		if (width && line[strlen(line) - 1] == ' ')
			fail_msg("%s: blanks at the end of\n%s", file, line);
	}
}

static void output_fits_and_stays(void **state)
{
	const struct {
		const char *name;
		char **argv;
	} table[] = {
		{ "list", ARGV("list") },
		{ "list-outdated", ARGV("list", "--outdated") },
		{ "show", ARGV("show", "vm1") },
		{ "show-busy", ARGV("show", "busy") },
		{ "check-ready", ARGV("check", "vm1", "--vmm", "qemu") },
		{ "check-verbose", ARGV("check", "vm1", "-v") },
		{ "check-blocked", ARGV("check", "blocked") },
		{ "upgrade", ARGV("upgrade", "vm1") },
		{ "upgrade-rollback", ARGV("upgrade", "rollback") },
		{ "upgrade-blocked", ARGV("upgrade", "blocked") },
		{ "upgrade-lost", ARGV("upgrade", "lost") },
		{ "upgrade-dies", ARGV("upgrade", "dies") },
		{ "upgrade-no-wait", ARGV("upgrade", "vm1", "--no-wait") },
		{ "upgrade-fleet", ARGV("upgrade", "--all", "--again") },
		{ "upgrade-fleet-nobody", ARGV("upgrade", "x*") },
		{ "upgrade-dry-run", ARGV("upgrade", "--all", "--dry-run", "--vmm", "qemu") },
		{ "abort", ARGV("abort", "vm1") },
		{ "watch", ARGV("watch") },
		{ "history", ARGV("history") },
		{ "history-phases", ARGV("history", "--phases") },
		{ "history-limit", ARGV("history", "--limit", "1") },
		{ "report", ARGV("report", "vm1") },
		{ "report-by-id", ARGV("report", "8") },
		{ "report-absent", ARGV("report", "9999") },
		{ "metrics-as-json", ARGV("metrics", "--json") },
		{ "forget", ARGV("forget", "vm1") },
		{ "adopt", ARGV("adopt", "new", "--qmp", "qmp.sock", "--pid", "12") },
		{ "config", ARGV("config", "--root", "/nonexistent") },
		{ "absent", ARGV("show", "absent") },
		{ "unreachable", ARGV("--socket", "nobody.sock", "list") },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		check_golden(*state, table[i].name, "80", table[i].argv);
		check_golden(*state, table[i].name, "200", table[i].argv);
	}
}

/* Ten heartbeats a second; none for the 38 ms of the blackout, and half of them for a second after it. */
static void write_work(const char *path, const char *last)
{
	_cleanup_fclose_ FILE *f = fopen(path, "we");
	double done = 0;

	assert_non_null(f);
	fputs("# heartbeats\n", f);
	for (int i = -50; i < 100; i++) {
		fprintf(f, "%.1f %.1f\n", 1795176000 + i / 10.0, done);
		done += i >= 17 && i < 27 ? 5 : 10;
	}
	fputs(last, f);
}

static void page_stands_for_itself(void **state)
{
	static const char *const foreign[] = { "<script", "http", "url(", "\033", "NaN", "nan" };
	_cleanup_result_ struct result page = { 0 }, with_work = { 0 }, to_file = { 0 };

	write_work("work", "");
	RUN(*state, &page, NULL, "report", "8", "--html", "-");
	assert_code(&page, CLI_DONE);
	assert_golden(GOLDEN_DIR, "report.html", page.out);
	RUN(*state, &with_work, NULL, "report", "7", "--html", "-", "--work", "work");
	assert_code(&with_work, CLI_DONE);
	assert_golden(GOLDEN_DIR, "report-work.html", with_work.out);
	assert_says(with_work.out, "the guest got 53 % done");
	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++)
		assert_null(strstr(with_work.out, foreign[i]));
	RUN(*state, &to_file, NULL, "report", "7", "--html", "page.html");
	assert_code(&to_file, CLI_DONE);
	assert_string_equal(to_file.out, "");
	assert_int_equal(access("page.html.new", F_OK), -1);
	assert_int_equal(unlink("page.html"), 0);
	unlink("work");
}

static void metrics_are_as_prometheus_reads_them(void **state)
{
	_cleanup_result_ struct result r = { 0 }, to_file = { 0 };

	RUN(*state, &r, NULL, "metrics");
	assert_code(&r, CLI_DONE);
	assert_golden(GOLDEN_DIR, "metrics.prom", r.out);
	RUN(*state, &to_file, NULL, "metrics", "--output", "metrics.prom");
	assert_code(&to_file, CLI_DONE);
	assert_string_equal(to_file.out, "");
	assert_int_equal(unlink("metrics.prom"), 0);
}

static void work_must_be_a_counter(void **state)
{
	static const char *const wrong[] = { "1795176000 1\n", "1795186000 1\n", "1795186000\n",
					     "1795186000 99999 1\n", "-1 99999\n",
					     "1795186000 inf\n", "now 1\n" };

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		_cleanup_result_ struct result r = { 0 };

		write_work("work", wrong[i]);
		RUN(*state, &r, NULL, "report", "7", "--html", "-", "--work", "work");
		assert_code(&r, CLI_USAGE);
		assert_says(r.err, "work, line 152: ");
		assert_string_equal(r.out, "");
	}
	unlink("work");
}

static void each_failure_has_its_exit_code(void **state)
{
	const struct {
		int code;
		char **argv;
		const char *says;
	} table[] = {
		{ CLI_DONE, ARGV("list"), "" },
		{ CLI_FAILED, ARGV("show", "broken"), "gave no reason" },
		{ CLI_FAILED, ARGV("upgrade", "taken"), "upgradectl watch taken" },
		{ CLI_FAILED, ARGV("show", "garbage"), "cannot be read" },
		{ CLI_FAILED, ARGV("forget", "fds"), "file descriptors" },
		{ CLI_FAILED, ARGV("forget", "parts"), "in parts" },
		{ CLI_FAILED, ARGV("--socket", "newer.sock", "list"), "speaks protocol" },
		{ CLI_USAGE, ARGV("nonsense"), "no verb 'nonsense'" },
		{ CLI_USAGE, ARGV("list", "vm1"), "takes no name" },
		{ CLI_USAGE, ARGV("config", "Mode"), "takes no argument" },
		{ CLI_USAGE, ARGV("show"), "which VM?" },
		{ CLI_USAGE, ARGV("show", ""), "not empty" },
		{ CLI_USAGE, ARGV("show", "a", "b"), "one VM at a time" },
		{ CLI_USAGE, ARGV("upgrade"), "which VM?" },
		{ CLI_USAGE, ARGV("upgrade", "--all", "vm1"), "--all is every VM" },
		{ CLI_USAGE, ARGV("upgrade", "vm1", "vm2", "--no-wait"), "for one VM" },
		{ CLI_USAGE, ARGV("upgrade", "--all", "--window", "22-6"), "22:00-06:00" },
		{ CLI_USAGE, ARGV("upgrade", "--all", "--max-parallel", "0"), "--max-parallel" },
		{ CLI_USAGE, ARGV("upgrade", "--all", "--canary", "x"), "--canary" },
		{ CLI_USAGE, ARGV("upgrade", "vm1", "--vmm", "no-such-program"), "no program" },
		{ CLI_USAGE, ARGV("upgrade", "vm1", "--max-blackout", "-1"), "positive number" },
		{ CLI_USAGE, ARGV("upgrade", "vm1", "--timeout", "nan"), "positive number" },
		{ CLI_USAGE, ARGV("upgrade", "vm1", "--timeout", "1x"), "positive number" },
		{ CLI_USAGE, ARGV("history", "--limit", "-1"), "--limit" },
		{ CLI_USAGE, ARGV("metrics", "vm1"), "takes no argument" },
		{ CLI_FAILED, ARGV("metrics", "--output", "/proc/no/file"), "/proc/no/file" },
		{ CLI_USAGE, ARGV("report"), "which upgrade?" },
		{ CLI_USAGE, ARGV("report", "7", "--work", "x"), "page of --html" },
		{ CLI_USAGE, ARGV("report", "7", "--html", "-", "--work", "bin/qemu"),
		  "two samples" },
		{ CLI_NO_SUCH_VM, ARGV("report", "7x"), "upgradectl history" },
		{ CLI_FAILED, ARGV("report", "7", "--html", "-", "--work", "absent"), "absent" },
		{ CLI_FAILED, ARGV("report", "7", "--html", "/proc/no/page"), "/proc/no/page" },
		{ CLI_USAGE, ARGV("adopt"), "--pid PID or --qmp PATH" },
		{ CLI_USAGE, ARGV("adopt", "--pid", "0"), "--pid" },
		{ CLI_USAGE, ARGV("run", "vm1"), "command line of QEMU" },
		{ CLI_USAGE, ARGV("run", "vm1", "--", "no-such-program"), "no program" },
		{ CLI_USAGE, ARGV("--nonsense"), "" },
		{ CLI_REFUSED, ARGV("check", "blocked"), "" },
		{ CLI_REFUSED, ARGV("upgrade", "blocked"), "2 blockers" },
		{ CLI_ROLLED_BACK, ARGV("upgrade", "rollback"), "" },
		{ CLI_NO_SUCH_VM, ARGV("show", "absent"), "no VM \"absent\"" },
		{ CLI_NO_SUCH_VM, ARGV("watch", "absent"), "no VM \"absent\"" },
		{ CLI_UNREACHABLE, ARGV("--socket", "nobody.sock", "list"),
		  "systemctl start upgraded.socket" },
		{ CLI_UNREACHABLE, ARGV("list", "--socket", "bin/qemu"),
		  "systemctl start upgraded.socket" },
		{ CLI_UNREACHABLE, ARGV("show", "mute"), "closed the connection" },
		{ CLI_UNREACHABLE, ARGV("upgrade", "dies"), "upgradectl history dies" },
		{ CLI_UNREACHABLE, ARGV("watch"), "closed the connection" },
		{ CLI_DENIED, ARGV("forget", "denied"), "may not" },
		{ CLI_LOST, ARGV("upgrade", "lost"), "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		_cleanup_result_ struct result r = { 0 };

		run_interrupted(*state, &r, NULL, "", 0, table[i].argv);
		if (r.code != table[i].code)
			fail_msg("case %zu (%s %s): exit code %d, not %d\n%s%s", i,
				 table[i].argv[1], table[i].argv[2] ?: "", r.code, table[i].code,
				 r.out, r.err);
		assert_says(r.err, table[i].says);
	}
}

static void a_socket_that_may_not_be_used_is_denied(void **state)
{
	_cleanup_result_ struct result r = { 0 };
	struct context *c = *state;
	int daemon = fake_daemon_start("shut.sock");

	assert_int_equal(chmod("shut.sock", 0), 0);
	assert_int_equal(chmod(c->dir, 0711), 0);
	c->as_nobody = !getuid(); /* root may use every socket */
	RUN(c, &r, NULL, "--socket", "shut.sock", "list");
	c->as_nobody = false;
	fake_daemon_stop(daemon);
	if (r.code == 127) {
		print_message("nobody may not run %s\n", c->command);
		skip();
	}
	assert_code(&r, CLI_DENIED);
	assert_says(r.err, "not permitted");
}

/* Every line of @text as JSON; returns the last, which the caller puts. */
static json_object *last_line(char *text, size_t *ret_lines)
{
	json_object *last = NULL;
	char *save;

	*ret_lines = 0;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		json_object_put(last);
		last = json_tokener_parse(line);
		if (!last)
			fail_msg("this is not JSON: %s", line);
		++*ret_lines;
	}
	return last;
}

static void every_verb_prints_one_json_document(void **state)
{
	char **const table[] = {
		ARGV("--json", "list"),
		ARGV("show", "vm1", "--json"),
		ARGV("check", "blocked", "--json"),
		ARGV("abort", "vm1", "--json"),
		ARGV("history", "--json"),
		ARGV("forget", "vm1", "--json"),
		ARGV("adopt", "--pid", "1", "--json"),
		ARGV("upgrade", "vm1", "--json", "--no-wait"),
		ARGV("--json", "run", "vm1", "--", "qemu"),
		ARGV("show", "absent", "--json"),
		ARGV("upgrade", "blocked", "--json"),
		ARGV("list", "--json", "--socket", "nobody.sock"),
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		_cleanup_result_ struct result r = { 0 };
		json_tokener *tokener = json_tokener_new();
		json_object *object;

		run_interrupted(*state, &r, NULL, "", 0, table[i]);
		json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
		assert_true(r.out[0] && r.out[strlen(r.out) - 1] == '\n');
		/* Strict: nothing may follow the document. */
		object = json_tokener_parse_ex(tokener, r.out, (int)strlen(r.out) - 1);
		if (!object)
			fail_msg("case %zu is not one document:\n%s", i, r.out);
		json_object_put(object);
		json_tokener_free(tokener);
	}
}

static void an_upgrade_in_json_ends_with_its_report(void **state)
{
	_cleanup_result_ struct result r = { 0 }, early = { 0 };
	json_object *last, *value;
	size_t lines;

	RUN(*state, &r, NULL, "upgrade", "rollback", "--json");
	assert_code(&r, CLI_ROLLED_BACK);
	last = last_line(r.out, &lines);
	assert_int_equal(lines, 6);
	assert_true(json_object_object_get_ex(last, "outcome", &value));
	assert_string_equal(json_object_get_string(value), "rolled_back");
	assert_true(json_object_object_get_ex(last, "blackout_ms", &value));
	json_object_put(last);

	RUN(*state, &early, NULL, "upgrade", "early", "--json");
	assert_code(&early, CLI_DONE);
	last = last_line(early.out, &lines);
	assert_true(json_object_object_get_ex(last, "outcome", &value));
	assert_string_equal(json_object_get_string(value), "committed");
	json_object_put(last);
}

static void an_error_in_json_has_its_code(void **state)
{
	_cleanup_result_ struct result r = { 0 };
	json_object *last, *error, *value;
	size_t lines;

	RUN(*state, &r, NULL, "upgrade", "blocked", "--json");
	assert_code(&r, CLI_REFUSED);
	last = last_line(r.out, &lines);
	assert_int_equal(lines, 1);
	assert_true(json_object_object_get_ex(last, "error", &error));
	assert_true(json_object_object_get_ex(error, "code", &value));
	assert_string_equal(json_object_get_string(value), "refused");
	assert_true(json_object_object_get_ex(error, "findings", &value));
	assert_int_equal(json_object_array_length(value), 5);
	json_object_put(last);
}

static void the_command_line_of_qemu_is_handed_on_whole(void **state)
{
	struct context *c = *state;
	_cleanup_result_ struct result r = { 0 };
	_cleanup_free_ char *expected = NULL;

	RUN(c, &r, NULL, "run", "vm1", "--", "qemu", "--json", "-m", "1G", "--", "");
	assert_code(&r, CLI_DONE);
	/* --json after "--" is QEMU's, and the name became a path. */
	assert_true(asprintf(&expected, "%s/bin/qemu|--json|-m|1G|--|\n", c->dir) > 0);
	assert_says(r.out, expected);
}

static void names_cannot_steer_the_terminal(void **state)
{
	_cleanup_result_ struct result r = { 0 };

	RUN(*state, &r, "200", "list");
	assert_null(strchr(r.out, '\033'));
	assert_says(r.out, "b\xc3\xbcro?[31m\xef\xbf\xbd");
}

static void the_first_interrupt_asks_for_rollback(void **state)
{
	_cleanup_result_ struct result r = { 0 };

	unlink(SOCKET ".abort");
	run_interrupted(*state, &r, NULL, "prepare", 1, ARGV("upgrade", "slow"));
	assert_code(&r, CLI_ROLLED_BACK);
	assert_says(r.err, "Asking the daemon to roll back");
	assert_says(r.out, "runs on in the source");
	assert_int_equal(access(SOCKET ".abort", F_OK), 0);
}

static void the_second_interrupt_leaves(void **state)
{
	_cleanup_result_ struct result r = { 0 };

	unlink(SOCKET ".abort");
	run_interrupted(*state, &r, NULL, "prepare", 2, ARGV("upgrade", "stuck"));
	assert_code(&r, CLI_DETACHED);
	assert_says(r.err, "upgradectl watch stuck");
}

static char *run_on_terminal(const struct context *c, bool colour, char *const argv[],
			     int *ret_code)
{
	struct winsize size = { .ws_row = 25, .ws_col = 100 };
	char *text[1];
	int master;
	pid_t pid = forkpty(&master, NULL, NULL, &size);

	assert_true(pid >= 0);
	if (!pid) {
		if (colour)
			unsetenv("NO_COLOR");
		else
			setenv("NO_COLOR", "1", 1);
		become(c, argv, NULL);
	}
	drain((int[]){ master }, text, 1, pid, "", 0);
	*ret_code = status_of(pid);
	return text[0];
}

static void a_terminal_gets_colours_and_a_moving_line(void **state)
{
	_cleanup_free_ char *text = NULL;
	int code;

	text = run_on_terminal(*state, true, ARGV("upgrade", "vm1"), &code);
	assert_int_equal(code, CLI_DONE);
	assert_says(text, "\r\033[K");
	assert_says(text, "\033[1;32mcommitted\033[0m");
	/* The time of a phase that is over is the daemon's. */
	assert_says(text, "freeze        8.214 ms");
}

static void a_terminal_without_colours_has_none(void **state)
{
	_cleanup_free_ char *text = NULL, *other = NULL;
	int code;

	text = run_on_terminal(*state, false, ARGV("upgrade", "vm1"), &code);
	assert_int_equal(code, CLI_DONE);
	assert_says(text, "\r\033[K");
	assert_null(strstr(text, "\033[1"));
	assert_null(strstr(text, "\033[0m"));

	other = run_on_terminal(*state, true, ARGV("--no-color", "list"), &code);
	assert_int_equal(code, CLI_DONE);
	assert_null(strchr(other, '\033'));
}

static void a_terminal_shows_every_vm_in_a_table(void **state)
{
	_cleanup_free_ char *text = NULL;
	const char *last;
	int code;

	text = run_on_terminal(*state, false, ARGV("watch"), &code);
	assert_int_equal(code, CLI_UNREACHABLE);
	assert_says(text, "freeze");
	/* One table stands over the one before. */
	assert_says(text, "\033[2A\r\033[J");
	last = strstr(text, "committed");
	assert_non_null(last);
	assert_says(last, "1.812 s");
	assert_says(last, "38.214 ms");
}

static void help_tells_every_verb_and_exit_code(void **state)
{
	static const char *const verbs[] = { "run",	"adopt", "list",  "show",    "check",
					     "upgrade", "abort", "watch", "history", "forget",
					     "report",	"metrics", "config" };
	_cleanup_result_ struct result r = { 0 };

	RUN(*state, &r, NULL, "--help");
	assert_code(&r, CLI_DONE);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		_cleanup_result_ struct result one = { 0 };
		char line[32];

		snprintf(line, sizeof(line), "\n  %s ", verbs[i]);
		assert_says(r.out, line);
		RUN(*state, &one, NULL, (char *)verbs[i], "--help");
		assert_code(&one, CLI_DONE);
		snprintf(line, sizeof(line), "Usage: upgradectl %s", verbs[i]);
		assert_says(one.out, line);
		assert_says(one.out, "--json");
	}
	for (int code = 0; code <= 8; code++) {
		char line[16];

		snprintf(line, sizeof(line), "\n  %d  ", code);
		assert_says(r.out, line);
	}
	for (char *save, *line = strtok_r(r.out, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save))
		if (strlen(line) > 80)
			fail_msg("longer than 80 columns: %s", line);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(output_fits_and_stays),
		cmocka_unit_test(page_stands_for_itself),
		cmocka_unit_test(metrics_are_as_prometheus_reads_them),
		cmocka_unit_test(work_must_be_a_counter),
		cmocka_unit_test(each_failure_has_its_exit_code),
		cmocka_unit_test(a_socket_that_may_not_be_used_is_denied),
		cmocka_unit_test(every_verb_prints_one_json_document),
		cmocka_unit_test(an_upgrade_in_json_ends_with_its_report),
		cmocka_unit_test(an_error_in_json_has_its_code),
		cmocka_unit_test(the_command_line_of_qemu_is_handed_on_whole),
		cmocka_unit_test(names_cannot_steer_the_terminal),
		cmocka_unit_test(the_first_interrupt_asks_for_rollback),
		cmocka_unit_test(the_second_interrupt_leaves),
		cmocka_unit_test(a_terminal_gets_colours_and_a_moving_line),
		cmocka_unit_test(a_terminal_without_colours_has_none),
		cmocka_unit_test(a_terminal_shows_every_vm_in_a_table),
		cmocka_unit_test(help_tells_every_verb_and_exit_code),
	};

	if (argc == 3 && !strcmp(argv[1], "--serve"))
		return fake_daemon_serve(argv[2]);
	if (!getenv("UPGRADECTL")) {
		fprintf(stderr, "UPGRADECTL must name the command to test\n");
		return 2;
	}
	return cmocka_run_group_tests_name("cli", tests, setup, teardown);
}
