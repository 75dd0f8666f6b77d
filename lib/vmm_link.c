/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The connection of a VMM to the daemon: connecting, Hello, registering, and
 * doing all of it again when the daemon was restarted. Called by vmm.c, which
 * knows what the requests mean. Owns the socket, and an epoll fd with a timer
 * in it, so that a VMM has one fd to poll that never changes.
 *
 * Nothing blocks: the socket is non-blocking, and what takes too long is cut
 * off and tried again. If the VMM dies here the daemon sees the socket close;
 * if the daemon dies, the VM's state stays what it is until the next one asks.
 */
#include "vmm.h"

#include "client.h"
#include "version.h"

#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#define RETRY_FIRST_MS	50
#define RETRY_LAST_MS	1000
#define ANSWER_LIMIT_MS 5000
/* The first one with vmm.sock. */
#define PROTOCOL_MIN 2

static void set_timer(struct upgraded *u, int64_t ms)
{
	struct itimerspec t = {
		.it_value = { .tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000 },
	};

	/* Fails for no time that we set. */
	(void)timerfd_settime(u->timer, 0, &t, NULL);
}

int vmm_link_init(struct upgraded *u)
{
	struct epoll_event event = { .events = EPOLLIN };

	u->epoll = epoll_create1(EPOLL_CLOEXEC);
	u->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (u->epoll < 0 || u->timer < 0 ||
	    epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->timer, &event) < 0)
		return -errno;
	return 0;
}

void vmm_link_clear(struct upgraded *u)
{
	closep(&u->sock);
	closep(&u->timer);
	closep(&u->epoll);
}

void vmm_link_lost(struct upgraded *u)
{
	closep(&u->sock);
	u->link = VMM_LINK_DOWN;
	set_timer(u, u->retry_ms);
	u->retry_ms = u->retry_ms * 2 < RETRY_LAST_MS ? u->retry_ms * 2 : RETRY_LAST_MS;
}

static void refuse(struct upgraded *u, int code)
{
	closep(&u->sock);
	set_timer(u, 0);
	u->link = VMM_LINK_OFF;
	u->refused = code;
}

void vmm_link_send(struct upgraded *u, Envelope *env, const int *fds, size_t n)
{
	int r;

	if (u->sock < 0)
		return;
	r = wire_send(u->sock, env, fds, n);
	if (r < 0) {
		error_clear(&u->err);
		error_errno(&u->err, r, "cannot send %s to the daemon", envelope_name(env));
		vmm_link_lost(u);
	}
}

void vmm_link_pause(struct upgraded *u, bool pause)
{
	struct epoll_event event = { .events = pause ? 0 : EPOLLIN };

	if (u->sock >= 0)
		(void)epoll_ctl(u->epoll, EPOLL_CTL_MOD, u->sock, &event);
}

static int open_socket(struct upgraded *u)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct epoll_event event = { .events = EPOLLIN };

	if (strlen(u->path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, u->path);
	u->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (u->sock < 0 || connect(u->sock, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->sock, &event) < 0)
		return -errno;
	return 0;
}

void vmm_link_start(struct upgraded *u)
{
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Hello hello;
	int r;

	closep(&u->sock);
	u->connection++;
	r = open_socket(u);
	if (r < 0) {
		error_clear(&u->err);
		error_errno(&u->err, r, "cannot connect to %s", u->path);
		vmm_link_lost(u);
		return;
	}
	wire_hello(&hello, "libupgraded");
	hello.protocol_min = PROTOCOL_MIN;
	env.id = 1;
	env.body_case = BODY(HELLO);
	env.hello = &hello;
	u->link = VMM_LINK_HELLO;
	set_timer(u, ANSWER_LIMIT_MS);
	vmm_link_send(u, &env, NULL, 0);
}

static void send_register(struct upgraded *u)
{
	Upgraded__V1__VmmRegister reg = UPGRADED__V1__VMM_REGISTER__INIT;
	Envelope env = ENVELOPE_INIT;

	reg.name = u->name;
	reg.upgrade_id = u->upgrade_id;
	reg.state = (Upgraded__V1__VmmState)u->state;
	reg.version = u->version;
	reg.machine = u->machine;
	reg.memory = u->memory;
	env.id = 2;
	env.body_case = BODY(VMM_REGISTER);
	env.vmm_register = &reg;
	u->link = VMM_LINK_REGISTER;
	vmm_link_send(u, &env, NULL, 0);
}

