/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds the daemon to its word against clients that ask for too much: time limits that
 * no sum can hold, checks without an end, connections for which there is no descriptor,
 * answers that nobody reads.
 * Server, registry and requests run here; this process is the client, and the VM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "check.h"
#include "clock.h"
#include "context.h"
#include "control.h"
#include "count_fds.h"
#include "journal.h"
#include "native.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

struct fixture {
	size_t fds;
	char dir[TEMP_DIR];
	struct sockaddr_un addr;
	struct context ctx;
	struct vm *vm;
};

static void on_gone(struct vm *vm, void *userdata)
{
}

/* This process; it is never idle, so nothing that waits for it begins. */
static int add_vm(struct fixture *f)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;

	if (process_read(getpid(), &facts, NULL) < 0 ||
	    registry_add(f->ctx.registry, "vm1", "qemu", "none", "", &facts, "/qmp", &f->vm, NULL) <
		    0)
		return -1;
	f->vm->working = true;
	return 0;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char vms[64];
	int fd;

	if (!f)
		return -1;
	f->fds = count_fds();
	temp_dir_make(f->dir);
	snprintf(vms, sizeof(vms), "%s/vms", f->dir);
	f->addr.sun_family = AF_UNIX;
	snprintf(f->addr.sun_path, sizeof(f->addr.sun_path), "%s/control.sock", f->dir);
	f->ctx.options.max_running = 1;
	if (sd_event_new(&f->ctx.event) < 0 || config_defaults(&f->ctx.config) < 0 ||
	    native_new(&f->ctx.native, NULL) < 0 ||
	    journal_open(f->dir, &f->ctx.journal, NULL) < 0 ||
	    registry_open(f->ctx.event, vms, on_gone, NULL, &f->ctx.registry, NULL) < 0 ||
	    server_new(f->ctx.event, control_request, NULL, NULL, &f->ctx, &f->ctx.server, NULL) <
		    0)
		return -1;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (bind(fd, (struct sockaddr *)&f->addr, sizeof(f->addr)) < 0 || listen(fd, 8) < 0 ||
	    server_listen(f->ctx.server, fd, SOCKET_CONTROL, NULL) < 0)
		return -1;
	*state = f;
	return add_vm(f);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	size_t before = f->fds;

	check_free_all(&f->ctx);
	server_freep(&f->ctx.server);
	native_freep(&f->ctx.native);
	registry_freep(&f->ctx.registry);
	journal_freep(&f->ctx.journal);
	config_clear(&f->ctx.config);
	sd_event_unref(f->ctx.event);
	temp_dir_remove(f->dir);
	free(f);
	return count_fds() == before ? 0 : -1;
}

static void settle(struct fixture *f)
{
	while (sd_event_run(f->ctx.event, 20000) > 0)
		;
}

static int connect_to(struct fixture *f)
{
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(sock >= 0);
	assert_int_equal(connect(sock, (struct sockaddr *)&f->addr, sizeof(f->addr)), 0);
	return sock;
}

static void say_hello(int sock)
{
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Hello hello;

	wire_hello(&hello, "test");
	env.id = 1;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_HELLO;
	env.hello = &hello;
	assert_int_equal(wire_send(sock, &env, NULL, 0), 0);
}

static Envelope *receive(struct fixture *f, int sock)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	Envelope *env = NULL;

	settle(f);
	assert_int_equal(wire_recv(sock, &env, &fds), 0);
	return env;
}

static void refused(struct fixture *f, uint64_t blackout_us, uint64_t timeout_us)
{
	Upgraded__V1__UpgradeRequest upgrade = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	_cleanup_envelope_ Envelope *hello = NULL, *answer = NULL;
	_cleanup_close_ int sock = connect_to(f);
	Envelope env = ENVELOPE_INIT;

	say_hello(sock);
	hello = receive(f, sock);
	upgrade.name = (char *)"vm1";
	upgrade.max_blackout_us = blackout_us;
	upgrade.phase_timeout_us = timeout_us;
	env.id = 2;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_UPGRADE;
	env.upgrade = &upgrade;
	assert_int_equal(wire_send(sock, &env, NULL, 0), 0);
	answer = receive(f, sock);
	assert_int_equal(answer->body_case, UPGRADED__V1__ENVELOPE__BODY_ERROR);
	assert_int_equal(answer->error->code, UPGRADED__V1__ERROR_CODE__ERROR_BAD_REQUEST);
	assert_null(f->vm->upgrade);
}

/* Twice that and ten seconds is how long a worker may be silent: it would be nothing. */
static void time_limits_that_overflow_are_refused(void **state)
{
	refused(*state, 0, UINT64_MAX);
	refused(*state, 0, UINT64_MAX / 2 - 4999999);
	refused(*state, UINT64_MAX, 0);
}

static void checks_that_wait_have_a_bound(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct fixture *f = *state;
	struct requester nobody = { 0 };
	size_t n = 0;
	int r;

	do
		r = check_request(&f->ctx, f->vm, "", &nobody, &err);
	while (r >= 0 && ++n < 100000);
	assert_int_equal(r, -EBUSY);
	assert_int_equal(n, 1000);
}

static void without_descriptors_the_daemon_does_not_spin(void **state)
{
	_cleanup_close_ int sock = -EBADF;
	struct fixture *f = *state;
	struct rlimit limit, none;
	uint64_t end;
	int n = 0;

	settle(f);
	sock = connect_to(f);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	none.rlim_cur = (rlim_t)sock + 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	end = now_us() + 300000;
	while (now_us() < end)
		n += sd_event_run(f->ctx.event, 100000) > 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	if (n > 5)
		fail_msg("%d turns in 0.3 s", n);
	/* It comes back to it by itself. */
	say_hello(sock);
	for (end = now_us() + 5000000; now_us() < end;) {
		_cleanup_envelope_ Envelope *hello = NULL;
		struct scm_fds fds;

		(void)sd_event_run(f->ctx.event, 100000);
		if (wire_recv(sock, &hello, &fds) == 0)
			return;
	}
	fail_msg("nobody said hello within five seconds");
}

static void ask_for_list(int sock, uint64_t id)
{
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	Envelope env = ENVELOPE_INIT;

	env.id = id;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_LIST;
	env.list = &list;
	assert_int_equal(wire_send(sock, &env, NULL, 0), 0);
}

static void client_that_is_rejected_and_does_not_read_is_closed(void **state)
{
	_cleanup_close_ int sock = -EBADF;
	struct pollfd p = { .events = POLLOUT };
	struct fixture *f = *state;
	uint64_t end;

	p.fd = sock = connect_to(f);
	say_hello(sock);
	settle(f);
	/* Until its socket is full, and answers are queued behind that. */
	for (uint64_t i = 0; i < 300; i++) {
		ask_for_list(sock, 2 + i);
		while (sd_event_run(f->ctx.event, 0) > 0)
			;
	}
	ask_for_list(sock, 0);
	for (end = now_us() + 5000000; now_us() < end;) {
		(void)sd_event_run(f->ctx.event, 100000);
		assert_true(poll(&p, 1, 0) >= 0);
		if (p.revents & POLLHUP)
			return;
	}
	fail_msg("it is still connected after five seconds");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(time_limits_that_overflow_are_refused, setup,
						teardown),
		cmocka_unit_test_setup_teardown(checks_that_wait_have_a_bound, setup, teardown),
		cmocka_unit_test_setup_teardown(without_descriptors_the_daemon_does_not_spin, setup,
						teardown),
		cmocka_unit_test_setup_teardown(client_that_is_rejected_and_does_not_read_is_closed,
						setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
