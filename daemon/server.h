/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The listening sockets and those who are connected: see server.c. */
#ifndef UPGRADED_SERVER_H
#define UPGRADED_SERVER_H

#include "access.h"
#include "message.h"
#include "wire.h"

#include <stdbool.h>
#include <systemd/sd-event.h>

struct server;

enum server_socket { SOCKET_CONTROL, SOCKET_VMM };

/*
 * A request that may be answered later. It names the connection by a number
 * that is never used again, so it may outlive it: the answer then goes nowhere.
 */
struct requester {
	uint64_t client; /* 0: nobody */
	uint64_t id;	 /* of the request's Envelope */
	struct peer peer;
};

/* A request from a peer that has said Hello and may ask for it. */
typedef void (*server_request_fn)(const struct requester *from, enum server_socket socket,
				  const Envelope *request, void *userdata);

/*
 * Who may not ask for it by the rule of access.c. True: somebody else decides, later. May
 * be NULL: nobody does.
 */
typedef bool (*server_denied_fn)(const struct requester *from, const Envelope *request,
				 const struct error *denied, void *userdata);

/* The connection @client, which had said Hello, has ended. */
typedef void (*server_closed_fn)(uint64_t client, void *userdata);

int server_new(sd_event *event, server_request_fn fn, server_denied_fn denied,
	       server_closed_fn closed, void *userdata, struct server **ret_server,
	       struct error *err);

/* What becomes of a request on control.sock for which server_denied_fn returned true. */
void server_grant(struct server *s, const struct requester *from, const Envelope *request);
void server_deny(struct server *s, const struct requester *from, const Envelope *request,
		 const struct error *err);

/* Takes a listening socket. */
int server_listen(struct server *s, int fd, enum server_socket socket, struct error *err);

/* No new connections from here on. */
void server_stop_listening(struct server *s);

/*
 * Answers. Sets env->id. A client that does not read is dropped once its
 * queue is full; this never blocks.
 */
void server_reply(struct server *s, const struct requester *to, Envelope *env);
void server_reply_ack(struct server *s, const struct requester *to);

/* Answers with an Error; a missing text is taken from @err->code. */
void server_reply_error(struct server *s, const struct requester *to, ErrorCode code,
			const struct error *err);

/* As server_reply_error(), then closes the connection: the peer broke the protocol. */
void server_reject(struct server *s, const struct requester *to, ErrorCode code,
		   const struct error *err);

/*
 * Lends the connection: *ret_fd is a duplicate of its socket, the caller's. Until
 * server_take_back() nothing is read from it here, nor its end seen.
 * -ENOTCONN: it has ended; -EBUSY: it is lent already, or something waits to be sent.
 */
int server_lend(struct server *s, uint64_t client, int *ret_fd);
void server_take_back(struct server *s, uint64_t client);

/* Ends the connection. */
void server_close(struct server *s, uint64_t client);

/*
 * A pidfd of the process that connected, the caller's. -ENOTCONN: it has ended;
 * -ENODATA: the kernel cannot say (before 6.5).
 */
int server_peer_pidfd(struct server *s, uint64_t client, int *ret_pidfd);

/* From now on the client gets the events of the VM @name (empty: of all). */
int server_watch(struct server *s, const struct requester *who, const char *name);

/* Sends @event to all who watch its VM, and to @also (may be NULL). */
void server_event(struct server *s, const Event *event, const struct requester *also);

void server_freep(struct server **s);

#endif
