/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds libupgraded to its word against a daemon that means harm: wrong order,
 * wrong descriptors, silence, death in every state. The test is the daemon; the
 * library never waits, so both run in one thread. Every test counts the fds of
 * this process before and after.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "count_fds.h"
#include "temp_dir.h"
#include "upgraded.h"
#include "wire.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define BODY(x) UPGRADED__V1__ENVELOPE__BODY_##x
#define STEP_MS 3000

struct fixture {
	size_t fds;
	char dir[TEMP_DIR], path[64];
	int listener, daemon; /* the daemon's */
	struct upgraded *u;
	char calls[256]; /* the callbacks that ran: "freeze thaw " */
	int result;	 /* of every callback */
	const char *why;
	int taken; /* what the target took, -EBADF: nothing */
};

/* ---- the VMM ---- */

static int called(struct fixture *f, const char *name)
{
	strcat(strcat(f->calls, name), " ");
	if (f->why)
		upgraded_explain(f->u, "%s", f->why);
	return f->result;
}

static int on_freeze(struct upgraded *u, int state, void *userdata)
{
	assert_int_equal(write(state, "state", 5), 5);
	return called(userdata, "freeze");
}

static int on_reclaim(struct upgraded *u, int vm, void *userdata)
{
	assert_true(fcntl(vm, F_GETFD) >= 0);
	return called(userdata, "reclaim");
}

static int on_thaw(struct upgraded *u, void *userdata)
{
	struct fixture *f = userdata;

	strcat(f->calls, "thaw ");
	if (f->why)
		upgraded_explain(u, "this is no reason");
	return 0;
}

static int on_accept(struct upgraded *u, void *userdata)
{
	struct fixture *f = userdata;
	enum upgraded_kind kind;
	const char *name;
	int fd;

	if (f->result < 0)
		return called(f, "accept");
	assert_int_equal(upgraded_received(u, 0, &name, &kind), 0);
	assert_string_equal(name, "ram");
	assert_int_equal(kind, UPGRADED_MEMFD);
	assert_int_equal(upgraded_received(u, 2, NULL, NULL), -ENOENT);
	assert_int_equal(upgraded_take(u, "ram", UPGRADED_GMEM, &fd), -EMEDIUMTYPE);
	assert_int_equal(upgraded_take(u, "disk", UPGRADED_DEVICE, &fd), -ENOENT);
	assert_int_equal(upgraded_take(u, "ram", UPGRADED_MEMFD, &f->taken), 0);
	assert_int_equal(upgraded_take(u, "ram", UPGRADED_MEMFD, &fd), -ENOENT);
	assert_int_equal(upgraded_tier(u), UPGRADED_TIER_GMEM);
	assert_int_equal(upgraded_set_tier(u, UPGRADED_TIER_MEMFD, "because"), 0);
	return called(f, "accept");
}

static int on_load(struct upgraded *u, int state, void *userdata)
{
	char text[8];

	assert_int_equal(read(state, text, sizeof(text)), 5);
	return called(userdata, "load");
}

#define CALLBACK(name)                                           \
	static int on_##name(struct upgraded *u, void *userdata) \
	{                                                        \
		return called(userdata, #name);                  \
	}
CALLBACK(quit)
CALLBACK(verify)
CALLBACK(own)
CALLBACK(run)
CALLBACK(finish)

static const struct upgraded_ops ops = {
	.size = sizeof(ops),
	.freeze = on_freeze,
	.reclaim = on_reclaim,
	.thaw = on_thaw,
	.quit = on_quit,
	.accept = on_accept,
	.verify = on_verify,
	.load = on_load,
	.own = on_own,
	.run = on_run,
	.finish = on_finish,
};

/* ---- the daemon ---- */

static int listen_at(struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(addr.sun_path, f->path);
	unlink(f->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 4), 0);
	return fd;
}

