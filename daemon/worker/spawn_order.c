/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All that it takes to start a process: command line, identity, fds. spawn.c makes
 * it from the living source and starts the target from it. It is put into custody
 * before the target is started, because when the source is dead nobody can read
 * any more who it was; a target that is started once more is started from what is
 * packed here. Owns every fd and string of the order. If this process dies here,
 * nothing has been started.
 */
#include "spawn_order.h"

#include "cleanup.h"

#include <fcntl.h>
#include <string.h>

#define USE(x) UPGRADED__V1__TARGET_START__USE__##x

typedef Upgraded__V1__TargetStart TargetStart;

int spawn_order_new(struct spawn_order **ret_order)
{
	*ret_order = calloc(1, sizeof(**ret_order));
	return *ret_order ? 0 : -ENOMEM;
}

void spawn_order_freep(struct spawn_order **order)
{
	struct spawn_order *o = *order;

	*order = NULL;
	if (!o)
		return;
	strv_freep(&o->argv);
	identity_freep(&o->id);
	for (size_t i = 0; i < o->n_fds; i++)
		closep(&o->fds[i].fd);
	free(o->fds);
	free(o);
}

int spawn_order_add_fd(struct spawn_order *o, int fd, int number, bool anew)
{
	struct spawn_fd *fds = reallocarray(o->fds, o->n_fds + 1, sizeof(*fds));

	if (!fds) {
		closep(&fd);
		return -ENOMEM;
	}
	o->fds = fds;
	fds[o->n_fds++] = (struct spawn_fd){ fd, number, anew };
	return 0;
}

/* ---- there ---- */

/* Each string with its NUL, one after the other, as /proc shows them. */
static int join(char **v, ProtobufCBinaryData *ret)
{
	size_t len = 0;
	uint8_t *p;

	for (char **s = v; *s; s++)
		len += strlen(*s) + 1;
	p = malloc(len ?: 1);
	if (!p)
		return -ENOMEM;
	ret->data = p;
	ret->len = len;
	for (char **s = v; *s; s++)
		p = (uint8_t *)stpcpy((char *)p, *s) + 1;
	return 0;
}

struct fd_list {
	uint32_t *use;
	int *fds;
	size_t n;
};

static void list(struct fd_list *l, uint32_t use, int fd)
{
	if (fd < 0)
		return;
	l->use[l->n] = use;
	l->fds[l->n++] = fd;
}

static void list_all(const struct spawn_order *o, struct fd_list *l)
{
	list(l, USE(CWD), o->id->cwd);
	list(l, USE(ROOT), o->id->root);
	for (size_t i = 0; i < o->id->cgroups.n; i++)
		list(l, USE(CGROUP), o->id->cgroups.procs[i]);
	for (uint32_t i = 0; i < NS_COUNT; i++)
		list(l, USE(NAMESPACE) + i, o->id->ns[i]);
	for (size_t i = 0; i < o->n_fds; i++)
		list(l, (o->fds[i].anew ? USE(DEVICE) : USE(FD)) + (uint32_t)o->fds[i].number,
		     o->fds[i].fd);
}

int spawn_order_pack(const struct spawn_order *o, uint8_t **ret_packed, size_t *ret_len,
		     int **ret_fds, size_t *ret_n_fds)
{
	size_t room = 2 + CGROUPS_MAX + NS_COUNT + o->n_fds;
	const struct identity *id = o->id;
	_cleanup_free_ uint32_t *use = calloc(room, sizeof(*use));
	_cleanup_free_ int *fds = calloc(room, sizeof(*fds));
	_cleanup_free_ uint8_t *argv = NULL, *env = NULL, *packed = NULL;
	struct fd_list l = { use, fds, 0 };
	uint64_t cap[] = { id->cap_inheritable, id->cap_permitted, id->cap_effective,
			   id->cap_bounding, id->cap_ambient };
	uint64_t limit[2 * RLIM_NLIMITS];
	TargetStart t;

	upgraded__v1__target_start__init(&t);
	if (!use || !fds || join(o->argv, &t.argv) < 0)
		return -ENOMEM;
	argv = t.argv.data;
	if (join(id->env, &t.env) < 0)
		return -ENOMEM;
	env = t.env.data;
	list_all(o, &l);
	t.use = use;
	t.n_use = l.n;
	t.uid = (uint32_t *)id->uid;
	t.gid = (uint32_t *)id->gid;
	t.n_uid = t.n_gid = 3;
	t.group = id->groups;
	t.n_group = id->n_groups;
	t.cap = cap;
	t.n_cap = sizeof(cap) / sizeof(*cap);
	t.no_new_privs = id->no_new_privs;
	t.umask = id->umask;
	for (size_t i = 0; i < RLIM_NLIMITS; i++) {
		limit[2 * i] = id->limits[i].rlim_cur;
		limit[2 * i + 1] = id->limits[i].rlim_max;
	}
	t.limit = limit;
	t.n_limit = 2 * RLIM_NLIMITS;
	t.oom_score_adj = id->oom_score_adj ?: t.oom_score_adj;
	t.nice = id->nice;
	t.cpus.data = (uint8_t *)id->cpus;
	t.cpus.len = id->cpus_size;
	t.label_file = (char *)id->label_file ?: t.label_file;
	t.label = id->label ?: t.label;

	packed = malloc(upgraded__v1__target_start__get_packed_size(&t) ?: 1);
	if (!packed)
		return -ENOMEM;
	*ret_len = upgraded__v1__target_start__pack(&t, packed);
	*ret_packed = TAKE_PTR(packed);
	*ret_fds = TAKE_PTR(fds);
	*ret_n_fds = l.n;
	return 0;
}

