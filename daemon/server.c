/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The listening sockets and those who are connected to them. Knows packets,
 * not what they ask for: a request goes to the one handler given to
 * server_new() (control.c), which answers at once or later.
 *
 * Owns the sockets and, for each client, a bounded queue of packets that its
 * socket had no room for: a client that does not read is dropped, and nothing
 * waits for it. Who breaks the protocol (fds that no request of ours carries,
 * a packet that cannot be decoded, a request before Hello) gets a typed Error
 * and is closed, after a second even if it does not read that. If the daemon dies here,
 * clients see the end of the socket; no request is half done because of it.
 */
#include "server.h"

#include "audit.h"
#include "log.h"
#include "oneshot.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#define QUEUE_PACKETS_MAX 256
#define HELLO_TIMEOUT_US  (10 * 1000000ULL)
#define ACCEPT_RETRY_US	  (1000 * 1000ULL)
#define LAST_WORDS_US	  (1000 * 1000ULL)

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* How many connections, and how many of one user other than root. */
static const struct {
	size_t all, of_uid;
} limits[] = {
	[SOCKET_CONTROL] = { 512, 64 },
	/* One per VM, two while it is upgraded; all of one user, as a rule. */
	[SOCKET_VMM] = { 8192, 4096 },
};

struct packet {
	struct packet *next;
	size_t len;
	uint8_t data[];
};

struct client {
	struct client *next;
	struct server *server;
	uint64_t number;
	enum server_socket socket;
	struct peer peer;
	int fd;
	sd_event_source *io;
	sd_event_source *hello_timer; /* NULL: it has said Hello */
	sd_event_source *close_timer; /* NULL: it was not rejected */
	struct packet *first, **last;
	size_t queued;
	bool closing; /* once the queue is empty */
	bool lent;    /* somebody else reads from it */
	char *watch;  /* NULL: watches nothing */
};

struct listener {
	struct listener *next;
	struct server *server;
	enum server_socket socket;
	int fd;
	sd_event_source *io;
	sd_event_source *again; /* when there was no descriptor left for a connection */
};

struct server {
	sd_event *event;
	server_request_fn fn;
	server_denied_fn denied;
	server_closed_fn closed;
	void *userdata;
	struct listener *listeners;
	struct client *clients;
	uint64_t last_number;
};

static void client_free(struct client *c)
{
	struct client **at = &c->server->clients;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	if (!c->hello_timer && c->server->closed)
		c->server->closed(c->number, c->server->userdata);
	sd_event_source_disable_unref(c->io);
	sd_event_source_disable_unref(c->hello_timer);
	sd_event_source_disable_unref(c->close_timer);
	while (c->first) {
		struct packet *p = c->first;

		c->first = p->next;
		free(p);
	}
	closep(&c->fd);
	free(c->watch);
	free(c);
}

/* Ends the connection; the client is freed by its own event handler, never under a caller. */
static void client_drop(struct client *c)
{
	while (c->first) {
		struct packet *p = c->first;

		c->first = p->next;
		free(p);
	}
	c->last = &c->first;
	c->queued = 0;
	c->closing = true;
	sd_event_source_set_enabled(c->io, SD_EVENT_ON);
	/* A closed socket is readable and writable: the handler comes by soon. */
	shutdown(c->fd, SHUT_RDWR);
	sd_event_source_set_io_events(c->io, EPOLLOUT);
}

static void client_queue(struct client *c, const uint8_t *data, size_t len)
{
	struct packet *p;

	if (c->queued >= QUEUE_PACKETS_MAX) {
		log_line(LOG_WARNING, "a client (uid %u, process %d) does not read, dropped",
			 c->peer.uid, (int)c->peer.pid);
		client_drop(c);
		return;
	}
	p = malloc(sizeof(*p) + len);
	if (!p) {
		client_drop(c);
		return;
	}
	p->next = NULL;
	p->len = len;
	memcpy(p->data, data, len);
	*c->last = p;
	c->last = &p->next;
	c->queued++;
	sd_event_source_set_io_events(c->io, EPOLLIN | EPOLLOUT);
}

