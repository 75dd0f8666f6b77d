/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One line to the journal or to stderr: see log.c. */
#ifndef UPGRADED_LOG_H
#define UPGRADED_LOG_H

#include "error.h"

#include <stdint.h>
#include <syslog.h>

/* @vm may be NULL, @upgrade 0; they become the fields UPGRADED_VM and UPGRADED_ID. */
void log_vm(int priority, const char *vm, uint64_t upgrade, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * A record with fields of its own: "NAME=VALUE", NULL-terminated. In the foreground the
 * text alone.
 */
void log_record(int priority, char *const *fields, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define log_line(priority, ...) log_vm(priority, NULL, 0, __VA_ARGS__)

/* "what: the error's sentence (its hint)" */
void log_error(int priority, const char *vm, uint64_t upgrade, const struct error *err,
	       const char *what);

#endif
