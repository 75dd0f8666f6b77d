/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Custody: what an upgrade must not lose when somebody dies. A worker puts the
 * cpr stream with its fds, the device state, how and whom it started here as
 * soon as they exist; upgrade.c holds one custody per running upgrade
 * and empties it when the upgrade has ended.
 *
 * Owns payloads and fds. An item that is whole is also a memfd (HeldItem), which
 * is what a later worker gets, and what goes with the fds into systemd's fd store
 * (fd_store.c): so it outlives the daemon.
 *
 * What if the daemon dies right now?
 *   while packets of an item come   the worker was told nothing; there is no memfd
 *                                   yet, and systemd has nothing of it
 *   between the fds and the memfd   the same: fds that no memfd names are removed
 *   after the memfd, before the     the next daemon has it, though the worker never
 *   acknowledgement                 heard so: it is true all the same
 *   while one replaces another      the memfd with the higher number counts
 *   without systemd                 it is lost; the journal names the target, and
 *                                   the VMMs have the rest
 */
#include "custody.h"

#include "fault_point.h"
#include "log.h"
#include "worker/device_state.h"
#include "worker/held_item.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* The newest HeldItem that this understands. */
#define HELD_VERSION 1
#define WHOLE	     ".whole."

_Static_assert(HELD_ITEM_MAX == CUSTODY_BYTES_MAX + 1024 * 1024,
	       "what custody takes can be read back");

typedef Upgraded__V1__HeldItem HeldItem;

static void item_freep(struct custody_item **item)
{
	if (!*item)
		return;
	for (size_t i = 0; i < (*item)->n_fds; i++)
		closep(&(*item)->fds[i]);
	closep(&(*item)->whole);
	strv_freep(&(*item)->stored);
	message_free((*item)->put);
	free((*item)->payload);
	free((*item)->fds);
	free(*item);
	*item = NULL;
}

static struct custody_item *item_new(void)
{
	struct custody_item *item = calloc(1, sizeof(*item));

	if (item)
		item->whole = -EBADF;
	return item;
}

/* Of one name there may be two: one that is whole, and one that is coming to replace it. */
static size_t index_of(const struct custody *c, const char *name, bool open)
{
	size_t i = 0;

	while (i < c->n &&
	       (c->items[i]->open != open || strcmp(c->items[i]->put->name, name) != 0))
		i++;
	return i;
}

static int hold(struct custody *c, struct custody_item *item)
{
	struct custody_item **items = reallocarray(c->items, c->n + 1, sizeof(*items));

	if (!items)
		return -ENOMEM;
	c->items = items;
	c->items[c->n++] = item;
	return 0;
}

static void drop(struct custody *c, size_t i)
{
	/* The memfd first: without it, the rest is nothing. */
	for (char **name = c->items[i]->stored; name && *name; name++)
		fd_store_drop(c->store, *name);
	item_freep(&c->items[i]);
	memmove(&c->items[i], &c->items[i + 1], (c->n - i - 1) * sizeof(*c->items));
	c->n--;
}

static void totals(const struct custody *c, size_t *ret_fds, size_t *ret_bytes)
{
	*ret_fds = *ret_bytes = 0;
	for (size_t i = 0; i < c->n; i++) {
		*ret_fds += c->items[i]->n_fds;
		*ret_bytes += c->items[i]->len;
	}
}

/* A copy of @put without its payload. */
static CustodyPut *copy_put(const CustodyPut *put)
{
	CustodyPut bare = *put;

	bare.payload = (ProtobufCBinaryData){ 0 };
	return message_copy(&bare);
}

static int append(struct custody_item *item, const CustodyPut *put, struct scm_fds *fds)
{
	uint8_t *payload;
	int *numbers;

	payload = realloc(item->payload, item->len + put->payload.len + 1);
	if (!payload)
		return -ENOMEM;
	item->payload = payload;
	numbers = reallocarray(item->fds, item->n_fds + fds->n + 1, sizeof(*numbers));
	if (!numbers)
		return -ENOMEM;
	item->fds = numbers;
	if (put->payload.len)
		memcpy(item->payload + item->len, put->payload.data, put->payload.len);
	item->len += put->payload.len;
	for (size_t i = 0; i < fds->n; i++)
		item->fds[item->n_fds++] = scm_fds_take(fds, i);
	return 0;
}

/* ---- an item that is whole ---- */

