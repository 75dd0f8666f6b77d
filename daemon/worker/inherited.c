/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a worker that follows a dead one gets of custody: right after its order, one
 * CustodyHeld for each item, with the item's memfd and its fds. Called by main.c;
 * the drivers look items up. Owns what it received. If this process dies here, the
 * daemon has it all still.
 */
#include "inherited.h"

#include "cleanup.h"
#include "held_item.h"
#include "wire.h"

#include <fcntl.h>
#include <string.h>

#define PATIENCE_MS 10000

static void item_clear(struct inherited_item *item)
{
	if (item->held)
		upgraded__v1__held_item__free_unpacked(item->held, NULL);
	for (size_t i = 0; i < item->n_fds; i++)
		closep(&item->fds[i]);
	free(item->fds);
	*item = (struct inherited_item){ 0 };
}

void inherited_clear(struct inherited *in)
{
	for (size_t i = 0; i < in->n; i++)
		item_clear(&in->v[i]);
	free(in->v);
	*in = (struct inherited)INHERITED_INIT;
}

static int append(struct inherited_item *item, struct scm_fds *fds, size_t first)
{
	int *all = reallocarray(item->fds, item->n_fds + fds->n + 1, sizeof(*all));

	if (!all)
		return -ENOMEM;
	item->fds = all;
	for (size_t i = first; i < fds->n; i++)
		all[item->n_fds++] = scm_fds_take(fds, i);
	return 0;
}

/* One item, of as many packets as its fds need. */
static int receive(int sock, struct inherited_item *item)
{
	bool more = true;
	int r;

	while (more) {
		_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *env = NULL;

		r = wire_wait(sock, PATIENCE_MS);
		if (r >= 0)
			r = wire_recv(sock, &env, &fds);
		if (r < 0)
			return r;
		if (env->body_case != UPGRADED__V1__ENVELOPE__BODY_CUSTODY_HELD ||
		    (!item->held && fds.n < 1))
			return -EPROTO;
		more = env->batches_left > 0;
		if (item->held) {
			r = append(item, &fds, 0);
		} else {
			r = held_item_read(fds.fd[0], &item->held);
			if (r >= 0)
				r = append(item, &fds, 1);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

int inherited_receive(int sock, size_t n, struct inherited *ret, struct error *err)
{
	_cleanup_(inherited_clear) struct inherited in = INHERITED_INIT;
	int r;

	in.v = calloc(n + 1, sizeof(*in.v));
	if (!in.v)
		return error_set(err, -ENOMEM, "out of memory");
	while (in.n < n) {
		r = receive(sock, &in.v[in.n++]);
		if (r < 0)
			return error_errno(err, r, "the daemon does not give what it holds");
	}
	*ret = in;
	in = (struct inherited)INHERITED_INIT;
	return 0;
}

const struct inherited_item *inherited_find(const struct inherited *in, const char *name)
{
	for (size_t i = 0; i < in->n; i++)
		if (!strcmp(in->v[i].held->put->name, name))
			return &in->v[i];
	return NULL;
}

int inherited_fd(const struct inherited *in, const char *name, int *ret_fd)
{
	const struct inherited_item *item = inherited_find(in, name);
	int fd;

	if (!item || item->n_fds != 1)
		return -ENOENT;
	fd = fcntl(item->fds[0], F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}
