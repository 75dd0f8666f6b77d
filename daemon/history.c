/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reports of past upgrades, for `upgradectl history`. upgrade_end.c appends,
 * control.c reads. Kept in the state directory, across reboots; nothing is
 * ever decided by it, so an error here is logged and goes no further, also when
 * the daemon starts: there may be an upgrade to be taken up. One file
 * and its predecessor: above the size limit history becomes history.1.
 * Owns the open file. A death inside an append costs that one report.
 */
#include "history.h"

#include "frames.h"
#include "log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

struct history {
	int fd;
	char *path;
	char *old_path;
	off_t rotate_bytes;
};

struct collect {
	const char *name;
	uint32_t limit;
	Report **v;
	size_t n;
	uint64_t last_id;
};

/* Keeps the last @limit of what is read, oldest first. */
static int collect_one(const void *data, size_t len, void *userdata)
{
	_cleanup_message_ Report *report = upgraded__v1__report__unpack(NULL, len, data);
	struct collect *c = userdata;
	Report **v;

	if (!report)
		return 0;
	if (report->upgrade_id > c->last_id)
		c->last_id = report->upgrade_id;
	if (c->name[0] && strcmp(c->name, report->vm) != 0)
		return 0;
	if (c->limit && c->n == c->limit) {
		message_free(c->v[0]);
		memmove(c->v, c->v + 1, (c->n - 1) * sizeof(*c->v));
		c->v[c->n - 1] = TAKE_PTR(report);
		return 0;
	}
	v = reallocarray(c->v, c->n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	c->v = v;
	c->v[c->n++] = TAKE_PTR(report);
	return 0;
}

void history_free_reports(Report **reports, size_t n)
{
	for (size_t i = 0; i < n; i++)
		message_free(reports[i]);
	free(reports);
}

int history_read(struct history *h, const char *name, uint32_t limit, Report ***ret_reports,
		 size_t *ret_n)
{
	struct collect c = { .name = name, .limit = limit };
	_cleanup_close_ int old = open(h->old_path, O_RDONLY | O_CLOEXEC);
	off_t end, torn;
	int r = 0;

	if (old >= 0)
		r = frame_read(old, collect_one, &c, &end, &torn);
	if (r >= 0)
		r = frame_read(h->fd, collect_one, &c, &end, &torn);
	if (r < 0) {
		history_free_reports(c.v, c.n);
		return r;
	}
	for (size_t i = 0; i < c.n / 2; i++) {
		Report *swap = c.v[i];

		c.v[i] = c.v[c.n - 1 - i];
		c.v[c.n - 1 - i] = swap;
	}
	*ret_reports = c.v;
	*ret_n = c.n;
	return 0;
}

static int open_file(struct history *h)
{
	struct collect c = { .name = "", .limit = 1 };
	off_t end, torn;
	int fd, r;

	fd = open(h->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0 && errno == EROFS)
		fd = open(h->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	closep(&h->fd);
	h->fd = fd;
	r = frame_read(fd, collect_one, &c, &end, &torn);
	history_free_reports(c.v, c.n);
	if (r < 0)
		return r;
	if (torn > 0) {
		log_line(LOG_WARNING, "%s: %lld bytes at its end are no whole report, cut off",
			 h->path, (long long)torn);
		if (ftruncate(fd, end) < 0)
			log_line(LOG_WARNING, "cannot cut %s: %m", h->path);
	}
	return 0;
}

int history_open(const char *dir, off_t rotate_bytes, struct history **ret_history,
		 uint64_t *ret_last_id, struct error *err)
{
	_cleanup_(history_freep) struct history *h = calloc(1, sizeof(*h));
	Report **reports = NULL;
	size_t n = 0;
	int r;

	if (!h)
		return error_set(err, -ENOMEM, "out of memory");
	h->fd = -EBADF;
	h->rotate_bytes = rotate_bytes;
	if (asprintf(&h->path, "%s/history", dir) < 0 ||
	    asprintf(&h->old_path, "%s/history.1", dir) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	r = open_file(h);
	if (r >= 0)
		r = history_read(h, "", 1, &reports, &n);
	/* An upgrade that is to be gone on with does not wait for it. */
	if (r < 0)
		log_line(LOG_ERR, "cannot open the history %s: %s", h->path, strerror(-r));
	/* Ids only ever grow, so the newest report has the greatest. */
	*ret_last_id = n ? reports[0]->upgrade_id : 0;
	history_free_reports(reports, n);
	*ret_history = TAKE_PTR(h);
	return 0;
}

static int rotate(struct history *h)
{
	struct stat st;

	if (h->fd < 0)
		return open_file(h);
	if (fstat(h->fd, &st) < 0)
		return -errno;
	if (st.st_size < h->rotate_bytes)
		return 0;
	if (rename(h->path, h->old_path) < 0)
		return -errno;
	return open_file(h);
}

void history_append(struct history *h, const Report *report)
{
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	int r;

	r = rotate(h);
	if (r >= 0)
		r = message_pack(report, &data, &len);
	if (r >= 0)
		r = frame_append(h->fd, data, len);
	if (r < 0)
		log_vm(LOG_WARNING, report->vm, report->upgrade_id,
		       "the report could not be written to %s: %s", h->path, strerror(-r));
}

void history_freep(struct history **h)
{
	if (!*h)
		return;
	closep(&(*h)->fd);
	free((*h)->path);
	free((*h)->old_path);
	free(*h);
	*h = NULL;
}
