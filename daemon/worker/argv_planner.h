/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the argv_*.c files share: the table of options, the plan in the making,
 * and the few verbs to add to it (argv_planner.c).
 */
#ifndef UPGRADED_ARGV_PLANNER_H
#define UPGRADED_ARGV_PLANNER_H

#include "argv_opts.h"
#include "argv_plan.h"

struct planner;
struct argv_option;

typedef void (*argv_rewrite_t)(struct planner *p, const struct argv_option *o, const char *arg);

enum argv_class {
	ARGV_KEEP,    /* stands in the target's line as it is */
	ARGV_DROP,    /* does not, and need not */
	ARGV_REWRITE, /* .rewrite decides */
	ARGV_WARN,    /* kept; something a user can see changes */
	ARGV_BLOCK,   /* cannot be carried */
};

struct argv_option {
	const char *name;
	bool has_arg;
	enum argv_class class;
	argv_rewrite_t rewrite;
	const char *reason; /* one sentence for check and docs/limits.md */
	const char *remedy;
};

/* The table: every option of QEMU 10.0 to 11.1. It ends with a NULL name. */
extern const struct argv_option argv_options[];

/* Finds "-name" or "--name"; NULL if it is in no row. */
const struct argv_option *argv_option_find(const char *word);

/* One memory backend of the command line: see argv_memory.c. */
struct plan_memory {
	char *id;
	char *type;
	char *path;
	bool shared;
};

/*
 * The plan in the making. Memory that ran out is remembered in @rc instead of
 * being returned by every verb, so that the rules read as rules; the walk
 * looks at it once per option and the plan is thrown away.
 */
struct planner {
	const struct plan_input *in;
	struct argv_plan *plan;
	size_t n_argv, n_pidfiles, n_commands;
	int rc;
	int next_fd;
	int next_id;
	bool *fd_claimed;    /* per in->fds: it went to a tap */
	bool *fdset_claimed; /* per in->fdsets */
	bool carried_vnc;    /* the VNC socket on the line is one of ours */
	/* Seen so far; judged by the *_finish() functions. */
	bool nodefaults, net, display, machine_type, cpu, aux_ram_share, vnc_tcp, pidfile;
	char *ram_size, *ram_backend;
	bool guest_memfd; /* -machine guest-memfd=on: main RAM is shared without more words */
	bool mem_path;
	bool numa_plain;
	struct plan_memory *memory;
	size_t n_memory;
	char **memdevs; /* what -numa node,memdev= names; NULL-terminated */
};

/* Adds words to the target's line; @arg may be NULL. */
void plan_emit(struct planner *p, const char *option, const char *arg);
/* As "-NAME ARG", from the table's row. */
void plan_keep(struct planner *p, const struct argv_option *o, const char *arg);
/* Writes @opts behind "-NAME". */
void plan_emit_opts(struct planner *p, const char *option, const struct opts *opts);

/* Parses; a finding and NULL when it cannot be read. */
struct opts *plan_parse(struct planner *p, const struct argv_option *o, const char *arg,
			const char *implied);
void plan_set(struct planner *p, struct opts *o, const char *key, const char *value);

void plan_note(struct planner *p, const char *code, const char *subject, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void plan_warn(struct planner *p, const char *code, const char *subject, const char *remedy,
	       const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void plan_block(struct planner *p, const char *code, const char *subject, const char *remedy,
		const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Has fd @source of the source duplicated; returns the target's number for it. */
int plan_carry_fd(struct planner *p, int source, bool tap);
/* The index in in->fds, or -ENOENT. */
int plan_find_fd(const struct planner *p, int fd);

/* @path without the suffix that an earlier upgrade gave it. Free it. */
char *plan_plain_path(struct planner *p, const char *path);
/* A name beside @path for the target; renamed back when the source is dead. Free it. */
char *plan_rename_path(struct planner *p, const char *path);
/* A name for the target only, in the directory of the incoming sockets. Free it. */
char *plan_private_path(struct planner *p, const char *name);
/* An id that the line does not have yet. Free it. */
char *plan_new_id(struct planner *p, const char *what);
/* Formats; remembers when memory ran out. Free it; never NULL unless p->rc. */
char *plan_format(struct planner *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void plan_pidfile(struct planner *p, const char *path);
/* Takes @command over: a QMP command for the target once the source is dead. */
void plan_command(struct planner *p, struct json_object *command);
/* The same for a command of the human monitor. */
void plan_hmp(struct planner *p, const char *line);

bool plan_word_in(const char *word, const char *const *list);
bool plan_matches(const char *name, const char *const *patterns);

/* argv_carried.c: what the last plan left on the line for this one */
bool carried_is(const char *object_arg);
void carried_read(struct planner *p, const char *object_arg);
void carried_write(struct planner *p);

/* The rules, one file per subject. */
void argv_machine(struct planner *p, const struct argv_option *o, const char *arg);
void argv_cpu(struct planner *p, const struct argv_option *o, const char *arg);
void argv_m(struct planner *p, const struct argv_option *o, const char *arg);
void argv_numa(struct planner *p, const struct argv_option *o, const char *arg);
void argv_mem_path(struct planner *p, const struct argv_option *o, const char *arg);
void memory_object(struct planner *p, const struct argv_option *o, struct opts *opts,
		   const char *arg);
void memory_finish(struct planner *p);

void argv_object(struct planner *p, const struct argv_option *o, const char *arg);
void argv_device(struct planner *p, const struct argv_option *o, const char *arg);
void argv_usbdevice(struct planner *p, const struct argv_option *o, const char *arg);
void argv_audiodev(struct planner *p, const struct argv_option *o, const char *arg);

void argv_drive(struct planner *p, const struct argv_option *o, const char *arg);
void argv_blockdev(struct planner *p, const struct argv_option *o, const char *arg);

void argv_chardev(struct planner *p, const struct argv_option *o, const char *arg);
void argv_chardev_short(struct planner *p, const struct argv_option *o, const char *arg);
void argv_gdb(struct planner *p, const struct argv_option *o, const char *arg);

void argv_net(struct planner *p, const struct argv_option *o, const char *arg);
void net_survey(struct planner *p);
void net_finish(struct planner *p);

void argv_vnc(struct planner *p, const struct argv_option *o, const char *arg);
void argv_display(struct planner *p, const struct argv_option *o, const char *arg);
void argv_spice(struct planner *p, const struct argv_option *o, const char *arg);
void argv_nographic(struct planner *p, const struct argv_option *o, const char *arg);
void display_finish(struct planner *p);

void argv_pidfile(struct planner *p, const struct argv_option *o, const char *arg);
void argv_logfile(struct planner *p, const struct argv_option *o, const char *arg);
void argv_trace(struct planner *p, const struct argv_option *o, const char *arg);
void argv_run_with(struct planner *p, const struct argv_option *o, const char *arg);
void argv_add_fd(struct planner *p, const struct argv_option *o, const char *arg);
void add_fd_finish(struct planner *p);
void argv_icount(struct planner *p, const struct argv_option *o, const char *arg);
void argv_set(struct planner *p, const struct argv_option *o, const char *arg);
void argv_nodefaults(struct planner *p, const struct argv_option *o, const char *arg);

/* One listening socket of the source (argv_listen.c). */
struct listen_want {
	const char *host; /* "": any */
	int port, to;
};
/*
 * Finds the source's listening fd; *ret_port is the port it has. Warns when
 * the source listens on further addresses. The fd, or -ENOENT.
 */
int listen_find_tcp(struct planner *p, const char *subject, const struct listen_want *want,
		    int *ret_port);
int listen_find_unix(const struct planner *p, const char *name);

#endif