/* ---- and back ---- */

static int split(const ProtobufCBinaryData *data, char ***ret_v)
{
	_cleanup_strv_ char **v = NULL;
	size_t n = 0, i = 0;

	if (data->len && data->data[data->len - 1])
		return -EBADMSG;
	for (size_t k = 0; k < data->len; k++)
		n += !data->data[k];
	v = calloc(n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (const char *s = (const char *)data->data; i < n; s += strlen(s) + 1)
		if (!(v[i++] = strdup(s)))
			return -ENOMEM;
	*ret_v = TAKE_PTR(v);
	return 0;
}

/* A copy of @fd to where its use says. */
static int place(struct spawn_order *o, uint32_t use, int fd)
{
	struct identity *id = o->id;
	int *at = NULL;
	int copy;

	if (use == USE(CWD))
		at = &id->cwd;
	else if (use == USE(ROOT))
		at = &id->root;
	else if (use == USE(CGROUP) && id->cgroups.n < CGROUPS_MAX)
		at = &id->cgroups.procs[id->cgroups.n];
	else if (use >= USE(NAMESPACE) && use < USE(NAMESPACE) + NS_COUNT)
		at = &id->ns[use - USE(NAMESPACE)];
	else if (use < USE(FD))
		return -EBADMSG;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return -errno;
	if (!at)
		return use >= USE(DEVICE)
			       ? spawn_order_add_fd(o, copy, (int)(use - USE(DEVICE)), true)
			       : spawn_order_add_fd(o, copy, (int)(use - USE(FD)), false);
	closep(at);
	*at = copy;
	id->cgroups.n += use == USE(CGROUP);
	return 0;
}

static int take_label(struct identity *id, const TargetStart *t)
{
	static const char *const files[] = { "attr/exec", "attr/apparmor/exec" };

	if (!t->label_file[0])
		return 0;
	for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++)
		if (!strcmp(t->label_file, files[i]))
			id->label_file = files[i];
	id->label = strdup(t->label);
	if (!id->label)
		return -ENOMEM;
	return id->label_file ? 0 : -EBADMSG;
}

static int take_identity(struct identity *id, const TargetStart *t)
{
	id->cap_inheritable = t->cap[0];
	id->cap_permitted = t->cap[1];
	id->cap_effective = t->cap[2];
	id->cap_bounding = t->cap[3];
	id->cap_ambient = t->cap[4];
	id->no_new_privs = t->no_new_privs;
	id->umask = (mode_t)t->umask;
	id->nice = t->nice;
	for (size_t i = 0; i < 3; i++) {
		id->uid[i] = t->uid[i];
		id->gid[i] = t->gid[i];
	}
	for (size_t i = 0; i < RLIM_NLIMITS; i++)
		id->limits[i] = (struct rlimit){ t->limit[2 * i], t->limit[2 * i + 1] };
	id->groups = calloc(t->n_group + 1, sizeof(*id->groups));
	id->cpus = malloc(t->cpus.len ?: 1);
	if (!id->groups || !id->cpus)
		return -ENOMEM;
	if (t->n_group)
		memcpy(id->groups, t->group, t->n_group * sizeof(*id->groups));
	id->n_groups = t->n_group;
	memcpy(id->cpus, t->cpus.data, t->cpus.len);
	id->cpus_size = t->cpus.len;
	if (t->oom_score_adj[0] && !(id->oom_score_adj = strdup(t->oom_score_adj)))
		return -ENOMEM;
	return take_label(id, t);
}

static int unpack(const TargetStart *t, const int *fds, struct spawn_order *o)
{
	int r;

	if (t->n_uid != 3 || t->n_gid != 3 || t->n_cap != 5 || t->n_limit != 2 * RLIM_NLIMITS ||
	    !t->cpus.len)
		return -EBADMSG;
	r = identity_new(&o->id);
	if (r >= 0)
		r = split(&t->argv, &o->argv);
	if (r >= 0)
		r = split(&t->env, &o->id->env);
	if (r >= 0)
		r = take_identity(o->id, t);
	for (size_t i = 0; i < t->n_use && r >= 0; i++)
		r = place(o, t->use[i], fds[i]);
	if (r >= 0 && (!o->argv[0] || o->id->cwd < 0))
		r = -EBADMSG;
	return r;
}

int spawn_order_unpack(const uint8_t *packed, size_t len, const int *fds, size_t n_fds,
		       struct spawn_order **ret_order)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	TargetStart *t = upgraded__v1__target_start__unpack(NULL, len, packed);
	int r;

	if (!t)
		return -EBADMSG;
	r = t->n_use == n_fds ? spawn_order_new(&o) : -EBADMSG;
	if (r >= 0)
		r = unpack(t, fds, o);
	upgraded__v1__target_start__free_unpacked(t, NULL);
	if (r < 0)
		return r;
	*ret_order = TAKE_PTR(o);
	return 0;
}
