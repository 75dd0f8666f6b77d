/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Envelopes over a SOCK_SEQPACKET socket: see wire.c and proto/upgraded.proto. */
#ifndef UPGRADED_WIRE_H
#define UPGRADED_WIRE_H

#include "error.h"
#include "scm_rights.h"
#include "upgraded.pb-c.h"

#include <stdbool.h>

#define WIRE_PACKET_MAX (64 * 1024)
#define WIRE_PROTOCOL_MIN 1
#define WIRE_PROTOCOL_MAX 2 /* 2: vmm.sock */

typedef Upgraded__V1__Envelope Envelope;
#define ENVELOPE_INIT UPGRADED__V1__ENVELOPE__INIT

/*
 * Sends one Envelope with @n borrowed fds; sets env->fds. Returns 0 or a
 * negative errno: -EMSGSIZE if it does not fit in a packet, -EAGAIN if the
 * (non-blocking) socket is full, -EPIPE or -ECONNRESET if the peer is gone.
 */
int wire_send(int sock, Envelope *env, const int *fds, size_t n);

/*
 * Receives one Envelope. *ret_env is freed with envelope_freep(); the fds are
 * the caller's, as many as the Envelope announces.
 * Returns 0; -EAGAIN if there is none (non-blocking); -ENOTCONN if the peer
 * closed; -EBADMSG for what is not an Envelope, has an unknown oneof, a wrong
 * number of fds or truncated ones; -EMFILE without room for them. All fds are
 * closed on every error.
 */
int wire_recv(int sock, Envelope **ret_env, struct scm_fds *ret_fds);

/* The decoding half of wire_recv(), for packets from elsewhere (tests, fuzzers). */
int wire_decode(const void *packet, size_t len, size_t n_fds, Envelope **ret_env);

void envelope_freep(Envelope **env);
#define _cleanup_envelope_ __attribute__((cleanup(envelope_freep)))

/* Waits until @sock is readable. 0, -ETIMEDOUT, or a negative errno. -1: for ever. */
int wire_wait(int sock, int timeout_ms);

/* The name of a oneof member as in the .proto, for messages ("upgrade"). */
const char *envelope_name(const Envelope *env);

/* Our Hello with @program; the strings are borrowed. */
void wire_hello(Upgraded__V1__Hello *hello, const char *program);

/* The version both sides speak, or -EPROTONOSUPPORT with the sentence in @err. */
int wire_negotiate(const Upgraded__V1__Hello *peer, struct error *err);

/* Fills an Error message from @err; the strings are borrowed from it. */
void wire_error(Upgraded__V1__Error *msg, Upgraded__V1__ErrorCode code, const struct error *err);

#endif
