/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads what a guest got done over time: a file of lines "SECONDS DONE", the time since
 * 1970 on the host's clock and a counter that whoever watches the guest chose (requests,
 * transactions, heartbeats). upgraded does not look into guests; the operator's
 * monitoring does. Lines that begin with '#' are skipped.
 */
#include "work_rate.h"

#include "cleanup.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static int add(struct work_rate *w, uint64_t at_us, double done)
{
	struct work_sample *v;

	/* Doubles, so that a day of milliseconds is not copied a million times. */
	if (!(w->n & (w->n - 1))) {
		v = reallocarray(w->sample, w->n ? w->n * 2 : 1, sizeof(*v));
		if (!v)
			return -ENOMEM;
		w->sample = v;
	}
	w->sample[w->n++] = (struct work_sample){ at_us, done };
	return 0;
}

static int take_line(struct work_rate *w, const char *line, const char *path, size_t number,
		     struct error *err)
{
	double seconds, done;
	int end = -1;
	int r;

	if (line[0] == '#' || !line[strspn(line, " \t\n")])
		return 0;
	if (sscanf(line, "%lf %lf %n", &seconds, &done, &end) != 2 || end < 0 || line[end] ||
	    !isfinite(done) || !(seconds >= 0 && seconds < 1e11)) {
		error_set(err, -EINVAL,
			  "%s, line %zu: not a time and a number, as \"1795176000.25 4711\"", path,
			  number);
		return -EINVAL;
	}
	if (w->n && (uint64_t)(seconds * 1e6) <= w->sample[w->n - 1].at_us)
		return error_set(err, -EINVAL, "%s, line %zu: is not later than the line before",
				 path, number);
	if (w->n && done < w->sample[w->n - 1].done)
		return error_set(err, -EINVAL,
				 "%s, line %zu: less is done than in the line before; it must be a "
				 "counter",
				 path, number);
	r = add(w, (uint64_t)(seconds * 1e6), done);
	return r < 0 ? error_errno(err, r, "%s", path) : 0;
}

int work_rate_read(const char *path, struct work_rate *ret, struct error *err)
{
	_cleanup_work_rate_ struct work_rate w = { 0 };
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	int r;

	if (!f)
		return error_errno(err, -errno, "%s", path);
	for (size_t number = 1; getline(&line, &size, f) >= 0; number++) {
		r = take_line(&w, line, path, number, err);
		if (r < 0)
			return r;
	}
	if (ferror(f))
		return error_set(err, -EIO, "%s cannot be read", path);
	if (w.n < 2)
		return error_set(err, -EINVAL, "%s has fewer than two samples", path);
	*ret = w;
	w = (struct work_rate){ 0 };
	return 0;
}

void work_rate_free(struct work_rate *w)
{
	free(w->sample);
	*w = (struct work_rate){ 0 };
}

double work_done_by(const struct work_rate *w, uint64_t at_us)
{
	const struct work_sample *a, *b;
	size_t low = 0, high = w->n - 1;

	if (at_us <= w->sample[0].at_us)
		return w->sample[0].done;
	if (at_us >= w->sample[high].at_us)
		return w->sample[high].done;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (w->sample[middle].at_us <= at_us)
			low = middle;
		else
			high = middle;
	}
	a = &w->sample[low];
	b = &w->sample[high];
	return a->done +
	       (b->done - a->done) * (double)(at_us - a->at_us) / (double)(b->at_us - a->at_us);
}

double work_relative(const struct work_rate *w, uint64_t from_us, uint64_t to_us,
		     uint64_t before_us)
{
	uint64_t length = to_us - from_us;
	double before;

	if (!w->n || before_us < length || before_us - length < w->sample[0].at_us ||
	    to_us > w->sample[w->n - 1].at_us)
		return -1;
	before = work_done_by(w, before_us) - work_done_by(w, before_us - length);
	return before > 0 ? (work_done_by(w, to_us) - work_done_by(w, from_us)) / before : -1;
}