static void client_send(struct client *c, Envelope *env)
{
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	ssize_t n;

	if (c->closing)
		return;
	env->fds = 0;
	if (message_pack(env, &data, &len) < 0 || len > WIRE_PACKET_MAX) {
		log_line(LOG_ERR, "%s of %zu bytes does not fit into a packet, client dropped",
			 envelope_name(env), len);
		client_drop(c);
		return;
	}
	if (c->queued) {
		client_queue(c, data, len);
		return;
	}
	n = scm_send(c->fd, data, len, NULL, 0);
	if (n == -EAGAIN)
		client_queue(c, data, len);
	else if (n < 0)
		client_drop(c);
}

static void client_flush(struct client *c)
{
	while (c->first) {
		struct packet *p = c->first;
		ssize_t n = scm_send(c->fd, p->data, p->len, NULL, 0);

		if (n == -EAGAIN)
			return;
		if (n < 0) {
			client_drop(c);
			return;
		}
		c->first = p->next;
		if (!c->first)
			c->last = &c->first;
		c->queued--;
		free(p);
	}
	sd_event_source_set_io_events(c->io, EPOLLIN);
}

static struct client *client_find(struct server *s, uint64_t number)
{
	struct client *c = s->clients;

	while (c && c->number != number)
		c = c->next;
	return c;
}

static void client_hello(struct client *c, const struct requester *from, const Envelope *env)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	Upgraded__V1__Hello hello;
	Envelope answer = ENVELOPE_INIT;

	if (env->body_case != BODY(HELLO)) {
		error_set(&err, -EPROTO, "the first packet must be hello, not %s",
			  envelope_name(env));
		server_reject(c->server, from, ERROR_CODE(PROTOCOL), &err);
		return;
	}
	if (wire_negotiate(env->hello, &err) < 0) {
		server_reject(c->server, from, ERROR_CODE(PROTOCOL), &err);
		return;
	}
	c->hello_timer = sd_event_source_disable_unref(c->hello_timer);
	wire_hello(&hello, "upgraded");
	answer.id = env->id;
	answer.body_case = BODY(HELLO);
	answer.hello = &hello;
	client_send(c, &answer);
}

static void grant(struct server *s, const struct requester *from, enum server_socket socket,
		  const Envelope *env)
{
	audit_request(&from->peer, env, NULL);
	s->fn(from, socket, env, s->userdata);
}

void server_grant(struct server *s, const struct requester *from, const Envelope *request)
{
	grant(s, from, SOCKET_CONTROL, request);
}

void server_deny(struct server *s, const struct requester *from, const Envelope *request,
		 const struct error *err)
{
	audit_request(&from->peer, request, err);
	server_reply_error(s, from, ERROR_CODE(DENIED), err);
}

static void client_request(struct client *c, const Envelope *env, size_t n_fds)
{
	struct requester from = { c->number, env->id, c->peer };
	_cleanup_error_ struct error err = ERROR_INIT;

	if (c->hello_timer) {
		client_hello(c, &from, env);
	} else if ((n_fds || env->batches_left) &&
		   (c->socket != SOCKET_VMM || env->body_case == BODY(VMM_REGISTER))) {
		/* A VMM's answers, whose worker is gone, may have some: they are closed. */
		error_set(&err, -EPROTO, "%s carries no file descriptors", envelope_name(env));
		server_reject(c->server, &from, ERROR_CODE(PROTOCOL), &err);
	} else if (env->id == 0) {
		error_set(&err, -EPROTO, "a request has an id, which is not 0");
		server_reject(c->server, &from, ERROR_CODE(PROTOCOL), &err);
	} else if (access_check(&c->peer, env, &err) >= 0) {
		grant(c->server, &from, c->socket, env);
	} else if (c->socket != SOCKET_CONTROL || !c->server->denied ||
		   !c->server->denied(&from, env, &err, c->server->userdata)) {
		server_deny(c->server, &from, env, &err);
	}
}