/* Lets the library go on until @fd is readable. */
static void go_on_until(struct fixture *f, int fd)
{
	struct pollfd p[] = { { .fd = fd, .events = POLLIN },
			      { .fd = upgraded_fd(f->u), .events = POLLIN } };

	for (;;) {
		while (upgraded_dispatch(f->u) > 0)
			;
		assert_true(poll(p, 2, STEP_MS) > 0);
		if (p[0].revents)
			return;
	}
}

/* Lets the library do all that there is to do. */
static void settle(struct fixture *f)
{
	while (upgraded_dispatch(f->u) > 0)
		;
}

static Envelope *receive(struct fixture *f, struct scm_fds *ret_fds)
{
	Envelope *env = NULL;

	go_on_until(f, f->daemon);
	assert_int_equal(wire_recv(f->daemon, &env, ret_fds), 0);
	return env;
}

static void expect(struct fixture *f, Upgraded__V1__Envelope__BodyCase body)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = receive(f, &fds);

	if (env->body_case != body)
		print_error("got %s: %s\n", envelope_name(env),
			    env->body_case == BODY(ERROR) ? env->error->text : "");
	assert_int_equal(env->body_case, body);
}

/* Also what the error says. */
static void expect_error(struct fixture *f, Upgraded__V1__ErrorCode code, const char *part)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = receive(f, &fds);

	assert_int_equal(env->body_case, BODY(ERROR));
	assert_int_equal(env->error->code, code);
	if (!strstr(env->error->text, part))
		print_error("\"%s\" does not say \"%s\"\n", env->error->text, part);
	assert_non_null(strstr(env->error->text, part));
}

static void say_hello(struct fixture *f, uint32_t newest)
{
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Hello hello;

	wire_hello(&hello, "test");
	hello.protocol_max = newest;
	env.id = 1;
	env.body_case = BODY(HELLO);
	env.hello = &hello;
	assert_int_equal(wire_send(f->daemon, &env, NULL, 0), 0);
}

static void say_registered(struct fixture *f)
{
	Upgraded__V1__VmmRegistered registered = UPGRADED__V1__VMM_REGISTERED__INIT;
	Envelope env = ENVELOPE_INIT;

	env.id = 2;
	env.body_case = BODY(VMM_REGISTERED);
	env.vmm_registered = &registered;
	assert_int_equal(wire_send(f->daemon, &env, NULL, 0), 0);
}

static void say_error(struct fixture *f, Upgraded__V1__ErrorCode code)
{
	Upgraded__V1__Error error = UPGRADED__V1__ERROR__INIT;
	Envelope env = ENVELOPE_INIT;

	error.code = code;
	error.text = (char *)"no";
	env.id = 2;
	env.body_case = BODY(ERROR);
	env.error = &error;
	assert_int_equal(wire_send(f->daemon, &env, NULL, 0), 0);
}

static void accept_vmm(struct fixture *f)
{
	closep(&f->daemon);
	go_on_until(f, f->listener);
	f->daemon = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	assert_true(f->daemon >= 0);
}

static Upgraded__V1__VmmState connect_vmm(struct fixture *f)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	Upgraded__V1__VmmState state;

	accept_vmm(f);
	expect(f, BODY(HELLO));
	say_hello(f, WIRE_PROTOCOL_MAX);
	env = receive(f, &fds);
	assert_int_equal(env->body_case, BODY(VMM_REGISTER));
	assert_string_equal(env->vmm_register->name, "vm1");
	state = env->vmm_register->state;
	say_registered(f);
	settle(f);
	assert_true(upgraded_connected(f->u));
	return state;
}

/* Every request but those with more in them than fds. */
static void ask(struct fixture *f, Upgraded__V1__Envelope__BodyCase body, const int *fds, size_t n)
{
	const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(
		&upgraded__v1__envelope__descriptor, (unsigned int)body);
	char message[256];
	Envelope env = ENVELOPE_INIT;

	protobuf_c_message_init(field->descriptor, message);
	env.id = 100;
	env.body_case = body;
	env.vmm_thaw = (void *)message;
	assert_int_equal(wire_send(f->daemon, &env, fds, n), 0);
}

