/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Logging of the daemon. Under systemd (stderr is the stream that PID 1
 * connected to the journal) a line is a structured record with the VM and the
 * upgrade as fields of their own; in the foreground it is plain text on
 * stderr. Owns nothing: which of the two it is, is asked of stderr each time,
 * so that there is no state to set up before the first line.
 */
#include "log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>

static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	uint64_t dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%" SCNu64 ":%" SCNu64, &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_vm(int priority, const char *vm, uint64_t upgrade, const char *fmt, ...)
{
	char *fields[3] = { NULL };
	_cleanup_free_ char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		text = NULL;
		return;
	}
	if (asprintf(&fields[0], "UPGRADED_VM=%s", vm ?: "") < 0)
		fields[0] = NULL;
	else if (asprintf(&fields[1], "UPGRADED_ID=%" PRIu64, upgrade) < 0)
		fields[1] = NULL;
	log_record(priority, fields, "%s%s%s", vm ?: "", vm ? ": " : "", text);
	free(fields[0]);
	free(fields[1]);
}

void log_record(int priority, char *const *fields, const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL, *message = NULL, *level = NULL;
	_cleanup_free_ struct iovec *record = NULL;
	size_t n = 0;
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (r < 0) {
		text = NULL;
		return;
	}
	if (!stderr_is_journal()) {
		fprintf(stderr, "upgraded: %s\n", text);
		return;
	}
	while (fields[n])
		n++;
	record = calloc(n + 2, sizeof(*record));
	if (!record)
		return;
	for (size_t i = 0; i < n; i++)
		record[i] = (struct iovec){ fields[i], strlen(fields[i]) };
	if (asprintf(&message, "MESSAGE=%s", text) < 0)
		message = NULL;
	else
		record[n++] = (struct iovec){ message, strlen(message) };
	if (asprintf(&level, "PRIORITY=%d", priority) < 0)
		level = NULL;
	else
		record[n++] = (struct iovec){ level, strlen(level) };
	sd_journal_sendv(record, (int)n);
}

void log_error(int priority, const char *vm, uint64_t upgrade, const struct error *err,
	       const char *what)
{
	log_vm(priority, vm, upgrade, "%s: %s%s%s%s", what, err->text ?: "out of memory",
	       err->hint ? " (" : "", err->hint ?: "", err->hint ? ")" : "");
}
