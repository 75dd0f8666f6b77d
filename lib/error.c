/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Error values: see error.h. Used by every program of the project. Owns the
 * strings of a struct error until error_clear(). Losing the text to a lack of
 * memory is accepted; losing the code is not.
 */
#include "error.h"

#include <stdarg.h>
#include <string.h>

static char *format(const char *fmt, va_list ap)
{
	char *s;

	return vasprintf(&s, fmt, ap) < 0 ? NULL : s;
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code)
		return code;
	va_start(ap, fmt);
	err->text = format(fmt, ap);
	va_end(ap);
	err->code = code;
	return code;
}

int error_errno(struct error *err, int code, const char *fmt, ...)
{
	_cleanup_free_ char *what = NULL;
	va_list ap;

	if (!err || err->code)
		return code;
	va_start(ap, fmt);
	what = format(fmt, ap);
	va_end(ap);
	return error_set(err, code, "%s: %s", what ?: "?", strerror(-code));
}

int error_hint(struct error *err, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return 0;
	if (!err->hint) {
		va_start(ap, fmt);
		err->hint = format(fmt, ap);
		va_end(ap);
	}
	return err->code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
	_cleanup_free_ char *prefix = NULL;
	char *text;
	va_list ap;

	if (!err || !err->code)
		return 0;
	va_start(ap, fmt);
	prefix = format(fmt, ap);
	va_end(ap);
	if (prefix && asprintf(&text, "%s: %s", prefix, err->text ?: "") >= 0) {
		free(err->text);
		err->text = text;
	}
	return err->code;
}

void error_move(struct error *dst, struct error *src)
{
	*dst = *src;
	*src = (struct error)ERROR_INIT;
}

void error_clear(struct error *err)
{
	free(err->text);
	free(err->hint);
	*err = (struct error)ERROR_INIT;
}
