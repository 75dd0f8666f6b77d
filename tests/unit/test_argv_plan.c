/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The argv plan against golden files: argv/NAME.in.json holds a command line
 * and the facts about its process, argv/NAME.out.json the plan that must come
 * of it. With UPDATE_GOLDEN=1 the .out files are written anew; read the diff
 * before you commit it. Where there is no blocker, the plan of the plan, made
 * as if the target were the source, must be the plan again: nothing piles up.
 */
#include "argv_opts.h"
#include "argv_plan.h"
#include "argv_planner.h"
#include "cleanup.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define BINARY "/opt/qemu-11.1/bin/qemu-system-x86_64"

static const char *str(struct json_object *j, const char *key, const char *missing)
{
	struct json_object *v = NULL;

	return json_object_object_get_ex(j, key, &v) ? json_object_get_string(v) : missing;
}

static char **strings(struct json_object *list)
{
	size_t n = list ? json_object_array_length(list) : 0;
	char **v = calloc(n + 1, sizeof(*v));

	for (size_t i = 0; i < n; i++)
		v[i] = strdup(json_object_get_string(json_object_array_get_idx(list, i)));
	return v;
}

static char *copy(const char *s)
{
	return s ? strdup(s) : NULL;
}

static void input_read(struct json_object *j, struct plan_input *in)
{
	struct json_object *list;

	*in = (struct plan_input){
		.argv = strings(json_object_object_get(j, "argv")),
		.target_binary = str(j, "target_binary", BINARY),
		.machine = str(j, "machine", NULL),
		.cpu = str(j, "cpu", NULL),
		.qmp = str(j, "qmp", NULL),
		.suffix = str(j, "suffix", ".upgraded-17"),
		.incoming_main = str(j, "incoming_main", "/run/upgraded/17/main.sock"),
		.incoming_cpr = str(j, "incoming_cpr", "/run/upgraded/17/cpr.sock"),
		.no_guest_memfd = json_object_get_boolean(
			json_object_object_get(j, "no_guest_memfd")),
	};
	list = json_object_object_get(j, "fds");
	in->n_fds = list ? json_object_array_length(list) : 0;
	in->fds = calloc(in->n_fds + 1, sizeof(*in->fds));
	for (size_t i = 0; i < in->n_fds; i++) {
		struct json_object *e = json_object_array_get_idx(list, i);

		in->fds[i].fd = json_object_get_int(json_object_object_get(e, "fd"));
		in->fds[i].link = copy(str(e, "link", "socket:[1]"));
		in->fds[i].tap = copy(str(e, "tap", NULL));
		in->fds[i].listen = copy(str(e, "listen", NULL));
	}
	list = json_object_object_get(j, "fdsets");
	in->n_fdsets = list ? json_object_array_length(list) : 0;
	in->fdsets = calloc(in->n_fdsets + 1, sizeof(*in->fdsets));
	for (size_t i = 0; i < in->n_fdsets; i++) {
		struct json_object *e = json_object_array_get_idx(list, i);

		in->fdsets[i].set = json_object_get_int64(json_object_object_get(e, "set"));
		in->fdsets[i].fd = json_object_get_int(json_object_object_get(e, "fd"));
		in->fdsets[i].opaque = copy(str(e, "opaque", NULL));
	}
}

static void input_clear(struct plan_input *in)
{
	strv_freep(&in->argv);
	for (size_t i = 0; i < in->n_fds; i++) {
		free(in->fds[i].link);
		free(in->fds[i].tap);
		free(in->fds[i].listen);
	}
	free(in->fds);
	for (size_t i = 0; i < in->n_fdsets; i++)
		free(in->fdsets[i].opaque);
	free(in->fdsets);
}

static struct json_object *words(char **v)
{
	struct json_object *list = json_object_new_array();

	for (; v && *v; v++)
		json_object_array_add(list, json_object_new_string(*v));
	return list;
}

static void add_format(struct json_object *list, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void add_format(struct json_object *list, const char *fmt, ...)
{
	_cleanup_free_ char *s = NULL;
	va_list ap;

	va_start(ap, fmt);
	assert_true(vasprintf(&s, fmt, ap) >= 0);
	va_end(ap);
	json_object_array_add(list, json_object_new_string(s));
}

static struct json_object *findings_json(const struct findings *f)
{
	static const char *const severity[] = { "?", "note", "WARNING", "BLOCKER" };
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < f->n; i++) {
		const Finding *x = f->v[i];

		add_format(list, "%s %s: %s: %s%s%s", severity[x->severity], x->code, x->subject,
			   x->text, *x->remedy ? " -> " : "", x->remedy);
	}
	return list;
}