static void ask_with_memfd(struct fixture *f, Upgraded__V1__Envelope__BodyCase body)
{
	int fd = memfd_create("state", MFD_CLOEXEC);

	if (body == BODY(VMM_LOAD))
		assert_int_equal(pwrite(fd, "state", 5, 0), 5);
	ask(f, body, &fd, 1);
	close(fd);
}

static void ask_accept(struct fixture *f, const char *first, const char *second, size_t n_fds)
{
	Upgraded__V1__VmmFd a = UPGRADED__V1__VMM_FD__INIT, b = UPGRADED__V1__VMM_FD__INIT;
	Upgraded__V1__VmmFd *list[] = { &a, &b };
	Upgraded__V1__VmmOffer offer = UPGRADED__V1__VMM_OFFER__INIT;
	Upgraded__V1__VmmAccept accept = UPGRADED__V1__VMM_ACCEPT__INIT;
	Envelope env = ENVELOPE_INIT;
	int fds[2] = { memfd_create("ram", MFD_CLOEXEC), memfd_create("disk", MFD_CLOEXEC) };

	a.name = (char *)first;
	b.name = (char *)second;
	a.kind = UPGRADED__V1__VMM_FD_KIND__VMM_FD_MEMFD;
	b.kind = UPGRADED__V1__VMM_FD_KIND__VMM_FD_DEVICE;
	offer.fd = list;
	offer.n_fd = 2;
	accept.offer = &offer;
	accept.tier = UPGRADED__V1__TIER__TIER_GMEM;
	env.id = 100;
	env.body_case = BODY(VMM_ACCEPT);
	env.vmm_accept = &accept;
	assert_int_equal(wire_send(f->daemon, &env, fds, n_fds), 0);
	close(fds[0]);
	close(fds[1]);
}

/* ---- fixtures ---- */

static int setup_as(void **state, const char *target)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f)
		return -1;
	f->fds = count_fds();
	f->daemon = f->taken = -EBADF;
	temp_dir_make(f->dir);
	snprintf(f->path, sizeof(f->path), "%s/vmm.sock", f->dir);
	f->listener = listen_at(f);
	if (target)
		setenv("UPGRADED_TARGET", target, 1);
	if (upgraded_new("vm1", &ops, f, &f->u) < 0)
		return -1;
	unsetenv("UPGRADED_TARGET");
	upgraded_describe(f->u, "1.0", "tiny", 4096);
	*state = f;
	return upgraded_connect(f->u, f->path, 0);
}

static int setup_source(void **state)
{
	return setup_as(state, NULL);
}

static int setup_target(void **state)
{
	return setup_as(state, "17");
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	size_t now;

	upgraded_free(f->u);
	closep(&f->daemon);
	closep(&f->listener);
	closep(&f->taken);
	temp_dir_remove(f->dir);
	now = count_fds();
	if (now != f->fds)
		print_error("%zu fds were open before, %zu are now\n", f->fds, now);
	now -= f->fds;
	free(f);
	return now ? -1 : 0;
}

/* ---- tests ---- */

static void a_vmm_without_what_must_be_there_is_refused(void **state)
{
	struct upgraded_ops lacking = ops;
	struct upgraded *u;

	lacking.thaw = NULL;
	assert_int_equal(upgraded_new("vm1", &lacking, NULL, &u), -EINVAL);
	lacking = ops;
	lacking.size = 8;
	assert_int_equal(upgraded_new("vm1", &lacking, NULL, &u), -EINVAL);
	assert_int_equal(upgraded_new("", &ops, NULL, &u), -EINVAL);
	assert_int_equal(upgraded_new("../x", &ops, NULL, &u), -EINVAL);
	assert_int_equal(upgraded_new(".x", &ops, NULL, &u), -EINVAL);
	upgraded_free(NULL);
}

