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
#include <sys/stat.h>
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
	if (stderr_is_journal())
		sd_journal_send("MESSAGE=%s%s%s", vm ?: "", vm ? ": " : "", text,
				"PRIORITY=%i", priority,
				"UPGRADED_VM=%s", vm ?: "",
				"UPGRADED_ID=%" PRIu64, upgrade, NULL);
	else
		fprintf(stderr, "upgraded: %s%s%s\n", vm ?: "", vm ? ": " : "", text);
}

void log_error(int priority, const char *vm, uint64_t upgrade, const struct error *err,
	       const char *what)
{
	log_vm(priority, vm, upgrade, "%s: %s%s%s%s", what, err->text ?: "out of memory",
	       err->hint ? " (" : "", err->hint ?: "", err->hint ? ")" : "");
}
