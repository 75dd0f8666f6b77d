/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds the daemon to its word against VMMs that mean harm: on vmm.sock a name
 * goes only to a process that may have it, and only a VMM's words are heard. The
 * daemon's server, registry and native VMMs run here; this process is every VMM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "control.h"
#include "count_fds.h"
#include "context.h"
#include "native.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define STATE(x) UPGRADED__V1__VMM_STATE__VMM_##x

struct fixture {
	size_t fds;
	char dir[TEMP_DIR], vms[64], path[64];
	struct context ctx;
	pid_t child; /* another process, for a VM that is not this one */
};

static void on_gone(struct vm *vm, void *userdata)
{
}

static int setup(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct fixture *f = calloc(1, sizeof(*f));
	sigset_t mask;
	int fd;

	if (!f)
		return -1;
	f->fds = count_fds();
	temp_dir_make(f->dir);
	snprintf(f->vms, sizeof(f->vms), "%s/vms", f->dir);
	snprintf(f->path, sizeof(f->path), "%s/vmm.sock", f->dir);
	strcpy(addr.sun_path, f->path);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	if (sd_event_new(&f->ctx.event) < 0 ||
	    registry_open(f->ctx.event, f->vms, on_gone, NULL, &f->ctx.registry, NULL) < 0 ||
	    native_new(&f->ctx.native, NULL) < 0 ||
	    server_new(f->ctx.event, control_request, NULL, native_closed, &f->ctx,
		       &f->ctx.server, NULL) < 0)
		return -1;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 8) < 0 ||
	    server_listen(f->ctx.server, fd, SOCKET_VMM, NULL) < 0)
		return -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	size_t before = f->fds;

	if (f->child) {
		kill(f->child, SIGKILL);
		waitpid(f->child, NULL, 0);
	}
	server_freep(&f->ctx.server);
	native_freep(&f->ctx.native);
	registry_freep(&f->ctx.registry);
	sd_event_unref(f->ctx.event);
	temp_dir_remove(f->dir);
	free(f);
	return count_fds() == before ? 0 : -1;
}

/* Lets the daemon do what there is to do. */
static void settle(struct fixture *f)
{
	while (sd_event_run(f->ctx.event, 20000) > 0)
		;
}

static Envelope *receive(struct fixture *f, int sock)
{
	struct scm_fds fds = SCM_FDS_INIT;
	Envelope *env = NULL;

	settle(f);
	if (wire_recv(sock, &env, &fds) < 0)
		return NULL;
	assert_int_equal(fds.n, 0);
	return env;
}

static void say(int sock, Envelope *env, const int *fds, size_t n)
{
	env->id = 5;
	assert_int_equal(wire_send(sock, env, fds, n), 0);
}

/* A connection that has said Hello. */
static int connect_to(struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_envelope_ Envelope *answer = NULL;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	Envelope env = ENVELOPE_INIT;
	Upgraded__V1__Hello hello;

	strcpy(addr.sun_path, f->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	wire_hello(&hello, "test");
	env.body_case = BODY(HELLO);
	env.hello = &hello;
	say(fd, &env, NULL, 0);
	answer = receive(f, fd);
	assert_non_null(answer);
	assert_int_equal(answer->body_case, BODY(HELLO));
	return fd;
}

static void send_register(int sock, const char *name, uint64_t upgrade,
			  Upgraded__V1__VmmState state)
{
	Upgraded__V1__VmmRegister reg = UPGRADED__V1__VMM_REGISTER__INIT;
	Envelope env = ENVELOPE_INIT;

	reg.name = (char *)name;
	reg.upgrade_id = upgrade;
	reg.state = state;
	reg.version = (char *)"1.0";
	reg.machine = (char *)"tiny";
	reg.memory = 4096;
	env.body_case = BODY(VMM_REGISTER);
	env.vmm_register = &reg;
	say(sock, &env, NULL, 0);
}

/* The code of the refusal; 0: it is registered. The connection is closed after a refusal. */
static int registered(struct fixture *f, int sock)
{
	_cleanup_envelope_ Envelope *answer = receive(f, sock);
	char byte;

	assert_non_null(answer);
	if (answer->body_case == BODY(VMM_REGISTERED))
		return 0;
	assert_int_equal(answer->body_case, BODY(ERROR));
	assert_true(answer->error->text[0]);
	settle(f);
	assert_int_equal(recv(sock, &byte, 1, MSG_DONTWAIT), 0);
	return (int)answer->error->code;
}

static int try_register(struct fixture *f, const char *name, uint64_t upgrade,
			Upgraded__V1__VmmState state)
{
	_cleanup_close_ int sock = connect_to(f);

	send_register(sock, name, upgrade, state);
	return registered(f, sock);
}

/* A VM of another process, as an earlier daemon knew it. */
static void add_other(struct fixture *f, const char *name, const char *driver)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	struct vm *vm;

	f->child = fork();
	assert_true(f->child >= 0);
	if (f->child == 0) {
		pause();
		_exit(0);
	}
	assert_int_equal(process_read(f->child, &facts, NULL), 0);
	assert_int_equal(
		registry_add(f->ctx.registry, name, driver, "none", "", &facts, "", &vm, NULL), 0);
}