/* A program that was built with this header must go on to work with later libraries. */
static void structs_have_the_sizes_that_programs_were_built_with(void **state)
{
	assert_int_equal(sizeof(struct upgraded_ops), 11 * sizeof(void *));
	assert_int_equal(offsetof(struct upgraded_ops, freeze), sizeof(void *));
	assert_int_equal(offsetof(struct upgraded_ops, finish), 10 * sizeof(void *));
	assert_int_equal(sizeof(struct upgraded_gmem_result), 40);
	assert_int_equal(offsetof(struct upgraded_gmem_result, verdict), 32);
	assert_int_equal(UPGRADED_DEVICE, 4);
	assert_int_equal(UPGRADED_TIER_STAGE2, 3);
	assert_int_equal(UPGRADED_OWNER, 6);
	assert_int_equal(UPGRADED_LATER, 1);
}

static void offers_are_unique_and_bounded(void **state)
{
	struct fixture *f = *state;
	char name[16];

	assert_int_equal(upgraded_offer(f->u, "ram", UPGRADED_MEMFD, 0), 0);
	assert_int_equal(upgraded_offer(f->u, "ram", UPGRADED_MEMFD, 0), -EEXIST);
	assert_int_equal(upgraded_offer(f->u, "x y", UPGRADED_MEMFD, 0), -EINVAL);
	assert_int_equal(upgraded_offer(f->u, "x", (enum upgraded_kind)9, 0), -EINVAL);
	assert_int_equal(upgraded_offer(f->u, "x", UPGRADED_MEMFD, -1), -EINVAL);
	assert_int_equal(upgraded_withdraw(f->u, "disk"), -ENOENT);
	for (int i = 1; i < UPGRADED_FDS_MAX; i++) {
		snprintf(name, sizeof(name), "fd%d", i);
		assert_int_equal(upgraded_offer(f->u, name, UPGRADED_DEVICE, 0), 0);
	}
	assert_int_equal(upgraded_offer(f->u, "last", UPGRADED_DEVICE, 0), -E2BIG);
	/* And all of them fit into one packet. */
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_RUNNING);
	ask(f, BODY(VMM_OFFER_REQUEST), NULL, 0);
	expect(f, BODY(VMM_OFFER));
	assert_int_equal(upgraded_withdraw(f->u, "ram"), 0);
}

static void a_source_freezes_and_thaws(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	assert_false(upgraded_is_target(f->u));
	ask_with_memfd(f, BODY(VMM_FREEZE));
	expect(f, BODY(VMM_DONE));
	assert_int_equal(upgraded_state(f->u), UPGRADED_FROZEN);
	ask_with_memfd(f, BODY(VMM_RECLAIM));
	expect(f, BODY(VMM_DONE));
	ask(f, BODY(VMM_THAW), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_int_equal(upgraded_state(f->u), UPGRADED_RUNNING);
	/* Again: nothing to do, and no callback. */
	ask(f, BODY(VMM_THAW), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_string_equal(f->calls, "freeze reclaim thaw ");
}

static void a_source_that_cannot_freeze_goes_on_and_says_why(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	f->result = -EIO;
	f->why = "the disk is on fire";
	ask_with_memfd(f, BODY(VMM_FREEZE));
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "the disk is on fire");
	assert_int_equal(upgraded_state(f->u), UPGRADED_RUNNING);
	assert_string_equal(f->calls, "freeze thaw ");
	assert_string_equal(upgraded_error(f->u), "the disk is on fire");
}

static void to_running_target(struct fixture *f)
{
	ask_accept(f, "ram", "spare", 2);
	expect(f, BODY(VMM_ACCEPTED));
	ask(f, BODY(VMM_VERIFY), NULL, 0);
	expect(f, BODY(VMM_DONE));
	ask_with_memfd(f, BODY(VMM_LOAD));
	expect(f, BODY(VMM_DONE));
	ask(f, BODY(VMM_OWN), NULL, 0);
	expect(f, BODY(VMM_DONE));
	ask(f, BODY(VMM_RUN), NULL, 0);
	expect(f, BODY(VMM_DONE));
}

static void a_target_becomes_a_source(void **state)
{
	struct fixture *f = *state;

	assert_true(upgraded_is_target(f->u));
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_EMPTY);
	to_running_target(f);
	/* A second worker, who does not know that it ran: no second time. */
	ask(f, BODY(VMM_RUN), NULL, 0);
	expect(f, BODY(VMM_DONE));
	ask(f, BODY(VMM_FINISH), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_string_equal(f->calls, "accept verify load own run finish ");
	/* What it did not take is closed: teardown counts. */
	assert_int_equal(upgraded_received(f->u, 0, NULL, NULL), -ENOENT);
	ask_with_memfd(f, BODY(VMM_FREEZE));
	expect(f, BODY(VMM_DONE));
	assert_int_equal(upgraded_state(f->u), UPGRADED_FROZEN);
}

static void what_is_not_due_changes_nothing(void **state)
{
	static const Upgraded__V1__Envelope__BodyCase plain[] = {
		BODY(VMM_QUIT),
		BODY(VMM_VERIFY),
		BODY(VMM_OWN),
		BODY(VMM_FINISH),
	};
	struct fixture *f = *state;
	bool target = upgraded_is_target(f->u);
	enum upgraded_state before = upgraded_state(f->u);

	connect_vmm(f);
	for (size_t i = 0; i < ARRAY_SIZE(plain); i++) {
		if (!target && plain[i] == BODY(VMM_FINISH))
			continue;
		ask(f, plain[i], NULL, 0);
		expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
	}
	ask_with_memfd(f, BODY(VMM_LOAD));
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
	ask_with_memfd(f, BODY(VMM_RECLAIM));
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
	if (target) {
		ask(f, BODY(VMM_RUN), NULL, 0);
		expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
		ask(f, BODY(VMM_THAW), NULL, 0);
		expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
		ask_with_memfd(f, BODY(VMM_FREEZE));
		expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
	} else {
		ask_accept(f, "ram", "spare", 2);
		expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "not due");
	}
	assert_string_equal(f->calls, "");
	assert_int_equal(upgraded_state(f->u), before);
}

