/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl config: each key of upgraded.conf as it counts, and which line says so. Reads
 * the files itself, so it works without the daemon, and before it is reloaded.
 */
#include "ask.h"
#include "config.h"
#include "options.h"
#include "proto_json.h"
#include "table.h"

#include <string.h>

struct args {
	struct cli *cli;
	const char *root;
};

enum { OPTION_ROOT = 0x200 };

static const char doc[] =
	"Show the configuration as it counts, and where each value comes from.\v"
	"A line that nobody understands is an error: exit code 1. Then upgraded refuses new "
	"upgrades, "
	"and finishes what is under way. After a change: systemctl reload upgraded.service.";

static const struct argp_option options[] = {
	{ "root", OPTION_ROOT, "DIR", 0, "Read the files below DIR instead of /", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case OPTION_ROOT:
		args->root = arg;
		return 0;
	default:
		return options_rest(args->cli, NULL, key, arg, state);
	}
}

static void print_config(const struct cli *cli, const struct config *config)
{
	static const struct column column[] = {
		{ .title = "SECTION" },
		{ .title = "KEY" },
		{ .title = "VALUE" },
		{ .title = "FROM", .min = 24 },
		{ .title = "RANGE", .drop = 1 },
	};
	_cleanup_table_ struct table t;

	table_init(&t, cli, column, ARRAY_SIZE(column));
	for (int key = 0; key < CONFIG_KEYS; key++) {
		const struct config_value *v = &config->value[key];

		table_add(&t, STYLE_DIM, config_section(key));
		table_add(&t, STYLE_PLAIN, config_name(key));
		table_add(&t, v->origin ? STYLE_BOLD : STYLE_PLAIN, v->text);
		table_add(&t, STYLE_PLAIN, v->origin ?: "default");
		table_add(&t, STYLE_DIM, config_range(key));
	}
	table_print(&t, stdout);
}

static void print_config_json(const struct config *config)
{
	json_object *document = json_object_new_object(), *list = json_object_new_array();

	for (int key = 0; key < CONFIG_KEYS; key++) {
		const struct config_value *v = &config->value[key];
		json_object *o = json_object_new_object();

		json_object_object_add(o, "section", json_object_new_string(config_section(key)));
		json_object_object_add(o, "key", json_object_new_string(config_name(key)));
		json_object_object_add(o, "value", json_object_new_string(v->text));
		json_object_object_add(o, "from", json_object_new_string(v->origin ?: ""));
		json_object_object_add(o, "default", json_object_new_string(config_default(key)));
		json_object_object_add(o, "range", json_object_new_string(config_range(key)));
		json_object_array_add(list, o);
	}
	json_object_object_add(document, "config", list);
	puts(proto_json_document(document));
	json_object_put(document);
}

int verb_config(struct cli *cli, int argc, char **argv)
{
	struct args args = { .cli = cli, .root = "" };
	_cleanup_error_ struct error err = ERROR_INIT;
	struct config config = CONFIG_INIT;

	options_parse(options, parse, NULL, doc, argc, argv, &args);
	if (config_load(args.root, &config, &err) < 0) {
		/* A wrong line is not wrong usage of this command. */
		err.code = -EIO;
		return fail(cli, NULL, &err);
	}
	if (cli->json)
		print_config_json(&config);
	else
		print_config(cli, &config);
	config_clear(&config);
	return CLI_DONE;
}