static void client_read(struct client *c)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	int r;

	r = wire_recv(c->fd, &env, &fds);
	if (r == -EAGAIN)
		return;
	if (r == -EBADMSG || r == -EMFILE) {
		struct requester from = { c->number, 0, c->peer };
		_cleanup_error_ struct error err = ERROR_INIT;

		error_set(&err, r,
			  r == -EMFILE ? "no room for the packet's file descriptors"
				       : "the packet cannot be understood");
		server_reject(c->server, &from, ERROR_CODE(PROTOCOL), &err);
		return;
	}
	if (r < 0) {
		client_drop(c);
		return;
	}
	client_request(c, env, fds.n);
}

static int on_client(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct client *c = userdata;

	if (revents & EPOLLOUT)
		client_flush(c);
	if ((revents & EPOLLIN) && !c->closing)
		client_read(c);
	else if (revents & (EPOLLHUP | EPOLLERR))
		client_drop(c);
	if (c->closing && !c->first)
		client_free(c);
	return 0;
}

static int on_no_hello(sd_event_source *s, uint64_t usec, void *userdata)
{
	client_drop(userdata);
	return 0;
}

/* With the client @fresh, which is in the list. */
static bool has_room(struct server *s, const struct client *fresh)
{
	size_t all = 0, of_uid = 0;

	for (struct client *c = s->clients; c; c = c->next)
		if (c->socket == fresh->socket) {
			all++;
			of_uid += c->peer.uid == fresh->peer.uid;
		}
	return all <= limits[fresh->socket].all &&
	       (fresh->peer.uid == 0 || of_uid <= limits[fresh->socket].of_uid);
}

/* Takes @fd. */
static int client_new(struct listener *l, int fd)
{
	struct server *s = l->server;
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct client *c;
	int r;

	c = calloc(1, sizeof(*c));
	if (!c) {
		close(fd);
		return -ENOMEM;
	}
	c->server = s;
	c->fd = fd;
	c->socket = l->socket;
	c->last = &c->first;
	c->number = ++s->last_number;
	c->next = s->clients;
	s->clients = c;
	r = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 ? -errno : 0;
	if (r >= 0) {
		c->peer = (struct peer){ cred.uid, cred.gid, cred.pid };
		r = sd_event_add_io(s->event, &c->io, fd, EPOLLIN, on_client, c);
	}
	if (r >= 0)
		r = sd_event_add_time_relative(s->event, &c->hello_timer, CLOCK_MONOTONIC,
					       HELLO_TIMEOUT_US, 0, on_no_hello, c);
	if (r >= 0 && !has_room(s, c)) {
		log_line(LOG_WARNING, "uid %u has too many connections, one is refused",
			 c->peer.uid);
		r = -EUSERS;
	}
	if (r < 0)
		client_free(c);
	return r;
}

static int on_listener(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct listener *l = userdata;
	int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (conn >= 0) {
		(void)client_new(l, conn);
	} else if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
		log_line(LOG_WARNING, "cannot accept a connection: %m");
		/* It is still there: without a pause this would be called without end. */
		sd_event_source_set_enabled(l->io, SD_EVENT_OFF);
		oneshot_arm(l->again, ACCEPT_RETRY_US);
	}
	return 0;
}

static int on_accept_again(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct listener *l = userdata;

	sd_event_source_set_enabled(l->io, SD_EVENT_ON);
	return 0;
}

int server_new(sd_event *event, server_request_fn fn, server_denied_fn denied,
	       server_closed_fn closed, void *userdata, struct server **ret_server,
	       struct error *err)
{
	struct server *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	s->event = event;
	s->fn = fn;
	s->denied = denied;
	s->closed = closed;
	s->userdata = userdata;
	*ret_server = s;
	return 0;
}

static void listener_free(struct listener *l)
{
	sd_event_source_disable_unref(l->io);
	sd_event_source_disable_unref(l->again);
	closep(&l->fd);
	free(l);
}

int server_listen(struct server *s, int fd, enum server_socket socket, struct error *err)
{
	struct listener *l = calloc(1, sizeof(*l));
	int r;

	if (!l) {
		close(fd);
		return error_set(err, -ENOMEM, "out of memory");
	}
	l->server = s;
	l->socket = socket;
	l->fd = fd;
	r = sd_event_add_io(s->event, &l->io, fd, EPOLLIN, on_listener, l);
	if (r >= 0)
		r = sd_event_add_time(s->event, &l->again, CLOCK_MONOTONIC, UINT64_MAX, 0,
				      on_accept_again, l);
	if (r < 0) {
		listener_free(l);
		return error_errno(err, r, "cannot listen");
	}
	l->next = s->listeners;
	s->listeners = l;
	return 0;
}