static void a_frozen_source_is_not_frozen_again(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	ask_with_memfd(f, BODY(VMM_FREEZE));
	expect(f, BODY(VMM_DONE));
	ask_with_memfd(f, BODY(VMM_FREEZE));
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "is frozen");
	ask(f, BODY(VMM_RUN), NULL, 0);
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST, "is frozen");
	assert_string_equal(f->calls, "freeze ");
}

/* After each of these the library has closed its end and connects anew. */
static void reconnects(struct fixture *f)
{
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_PROTOCOL, "");
	connect_vmm(f);
	assert_string_equal(f->calls, "");
}

static void wrong_descriptors_end_the_connection(void **state)
{
	struct fixture *f = *state;
	int two[2] = { 0, 1 };

	connect_vmm(f);
	if (upgraded_is_target(f->u)) {
		ask_accept(f, "ram", "spare", 1);
		reconnects(f);
		ask_accept(f, "ram", "spare", 0);
		reconnects(f);
		ask(f, BODY(VMM_LOAD), NULL, 0);
		reconnects(f);
	} else {
		ask(f, BODY(VMM_FREEZE), NULL, 0);
		reconnects(f);
		ask(f, BODY(VMM_FREEZE), two, 2);
		reconnects(f);
		ask(f, BODY(VMM_THAW), two, 1);
		reconnects(f);
	}
}

static void an_offer_that_makes_no_sense_is_not_accepted(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	ask_accept(f, "ram", "ram", 2);
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "");
	ask_accept(f, "", "spare", 2);
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "");
	ask_accept(f, "ram", "../etc", 2);
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "");
	assert_string_equal(f->calls, "");
	f->result = -ENOMEM;
	ask_accept(f, "ram", "spare", 2);
	expect_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "memory");
	assert_int_equal(upgraded_state(f->u), UPGRADED_EMPTY);
	/* Nothing is left of the failed ones. */
	f->result = 0;
	ask_accept(f, "ram", "spare", 2);
	expect(f, BODY(VMM_ACCEPTED));
}

static void noise_ends_the_connection_and_nothing_else(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	assert_int_equal(send(f->daemon, "\xff\xff\xff", 3, 0), 3);
	connect_vmm(f);
	/* A request that is none of a daemon. */
	ask(f, BODY(LIST), NULL, 0);
	reconnects(f);
}

