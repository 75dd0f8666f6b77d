/* SPDX-License-Identifier: GPL-2.0-or-later */
/* upgraded.conf, as the daemon goes by it: see settings.c. */
#ifndef UPGRADED_SETTINGS_H
#define UPGRADED_SETTINGS_H

#include "context.h"
#include "error.h"

/* Reads it, now and again on SIGHUP. -ENOMEM; a wrong line is no error here. */
int settings_load(struct context *ctx);
void settings_clear(struct context *ctx);

/* 0, or -EPERM with what is wrong: then no upgrade begins. */
int settings_right(const struct context *ctx, struct error *err);

size_t settings_max_running(const struct context *ctx);
uint64_t settings_max_blackout_us(const struct context *ctx); /* 0: no budget */
uint64_t settings_phase_timeout_us(const struct context *ctx);

#endif