static struct json_object *plan_json(const struct argv_plan *plan)
{
	struct json_object *j = json_object_new_object(), *list = json_object_new_array();

	json_object_object_add(j, "argv", words(plan->argv));
	for (size_t i = 0; i < plan->n_fds; i++)
		if (plan->fds[i].source == PLAN_NEW_VHOST)
			add_format(list, "/dev/vhost-net -> %d", plan->fds[i].target);
		else
			add_format(list, "%d -> %d%s", plan->fds[i].source, plan->fds[i].target,
				   plan->fds[i].tap ? " (tap)" : "");
	json_object_object_add(j, "fds", list);
	list = json_object_new_array();
	for (size_t i = 0; i < plan->n_renames; i++)
		add_format(list, "%s -> %s", plan->renames[i].from, plan->renames[i].to);
	json_object_object_add(j, "renames", list);
	json_object_object_add(j, "pidfiles", words(plan->pidfiles));
	json_object_object_add(j, "commands", words(plan->commands));
	json_object_object_add(j, "qmp", plan->qmp ? json_object_new_string(plan->qmp) : NULL);
	json_object_object_add(j, "findings", findings_json(&plan->findings));
	return j;
}

static char *pretty(struct json_object *j)
{
	char *s;

	assert_true(asprintf(&s, "%s\n",
			     json_object_to_json_string_ext(j, JSON_C_TO_STRING_PRETTY |
								       JSON_C_TO_STRING_SPACED |
								       JSON_C_TO_STRING_NOSLASHESCAPE)) >= 0);
	return s;
}

static char *slurp(const char *path)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char *s = NULL;
	size_t n = 0;

	if (!f || getdelim(&s, &n, '\0', f) < 0) {
		free(s);
		return NULL;
	}
	return s;
}

static void spill(const char *path, const char *text)
{
	_cleanup_fclose_ FILE *f = fopen(path, "we");

	assert_non_null(f);
	fputs(text, f);
}

/* Prints the lines around the first difference, both ways. */
static void show_difference(const char *name, const char *want, const char *have)
{
	const char *w = want, *h = have;

	while (*w && *h) {
		size_t nw = strcspn(w, "\n"), nh = strcspn(h, "\n");

		if (nw != nh || memcmp(w, h, nw)) {
			print_error("%s:\n- %.*s\n+ %.*s\n", name, (int)nw, w, (int)nh, h);
			break;
		}
		w += nw + (w[nw] == '\n');
		h += nh + (h[nh] == '\n');
	}
	print_error("%s: the whole plan is now:\n%s\n", name, have);
}

/* As if the target of the plan were the source of the next upgrade. */
static void become_source(struct plan_input *in, const struct argv_plan *plan,
			  struct source_fd **ret_fds, struct source_fdset **ret_sets)
{
	struct source_fd *fds = calloc(plan->n_fds + 1, sizeof(*fds));
	struct source_fdset *sets = calloc(plan->n_fds + 1, sizeof(*sets));
	size_t n_sets = 0;

	for (size_t i = 0; i < plan->n_fds; i++) {
		fds[i].fd = plan->fds[i].target;
		for (size_t k = 0; k < in->n_fds; k++)
			if (in->fds[k].fd == plan->fds[i].source) {
				fds[i] = in->fds[k];
				fds[i].fd = plan->fds[i].target;
			}
		for (size_t k = 0; k < in->n_fdsets; k++)
			if (in->fdsets[k].fd == plan->fds[i].source) {
				sets[n_sets] = in->fdsets[k];
				sets[n_sets++].fd = plan->fds[i].target;
			}
	}
	*ret_fds = fds;
	*ret_sets = sets;
	in->argv = plan->argv;
	in->fds = fds;
	in->n_fds = plan->n_fds;
	in->fdsets = sets;
	in->n_fdsets = n_sets;
}

static void drop_findings(struct json_object *j)
{
	json_object_object_del(j, "findings");
	json_object_object_del(j, "fds");
}