/* The daemon does not want us: for good, or until the next try. */
static void refused(struct upgraded *u, const Upgraded__V1__Error *e)
{
	int code = client_errno(e->code);

	error_clear(&u->err);
	error_set(&u->err, code, "%s", e->text[0] ? e->text : "the daemon gave no reason");
	switch (code) {
	case -EPROTO:
	case -EOPNOTSUPP:
		refuse(u, -EPROTONOSUPPORT);
		break;
	case -EEXIST:
	case -EACCES:
	case -ESRCH:
	case -ENOENT:
	case -EINVAL:
		refuse(u, code);
		break;
	default:
		vmm_link_lost(u);
		break;
	}
}

static void unexpected(struct upgraded *u, const Envelope *env)
{
	error_clear(&u->err);
	error_set(&u->err, -EPROTO, "the daemon sent \"%s\" where it was not due",
		  envelope_name(env));
	vmm_link_lost(u);
}

/* Before the connection is up. */
static void greet(struct upgraded *u, const Envelope *env)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	if (env->body_case == BODY(ERROR)) {
		refused(u, env->error);
	} else if (u->link == VMM_LINK_HELLO && env->body_case == BODY(HELLO)) {
		if (wire_negotiate(env->hello, &err) < PROTOCOL_MIN) {
			error_clear(&u->err);
			error_set(&u->err, -EPROTONOSUPPORT, "upgraded %s is too old",
				  env->hello->version);
			refuse(u, -EPROTONOSUPPORT);
			return;
		}
		send_register(u);
	} else if (u->link == VMM_LINK_REGISTER && env->body_case == BODY(VMM_REGISTERED)) {
		u->link = VMM_LINK_UP;
		u->retry_ms = RETRY_FIRST_MS;
		if (u->later)
			vmm_link_pause(u, true);
		set_timer(u, 0);
		error_clear(&u->err);
	} else {
		unexpected(u, env);
	}
}

static int on_time(struct upgraded *u)
{
	uint64_t ticks;

	if (read(u->timer, &ticks, sizeof(ticks)) != sizeof(ticks))
		return 0;
	if (u->link == VMM_LINK_DOWN) {
		vmm_link_start(u);
	} else if (u->link == VMM_LINK_HELLO || u->link == VMM_LINK_REGISTER) {
		error_clear(&u->err);
		error_set(&u->err, -ETIMEDOUT, "the daemon does not answer on %s", u->path);
		vmm_link_lost(u);
	}
	return 1;
}

/* While a callback works on: nothing is read, but the end of the connection is seen. */
static int look_for_end(struct upgraded *u)
{
	struct pollfd p = { .fd = u->sock };

	if (u->sock < 0 || poll(&p, 1, 0) <= 0)
		return 0;
	vmm_link_lost(u);
	return 1;
}

int vmm_link_step(struct upgraded *u, Envelope **ret_request, struct scm_fds *ret_fds)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	int r;

	*ret_request = NULL;
	if (u->link == VMM_LINK_OFF)
		return u->refused;
	r = on_time(u);
	if (r || u->sock < 0)
		return u->link == VMM_LINK_OFF ? u->refused : r;
	if (u->later && u->link == VMM_LINK_UP)
		return look_for_end(u);
	r = wire_recv(u->sock, &env, &fds);
	if (r == -EAGAIN)
		return 0;
	if (r < 0) {
		error_clear(&u->err);
		error_errno(&u->err, r,
			    r == -ENOTCONN ? "the daemon went away"
					   : "cannot read from the daemon");
		vmm_link_lost(u);
		return 1;
	}
	if (u->link == VMM_LINK_UP) {
		*ret_request = TAKE_PTR(env);
		*ret_fds = fds;
		fds.n = 0;
		return 1;
	}
	if (fds.n)
		unexpected(u, env);
	else
		greet(u, env);
	return u->link == VMM_LINK_OFF ? u->refused : 1;
}
