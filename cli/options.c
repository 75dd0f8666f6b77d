/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Command-line values that several verbs take, and the options that all of
 * them take. A wrong value ends the process here with exit code 2, before the
 * daemon was asked anything.
 */
#include "options.h"

#include <math.h>
#include <string.h>

enum { OPTION_JSON = 0x100, OPTION_SOCKET, OPTION_NO_COLOR };

static const struct argp_option common[] = {
	{ "json", OPTION_JSON, NULL, 0, "Print JSON instead of text", 0 },
	{ "socket", OPTION_SOCKET, "PATH", 0,
	  "Socket of the daemon (default: $UPGRADED_SOCKET or " CLIENT_CONTROL_SOCKET ")", 0 },
	{ "no-color", OPTION_NO_COLOR, NULL, 0, "No colours, also not on a terminal", 0 },
	{ 0 },
};

static error_t parse_common(int key, char *arg, struct argp_state *state)
{
	struct cli *cli = state->input;

	switch (key) {
	case OPTION_JSON:
		cli->json = true;
		return 0;
	case OPTION_SOCKET:
		cli->socket = arg;
		return 0;
	case OPTION_NO_COLOR:
		cli->no_color = true;
		cli->color = false;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp common_argp = { .options = common, .parser = parse_common };

const struct argp_child cli_options[] = {
	{ &common_argp, 0, "Options of every verb:", 1 },
	{ 0 },
};

static void take_vm(char **name, char *arg, struct argp_state *state)
{
	if (*name)
		argp_error(state, "one VM at a time, not also '%s'", arg);
	if (!*arg)
		argp_error(state, "the name of a VM is not empty");
	*name = arg;
}

error_t options_rest(struct cli *cli, char **name, int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = cli;
		return 0;
	case ARGP_KEY_ARG:
		if (!name)
			argp_error(state, "it takes no argument, not '%s'", arg);
		take_vm(name, arg, state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

void options_parse(const struct argp_option *options, argp_parser_t parser, const char *args_doc,
		   const char *doc, int argc, char **argv, void *args)
{
	struct argp argp = {
		.options = options,
		.parser = parser,
		.args_doc = args_doc,
		.doc = doc,
		.children = cli_options,
	};

	argp_parse(&argp, argc, argv, 0, NULL, args);
}

static error_t parse_one_vm(int key, char *arg, struct argp_state *state)
{
	struct one_vm *args = state->input;

	return options_rest(args->cli, &args->name, key, arg, state);
}

void options_one_vm(struct one_vm *args, bool optional, const char *doc, int argc, char **argv)
{
	options_parse(NULL, parse_one_vm, optional ? "[VM]" : "VM", doc, argc, argv, args);
	if (!args->name && !optional) {
		fprintf(stderr, "%s: which VM?\n  try: upgradectl list\n", argv[0]);
		exit(CLI_USAGE);
	}
}

void options_take_vmm(char **vmm, const char *arg, struct argp_state *state)
{
	free(*vmm);
	*vmm = options_program(arg);
	if (!*vmm)
		argp_error(state, "there is no program '%s' in $PATH", arg);
}

error_t options_target(struct one_target *args, int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case OPTION_VMM:
		options_take_vmm(&args->vmm, arg, state);
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which VM?");
		return 0;
	default:
		return options_rest(args->cli, &args->name, key, arg, state);
	}
}

uint64_t options_time(const char *arg, double unit_us, const char *option, struct argp_state *state)
{
	char *end;
	double value = strtod(arg, &end);

	if (end == arg || *end || !isfinite(value) || value <= 0 || value * unit_us > 1e13 ||
	    value * unit_us < 1)
		argp_error(state, "%s wants a positive number, not '%s'", option, arg);
	return (uint64_t)(value * unit_us + 0.5);
}

long options_number(const char *arg, long min, long max, const char *what, struct argp_state *state)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(arg, &end, 10);
	if (errno || end == arg || *end || value < min || value > max)
		argp_error(state, "%s is a number from %ld to %ld, not '%s'", what, min, max, arg);
	return value;
}

char *options_absolute(const char *arg)
{
	_cleanup_free_ char *here = NULL;
	char *path;

	if (arg[0] == '/')
		return strdup(arg);
	here = getcwd(NULL, 0);
	if (!here || asprintf(&path, "%s/%s", here, arg) < 0)
		return NULL;
	return path;
}

char *options_program(const char *arg)
{
	_cleanup_free_ char *dirs = NULL;
	char *save, *path;

	if (strchr(arg, '/'))
		return options_absolute(arg);
	dirs = strdup(getenv("PATH") ?: "/usr/bin:/bin");
	if (!dirs)
		return NULL;
	for (char *dir = strtok_r(dirs, ":", &save); dir; dir = strtok_r(NULL, ":", &save)) {
		if (dir[0] != '/' || asprintf(&path, "%s/%s", dir, arg) < 0)
			continue;
		if (!access(path, X_OK))
			return path;
		free(path);
	}
	return NULL;
}
