/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Command-line values that several verbs take: see options.c. */
#ifndef UPGRADED_OPTIONS_H
#define UPGRADED_OPTIONS_H

#include "cli.h"

/*
 * Has @parser take the arguments of a verb into @args; what it leaves to options_rest() is
 * the common options'. Ends the process on wrong usage and on --help, as argp does.
 */
void options_parse(const struct argp_option *options, argp_parser_t parser, const char *args_doc,
		   const char *doc, int argc, char **argv, void *args);

/* A verb without options of its own: none, or exactly one, VM. */
struct one_vm {
	struct cli *cli; /* first, as cli_options want it */
	char *name;
};

/* As options_parse(), of "VM", or of "[VM]" with @optional. */
void options_one_vm(struct one_vm *args, bool optional, const char *doc, int argc, char **argv);

/* What a verb about a VM and its new VMM takes; first in its own arguments. */
struct one_target {
	struct cli *cli; /* first, as cli_options want it */
	char *name;
	char *vmm; /* absolute path; NULL: the one that the VM runs from */
};

enum { OPTION_VMM = 0x180 };
#define OPTION_VMM_ROW \
	{ "vmm", OPTION_VMM, "PATH", 0, \
	  "Binary of the new VMM (default: the path that the VM runs from)", 0 }

/* For OPTION_VMM. */
void options_take_vmm(char **vmm, const char *arg, struct argp_state *state);

/* The part of such a verb's parser that they share. */
error_t options_target(struct one_target *args, int key, char *arg, struct argp_state *state);

/*
 * What is left to do for a verb's parser: it hands @cli on to the common options, and
 * takes the one VM that the verb is about into *name; @name NULL: the verb takes none.
 */
error_t options_rest(struct cli *cli, char **name, int key, char *arg, struct argp_state *state);

/*
 * A positive number of @unit_us microseconds (1000 for ms); ends the process
 * with a usage error otherwise.
 */
uint64_t options_time(const char *arg, double unit_us, const char *option,
		      struct argp_state *state);

/* A whole number from @min to @max, or a usage error. */
long options_number(const char *arg, long min, long max, const char *what,
		    struct argp_state *state);

/*
 * The absolute path of a program: one with a slash is taken from the working
 * directory, one without from $PATH. NULL if there is no such program.
 */
char *options_program(const char *arg);

/* The absolute path of @arg, symbolic links kept. */
char *options_absolute(const char *arg);

#endif
