/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What systemd keeps open for the next daemon: the fd store of upgraded.service,
 * as it should be. custody.c puts in and takes out, upgraded.c brings what systemd
 * passes at the start. Owns a duplicate of each fd, and the names.
 *
 * systemd answers nothing. It keeps an open file only once, so the same one under
 * a second name would silently not be there; hence the users of an entry. FDPOLL=0,
 * because a pidfd or a VM reads as "hung up" just when it is needed.
 *
 * What if the daemon dies right now? A message that was sent is in PID 1's queue,
 * with its fd, and PID 1 reads that queue before it looks at dead children; so
 * what custody.c had acknowledged is there. What was sent for something not yet
 * acknowledged has no complete item to belong to and is taken out by the next
 * daemon, as are the remains of a half-done removal. A message that could not be sent
 * is sent again every second; until then the worker has an answer that is true only as
 * long as the daemon lives, as without systemd.
 *
 * Without systemd (NOTIFY_SOCKET is not set) nothing is sent, and all of this lives
 * as long as the daemon.
 */
#include "fd_store.h"

#include "log.h"
#include "oneshot.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <systemd/sd-daemon.h>

#define RETRY_US (1000 * 1000ULL)

#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027
#endif

struct entry {
	char *name;
	int fd;
	dev_t dev;
	ino_t ino;
	unsigned users;
	bool unsent;  /* systemd could not be given it yet */
	bool leaving; /* nor be told to let go of it */
};

struct fd_store {
	struct entry *v;
	size_t n;
	uint64_t serial; /* of the last name given */
	bool failed;	 /* said so already */
	sd_event_source *retry;
};

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata);

int fd_store_new(sd_event *event, struct fd_store **ret_store)
{
	struct fd_store *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	/* Made now, as it is needed when there is no room for anything. */
	r = sd_event_add_time(event, &s->retry, CLOCK_MONOTONIC, UINT64_MAX, 0, on_retry, s);
	if (r < 0) {
		free(s);
		return r;
	}
	*ret_store = s;
	return 0;
}

static void entry_clear(struct entry *e)
{
	closep(&e->fd);
	free(e->name);
}

void fd_store_freep(struct fd_store **store)
{
	if (!*store)
		return;
	for (size_t i = 0; i < (*store)->n; i++)
		entry_clear(&(*store)->v[i]);
	free((*store)->v);
	sd_event_source_disable_unref((*store)->retry);
	free(*store);
	*store = NULL;
}

static struct entry *find(const struct fd_store *s, const char *name)
{
	for (size_t i = 0; i < s->n; i++)
		if (!strcmp(s->v[i].name, name))
			return &s->v[i];
	return NULL;
}

/* Takes @fd and @name on success. */
static int enter(struct fd_store *s, char *name, int fd, unsigned users)
{
	struct entry *v = reallocarray(s->v, s->n + 1, sizeof(*v));
	struct stat st;

	if (!v)
		return -ENOMEM;
	s->v = v;
	if (fstat(fd, &st) < 0)
		return -errno;
	v[s->n++] = (struct entry){ name, fd, st.st_dev, st.st_ino, users, false, false };
	return 0;
}

/* Is it the same open file, and not only the same file? */
static bool same_open_file(int a, int b)
{
	int r = fcntl(a, F_DUPFD_QUERY, b);

	if (r >= 0)
		return r == 1;
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) == 0;
}

static struct entry *find_open_file(const struct fd_store *s, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return NULL;
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].ino == st.st_ino && s->v[i].dev == st.st_dev &&
		    same_open_file(s->v[i].fd, fd))
			return &s->v[i];
	return NULL;
}

static int say(struct fd_store *s, const char *state, const int *fd)
{
	int r = sd_pid_notify_with_fds(0, false, state, fd, fd ? 1 : 0);

	if (r >= 0)
		s->failed = false;
	if (r >= 0 || s->failed)
		return r;
	s->failed = true;
	log_line(LOG_WARNING,
		 "systemd's fd store cannot be used (%s): until it can, a restart of upgraded "
		 "loses custody",
		 strerror(-r));
	return r;
}

