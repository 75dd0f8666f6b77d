/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The QMP client against a scripted peer that cuts, mixes, floods, lies and
 * goes silent.
 */
#include "qmp.h"
#include "qmp_peer.h"
#include "scm_rights.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

static void play_end(int fd, const void *data)
{
	play_steps(fd, data);
	_exit(0);
}

static void failed(const struct peer *p, int r, int code, const char *word)
{
	if (r != code || !p->err.text || !strstr(p->err.text, word))
		fail_msg("%d, '%s'; expected %d with '%s'", r, p->err.text, code, word);
}

static void replies_are_matched_and_events_queued(void **state)
{
	static const struct step steps[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "query-status", "{\"return\": {\"status\": \"stale\"}, \"id\": 1}" },
		{ NULL,
		  "{\"timestamp\": {\"seconds\": 7, \"microseconds\": 5}, \"event\": \"STOP\"}\r\n"
		  "{\"return\": {\"status\": \"fresh\"}, \"id\": 2}\r\n"
		  "{\"timestamp\": {\"seconds\": 8, \"microseconds\": 6}, \"event\": \"RESUME\","
		  " \"data\": {\"a\": 1}}" },
		{ NULL, NULL }
	};
	struct json_object *v = NULL, *status;
	struct qmp_event event;
	struct peer p;

	open_peer(&p, play_steps, steps);
	assert_int_equal(p.r, 0);
	assert_string_equal(qmp_version(p.q), "10.0.13");
	assert_int_equal(qmp_execute(p.q, "query-status", NULL, &v, &p.err), 0);
	assert_true(json_object_object_get_ex(v, "status", &status));
	assert_string_equal(json_object_get_string(status), "fresh");
	json_object_put(v);
	assert_int_equal(qmp_next_event(p.q, &event, &p.err), 0);
	assert_string_equal(event.name, "STOP");
	assert_int_equal(event.qemu_us, 7000005);
	assert_null(event.data);
	assert_int_equal(qmp_wait_event(p.q, "RESUME", &event, &p.err), 0);
	assert_int_equal(event.qemu_us, 8000006);
	assert_non_null(event.data);
	close_peer(&p);
}