void server_stop_listening(struct server *s)
{
	while (s->listeners) {
		struct listener *l = s->listeners;

		s->listeners = l->next;
		listener_free(l);
	}
}

void server_reply(struct server *s, const struct requester *to, Envelope *env)
{
	struct client *c = client_find(s, to->client);

	env->id = to->id;
	if (c)
		client_send(c, env);
}

void server_reply_ack(struct server *s, const struct requester *to)
{
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(ACK);
	env.ack = &ack;
	server_reply(s, to, &env);
}

void server_reply_error(struct server *s, const struct requester *to, ErrorCode code,
			const struct error *err)
{
	Upgraded__V1__Error msg;
	Envelope env = ENVELOPE_INIT;

	wire_error(&msg, code, err);
	env.body_case = BODY(ERROR);
	env.error = &msg;
	server_reply(s, to, &env);
}

static int on_last_words(sd_event_source *s, uint64_t usec, void *userdata)
{
	client_drop(userdata);
	return 0;
}

void server_reject(struct server *s, const struct requester *to, ErrorCode code,
		   const struct error *err)
{
	struct client *c = client_find(s, to->client);

	if (!c)
		return;
	log_line(LOG_NOTICE, "a client (uid %u, process %d) is closed: %s", c->peer.uid,
		 (int)c->peer.pid, err->text ?: "");
	server_reply_error(s, to, code, err);
	c->closing = true;
	sd_event_source_set_io_events(c->io, EPOLLOUT);
	if (!c->close_timer &&
	    sd_event_add_time_relative(s->event, &c->close_timer, CLOCK_MONOTONIC, LAST_WORDS_US, 0,
				       on_last_words, c) < 0)
		client_drop(c);
}

int server_lend(struct server *s, uint64_t client, int *ret_fd)
{
	struct client *c = client_find(s, client);
	int fd;

	if (!c || c->closing)
		return -ENOTCONN;
	if (c->lent || c->queued)
		return -EBUSY;
	fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	sd_event_source_set_enabled(c->io, SD_EVENT_OFF);
	c->lent = true;
	*ret_fd = fd;
	return 0;
}

void server_take_back(struct server *s, uint64_t client)
{
	struct client *c = client_find(s, client);

	if (!c || !c->lent)
		return;
	c->lent = false;
	sd_event_source_set_enabled(c->io, SD_EVENT_ON);
}

void server_close(struct server *s, uint64_t client)
{
	struct client *c = client_find(s, client);

	if (c)
		client_drop(c);
}

int server_peer_pidfd(struct server *s, uint64_t client, int *ret_pidfd)
{
	struct client *c = client_find(s, client);
	socklen_t len = sizeof(int);
	int fd;

	if (!c)
		return -ENOTCONN;
	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) < 0)
		return errno == ENOPROTOOPT || errno == EINVAL ? -ENODATA : -errno;
	*ret_pidfd = fd;
	return 0;
}

int server_watch(struct server *s, const struct requester *who, const char *name)
{
	struct client *c = client_find(s, who->client);
	char *copy = strdup(name);

	if (!c || !copy) {
		free(copy);
		return c ? -ENOMEM : 0;
	}
	free(c->watch);
	c->watch = copy;
	return 0;
}

void server_event(struct server *s, const Event *event, const struct requester *also)
{
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(EVENT);
	env.event = (Event *)event;
	for (struct client *c = s->clients; c; c = c->next) {
		bool watches = c->watch && (!c->watch[0] || !strcmp(c->watch, event->vm));

		if (watches || (also && also->client == c->number))
			client_send(c, &env);
	}
}

void server_freep(struct server **s)
{
	if (!*s)
		return;
	server_stop_listening(*s);
	(*s)->closed = NULL;
	while ((*s)->clients)
		client_free((*s)->clients);
	free(*s);
	*s = NULL;
}