static void a_vmm_is_the_process_that_connects(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int sock = connect_to(f);
	struct vm *vm;

	send_register(sock, "vm1", 0, STATE(RUNNING));
	assert_int_equal(registered(f, sock), 0);
	vm = registry_find(f->ctx.registry, "vm1");
	assert_non_null(vm);
	assert_int_equal(vm->pb->process->pid, getpid());
	assert_string_equal(vm->pb->driver, "native");
	assert_string_equal(vm->pb->version, "1.0");
	assert_int_equal(vm->pb->memory, 4096);
}

static void it_may_register_again_also_frozen(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int first = connect_to(f);
	char byte;

	send_register(first, "vm1", 0, STATE(RUNNING));
	assert_int_equal(registered(f, first), 0);
	assert_int_equal(try_register(f, "vm1", 0, STATE(FROZEN)), 0);
	/* One process has one connection. */
	settle(f);
	assert_int_equal(recv(first, &byte, 1, MSG_DONTWAIT), 0);
	/* And one VM. */
	assert_int_equal(try_register(f, "vm2", 0, STATE(RUNNING)), ERROR_CODE(EXISTS));
}

static void a_name_that_another_process_has_is_not_given_away(void **state)
{
	struct fixture *f = *state;

	add_other(f, "vm1", "native");
	assert_int_equal(try_register(f, "vm1", 0, STATE(RUNNING)), ERROR_CODE(EXISTS));
	assert_int_equal(try_register(f, "vm1", 17, STATE(EMPTY)), ERROR_CODE(NOT_RUNNING));
	assert_int_equal(registry_find(f->ctx.registry, "vm1")->pb->process->pid, f->child);
}

static void a_qemu_that_is_gone_keeps_its_name(void **state)
{
	struct fixture *f = *state;

	add_other(f, "vm1", "qemu");
	kill(f->child, SIGKILL);
	settle(f);
	assert_int_equal(try_register(f, "vm1", 0, STATE(RUNNING)), ERROR_CODE(EXISTS));
}

static void a_vmm_that_is_gone_is_followed_by_another(void **state)
{
	struct fixture *f = *state;

	add_other(f, "vm1", "native");
	kill(f->child, SIGKILL);
	settle(f);
	assert_int_equal(try_register(f, "vm1", 0, STATE(RUNNING)), 0);
}

static void targets_and_frozen_sources_that_nobody_knows_are_told_so(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(try_register(f, "vm1", 17, STATE(LOADED)), ERROR_CODE(NOT_RUNNING));
	assert_int_equal(try_register(f, "vm1", 0, STATE(FROZEN)), ERROR_CODE(NOT_RUNNING));
	assert_null(registry_find(f->ctx.registry, "vm1"));
}

static void names_are_checked(void **state)
{
	static const char *const names[] = { "", ".", "../vm", "a/b", "a b" };
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		assert_int_equal(try_register(f, names[i], 0, STATE(RUNNING)),
				 ERROR_CODE(BAD_REQUEST));
}

static void only_a_vmms_words_are_heard(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int sock = connect_to(f), fds = -EBADF;
	Upgraded__V1__ListRequest list = UPGRADED__V1__LIST_REQUEST__INIT;
	Upgraded__V1__VmmRegister reg = UPGRADED__V1__VMM_REGISTER__INIT;
	Envelope env = ENVELOPE_INIT;
	int zero = 0;

	/* What operators ask for is asked elsewhere. */
	env.body_case = BODY(LIST);
	env.list = &list;
	say(sock, &env, NULL, 0);
	assert_int_equal(registered(f, sock), ERROR_CODE(PROTOCOL));
	/* Registering takes no descriptors. */
	fds = connect_to(f);
	env.body_case = BODY(VMM_REGISTER);
	env.vmm_register = &reg;
	reg.name = (char *)"vm1";
	say(fds, &env, &zero, 1);
	assert_int_equal(registered(f, fds), ERROR_CODE(PROTOCOL));
}

static void answers_that_nobody_waits_for_are_dropped(void **state)
{
	struct fixture *f = *state;
	_cleanup_close_ int sock = connect_to(f);
	Upgraded__V1__VmmOffer offer = UPGRADED__V1__VMM_OFFER__INIT;
	Envelope env = ENVELOPE_INIT;
	int fds[] = { 0, 1 };

	send_register(sock, "vm1", 0, STATE(RUNNING));
	assert_int_equal(registered(f, sock), 0);
	env.body_case = BODY(VMM_OFFER);
	env.vmm_offer = &offer;
	say(sock, &env, fds, 2);
	say(sock, &env, NULL, 0);
	assert_null(receive(f, sock));
	/* It is still there. */
	send_register(sock, "vm1", 0, STATE(RUNNING));
	assert_int_equal(registered(f, sock), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(a_vmm_is_the_process_that_connects),
		TEST(it_may_register_again_also_frozen),
		TEST(a_name_that_another_process_has_is_not_given_away),
		TEST(a_qemu_that_is_gone_keeps_its_name),
		TEST(a_vmm_that_is_gone_is_followed_by_another),
		TEST(targets_and_frozen_sources_that_nobody_knows_are_told_so),
		TEST(names_are_checked),
		TEST(only_a_vmms_words_are_heard),
		TEST(answers_that_nobody_waits_for_are_dropped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