/* Answers only when it has heard the last of them, some out of their order. */
static void commands_sent_at_once_get_each_their_reply(void **state)
{
	static const struct step steps[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "x-last",
		  "{\"return\": 20, \"id\": 2}{\"event\": \"STOP\"}{\"return\": 9, \"id\": 1}" },
		{ NULL, "{\"id\": 4, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"?\"}}"
			"{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}"
			"{\"return\": 20, \"id\": 2}{\"return\": 50, \"id\": 5}" },
		{ "x-next", "{\"return\": 5, \"id\": 5}{\"return\": 60, \"id\": 6}" },
		{ NULL, NULL }
	};
	struct qmp_call calls[] = { { .command = "x-one", .args = json_object_new_object() },
				    { .command = "x-two" },
				    { .command = "x-three" },
				    { .command = "x-last" } };
	static const int results[] = { 0, -EREMOTEIO, -ENOSYS, 0 };
	struct json_object *v = NULL;
	struct qmp_event event;
	struct peer p;

	open_peer(&p, play_steps, steps);
	assert_int_equal(p.r, 0);
	assert_int_equal(qmp_execute_all(p.q, calls, ARRAY_SIZE(calls), &p.err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		assert_int_equal(calls[i].r, results[i]);
	assert_int_equal(json_object_get_int(calls[0].value), 20);
	assert_null(calls[1].value);
	assert_int_equal(json_object_get_int(calls[3].value), 50);
	qmp_calls_clear(calls, ARRAY_SIZE(calls));
	assert_int_equal(qmp_next_event(p.q, &event, &p.err), 0);
	assert_int_equal(qmp_execute(p.q, "x-next", NULL, &v, &p.err), 0);
	assert_int_equal(json_object_get_int(v), 60);
	json_object_put(v);
	close_peer(&p);
}

static void what_was_not_answered_is_told(void **state)
{
	static const struct step steps[] = { { NULL, GREETING },
					     { "qmp_capabilities", CAPS },
					     { "x-two", "{\"return\": 20, \"id\": 2}" },
					     { NULL, NULL } };
	struct qmp_call calls[] = { { .command = "x-one" }, { .command = "x-two" } };
	struct peer p;
	int r;

	open_peer(&p, play_end, steps);
	r = qmp_execute_all(p.q, calls, ARRAY_SIZE(calls), &p.err);
	failed(&p, r, -ECONNRESET, "'x-one' and 1 more");
	assert_int_equal(calls[1].r, -ECANCELED);
	qmp_calls_clear(calls, ARRAY_SIZE(calls));
	close_peer(&p);
}

static void play_bytewise(int fd, const void *data)
{
	static const char tail[] = "{\"event\": \"STOP\"}{\"return\": [], \"id\": 2}";

	for (const char *c = GREETING; *c; c++)
		say(fd, c, 1);
	hear(fd, "qmp_capabilities");
	for (const char *c = CAPS; *c; c++)
		say(fd, c, 1);
	hear(fd, "x-cut");
	for (const char *c = tail; *c; c++) {
		say(fd, c, 1);
		usleep(200);
	}
}

static void input_may_be_cut_anywhere(void **state)
{
	struct peer p;

	open_peer(&p, play_bytewise, NULL);
	assert_int_equal(p.r, 0);
	assert_int_equal(qmp_execute(p.q, "x-cut", NULL, NULL, &p.err), 0);
	close_peer(&p);
}

static void play_large(int fd, const void *data)
{
	size_t size = 1 << 20;
	char *blob = malloc(size);

	play_steps(fd, (struct step[]){ { NULL, GREETING }, { "qmp_capabilities", CAPS }, { 0 } });
	/* Says a lot before it reads the large command: neither side may block the other. */
	memset(blob, ' ', size);
	say(fd, "{\"event\": \"A\"}", 14);
	say(fd, blob, size);
	hear(fd, "\"end\"");
	say(fd, "{\"return\": \"", 12);
	memset(blob, 'r', size);
	say(fd, blob, size);
	say(fd, "\", \"id\": 2}", 11);
	free(blob);
}

static void large_commands_and_replies_pass(void **state)
{
	struct json_object *args, *v = NULL;
	size_t size = 4 << 20;
	char *text = malloc(size);
	struct peer p;

	memset(text, 'c', size);
	text[size - 1] = '\0';
	args = json_object_new_object();
	json_object_object_add(args, "blob", json_object_new_string(text));
	json_object_object_add(args, "last", json_object_new_string("end"));
	free(text);
	open_peer(&p, play_large, NULL);
	assert_int_equal(p.r, 0);
	assert_int_equal(qmp_execute(p.q, "x-large", args, &v, &p.err), 0);
	assert_int_equal(json_object_get_string_len(v), 1 << 20);
	json_object_put(v);
	close_peer(&p);
}

static void errors_of_qemu_are_sentences(void **state)
{
	static const struct step steps[] = {
		{ NULL, GREETING },
		{ "qmp_capabilities", CAPS },
		{ "x-one",
		  "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}}" },
		{ "x-two", "{\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", \"desc\": "
			   "\"unknown\"}}" },
		{ "x-three", "{\"id\": 4, \"error\": 5}" },
		{ "x-four", "{\"id\": 5, \"return\": null}" },
		{ NULL, NULL }
	};
	struct json_object *v = NULL;
	struct peer p;
	int r;

	open_peer(&p, play_steps, steps);
	assert_int_equal(p.r, 0);
	r = qmp_execute(p.q, "x-one", NULL, NULL, &p.err);
	failed(&p, r, -EREMOTEIO, "the source refused 'x-one': no way");
	error_clear(&p.err);
	r = qmp_execute(p.q, "x-two", NULL, NULL, &p.err);
	failed(&p, r, -ENOSYS, "unknown");
	error_clear(&p.err);
	r = qmp_execute(p.q, "x-three", NULL, NULL, &p.err);
	failed(&p, r, -EREMOTEIO, "x-three");
	error_clear(&p.err);
	assert_int_equal(qmp_execute(p.q, "x-four", NULL, &v, &p.err), 0);
	assert_null(v);
	close_peer(&p);
}

static void junk_is_an_error_and_stays_one(void **state)
{
	static const char *const junk[] = {
		"{\"QMP\"", "hello\n",	  "[1, 2]",	  "\"QMP\"",
		"17 ",	    "{\"a\": 1}", "{\"QMP\": 3}", "{\"QMP\": {}}",
		"}}",	    "{'a': 1}",	  "\xff\xfe",	  "{\"return\": {}}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(junk); i++) {
		const struct step steps[] = { { NULL, junk[i] }, { NULL, "\n" }, { NULL, NULL } };
		struct peer p;

		open_peer(&p, play_end, steps);
		/* An object that never ends is a broken connection, in the end. */
		if (p.r != (i ? -EBADMSG : -ECONNRESET) || !p.err.text)
			fail_msg("'%s': %d, %s", junk[i], p.r, p.err.text);
		close_peer(&p);
	}
}

static void play_nul(int fd, const void *data)
{
	say(fd, "\0\0{\"QMP\"", 8);
}

static void play_endless(int fd, const void *data)
{
	static char blob[1 << 16];

	play_steps(fd, (struct step[]){ { NULL, GREETING }, { "qmp_capabilities", CAPS }, { 0 } });
	memset(blob, 'x', sizeof(blob));
	say(fd, "{\"return\": \"", 12);
	for (;;)
		say(fd, blob, sizeof(blob));
}

/* What @data says, without end, and so much at once that there is always something to read. */
static void play_on(int fd, const void *data)
{
	static char blob[1 << 16];
	const char *what = data;
	size_t len = strlen(what), n = 0;

	play_steps(fd, (struct step[]){ { NULL, GREETING }, { "qmp_capabilities", CAPS }, { 0 } });
	for (; n + len <= sizeof(blob); n += len)
		memcpy(blob + n, what, len);
	alarm(60);
	for (;;)
		say(fd, blob, n);
}

static void play_deep(int fd, const void *data)
{
	for (int i = 0; i < 100000; i++)
		say(fd, "[", 1);
}

static void hostile_peers_are_errors(void **state)
{
	struct peer p;
	int r;

	open_peer(&p, play_nul, NULL);
	failed(&p, p.r, -EBADMSG, "no valid JSON");
	close_peer(&p);
	open_peer(&p, play_deep, NULL);
	failed(&p, p.r, -EBADMSG, "no valid JSON");
	close_peer(&p);
	open_peer(&p, play_endless, NULL);
	assert_int_equal(p.r, 0);
	r = qmp_execute(p.q, "x", NULL, NULL, &p.err);
	failed(&p, r, -EMSGSIZE, "without an end");
	error_clear(&p.err);
	/* The client is of no use any more, and says so at once. */
	r = qmp_execute(p.q, "y", NULL, NULL, &p.err);
	failed(&p, r, -EMSGSIZE, "cannot be used any more");
	close_peer(&p);
	open_peer(&p, play_on, "{\"event\": \"E\"}");
	assert_int_equal(p.r, 0);
	p.w.deadline_us = now_us() + 60000000;
	r = qmp_execute(p.q, "x", NULL, NULL, &p.err);
	failed(&p, r, -ENOBUFS, "floods");
	close_peer(&p);
}

static void silence_and_death_are_told_apart(void **state)
{
	static const struct step up[] = { { NULL, GREETING }, { "qmp_capabilities", CAPS }, { 0 } };
	static const struct step dies[] = { { NULL, GREETING },
					    { "qmp_capabilities", CAPS },
					    { "x-die", "{\"event\": \"LAST\"}" },
					    { 0 } };
	struct qmp_event event;
	struct peer p;
	int r;

	open_peer(&p, play_end, (struct step[]){ { 0 } });
	failed(&p, p.r, -ECONNRESET, "closed its monitor");
	close_peer(&p);

	open_peer(&p, play_steps, up);
	assert_int_equal(p.r, 0);
	p.w.deadline_us = now_us() + 50000;
	r = qmp_execute(p.q, "x-hang", NULL, NULL, &p.err);
	failed(&p, r, -ETIMEDOUT, "'x-hang': the source did not answer within 0.");
	error_clear(&p.err);
	p.w.deadline_us = now_us() + 50000;
	r = qmp_wait_event(p.q, "STOP", &event, &p.err);
	failed(&p, r, -ETIMEDOUT, "STOP");
	close_peer(&p);

	/* What it said before it died is not lost. */
	open_peer(&p, play_end, dies);
	assert_int_equal(p.r, 0);
	r = qmp_execute(p.q, "x-die", NULL, NULL, &p.err);
	failed(&p, r, -ECONNRESET, "x-die");
	error_clear(&p.err);
	assert_int_equal(qmp_next_event(p.q, &event, &p.err), 0);
	assert_string_equal(event.name, "LAST");
	close_peer(&p);
}

static void who_never_stops_talking_does_not_stop_the_clock(void **state)
{
	struct qmp_event event;
	struct peer p;
	int r;

	open_peer(&p, play_on, "{\"return\": {}, \"id\": 777}");
	assert_int_equal(p.r, 0);
	p.w.deadline_us = now_us() + 100000;
	r = qmp_execute(p.q, "x", NULL, NULL, &p.err);
	failed(&p, r, -ETIMEDOUT, "'x': the source did not answer within");
	close_peer(&p);

	open_peer(&p, play_on, "{\"event\": \"E\"}");
	assert_int_equal(p.r, 0);
	p.w.deadline_us = now_us() + 100000;
	r = qmp_wait_event(p.q, "STOP", &event, &p.err);
	failed(&p, r, -ETIMEDOUT, "STOP");
	close_peer(&p);
}

static void play_getfd(int fd, const void *data)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	char buf[4096];
	ssize_t n;

	(void)data;
	say(fd, GREETING, strlen(GREETING));
	hear(fd, "qmp_capabilities");
	say(fd, CAPS, strlen(CAPS));
	n = scm_recv(fd, buf, sizeof(buf) - 1, &fds);
	buf[n > 0 ? n : 0] = '\0';
	if (fds.n == 1 && strstr(buf, "\"getfd\"") && strstr(buf, "\"fdname\":\"a-vm\"") &&
	    write(fds.fd[0], "x", 1) == 1)
		say(fd, "{\"return\": {}, \"id\": 2}", strlen("{\"return\": {}, \"id\": 2}"));
	n = scm_recv(fd, buf, sizeof(buf), &fds);
	if (n > 0 && !fds.n)
		say(fd, "{\"return\": {}, \"id\": 3}", strlen("{\"return\": {}, \"id\": 3}"));
}