static int write_whole(struct custody_item *item, uint64_t id)
{
	CustodyPut put = *item->put;
	HeldItem held = UPGRADED__V1__HELD_ITEM__INIT;
	_cleanup_free_ uint8_t *data = NULL;
	_cleanup_close_ int fd = -EBADF;
	size_t len;
	ssize_t n;

	put.payload = (ProtobufCBinaryData){ item->len, item->payload };
	held.version = HELD_VERSION;
	held.upgrade_id = id;
	held.put = &put;
	held.fd = item->stored ? item->stored + 1 : NULL;
	held.n_fd = item->stored ? item->n_fds : 0;
	if (message_pack(&held, &data, &len) < 0)
		return -ENOMEM;
	fd = memfd_create("upgraded-custody", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	n = pwrite(fd, data, len, 0);
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -ENOSPC;
	(void)fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	item->whole = TAKE_FD(fd);
	return 0;
}

static int store_fds(struct custody *c, struct custody_item *item)
{
	int r = 0;

	item->stored = calloc(item->n_fds + 2, sizeof(*item->stored));
	if (!item->stored)
		return -ENOMEM;
	/* The first name is given last; until then the vector must be one all the same. */
	item->stored[0] = strdup("");
	for (size_t i = 0; i < item->n_fds && r >= 0; i++)
		r = fd_store_add(c->store, c->id, item->put->name, item->fds[i],
				 &item->stored[i + 1]);
	return item->stored[0] ? r : -ENOMEM;
}

static int store_whole(struct custody *c, struct custody_item *item)
{
	char name[96], *stored;
	int r;

	/* As WHOLE, without the number. */
	snprintf(name, sizeof(name), "%.64s.whole", item->put->name);
	r = fd_store_add(c->store, c->id, name, item->whole, &stored);
	if (r < 0)
		return r;
	free(item->stored[0]);
	item->stored[0] = stored;
	return 0;
}

/* All packets of it have come: makes it what outlives us. */
static int complete(struct custody *c, struct custody_item *item)
{
	bool store = c->store && !item->put->here_only;
	int r = store ? store_fds(c, item) : 0;

	fault_point(FAULT_CUSTODY_FDS);
	if (r >= 0)
		r = write_whole(item, c->id);
	if (r >= 0 && store)
		r = store_whole(c, item);
	fault_point(FAULT_CUSTODY_WHOLE);
	if (r >= 0)
		item->open = false;
	return r;
}

static bool name_is_good(const char *name)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyz0123456789-";

	return name[0] && strlen(name) <= 64 && !name[strspn(name, allowed)];
}

/* The item that the next packet of @put belongs to. */
static int open_item(struct custody *c, const CustodyPut *put, size_t *ret_i)
{
	struct custody_item *item;

	*ret_i = index_of(c, put->name, true);
	if (*ret_i < c->n)
		return 0;
	item = item_new();
	if (!item)
		return -ENOMEM;
	item->open = true;
	item->put = copy_put(put);
	if (item->put && hold(c, item) >= 0)
		return 0;
	item_freep(&item);
	return -ENOMEM;
}

int custody_put(struct custody *c, const CustodyPut *put, bool more, struct scm_fds *fds,
		struct error *err)
{
	size_t i, n_fds, bytes, old;
	int r;

	if (!name_is_good(put->name))
		return error_set(err, -EINVAL, "what is held has a name of a-z 0-9 -");
	totals(c, &n_fds, &bytes);
	if (n_fds + fds->n > CUSTODY_FDS_MAX || bytes + put->payload.len > CUSTODY_BYTES_MAX) {
		i = index_of(c, put->name, true);
		if (i < c->n)
			drop(c, i);
		return error_set(err, -E2BIG, "%s is more than the custody of one upgrade holds",
				 put->name);
	}
	r = open_item(c, put, &i);
	if (r < 0)
		return error_set(err, r, "out of memory");
	old = index_of(c, put->name, false);
	r = append(c->items[i], put, fds);
	if (r >= 0 && more)
		return 0;
	if (r >= 0)
		r = complete(c, c->items[i]);
	if (r < 0) {
		drop(c, i);
		return error_errno(err, r, "%s cannot be held", put->name);
	}
	/* Its memfd is in the store: the one that it replaces is the past. */
	if (old < c->n && old != i)
		drop(c, old);
	return 0;
}

void custody_drop(struct custody *c, const char *name)
{
	size_t i = index_of(c, name, false);

	if (i < c->n)
		drop(c, i);
}

const struct custody_item *custody_find(const struct custody *c, const char *name)
{
	size_t i = index_of(c, name, false);

	return i < c->n ? c->items[i] : NULL;
}

/* A memfd or a guest_memfd, by what /proc calls it: not a log, a disk or a namespace. */
static bool is_memory(int fd)
{
	char path[32], link[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link) - 1) > 0 &&
	       (!strncmp(link, "/memfd:", 7) || strstr(link, "kvm-gmem"));
}

static int describe(const struct custody_item *item, CustodyItem **ret)
{
	_cleanup_message_ CustodyItem *d = message_new(&upgraded__v1__custody_item__descriptor);
	bool state = !strcmp(item->put->name, DEVICE_STATE);

	if (!d || message_set_string(&d->name, item->put->name) < 0)
		return -ENOMEM;
	d->bytes = item->len;
	d->fds = (uint32_t)item->n_fds;
	for (size_t i = 0; i < item->n_fds; i++) {
		struct stat st;

		if (is_memory(item->fds[i]) && fstat(item->fds[i], &st) >= 0)
			*(state ? &d->bytes : &d->pinned) += (uint64_t)st.st_size;
	}
	*ret = TAKE_PTR(d);
	return 0;
}