static void the_daemons_death_is_survived_in_every_state(void **state)
{
	static const enum upgraded_state source[] = { UPGRADED_RUNNING, UPGRADED_FROZEN };
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(source); i++) {
		/* In the middle of the greeting, twice; then while it is up. */
		accept_vmm(f);
		accept_vmm(f);
		expect(f, BODY(HELLO));
		say_hello(f, WIRE_PROTOCOL_MAX);
		settle(f);
		assert_int_equal(connect_vmm(f), (int)source[i]);
		if (!i) {
			ask_with_memfd(f, BODY(VMM_FREEZE));
			expect(f, BODY(VMM_DONE));
		}
	}
	/* The socket's file is gone for a while, too. */
	closep(&f->daemon);
	closep(&f->listener);
	unlink(f->path);
	for (int i = 0; i < 3; i++)
		assert_true(upgraded_wait(f->u, 50) >= 0);
	assert_false(upgraded_connected(f->u));
	f->listener = listen_at(f);
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_FROZEN);
	ask(f, BODY(VMM_THAW), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_string_equal(f->calls, "freeze thaw ");
}

static void a_target_keeps_what_it_is_over_the_daemons_death(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	ask_accept(f, "ram", "spare", 2);
	expect(f, BODY(VMM_ACCEPTED));
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_ACCEPTED);
	ask_with_memfd(f, BODY(VMM_LOAD));
	expect(f, BODY(VMM_DONE));
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_LOADED);
	ask(f, BODY(VMM_OWN), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_OWNER);
	ask(f, BODY(VMM_OWN), NULL, 0);
	expect(f, BODY(VMM_DONE));
	ask(f, BODY(VMM_RUN), NULL, 0);
	expect(f, BODY(VMM_DONE));
	assert_int_equal(connect_vmm(f), UPGRADED__V1__VMM_STATE__VMM_RUNNING);
	assert_string_equal(f->calls, "accept load own run ");
}

static void a_refusal_is_told_and_ends_the_trying(void **state)
{
	static const struct {
		Upgraded__V1__ErrorCode code;
		int result;
	} refusals[] = {
		{ UPGRADED__V1__ERROR_CODE__ERROR_EXISTS, -EEXIST },
		{ UPGRADED__V1__ERROR_CODE__ERROR_DENIED, -EACCES },
		{ UPGRADED__V1__ERROR_CODE__ERROR_NOT_RUNNING, -ESRCH },
		{ UPGRADED__V1__ERROR_CODE__ERROR_PROTOCOL, -EPROTONOSUPPORT },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		accept_vmm(f);
		expect(f, BODY(HELLO));
		say_hello(f, WIRE_PROTOCOL_MAX);
		expect(f, BODY(VMM_REGISTER));
		say_error(f, refusals[i].code);
		assert_int_equal(upgraded_dispatch(f->u), refusals[i].result);
		assert_int_equal(upgraded_wait(f->u, 1000), refusals[i].result);
		assert_string_equal(upgraded_error(f->u), "no");
		assert_int_equal(upgraded_connect(f->u, f->path, 0), 0);
	}
	/* Something inside the daemon went wrong: that passes. */
	accept_vmm(f);
	expect(f, BODY(HELLO));
	say_error(f, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL);
	connect_vmm(f);
}

static void an_old_daemon_is_told_apart(void **state)
{
	struct fixture *f = *state;

	accept_vmm(f);
	expect(f, BODY(HELLO));
	say_hello(f, 1);
	assert_int_equal(upgraded_dispatch(f->u), -EPROTONOSUPPORT);
}

