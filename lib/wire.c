/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Envelopes over a SOCK_SEQPACKET socket. Every program of ours sends and
 * receives through here: the daemon's sockets, its workers, upgradectl,
 * libupgraded. Owns nothing between calls. A packet is whole or absent, so a
 * peer that dies leaves no half message behind.
 */
#include "wire.h"

#include "clock.h"
#include "version.h"

#include <poll.h>

int wire_send(int sock, Envelope *env, const int *fds, size_t n)
{
	_cleanup_free_ uint8_t *packet = NULL;
	size_t len;
	ssize_t sent;

	if (n > SCM_RIGHTS_MAX)
		return -EMSGSIZE;
	env->fds = (uint32_t)n;
	len = upgraded__v1__envelope__get_packed_size(env);
	if (len > WIRE_PACKET_MAX)
		return -EMSGSIZE;
	packet = malloc(len ?: 1);
	if (!packet)
		return -ENOMEM;
	upgraded__v1__envelope__pack(env, packet);
	sent = scm_send(sock, packet, len, fds, n);
	return sent < 0 ? (int)sent : 0;
}

int wire_decode(const void *packet, size_t len, size_t n_fds, Envelope **ret_env)
{
	_cleanup_envelope_ Envelope *env = NULL;

	env = upgraded__v1__envelope__unpack(NULL, len, packet);
	if (!env)
		return -EBADMSG;
	/* A member that this version does not know decodes as "no member". */
	if (env->body_case == UPGRADED__V1__ENVELOPE__BODY__NOT_SET)
		return -EBADMSG;
	if (env->fds != n_fds)
		return -EBADMSG;
	*ret_env = TAKE_PTR(env);
	return 0;
}

int wire_recv(int sock, Envelope **ret_env, struct scm_fds *ret_fds)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_free_ uint8_t *packet = NULL;
	ssize_t len;
	int r;

	ret_fds->n = 0;
	packet = malloc(WIRE_PACKET_MAX);
	if (!packet)
		return -ENOMEM;
	len = scm_recv(sock, packet, WIRE_PACKET_MAX, &fds);
	/* That the peer did not read all is told once, and before what it had said itself. */
	if (len == -ECONNRESET)
		len = scm_recv(sock, packet, WIRE_PACKET_MAX, &fds);
	if (len == -ECONNRESET || len == 0)
		return -ENOTCONN;
	if (len < 0)
		return (int)len;
	r = wire_decode(packet, (size_t)len, fds.n, ret_env);
	if (r < 0)
		return r;
	*ret_fds = fds;
	fds.n = 0;
	return 0;
}

void envelope_freep(Envelope **env)
{
	if (*env)
		upgraded__v1__envelope__free_unpacked(*env, NULL);
	*env = NULL;
}

int wire_wait(int sock, int timeout_ms)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	int64_t deadline = now_ms() + timeout_ms;

	for (;;) {
		int n = poll(&p, 1, timeout_ms);

		if (n >= 0)
			return n ? 0 : -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
		/* Signals must not push the deadline away. */
		if (timeout_ms > 0) {
			int64_t left = deadline - now_ms();

			timeout_ms = left > 0 ? (int)left : 0;
		}
	}
}

const char *envelope_name(const Envelope *env)
{
	const ProtobufCFieldDescriptor *field;

	field = protobuf_c_message_descriptor_get_field(env->base.descriptor,
							(unsigned)env->body_case);
	return field ? field->name : "nothing";
}

void wire_hello(Upgraded__V1__Hello *hello, const char *program)
{
	upgraded__v1__hello__init(hello);
	hello->protocol_min = WIRE_PROTOCOL_MIN;
	hello->protocol_max = WIRE_PROTOCOL_MAX;
	hello->program = (char *)program;
	hello->version = (char *)UPGRADED_VERSION;
}

int wire_negotiate(const Upgraded__V1__Hello *peer, struct error *err)
{
	uint32_t version = peer->protocol_max < WIRE_PROTOCOL_MAX ? peer->protocol_max
								  : WIRE_PROTOCOL_MAX;

	if (version < peer->protocol_min || version < WIRE_PROTOCOL_MIN)
		return error_set(err, -EPROTONOSUPPORT,
				 "%s %s speaks protocol %u to %u, this side %u to %u",
				 peer->program, peer->version, peer->protocol_min,
				 peer->protocol_max, WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_MAX);
	return (int)version;
}

void wire_error(Upgraded__V1__Error *msg, Upgraded__V1__ErrorCode code, const struct error *err)
{
	upgraded__v1__error__init(msg);
	msg->code = code;
	msg->text = err->text ?: (char *)"out of memory";
	msg->hint = err->hint ?: (char *)"";
}
