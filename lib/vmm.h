/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The inside of struct upgraded, shared by vmm.c and vmm_link.c. */
#ifndef UPGRADED_VMM_H
#define UPGRADED_VMM_H

#include "upgraded.h"
#include "wire.h"

#define BODY(x) UPGRADED__V1__ENVELOPE__BODY_##x

enum vmm_link_state {
	VMM_LINK_OFF,	   /* nothing is tried: never connected, or refused */
	VMM_LINK_DOWN,	   /* tried again when the timer says so */
	VMM_LINK_HELLO,	   /* our Hello is out */
	VMM_LINK_REGISTER, /* our VmmRegister is out */
	VMM_LINK_UP,
};

struct vmm_fd {
	char *name;
	enum upgraded_kind kind;
	int fd; /* offered: borrowed; received: owned, -EBADF when it was taken */
};

struct upgraded {
	/* The VM. */
	struct upgraded_ops ops;
	void *userdata;
	char *name;
	char *version, *machine;
	uint64_t memory;
	enum upgraded_state state;
	uint64_t upgrade_id; /* of a target, until it runs; else 0 */
	bool target;	     /* this process was started as one */
	struct vmm_fd offered[UPGRADED_FDS_MAX];
	size_t n_offered;

	/* A target's. */
	struct vmm_fd received[UPGRADED_FDS_MAX];
	size_t n_received;
	enum upgraded_tier tier_wanted, tier;
	char *tier_why;
	struct upgraded_gmem_result result; /* of verify or own */
	bool has_result;

	/* The request that is being answered. */
	Upgraded__V1__Envelope__BodyCase request; /* __NOT_SET: none */
	uint64_t request_id;
	uint64_t request_at_us;	     /* CLOCK_REALTIME */
	uint64_t request_connection; /* over which it came */
	int request_fd;
	bool later;    /* by upgraded_complete() */
	char *explain; /* why it is about to fail */

	/* The connection: vmm_link.c. */
	char *path;
	enum vmm_link_state link;
	int epoll, timer, sock;
	uint64_t connection; /* the how manieth */
	int64_t retry_ms;
	int refused;	  /* why the link is off */
	struct error err; /* the last one */
};

/* ---- vmm_link.c ---- */

int vmm_link_init(struct upgraded *u);
void vmm_link_clear(struct upgraded *u);

/* Tries to connect, now. */
void vmm_link_start(struct upgraded *u);

/* Closes the connection, for a reason that is in u->err, and tries again soon. */
void vmm_link_lost(struct upgraded *u);

/*
 * Does one thing that there is to do. 1: did, or got a request: then it is in
 * *ret_request and its fds in @ret_fds. 0: nothing to do. Negative: refused.
 */
int vmm_link_step(struct upgraded *u, Envelope **ret_request, struct scm_fds *ret_fds);

/* Sends an answer with borrowed fds; a connection that does not take it is lost. */
void vmm_link_send(struct upgraded *u, Envelope *env, const int *fds, size_t n);

/* While a callback works on, no further request is read. */
void vmm_link_pause(struct upgraded *u, bool pause);

#endif