static void an_answer_may_come_later(void **state)
{
	struct fixture *f = *state;
	struct pollfd p;

	connect_vmm(f);
	f->result = UPGRADED_LATER;
	ask_with_memfd(f, BODY(VMM_FREEZE));
	settle(f);
	assert_int_equal(upgraded_state(f->u), UPGRADED_RUNNING);
	/* What comes meanwhile waits, and makes nobody busy. */
	ask(f, BODY(VMM_THAW), NULL, 0);
	assert_int_equal(upgraded_wait(f->u, 50), 0);
	p = (struct pollfd){ .fd = upgraded_fd(f->u), .events = POLLIN };
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(upgraded_complete(f->u, 0), 0);
	assert_int_equal(upgraded_complete(f->u, 0), -EALREADY);
	assert_int_equal(upgraded_state(f->u), UPGRADED_FROZEN);
	expect(f, BODY(VMM_DONE));
	expect(f, BODY(VMM_DONE));
	assert_string_equal(f->calls, "freeze thaw ");
}

static void a_late_answer_does_not_go_to_the_next_daemon(void **state)
{
	struct fixture *f = *state;

	connect_vmm(f);
	f->result = UPGRADED_LATER;
	ask_with_memfd(f, BODY(VMM_FREEZE));
	settle(f);
	/* In the middle of the greeting an answer would be nonsense. */
	accept_vmm(f);
	assert_int_equal(upgraded_complete(f->u, 0), 0);
	expect(f, BODY(HELLO));
	say_hello(f, WIRE_PROTOCOL_MAX);
	expect(f, BODY(VMM_REGISTER));
	say_registered(f);
	f->result = 0;
	ask(f, BODY(VMM_THAW), NULL, 0);
	expect(f, BODY(VMM_DONE));
}

static void connecting_may_wait_and_gives_up_in_time(void **state)
{
	struct fixture *f = *state;
	struct upgraded *u;
	pid_t child;

	assert_int_equal(upgraded_new("vm1", &ops, f, &u), 0);
	/* The listener takes it, and nobody answers. */
	assert_int_equal(upgraded_connect(u, f->path, 100), -ETIMEDOUT);
	upgraded_free(u);
	closep(&f->listener);
	f->listener = listen_at(f);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct scm_fds fds = SCM_FDS_INIT;
		Envelope *env;

		f->daemon = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
		while (f->daemon < 0) {
			usleep(1000);
			f->daemon = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
		}
		if (wire_recv(f->daemon, &env, &fds) < 0)
			_exit(1);
		say_hello(f, WIRE_PROTOCOL_MAX);
		if (wire_recv(f->daemon, &env, &fds) < 0)
			_exit(2);
		say_registered(f);
		pause();
	}
	assert_int_equal(upgraded_new("vm1", &ops, f, &u), 0);
	assert_int_equal(upgraded_connect(u, f->path, 5000), 0);
	assert_true(upgraded_connected(u));
	assert_int_equal(upgraded_wait(u, 10), 0);
	upgraded_free(u);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define SOURCE(t) cmocka_unit_test_setup_teardown(t, setup_source, teardown)
#define TARGET(t) cmocka_unit_test_setup_teardown(t, setup_target, teardown)
		cmocka_unit_test(a_vmm_without_what_must_be_there_is_refused),
		cmocka_unit_test(structs_have_the_sizes_that_programs_were_built_with),
		SOURCE(offers_are_unique_and_bounded),
		SOURCE(a_source_freezes_and_thaws),
		SOURCE(a_source_that_cannot_freeze_goes_on_and_says_why),
		TARGET(a_target_becomes_a_source),
		SOURCE(what_is_not_due_changes_nothing),
		TARGET(what_is_not_due_changes_nothing),
		SOURCE(a_frozen_source_is_not_frozen_again),
		SOURCE(wrong_descriptors_end_the_connection),
		TARGET(wrong_descriptors_end_the_connection),
		TARGET(an_offer_that_makes_no_sense_is_not_accepted),
		SOURCE(noise_ends_the_connection_and_nothing_else),
		SOURCE(the_daemons_death_is_survived_in_every_state),
		TARGET(a_target_keeps_what_it_is_over_the_daemons_death),
		SOURCE(a_refusal_is_told_and_ends_the_trying),
		SOURCE(an_old_daemon_is_told_apart),
		SOURCE(an_answer_may_come_later),
		SOURCE(a_late_answer_does_not_go_to_the_next_daemon),
		SOURCE(connecting_may_wait_and_gives_up_in_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
