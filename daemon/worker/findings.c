/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The list of what `check` found. Filled by the argv plan and the probes, sent
 * as it is in CheckReport and Report. Owns its entries, which are protobuf
 * messages made by hand with malloc()ed strings.
 */
#include "findings.h"

#include "cleanup.h"

#include <stdarg.h>
#include <string.h>

static void finding_free(Finding *f)
{
	if (!f)
		return;
	free(f->code);
	free(f->subject);
	free(f->text);
	free(f->remedy);
	free(f);
}

int findings_add(struct findings *f, Upgraded__V1__Severity severity, const char *code,
		 const char *subject, const char *remedy, const char *fmt, ...)
{
	Finding *new, **v;
	va_list ap;
	int n;

	v = reallocarray(f->v, f->n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	f->v = v;
	new = malloc(sizeof(*new));
	if (!new)
		return -ENOMEM;
	upgraded__v1__finding__init(new);
	new->severity = severity;
	new->code = strdup(code);
	new->subject = strdup(subject ?: "");
	new->remedy = strdup(remedy ?: "");
	va_start(ap, fmt);
	n = vasprintf(&new->text, fmt, ap);
	va_end(ap);
	if (n < 0)
		new->text = NULL;
	if (!new->code || !new->subject || !new->remedy || !new->text) {
		finding_free(new);
		return -ENOMEM;
	}
	f->v[f->n++] = new;
	return 0;
}

size_t findings_count(const struct findings *f, Upgraded__V1__Severity severity)
{
	size_t count = 0;

	for (size_t i = 0; i < f->n; i++)
		count += f->v[i]->severity == severity;
	return count;
}

int findings_move(struct findings *to, struct findings *from)
{
	Finding **v;

	if (!from->n)
		return 0;
	v = reallocarray(to->v, to->n + from->n, sizeof(*v));
	if (!v)
		return -ENOMEM;
	to->v = v;
	memcpy(to->v + to->n, from->v, from->n * sizeof(*v));
	to->n += from->n;
	free(from->v);
	*from = (struct findings)FINDINGS_INIT;
	return 0;
}

void findings_clear(struct findings *f)
{
	for (size_t i = 0; i < f->n; i++)
		finding_free(f->v[i]);
	free(f->v);
	*f = (struct findings)FINDINGS_INIT;
}
