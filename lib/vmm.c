/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libupgraded: a VMM's side of an upgrade. Called by the VMM through
 * upgraded.h; a worker of the daemon asks, one request at a time, and
 * a callback of the VMM answers. What may be asked in which state, and what
 * comes of it, is in one table; anything else is answered with an error and
 * changes nothing, so that a confused daemon cannot run a guest twice:
 *
 *   source   RUNNING -freeze-> FROZEN -thaw-> RUNNING, or -quit->
 *   target   EMPTY -accept-> ACCEPTED -load-> LOADED -own-> OWNER -run-> RUNNING
 *
 * Owns the names of what is offered, and what was received and not taken. The
 * state outlives the connection. If this process dies, the daemon learns it
 * from its pidfd and decides; if the daemon dies, this waits for the next one.
 */
#include "vmm.h"

#include "clock.h"
#include "version.h"

#include <poll.h>
#include <stdarg.h>
#include <string.h>

#define NAME_MAX_LEN 64

/* ---- making one ---------------------------------------------------------- */

static bool good_name(const char *name, size_t max)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789._:-";

	return name && name[0] && name[0] != '.' && strlen(name) <= max &&
	       !name[strspn(name, allowed)];
}

/* The upgrade that this process was started for; 0: none. */
static uint64_t started_for(void)
{
	const char *text = getenv("UPGRADED_TARGET");
	char *end;
	uint64_t id;

	if (!text || text[0] < '0' || text[0] > '9')
		return 0;
	id = strtoull(text, &end, 10);
	return *end ? 0 : id;
}

