/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Custody: what an upgrade must not lose when its worker dies. A worker puts
 * the cpr stream with its fds, the device state and the identity of the target
 * here as soon as they exist; upgrade.c holds one custody per running upgrade
 * and empties it when the upgrade has ended.
 *
 * Owns payloads and fds. All changes go through hold() and drop(): a mirror in
 * systemd's fd store, which makes custody outlive the daemon too, belongs into
 * these two and nowhere else. Without it, what is here dies with the daemon;
 * the recovery after a restart then has the journal alone, which names the
 * target, and the two VMMs.
 */
#include "custody.h"

#include <string.h>
#include <sys/stat.h>

static void item_freep(struct custody_item **item)
{
	if (!*item)
		return;
	for (size_t i = 0; i < (*item)->n_fds; i++)
		closep(&(*item)->fds[i]);
	message_free((*item)->put);
	free((*item)->payload);
	free((*item)->fds);
	free(*item);
	*item = NULL;
}

static size_t index_of(const struct custody *c, const char *name)
{
	size_t i = 0;

	while (i < c->n && strcmp(c->items[i]->put->name, name) != 0)
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

int custody_put(struct custody *c, const CustodyPut *put, bool more, struct scm_fds *fds,
		struct error *err)
{
	_cleanup_(item_freep) struct custody_item *fresh = NULL;
	struct custody_item *item;
	size_t i, n_fds, bytes;
	int r;

	if (!put->name[0])
		return error_set(err, -EINVAL, "something without a name cannot be held");
	i = index_of(c, put->name);
	totals(c, &n_fds, &bytes);
	if (n_fds + fds->n > CUSTODY_FDS_MAX || bytes + put->payload.len > CUSTODY_BYTES_MAX) {
		if (i < c->n && c->items[i]->open)
			drop(c, i);
		return error_set(err, -E2BIG, "%s is more than the custody of one upgrade holds",
				 put->name);
	}
	if (i < c->n && c->items[i]->open) {
		item = c->items[i];
		r = append(item, put, fds);
		if (r < 0) {
			drop(c, i);
			return error_set(err, r, "out of memory");
		}
		item->open = more;
		return 0;
	}
	fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return error_set(err, -ENOMEM, "out of memory");
	fresh->open = more;
	fresh->put = copy_put(put);
	r = fresh->put ? append(fresh, put, fds) : -ENOMEM;
	if (r >= 0)
		r = hold(c, fresh);
	if (r < 0)
		return error_set(err, r, "out of memory");
	fresh = NULL;
	if (i < c->n - 1)
		drop(c, i); /* the one that it replaces */
	return 0;
}

const struct custody_item *custody_find(const struct custody *c, const char *name)
{
	size_t i = index_of(c, name);

	return i < c->n && !c->items[i]->open ? c->items[i] : NULL;
}

static int describe(const struct custody_item *item, CustodyItem **ret)
{
	_cleanup_message_ CustodyItem *d = message_new(&upgraded__v1__custody_item__descriptor);
	bool memory = strcmp(item->put->name, "device-state") != 0;

	if (!d || message_set_string(&d->name, item->put->name) < 0)
		return -ENOMEM;
	d->bytes = item->len;
	d->fds = (uint32_t)item->n_fds;
	for (size_t i = 0; i < item->n_fds; i++) {
		struct stat st;

		/* A memfd is a regular file; a pidfd, a socket or a VM is none. */
		if (fstat(item->fds[i], &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		*(memory ? &d->pinned : &d->bytes) += (uint64_t)st.st_size;
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
	free(c->items);
	*c = (struct custody)CUSTODY_INIT;
}
