/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection to the daemon, seen from the side that asks. upgradectl uses it
 * for every verb. The side of a VMM is in vmm.c.
 *
 * One connection carries one request at a time. Every wait has a deadline,
 * except where the caller asks for none. The connection owns its socket and
 * the daemon's last typed error; a process that dies here leaves nothing
 * behind: the daemon sees the socket close, and an upgrade that was started
 * over it goes on.
 */
#include "client.h"
#include "clock.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

/*
 * The connection waits in the socket's queue while systemd starts the daemon, or
 * replaces one that hangs (WatchdogSec=30s), and while it takes up the upgrades of
 * the one before.
 */
#define HELLO_TIMEOUT_MS 45000
#define SEND_TIMEOUT_S	 5

int client_errno(Upgraded__V1__ErrorCode code)
{
	switch ((int)code) {
	case UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST:
		return -EINVAL;
	case UPGRADED__V1__ERROR_CODE__ERROR_PROTOCOL:
		return -EPROTO;
	case UPGRADED__V1__ERROR_CODE__ERROR_NO_SUCH_VM:
		return -ENOENT;
	case UPGRADED__V1__ERROR_CODE__ERROR_BUSY:
		return -EBUSY;
	case UPGRADED__V1__ERROR_CODE__ERROR_REFUSED:
		return -ECANCELED;
	case UPGRADED__V1__ERROR_CODE__ERROR_DENIED:
		return -EACCES;
	case UPGRADED__V1__ERROR_CODE__ERROR_UNSUPPORTED:
		return -EOPNOTSUPP;
	case UPGRADED__V1__ERROR_CODE__ERROR_EXISTS:
		return -EEXIST;
	case UPGRADED__V1__ERROR_CODE__ERROR_NOT_RUNNING:
		return -ESRCH;
	default:
		return -EIO;
	}
}

static int connect_failed(const char *path, int code, struct error *err)
{
	switch (code) {
	case -ENOENT:
	case -ENOTDIR:
	case -ECONNREFUSED:
		error_set(err, -ECONNREFUSED, "the daemon cannot be reached: nobody listens on %s",
			  path);
		error_hint(err, "systemctl start upgraded.socket");
		return -ECONNREFUSED;
	case -EACCES:
	case -EPERM:
		error_set(err, -EACCES, "not permitted to use %s", path);
		error_hint(err, "run it as root or as a member of the socket's group");
		return -EACCES;
	case -EAGAIN:
		error_set(err, -ETIMEDOUT, "the daemon does not accept connections on %s", path);
		error_hint(err, "systemctl status upgraded.service");
		return -ETIMEDOUT;
	case -EPROTOTYPE:
		error_set(err, -ECONNREFUSED, "%s is not a socket of upgraded", path);
		return -ECONNREFUSED;
	default:
		return error_errno(err, code, "cannot connect to %s", path);
	}
}

static int say_hello(struct client *c, const char *program, struct error *err)
{
	_cleanup_envelope_ Envelope *answer = NULL;
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Hello hello;
	int r;

	wire_hello(&hello, program);
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_HELLO;
	env.hello = &hello;
	r = client_send(c, &env, err);
	if (r < 0)
		return r;
	r = client_recv(c, HELLO_TIMEOUT_MS, &answer, err);
	if (r < 0)
		return r;
	if (answer->body_case != UPGRADED__V1__ENVELOPE__BODY_HELLO)
		return error_set(err, -EPROTO,
				 "the daemon's first message is \"%s\", not \"hello\"",
				 envelope_name(answer));
	r = wire_negotiate(answer->hello, err);
	if (r < 0)
		return r;
	c->protocol = r;
	return 0;
}