static int set_string(char **field, const char *value)
{
	char *copy = strdup(value ?: "");

	if (!copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static void free_fds(struct vmm_fd *v, size_t *n, bool owned)
{
	for (size_t i = 0; i < *n; i++) {
		free(v[i].name);
		if (owned)
			closep(&v[i].fd);
	}
	*n = 0;
}

void upgraded_free(struct upgraded *u)
{
	if (!u)
		return;
	vmm_link_clear(u);
	closep(&u->request_fd);
	free_fds(u->offered, &u->n_offered, false);
	free_fds(u->received, &u->n_received, true);
	error_clear(&u->err);
	free(u->explain);
	free(u->tier_why);
	free(u->path);
	free(u->machine);
	free(u->version);
	free(u->name);
	free(u);
}

static void freep_upgraded(struct upgraded **u)
{
	upgraded_free(*u);
}

int upgraded_new(const char *name, const struct upgraded_ops *ops, void *userdata,
		 struct upgraded **ret_upgraded)
{
	_cleanup_(freep_upgraded) struct upgraded *u = NULL;
	int r;

	/* The first version had all up to finish. */
	if (!good_name(name, NAME_MAX_LEN) || !ops || ops->size < sizeof(*ops) || !ops->freeze ||
	    !ops->thaw || !ops->accept || !ops->load || !ops->run)
		return -EINVAL;
	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	u->sock = u->epoll = u->timer = u->request_fd = -EBADF;
	u->ops = *ops;
	u->userdata = userdata;
	u->retry_ms = 50;
	u->upgrade_id = started_for();
	u->target = u->upgrade_id != 0;
	u->state = u->target ? UPGRADED_EMPTY : UPGRADED_RUNNING;
	if (set_string(&u->name, name) < 0 || set_string(&u->version, "") < 0 ||
	    set_string(&u->machine, "") < 0)
		return -ENOMEM;
	r = vmm_link_init(u);
	if (r < 0)
		return r;
	*ret_upgraded = TAKE_PTR(u);
	return 0;
}

int upgraded_describe(struct upgraded *u, const char *version, const char *machine, uint64_t memory)
{
	if (set_string(&u->version, version) < 0 || set_string(&u->machine, machine) < 0)
		return -ENOMEM;
	u->memory = memory;
	return 0;
}

static struct vmm_fd *find_fd(struct vmm_fd *v, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(v[i].name, name))
			return &v[i];
	return NULL;
}

static bool good_kind(enum upgraded_kind kind)
{
	return kind >= UPGRADED_MEMFD && kind <= UPGRADED_DEVICE;
}

int upgraded_offer(struct upgraded *u, const char *name, enum upgraded_kind kind, int fd)
{
	struct vmm_fd item = { .kind = kind, .fd = fd };

	if (!good_name(name, UPGRADED_FD_NAME_MAX) || !good_kind(kind) || fd < 0)
		return -EINVAL;
	if (find_fd(u->offered, u->n_offered, name))
		return -EEXIST;
	if (u->n_offered == UPGRADED_FDS_MAX)
		return -E2BIG;
	item.name = strdup(name);
	if (!item.name)
		return -ENOMEM;
	u->offered[u->n_offered++] = item;
	return 0;
}

int upgraded_withdraw(struct upgraded *u, const char *name)
{
	struct vmm_fd *item = find_fd(u->offered, u->n_offered, name);

	if (!item)
		return -ENOENT;
	free(item->name);
	*item = u->offered[--u->n_offered];
	return 0;
}

/* ---- what a target received ---------------------------------------------- */

int upgraded_received(const struct upgraded *u, size_t i, const char **ret_name,
		      enum upgraded_kind *ret_kind)
{
	if (i >= u->n_received)
		return -ENOENT;
	if (ret_name)
		*ret_name = u->received[i].name;
	if (ret_kind)
		*ret_kind = u->received[i].kind;
	return 0;
}

int upgraded_take(struct upgraded *u, const char *name, enum upgraded_kind kind, int *ret_fd)
{
	struct vmm_fd *item = find_fd(u->received, u->n_received, name);

	if (!item || item->fd < 0)
		return -ENOENT;
	if (item->kind != kind)
		return -EMEDIUMTYPE;
	*ret_fd = TAKE_FD(item->fd);
	return 0;
}

enum upgraded_tier upgraded_tier(const struct upgraded *u)
{
	return u->tier_wanted;
}

int upgraded_set_tier(struct upgraded *u, enum upgraded_tier tier, const char *why)
{
	if (tier < UPGRADED_TIER_MEMFD || tier > UPGRADED_TIER_STAGE2)
		return -EINVAL;
	if (set_string(&u->tier_why, why) < 0)
		return -ENOMEM;
	u->tier = tier;
	return 0;
}

void upgraded_set_result(struct upgraded *u, const struct upgraded_gmem_result *result)
{
	u->result = *result;
	u->has_result = true;
}

/* ---- requests -------------------------------------------------------------- */

static int on_freeze(struct upgraded *u)
{
	return u->ops.freeze(u, u->request_fd, u->userdata);
}

static int on_reclaim(struct upgraded *u)
{
	return u->ops.reclaim ? u->ops.reclaim(u, u->request_fd, u->userdata) : -EOPNOTSUPP;
}

static int on_thaw(struct upgraded *u)
{
	return u->ops.thaw(u, u->userdata);
}

static int on_quit(struct upgraded *u)
{
	return u->ops.quit ? u->ops.quit(u, u->userdata) : 0;
}

static int on_accept(struct upgraded *u)
{
	return u->ops.accept(u, u->userdata);
}

static int on_verify(struct upgraded *u)
{
	return u->ops.verify ? u->ops.verify(u, u->userdata) : 0;
}

static int on_load(struct upgraded *u)
{
	return u->ops.load(u, u->request_fd, u->userdata);
}

static int on_own(struct upgraded *u)
{
	return u->ops.own ? u->ops.own(u, u->userdata) : 0;
}

static int on_run(struct upgraded *u)
{
	return u->ops.run(u, u->userdata);
}

static int on_finish(struct upgraded *u)
{
	return u->ops.finish ? u->ops.finish(u, u->userdata) : 0;
}

#define IN(x) (1U << UPGRADED_##x)

static const struct request {
	Upgraded__V1__Envelope__BodyCase body;
	unsigned int states;	  /* in which it may be asked */
	unsigned int done;	  /* in which there is nothing to do for it */
	enum upgraded_state next; /* after success; 0: the same */
	size_t fds;
	int (*call)(struct upgraded *u);
} requests[] = {
	{ BODY(VMM_OFFER_REQUEST), IN(RUNNING) | IN(FROZEN), 0, 0, 0, NULL },
	{ BODY(VMM_FREEZE), IN(RUNNING), 0, UPGRADED_FROZEN, 1, on_freeze },
	{ BODY(VMM_RECLAIM), IN(FROZEN), 0, 0, 1, on_reclaim },
	{ BODY(VMM_THAW), IN(FROZEN), IN(RUNNING), UPGRADED_RUNNING, 0, on_thaw },
	{ BODY(VMM_QUIT), IN(FROZEN), 0, 0, 0, on_quit },
	{ BODY(VMM_ACCEPT), IN(EMPTY), 0, UPGRADED_ACCEPTED, 0, on_accept },
	{ BODY(VMM_VERIFY), IN(ACCEPTED), 0, 0, 0, on_verify },
	{ BODY(VMM_LOAD), IN(ACCEPTED), 0, UPGRADED_LOADED, 1, on_load },
	{ BODY(VMM_OWN), IN(LOADED), IN(OWNER), UPGRADED_OWNER, 0, on_own },
	{ BODY(VMM_RUN), IN(OWNER), IN(RUNNING), UPGRADED_RUNNING, 0, on_run },
	{ BODY(VMM_FINISH), IN(RUNNING), 0, 0, 0, on_finish },
};

static const struct request *find_request(Upgraded__V1__Envelope__BodyCase body)
{
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
		if (requests[i].body == body)
			return &requests[i];
	return NULL;
}

static const char *state_name(enum upgraded_state state)
{
	static const char *const names[] = {
		[UPGRADED_RUNNING] = "runs",	  [UPGRADED_FROZEN] = "is frozen",
		[UPGRADED_EMPTY] = "is empty",	  [UPGRADED_ACCEPTED] = "has its memory",
		[UPGRADED_LOADED] = "has loaded", [UPGRADED_OWNER] = "owns its memory",
	};

	return names[state];
}

/* Sends the answer, unless the connection that it is for has ended meanwhile. */
static void answer(struct upgraded *u, Envelope *env, const int *fds, size_t n)
{
	if (u->link == VMM_LINK_UP && u->connection == u->request_connection)
		vmm_link_send(u, env, fds, n);
}

/* Answers with an Error. The request is over. */
static void answer_error(struct upgraded *u, uint64_t id, Upgraded__V1__ErrorCode code,
			 const char *text)
{
	Upgraded__V1__Error msg = UPGRADED__V1__ERROR__INIT;
	Envelope env = ENVELOPE_INIT;

	msg.code = code;
	msg.text = (char *)text;
	env.id = id;
	env.body_case = BODY(ERROR);
	env.error = &msg;
	answer(u, &env, NULL, 0);
}

/* What is offered, as a message. The fds are borrowed; *ret_v is freed by the caller. */
static int fill_offer(struct upgraded *u, Upgraded__V1__VmmOffer *offer,
		      Upgraded__V1__VmmFd **ret_v, int *fds)
{
	Upgraded__V1__VmmFd **list;

	*ret_v = NULL;
	list = calloc(u->n_offered + 1, sizeof(*list) + sizeof(**list));
	if (!list)
		return -ENOMEM;
	for (size_t i = 0; i < u->n_offered; i++) {
		Upgraded__V1__VmmFd *fd = (Upgraded__V1__VmmFd *)(list + u->n_offered + 1) + i;

		upgraded__v1__vmm_fd__init(fd);
		fd->name = u->offered[i].name;
		fd->kind = (Upgraded__V1__VmmFdKind)u->offered[i].kind;
		list[i] = fd;
		fds[i] = u->offered[i].fd;
	}
	upgraded__v1__vmm_offer__init(offer);
	offer->fd = list;
	offer->n_fd = u->n_offered;
	offer->version = u->version;
	offer->machine = u->machine;
	offer->memory = u->memory;
	offer->state = (Upgraded__V1__VmmState)u->state;
	*ret_v = (Upgraded__V1__VmmFd *)list;
	return 0;
}

static void answer_offer(struct upgraded *u, uint64_t id)
{
	_cleanup_free_ Upgraded__V1__VmmFd *v = NULL;
	Upgraded__V1__VmmOffer offer;
	Envelope env = ENVELOPE_INIT;
	int fds[UPGRADED_FDS_MAX];

	if (fill_offer(u, &offer, &v, fds) < 0) {
		answer_error(u, id, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "out of memory");
		return;
	}
	env.id = id;
	env.body_case = BODY(VMM_OFFER);
	env.vmm_offer = &offer;
	answer(u, &env, fds, u->n_offered);
}

static void answer_accepted(struct upgraded *u)
{
	Upgraded__V1__VmmAccepted accepted = UPGRADED__V1__VMM_ACCEPTED__INIT;
	Envelope env = ENVELOPE_INIT;
	size_t n = 0;
	int vm = -EBADF;

	for (size_t i = 0; i < u->n_offered; i++)
		if (u->offered[i].kind == UPGRADED_VM) {
			vm = u->offered[i].fd;
			n = 1;
		}
	accepted.tier = (Upgraded__V1__Tier)u->tier;
	accepted.why = u->tier_why ?: (char *)"";
	accepted.version = u->version;
	accepted.machine = u->machine;
	accepted.memory = u->memory;
	env.id = u->request_id;
	env.body_case = BODY(VMM_ACCEPTED);
	env.vmm_accepted = &accepted;
	answer(u, &env, &vm, n);
}

static void fill_handover(const struct upgraded *u, Upgraded__V1__Handover *handover)
{
	upgraded__v1__handover__init(handover);
	handover->slots = u->result.slots;
	handover->matched = u->result.matched;
	handover->tables = u->result.tables;
	handover->zapped = u->result.zapped;
	handover->dry_run = u->request == BODY(VMM_VERIFY);
	handover->ownership = true;
	if (u->result.verdict)
		handover->error = (char *)upgraded_gmem_verdict(u->result.verdict);
}

static void answer_done(struct upgraded *u)
{
	Upgraded__V1__VmmDone done = UPGRADED__V1__VMM_DONE__INIT;
	Upgraded__V1__Handover handover;
	Envelope env = ENVELOPE_INIT;

	if (u->request == BODY(VMM_FREEZE))
		done.at_us = u->request_at_us;
	else if (u->request == BODY(VMM_THAW) || u->request == BODY(VMM_RUN))
		done.at_us = realtime_us();
	if (u->has_result) {
		fill_handover(u, &handover);
		done.handover = &handover;
	}
	env.id = u->request_id;
	env.body_case = BODY(VMM_DONE);
	env.vmm_done = &done;
	answer(u, &env, NULL, 0);
}

/* A target that runs is a VM as any other. */
static void end_of_target(struct upgraded *u)
{
	u->upgrade_id = 0;
	free_fds(u->received, &u->n_received, true);
}

static void answer_failure(struct upgraded *u, int code)
{
	/* Its own copy: thaw may have something to explain as well. */
	_cleanup_free_ char *why = strdup(u->explain ?: strerror(-code));

	if (u->request == BODY(VMM_FREEZE))
		(void)u->ops.thaw(u, u->userdata);
	error_clear(&u->err);
	error_set(&u->err, code, "%s", why ?: "out of memory");
	answer_error(u, u->request_id, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL,
		     why ?: "out of memory");
}

/* The callback has done its work, now or by upgraded_complete(). */
static void end_request(struct upgraded *u, int result)
{
	const struct request *request = find_request(u->request);

	if (u->later)
		vmm_link_pause(u, false);
	u->later = false;
	if (result < 0) {
		answer_failure(u, result);
	} else {
		if (request->next)
			u->state = request->next;
		if (u->request == BODY(VMM_ACCEPT))
			answer_accepted(u);
		else
			answer_done(u);
		if (u->request == BODY(VMM_RUN))
			end_of_target(u);
	}
	if (u->request == BODY(VMM_ACCEPT) && result < 0)
		free_fds(u->received, &u->n_received, true);
	u->has_result = false;
	closep(&u->request_fd);
	free(u->explain);
	u->explain = NULL;
	u->request = UPGRADED__V1__ENVELOPE__BODY__NOT_SET;
}

int upgraded_complete(struct upgraded *u, int result)
{
	if (!u->later)
		return -EALREADY;
	end_request(u, result > 0 ? -EINVAL : result);
	return 0;
}

/* Takes the fds of an offer over, with their names. */
static int receive_offer(struct upgraded *u, const Upgraded__V1__VmmAccept *accept,
			 struct scm_fds *fds)
{
	const Upgraded__V1__VmmOffer *offer = accept->offer;

	if (!offer || offer->n_fd != fds->n || offer->n_fd > UPGRADED_FDS_MAX ||
	    accept->tier < UPGRADED__V1__TIER__TIER_MEMFD ||
	    accept->tier > UPGRADED__V1__TIER__TIER_STAGE2)
		return -EPROTO;
	for (size_t i = 0; i < offer->n_fd; i++) {
		struct vmm_fd item = { .kind = (enum upgraded_kind)offer->fd[i]->kind };

		if (!good_name(offer->fd[i]->name, UPGRADED_FD_NAME_MAX) || !good_kind(item.kind) ||
		    find_fd(u->received, u->n_received, offer->fd[i]->name))
			return -EPROTO;
		item.name = strdup(offer->fd[i]->name);
		if (!item.name)
			return -ENOMEM;
		item.fd = scm_fds_take(fds, i);
		u->received[u->n_received++] = item;
	}
	u->tier_wanted = (enum upgraded_tier)accept->tier;
	u->tier = UPGRADED_TIER_MEMFD;
	return 0;
}

/* What no worker of ours sends: says so, and does not go on with such a one. */
static void protocol_error(struct upgraded *u, uint64_t id, const char *text)
{
	answer_error(u, id, UPGRADED__V1__ERROR_CODE__ERROR_PROTOCOL, text);
	error_clear(&u->err);
	error_set(&u->err, -EPROTO, "%s", text);
	vmm_link_lost(u);
}

static void handle(struct upgraded *u, const Envelope *env, struct scm_fds *fds)
{
	const struct request *request = find_request(env->body_case);
	size_t due = request ? request->fds : 0;
	char text[160];
	int r;

	u->request_connection = u->connection;
	if (env->body_case == BODY(VMM_ACCEPT) && env->vmm_accept->offer)
		due = env->vmm_accept->offer->n_fd;
	if (!request || !env->id || env->batches_left || fds->n != due) {
		snprintf(text, sizeof(text), "%s with %zu descriptors is not understood",
			 envelope_name(env), fds->n);
		protocol_error(u, env->id, text);
		return;
	}
	u->request = env->body_case;
	u->request_id = env->id;
	u->request_at_us = realtime_us();
	if (request->done & 1U << u->state) {
		answer_done(u);
	} else if (!(request->states & 1U << u->state)) {
		snprintf(text, sizeof(text), "%s is not due: this VMM %s", envelope_name(env),
			 state_name(u->state));
		answer_error(u, env->id, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, text);
	} else if (!request->call) {
		answer_offer(u, env->id);
	} else {
		if (request->fds)
			u->request_fd = scm_fds_take(fds, 0);
		r = env->body_case == BODY(VMM_ACCEPT) ? receive_offer(u, env->vmm_accept, fds) : 0;
		if (r >= 0)
			r = request->call(u);
		if (r != UPGRADED_LATER) {
			end_request(u, r > 0 ? -EINVAL : r);
			return;
		}
		u->later = true;
		vmm_link_pause(u, true);
		return;
	}
	u->request = UPGRADED__V1__ENVELOPE__BODY__NOT_SET;
}

/* ---- going on --------------------------------------------------------------- */

int upgraded_connect(struct upgraded *u, const char *path, int timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms;
	int r;

	if (set_string(&u->path,
		       path ?: getenv("UPGRADED_VMM_SOCKET") ?: UPGRADED_DEFAULT_SOCKET) < 0)
		return -ENOMEM;
	u->refused = 0;
	vmm_link_start(u);
	while (u->link != VMM_LINK_UP && timeout_ms) {
		int64_t left = deadline - now_ms();

		if (timeout_ms > 0 && left <= 0)
			return -ETIMEDOUT;
		r = upgraded_wait(u, timeout_ms < 0 ? -1 : (int)left);
		if (r < 0)
			return r;
	}
	return 0;
}

bool upgraded_connected(const struct upgraded *u)
{
	return u->link == VMM_LINK_UP;
}

int upgraded_fd(const struct upgraded *u)
{
	return u->epoll;
}

int upgraded_dispatch(struct upgraded *u)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *request = NULL;
	int r;

	r = vmm_link_step(u, &request, &fds);
	if (r > 0 && request)
		handle(u, request, &fds);
	return r;
}

int upgraded_wait(struct upgraded *u, int timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms;
	int r;

	for (;;) {
		struct pollfd p = { .fd = u->epoll, .events = POLLIN };
		int64_t left = timeout_ms;

		r = upgraded_dispatch(u);
		if (r != 0)
			return r;
		if (timeout_ms >= 0) {
			left = deadline - now_ms();
			if (left <= 0)
				return 0;
		}
		if (poll(&p, 1, (int)left) < 0 && errno != EINTR)
			return -errno;
	}
}

void upgraded_explain(struct upgraded *u, const char *fmt, ...)
{
	char *text;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	free(u->explain);
	u->explain = text;
}

bool upgraded_is_target(const struct upgraded *u)
{
	return u->target;
}

enum upgraded_state upgraded_state(const struct upgraded *u)
{
	return u->state;
}

const char *upgraded_error(const struct upgraded *u)
{
	return u->err.text ?: "";
}

const char *upgraded_version(void)
{
	return UPGRADED_VERSION;
}