static void fd_goes_with_one_command_and_no_other(void **state)
{
	struct peer p;
	int ends[2];
	char c = 0;

	(void)state;
	assert_int_equal(pipe(ends), 0);
	open_peer(&p, play_getfd, NULL);
	assert_int_equal(p.r, 0);
	assert_int_equal(qmp_pass_fd(p.q, "a-vm", ends[1], &p.err), 0);
	assert_int_equal(read(ends[0], &c, 1), 1);
	assert_int_equal(c, 'x');
	assert_int_equal(qmp_execute(p.q, "query-status", NULL, NULL, &p.err), 0);
	close_peer(&p);
	close(ends[0]);
	close(ends[1]);
}

static void held_monitor_is_named(void **state)
{
	char dir[] = "/tmp/test-qmp-XXXXXX";
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct waiter w = WAITER_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	struct qmp *q = NULL;
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/qmp", dir);
	assert_int_equal(qmp_connect(addr.sun_path, "the source", &w, &q, &err), -ENOENT);
	assert_non_null(strstr(err.text, addr.sun_path));
	error_clear(&err);

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 1), 0);
	w.deadline_us = now_us() + 50000;
	assert_int_equal(qmp_connect(addr.sun_path, "the source", &w, &q, &err), -EBUSY);
	assert_non_null(strstr(err.text, "held by another client"));
	assert_non_null(strstr(err.hint, "second -qmp socket"));
	assert_null(q);
	close(fd);
	unlink(addr.sun_path);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replies_are_matched_and_events_queued),
		cmocka_unit_test(commands_sent_at_once_get_each_their_reply),
		cmocka_unit_test(what_was_not_answered_is_told),
		cmocka_unit_test(input_may_be_cut_anywhere),
		cmocka_unit_test(large_commands_and_replies_pass),
		cmocka_unit_test(errors_of_qemu_are_sentences),
		cmocka_unit_test(junk_is_an_error_and_stays_one),
		cmocka_unit_test(hostile_peers_are_errors),
		cmocka_unit_test(silence_and_death_are_told_apart),
		cmocka_unit_test(who_never_stops_talking_does_not_stop_the_clock),
		cmocka_unit_test(fd_goes_with_one_command_and_no_other),
		cmocka_unit_test(held_monitor_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