/* Neither suffixes nor fd numbers nor options may pile up. */
static int check_plan_of_plan(const char *name, const struct plan_input *first,
			      const struct argv_plan *plan)
{
	_cleanup_(argv_plan_freep) struct argv_plan *again = NULL;
	_cleanup_free_ struct source_fd *fds = NULL;
	_cleanup_free_ struct source_fdset *sets = NULL;
	_cleanup_free_ char *want = NULL, *have = NULL;
	struct plan_input in = *first;
	struct json_object *a, *b;

	become_source(&in, plan, &fds, &sets);
	assert_int_equal(argv_plan_make(&in, &again, NULL), 0);
	a = plan_json(plan);
	b = plan_json(again);
	drop_findings(a);
	drop_findings(b);
	want = pretty(a);
	have = pretty(b);
	json_object_put(a);
	json_object_put(b);
	if (!strcmp(want, have) &&
	    !findings_count(&again->findings, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER))
		return 0;
	show_difference(name, want, have);
	b = findings_json(&again->findings);
	print_error("%s\n", json_object_to_json_string_ext(b, JSON_C_TO_STRING_PRETTY));
	json_object_put(b);
	return 1;
}

static int check_one(const char *path)
{
	_cleanup_(argv_plan_freep) struct argv_plan *plan = NULL;
	_cleanup_(input_clear) struct plan_input in = { 0 };
	_cleanup_free_ char *out = NULL, *have = NULL, *want = NULL, *text = slurp(path);
	_cleanup_error_ struct error err = ERROR_INIT;
	struct json_object *j = text ? json_tokener_parse(text) : NULL, *result;
	int failed = 0;

	if (!j) {
		print_error("%s: not JSON\n", path);
		return 1;
	}
	assert_true(asprintf(&out, "%.*sout.json", (int)(strlen(path) - strlen("in.json")),
			     path) > 0);
	input_read(j, &in);
	if (argv_plan_make(&in, &plan, &err) < 0) {
		result = json_object_new_object();
		json_object_object_add(result, "error", json_object_new_string(err.text ?: ""));
	} else {
		result = plan_json(plan);
	}
	have = pretty(result);
	json_object_put(result);
	if (getenv("UPDATE_GOLDEN"))
		spill(out, have);
	want = slurp(out);
	if (!want || strcmp(want, have)) {
		show_difference(path, want ?: "", have);
		failed++;
	}
	if (plan && !findings_count(&plan->findings, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER))
		failed += check_plan_of_plan(path, &in, plan);
	json_object_put(j);
	return failed;
}

static void golden_files_hold(void **state)
{
	int failed = 0;
	glob_t g;

	assert_int_equal(glob(ARGV_GOLDEN_DIR "/*.in.json", 0, NULL, &g), 0);
	for (size_t i = 0; i < g.gl_pathc; i++)
		failed += check_one(g.gl_pathv[i]);
	print_message("%zu golden files\n", g.gl_pathc);
	globfree(&g);
	assert_int_equal(failed, 0);
}

static int make(char **argv, struct argv_plan **ret, struct error *err)
{
	const struct plan_input in = {
		.argv = argv, .target_binary = BINARY, .suffix = ".upgraded-1", .qmp = "/q",
		.incoming_main = "/r/m", .incoming_cpr = "/r/c",
	};

	return argv_plan_make(&in, ret, err);
}

static void a_line_that_is_none_is_an_error(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct argv_plan *plan = NULL;

	assert_int_equal(make((char *[]){ NULL }, &plan, &err), -EINVAL);
	assert_null(plan);
	error_clear(&err);
	assert_int_equal(make((char *[]){ "qemu", "-S", "-device", NULL }, &plan, &err), -EINVAL);
	assert_non_null(strstr(err.text, "-device"));
}

