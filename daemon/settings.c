/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded.conf, as the daemon goes by it. A wrong line must not keep the daemon from
 * bringing an upgrade to its end that the one before it began, so it starts all the same,
 * with what counted before or the defaults, says what is wrong, and begins no new upgrade
 * until the file is right and was read again.
 */
#include "settings.h"

#include "log.h"

int settings_load(struct context *ctx)
{
	struct config fresh = CONFIG_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;

	error_clear(&ctx->config_wrong);
	if (config_load(ctx->options.config_root, &fresh, &err) < 0) {
		log_error(LOG_ERR, NULL, 0, &err, "no upgrade begins until this is put right");
		error_move(&ctx->config_wrong, &err);
		if (ctx->config.value[0].text)
			return 0;
		if (config_defaults(&fresh) < 0)
			return -ENOMEM;
	}
	config_clear(&ctx->config);
	ctx->config = fresh;
	return 0;
}

void settings_clear(struct context *ctx)
{
	config_clear(&ctx->config);
	error_clear(&ctx->config_wrong);
}

int settings_right(const struct context *ctx, struct error *err)
{
	if (!ctx->config_wrong.code)
		return 0;
	error_set(err, -EPERM, "the configuration is wrong: %s",
		  ctx->config_wrong.text ?: "out of memory");
	return error_hint(err, "put it right, see upgradectl config, then: systemctl reload "
			       "upgraded.service");
}

size_t settings_max_running(const struct context *ctx)
{
	return ctx->options.max_running ?: (size_t)ctx->config.value[CONFIG_MAX_RUNNING].number;
}

uint64_t settings_max_blackout_us(const struct context *ctx)
{
	return (uint64_t)ctx->config.value[CONFIG_MAX_BLACKOUT].number * 1000;
}

uint64_t settings_phase_timeout_us(const struct context *ctx)
{
	return (uint64_t)ctx->config.value[CONFIG_PHASE_TIMEOUT].number * 1000000;
}