int custody_describe(const struct custody *c, CustodyItem ***ret_items)
{
	CustodyItem **items = calloc(c->n + 1, sizeof(*items));

	if (!items)
		return -ENOMEM;
	for (size_t i = 0; i < c->n; i++)
		if (describe(c->items[i], &items[i]) < 0) {
			custody_free_items(items, i);
			return -ENOMEM;
		}
	*ret_items = items;
	return 0;
}

void custody_free_items(CustodyItem **items, size_t n)
{
	for (size_t i = 0; i < n; i++)
		message_free(items[i]);
	free(items);
}

void custody_clear(struct custody *c)
{
	while (c->n)
		drop(c, c->n - 1);
	custody_leave(c);
}

void custody_leave(struct custody *c)
{
	for (size_t i = 0; i < c->n; i++)
		item_freep(&c->items[i]);
	free(c->items);
	c->items = NULL;
	c->n = 0;
}

/* ---- from an earlier daemon ---- */

static int read_whole(int fd, HeldItem **ret_held)
{
	HeldItem *held;
	int r;

	r = held_item_read(fd, &held);
	if (r < 0)
		return r;
	if (!name_is_good(held->put->name) || held->n_fd > CUSTODY_FDS_MAX) {
		message_free(held);
		return -EBADMSG;
	}
	*ret_held = held;
	return 0;
}

/* Fills @item with duplicates of what @whole and @held name; all of them are in use then. */
static int take_held(struct custody *c, const char *whole, const HeldItem *held,
		     struct custody_item *item)
{
	item->put = copy_put(held->put);
	item->payload = malloc(held->put->payload.len ?: 1);
	item->fds = calloc(held->n_fd + 1, sizeof(*item->fds));
	item->stored = calloc(held->n_fd + 2, sizeof(*item->stored));
	if (!item->put || !item->payload || !item->fds || !item->stored)
		return -ENOMEM;
	if (held->put->payload.len)
		memcpy(item->payload, held->put->payload.data, held->put->payload.len);
	item->len = held->put->payload.len;
	for (size_t i = 0; i <= held->n_fd; i++) {
		const char *name = i ? held->fd[i - 1] : whole;
		int fd = fd_store_use(c->store, name);

		if (fd < 0)
			return fd;
		item->stored[i] = strdup(name);
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return -errno;
		if (i)
			item->fds[item->n_fds++] = fd;
		else
			item->whole = fd;
		if (!item->stored[i])
			return -ENOMEM;
	}
	return 0;
}

static uint64_t serial(const char *stored)
{
	return strtoull(strrchr(stored, '.') + 1, NULL, 10);
}

static int restore(struct custody *c, const char *whole)
{
	_cleanup_message_ HeldItem *held = NULL;
	struct custody_item *item;
	size_t old;
	int r;

	r = read_whole(fd_store_peek(c->store, whole), &held);
	if (r < 0)
		return r;
	if (held->version > HELD_VERSION) {
		(void)fd_store_use(c->store, whole);
		for (size_t i = 0; i < held->n_fd; i++)
			(void)fd_store_use(c->store, held->fd[i]);
		return -EPROTONOSUPPORT;
	}
	old = index_of(c, held->put->name, false);
	if (old < c->n && serial(c->items[old]->stored[0]) > serial(whole))
		return 0;
	item = item_new();
	if (!item || hold(c, item) < 0) {
		item_freep(&item);
		return -ENOMEM;
	}
	r = take_held(c, whole, held, item);
	if (r == -ENOENT)
		drop(c, c->n - 1);
	else if (r < 0)
		/* For the next daemon, which may have what is missing here. */
		item_freep(&c->items[--c->n]);
	if (r < 0)
		return r;
	if (old < c->n - 1)
		drop(c, old);
	return 0;
}

int custody_restore(struct custody *c, struct error *err)
{
	char prefix[48];
	size_t at = 0, n = 0;
	_cleanup_strv_ char **names = NULL;
	const char *name;

	if (!c->store)
		return 0;
	/* A copy: what is replaced leaves the store while this goes through it. */
	snprintf(prefix, sizeof(prefix), FD_STORE_PREFIX "%" PRIu64 ".", c->id);
	while ((name = fd_store_next(c->store, prefix, &at))) {
		char **more;

		if (!strstr(name, WHOLE))
			continue;
		more = reallocarray(names, n + 2, sizeof(*names));
		if (!more)
			return error_set(err, -ENOMEM, "out of memory");
		names = more;
		names[n] = strdup(name);
		names[++n] = NULL;
		if (!names[n - 1])
			return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < n; i++) {
		int r = restore(c, names[i]);

		if (r == -EPROTONOSUPPORT)
			log_line(LOG_ERR, "%s was written by a newer upgraded, left as it is",
				 names[i]);
		else if (r == -ENOENT || r == -EBADMSG || r == -EIO)
			log_line(LOG_WARNING, "%s in systemd's fd store is not whole: %s",
				 names[i], strerror(-r));
		else if (r < 0)
			return error_errno(err, r, "%s in systemd's fd store cannot be taken back",
					   names[i]);
	}
	return 0;
}