/* No option may crash on an argument that is not what it expects. */
static void every_option_survives_hostile_arguments(void **state)
{
	static const char *const hostile[] = {
		"", ",", ",,", ",,,", "=", "=,=", "a=", ",a", "{", "{}", "{\"", "[1]", "{}x", "mon:",
		"unix:", "unix:,server", "tcp:", "tcp::", "tcp:[::1]:5", "tcp:[:5", "file:", "udp:@",
		"udp::1@:", "socket", "socket,server", "socket,fd=", "socket,fd=99999999999999999999",
		"tap,fd=", "tap,fds=1::2", "tap,fds=:", "{\"type\":\"tap\",\"fd\":[]}",
		"{\"type\":5}", "{\"type\":{\"a\":1}}", "{\"type\":\"user\",\"hostfwd\":[1,{},null]}",
		"{\"type\":\"user\",\"hostfwd\":7}", "{\"qom-type\":null}",
		"{\"qom-type\":\"memory-backend-memfd\"}", "{\"driver\":null,\"a\":{\"driver\":[]}}",
		"secret,id=upgraded-carried", "secret,id=upgraded-carried,data={\"pidfiles\":[1,,null]}",
		"secret,id=upgraded-carried,data={\"commands\":[1,,{},,{\"execute\":3}]}",
		":", "::", "[::1]:", ":1,to=", ":x", "unix:,to=3", "set=", "set=0,fd=x", "bridge", "user",
		"user,hostfwd", "dgram,local.type=fd", "dgram,local.type=fd,local.str=", "vnc=", "json:{",
		"file=json:{\"driver\":", "file=::", "chardev:", "backend", "id=x", "\xff\xfe=\xff",
	};
	size_t n = 0;

	for (const struct argv_option *o = argv_options; o->name; o++) {
		_cleanup_free_ char *option = NULL;

		assert_true(asprintf(&option, "-%s", o->name) > 0);
		for (size_t i = 0; i < ARRAY_SIZE(hostile); i++, n++) {
			_cleanup_(argv_plan_freep) struct argv_plan *plan = NULL;
			char *argv[] = { "qemu", option, (char *)hostile[i], NULL };

			if (make(argv, &plan, NULL) == 0)
				assert_string_equal(plan->argv[0], BINARY);
		}
	}
	print_message("%zu pairs\n", n);
}

static void ten_thousand_options_are_planned(void **state)
{
	const size_t n = 10000;
	_cleanup_free_ char **argv = calloc(2 * n + 2, sizeof(*argv));
	_cleanup_(argv_plan_freep) struct argv_plan *plan = NULL;

	argv[0] = "qemu";
	for (size_t i = 0; i < n; i++) {
		argv[1 + 2 * i] = i % 3 ? "-serial" : "-netdev";
		argv[2 + 2 * i] = i % 3 ? "file:/tmp/x,y" : "user,id=a,hostfwd=tcp::1-:2";
	}
	assert_int_equal(make(argv, &plan, NULL), 0);
	assert_true(plan->argv != NULL);
}

static unsigned int next_random(unsigned int *seed)
{
	*seed = *seed * 1103515245u + 12345u;
	return *seed >> 16;
}

/* What is printed reads back as the same keys and values, commas and all. */
static void key_values_round_trip(void **state)
{
	static const char alphabet[] = "ab,,=.x \"";
	unsigned int seed = 7;

	for (int round = 0; round < 20000; round++) {
		_cleanup_opts_ struct opts *a = NULL, *b = NULL;
		_cleanup_free_ char *once = NULL, *twice = NULL;
		char text[24];
		size_t len = next_random(&seed) % (sizeof(text) - 1);

		for (size_t i = 0; i < len; i++)
			text[i] = alphabet[next_random(&seed) % (sizeof(alphabet) - 1)];
		text[len] = '\0';
		assert_int_equal(opts_parse(text, round % 2 ? "first" : NULL, &a), 0);
		assert_int_equal(opts_print(a, &once), 0);
		assert_int_equal(opts_parse(once, round % 2 ? "first" : NULL, &b), 0);
		assert_int_equal(opts_print(b, &twice), 0);
		if (a->n != b->n || strcmp(once, twice))
			fail_msg("\"%s\" became \"%s\", then \"%s\"", text, once, twice);
		for (size_t i = 0; i < a->n; i++) {
			assert_string_equal(a->v[i].key, b->v[i].key);
			assert_string_equal(a->v[i].value ?: "(bare)", b->v[i].value ?: "(bare)");
		}
	}
}

static void old_booleans_are_understood(void **state)
{
	_cleanup_opts_ struct opts *o = NULL;
	_cleanup_free_ char *text = NULL;

	assert_int_equal(opts_parse("/a,,b,server,nowait", "path", &o), 0);
	assert_string_equal(opts_get(o, "path"), "/a,b");
	assert_true(opts_on(o, "server", false));
	assert_false(opts_on(o, "wait", true));
	assert_int_equal(opts_set(o, "wait", "off"), 0);
	assert_int_equal(opts_print(o, &text), 0);
	assert_string_equal(text, "/a,,b,server,wait=off");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_files_hold),
		cmocka_unit_test(a_line_that_is_none_is_an_error),
		cmocka_unit_test(every_option_survives_hostile_arguments),
		cmocka_unit_test(ten_thousand_options_are_planned),
		cmocka_unit_test(key_values_round_trip),
		cmocka_unit_test(old_booleans_are_understood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