static void send_in(struct fd_store *s, struct entry *e)
{
	char state[FD_STORE_NAME + 48];

	snprintf(state, sizeof(state), "FDSTORE=1\nFDNAME=%.*s\nFDPOLL=0", FD_STORE_NAME, e->name);
	e->unsent = say(s, state, &e->fd) < 0;
	if (e->unsent)
		oneshot_arm(s->retry, RETRY_US);
}

int fd_store_inherit(struct fd_store *s, const char *name, int fd)
{
	const char *serial = strrchr(name, '.');
	char *copy;
	int r;

	if (strncmp(name, FD_STORE_PREFIX, strlen(FD_STORE_PREFIX)) != 0 || !serial ||
	    find(s, name))
		return -ENOENT;
	copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	r = enter(s, copy, fd, 0);
	if (r < 0) {
		free(copy);
		return r;
	}
	if (strtoull(serial + 1, NULL, 10) > s->serial)
		s->serial = strtoull(serial + 1, NULL, 10);
	return 0;
}

int fd_store_add(struct fd_store *s, uint64_t id, const char *item, int fd, char **ret_name)
{
	_cleanup_free_ char *name = NULL, *again = NULL;
	struct entry *e = find_open_file(s, fd);
	_cleanup_close_ int copy = -EBADF;
	int r;

	if (e) {
		again = strdup(e->name);
		if (!again)
			return -ENOMEM;
		e->users++;
		e->leaving = false;
		*ret_name = TAKE_PTR(again);
		return 0;
	}
	if (asprintf(&name, FD_STORE_PREFIX "%" PRIu64 ".%.64s.%" PRIu64, id, item,
		     s->serial + 1) < 0) {
		name = NULL;
		return -ENOMEM;
	}
	again = strdup(name);
	if (!again)
		return -ENOMEM;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return -errno;
	r = enter(s, name, copy, 1);
	if (r < 0)
		return r;
	s->serial++;
	TAKE_FD(copy);
	TAKE_PTR(name);
	send_in(s, &s->v[s->n - 1]);
	*ret_name = TAKE_PTR(again);
	return 0;
}

int fd_store_peek(const struct fd_store *s, const char *name)
{
	const struct entry *e = find(s, name);

	return e ? e->fd : -ENOENT;
}

int fd_store_use(struct fd_store *s, const char *name)
{
	struct entry *e = find(s, name);

	if (!e)
		return -ENOENT;
	e->users++;
	return e->fd;
}

/* What systemd keeps pins a guest's memory: this goes on until it has been told. */
static void take_out(struct fd_store *s, struct entry *e)
{
	char state[FD_STORE_NAME + 32];

	snprintf(state, sizeof(state), "FDSTOREREMOVE=1\nFDNAME=%.*s", FD_STORE_NAME, e->name);
	if (!e->unsent && say(s, state, NULL) < 0) {
		e->leaving = true;
		oneshot_arm(s->retry, RETRY_US);
		return;
	}
	entry_clear(e);
	*e = s->v[--s->n];
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct fd_store *s = userdata;

	/* In the order they came: the memfd that names an item's fds is the last of them. */
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].unsent)
			send_in(s, &s->v[i]);
	/* From the end: taking one out brings the last one to its place. */
	for (size_t i = s->n; i-- > 0;)
		if (s->v[i].leaving)
			take_out(s, &s->v[i]);
	return 0;
}

void fd_store_drop(struct fd_store *s, const char *name)
{
	struct entry *e = find(s, name);

	if (e && e->users && --e->users == 0)
		take_out(s, e);
}

void fd_store_drop_unused(struct fd_store *s)
{
	for (size_t i = s->n; i-- > 0;) {
		if (s->v[i].users || s->v[i].leaving)
			continue;
		log_line(LOG_INFO, "%s in systemd's fd store belongs to nothing, removed",
			 s->v[i].name);
		take_out(s, &s->v[i]);
	}
}

const char *fd_store_next(const struct fd_store *s, const char *prefix, size_t *at)
{
	while (*at < s->n) {
		const char *name = s->v[(*at)++].name;

		if (!strncmp(name, prefix, strlen(prefix)))
			return name;
	}
	return NULL;
}