int client_connect(struct client *c, const char *path, const char *program, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = SEND_TIMEOUT_S };
	_cleanup_client_ struct client new = CLIENT_INIT;
	int r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG, "the socket's path is too long: %s", path);
	strcpy(addr.sun_path, path);

	new.sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (new.sock < 0)
		return error_errno(err, -errno, "cannot make a socket");
	/* Bounds connect() and sendmsg() to a daemon that hangs. */
	if (setsockopt(new.sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
		return error_errno(err, -errno, "cannot set a time limit on a socket");
	do
		r = connect(new.sock, (struct sockaddr *)&addr, sizeof(addr));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return connect_failed(path, -errno, err);
	r = say_hello(&new, program, err);
	if (r < 0)
		return r;
	client_close(c);
	*c = new;
	new = (struct client)CLIENT_INIT;
	return 0;
}

static int daemon_gone(struct error *err)
{
	error_set(err, -ECONNRESET, "the daemon closed the connection");
	error_hint(err, "systemctl status upgraded.service");
	return -ECONNRESET;
}

int client_send(struct client *c, Envelope *request, struct error *err)
{
	int r;

	envelope_freep(&c->error);
	request->id = ++c->last_id;
	r = wire_send(c->sock, request, NULL, 0);
	switch (r) {
	case -EPIPE:
	case -ECONNRESET:
	case -ENOTCONN:
		return daemon_gone(err);
	case -EAGAIN:
		error_set(err, -ETIMEDOUT, "the daemon does not take requests");
		error_hint(err, "systemctl status upgraded.service");
		return -ETIMEDOUT;
	case -EMSGSIZE:
		return error_set(err, r, "the request is longer than the %d bytes of a packet",
				 WIRE_PACKET_MAX);
	case 0:
		return 0;
	default:
		return error_errno(err, r, "cannot send the request");
	}
}

/* Keeps the daemon's typed error as c->error and as @err. */
static int typed_error(struct client *c, Envelope **message, struct error *err)
{
	const Upgraded__V1__Error *e;

	envelope_freep(&c->error);
	c->error = TAKE_PTR(*message);
	e = c->error->error;
	error_set(err, client_errno(e->code), "%s",
		  e->text[0] ? e->text : "the daemon gave no reason");
	if (e->hint[0])
		error_hint(err, "%s", e->hint);
	return client_errno(e->code);
}

int client_recv(struct client *c, int timeout_ms, Envelope **ret_message, struct error *err)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *message = NULL;
	int r;

	r = wire_wait(c->sock, timeout_ms);
	if (r == -ETIMEDOUT) {
		error_set(err, r, "the daemon does not answer");
		error_hint(err, "systemctl status upgraded.service");
		return r;
	}
	if (r < 0)
		return error_errno(err, r, "cannot wait for the daemon");
	r = wire_recv(c->sock, &message, &fds);
	if (r == -ENOTCONN)
		return daemon_gone(err);
	if (r == -EBADMSG)
		return error_set(err, -EPROTO, "the daemon sent a message that cannot be read");
	if (r < 0)
		return error_errno(err, r, "cannot receive the daemon's answer");
	if (fds.n)
		return error_set(err, -EPROTO, "the daemon sent file descriptors with \"%s\"",
				 envelope_name(message));
	if (message->body_case == UPGRADED__V1__ENVELOPE__BODY_ERROR)
		return typed_error(c, &message, err);
	*ret_message = TAKE_PTR(message);
	return 0;
}

/* Moves the items of list @from to the end of list @to. */
static int move_items(void ***to, size_t *n_to, void **from, size_t *n_from)
{
	void **grown;

	if (!*n_from)
		return 0;
	grown = reallocarray(*to, *n_to + *n_from, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	memcpy(grown + *n_to, from, *n_from * sizeof(*grown));
	*to = grown;
	*n_to += *n_from;
	*n_from = 0;
	return 0;
}

/*
 * A list longer than a packet comes in several, all but the last with
 * batches_left set. Adds @part to what came before it, if anything did.
 */
static int gather(Envelope **whole, Envelope **part, struct error *err)
{
	Envelope *w = *whole, *p = *part;
	int r;

	if (!w) {
		*whole = TAKE_PTR(*part);
		return 0;
	}
	if (p->body_case != w->body_case || p->batches_left + 1 != w->batches_left)
		return error_set(err, -EPROTO, "the daemon's parts of a list do not fit together");
	if (p->body_case == UPGRADED__V1__ENVELOPE__BODY_VM_LIST)
		r = move_items((void ***)&w->vm_list->vms, &w->vm_list->n_vms,
			       (void **)p->vm_list->vms, &p->vm_list->n_vms);
	else if (p->body_case == UPGRADED__V1__ENVELOPE__BODY_HISTORY_REPLY)
		r = move_items((void ***)&w->history_reply->reports, &w->history_reply->n_reports,
			       (void **)p->history_reply->reports, &p->history_reply->n_reports);
	else
		return error_set(err, -EPROTO, "the daemon sent \"%s\" in parts", envelope_name(p));
	if (r < 0)
		return error_errno(err, r, "cannot keep the daemon's answer");
	w->batches_left = p->batches_left;
	return 0;
}

int client_call(struct client *c, Envelope *request, Upgraded__V1__Envelope__BodyCase expected,
		int timeout_ms, Envelope **ret_answer, struct error *err)
{
	_cleanup_envelope_ Envelope *whole = NULL;
	int64_t deadline = now_ms() + timeout_ms;
	int r;

	r = client_send(c, request, err);
	if (r < 0)
		return r;
	for (;;) {
		_cleanup_envelope_ Envelope *answer = NULL;
		int left = -1;

		if (timeout_ms >= 0) {
			int64_t ms = deadline - now_ms();

			left = ms > 0 ? (int)ms : 0;
		}
		r = client_recv(c, left, &answer, err);
		if (r < 0)
			return r;
		if (answer->body_case == UPGRADED__V1__ENVELOPE__BODY_EVENT)
			continue;
		if (answer->body_case != expected || answer->id != c->last_id)
			return error_set(err, -EPROTO, "the daemon answered \"%s\" with \"%s\"",
					 envelope_name(request), envelope_name(answer));
		r = gather(&whole, &answer, err);
		if (r < 0)
			return r;
		if (whole->batches_left)
			continue;
		*ret_answer = TAKE_PTR(whole);
		return 0;
	}
}

void client_close(struct client *c)
{
	closep(&c->sock);
	envelope_freep(&c->error);
	*c = (struct client)CLIENT_INIT;
}
