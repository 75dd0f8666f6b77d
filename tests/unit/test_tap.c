/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What another opener does to a tap is undone. The taps are real ones in a
 * network namespace of the test's own, their holder is a child of it; skipped
 * where no tap can be made.
 */
#include "tap.h"

#include "cleanup.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#define GUEST_HEADER  12
#define GUEST_OFFLOAD (TUN_F_CSUM | TUN_F_TSO4)

struct vm {
	int tap;
	pid_t pid; /* the source: has the tap as the same number */
	int pidfd;
	struct plan_fd fds[2];
	Upgraded__V1__TargetPlan plan;
	struct error err;
};

static int open_tap(const char *name, int flags)
{
	struct ifreq ifr = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | flags) };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		close(fd);
		return -errno;
	}
	return fd;
}

static void set(int tap, int header, unsigned long offload)
{
	assert_int_equal(ioctl(tap, TUNSETVNETHDRSZ, &header), 0);
	assert_int_equal(ioctl(tap, TUNSETOFFLOAD, offload), 0);
}

static int header(int tap)
{
	int size = 0;

	assert_int_equal(ioctl(tap, TUNGETVNETHDRSZ, &size), 0);
	return size;
}

/* What the interface shows, by the means of taps_note(). */
static uint32_t offload(struct vm *vm)
{
	Upgraded__V1__TargetPlan now = UPGRADED__V1__TARGET_PLAN__INIT;
	uint32_t value;

	assert_int_equal(taps_note(vm->pidfd, vm->fds, 1, &now, &vm->err), 0);
	assert_int_equal(now.n_taps, 1);
	assert_true(now.taps[0]->offload_known);
	value = now.taps[0]->offload;
	taps_free(&now);
	return value;
}

static bool start(struct vm *vm, int flags)
{
	*vm = (struct vm){ .plan = UPGRADED__V1__TARGET_PLAN__INIT };
	vm->tap = open_tap("tap-test", flags);
	if (vm->tap < 0)
		return false;
	vm->pid = fork();
	if (!vm->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	vm->fds[0] = (struct plan_fd){ .source = vm->tap, .target = 30, .tap = true };
	vm->fds[1] = (struct plan_fd){ .source = 0, .target = 31 };
	return true;
}

static void stop(struct vm *vm)
{
	taps_free(&vm->plan);
	error_clear(&vm->err);
	kill(vm->pid, SIGKILL);
	assert_int_equal(waitpid(vm->pid, NULL, 0), vm->pid);
	closep(&vm->pidfd);
	closep(&vm->tap);
}

static void note(struct vm *vm)
{
	if (taps_note(vm->pidfd, vm->fds, 2, &vm->plan, &vm->err) < 0)
		fail_msg("taps_note: %s", vm->err.text);
}

static void what_a_second_opener_resets_is_restored(void **state)
{
	struct vm vm;

	if (!start(&vm, IFF_VNET_HDR))
		skip();
	set(vm.tap, GUEST_HEADER, GUEST_OFFLOAD);
	note(&vm);
	assert_int_equal(vm.plan.n_taps, 1);
	assert_string_equal(vm.plan.taps[0]->name, "tap-test");
	assert_int_equal(vm.plan.taps[0]->header, GUEST_HEADER);
	assert_int_equal(vm.plan.taps[0]->offload, GUEST_OFFLOAD);

	set(vm.tap, 10, 0);
	assert_int_equal(offload(&vm), 0);
	assert_int_equal(taps_restore_headers(vm.pidfd, &vm.plan, &vm.err), 0);
	assert_int_equal(header(vm.tap), GUEST_HEADER);
	assert_int_equal(offload(&vm), 0);
	assert_int_equal(taps_restore(vm.pidfd, &vm.plan, &vm.err), 0);
	assert_int_equal(header(vm.tap), GUEST_HEADER);
	assert_int_equal(offload(&vm), GUEST_OFFLOAD);
	stop(&vm);
}

/* An interface's features are only seen from inside its namespace. */
static void a_tap_of_another_namespace_is_restored(void **state)
{
	_cleanup_close_ int before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int after = -EBADF;
	struct stat x, y;
	struct vm vm;

	if (!start(&vm, IFF_VNET_HDR))
		skip();
	set(vm.tap, GUEST_HEADER, GUEST_OFFLOAD);
	assert_int_equal(unshare(CLONE_NEWNET), 0);
	after = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(after, &x), 0);
	note(&vm);
	assert_true(vm.plan.taps[0]->offload_known);
	set(vm.tap, 10, 0);
	assert_int_equal(taps_restore(vm.pidfd, &vm.plan, &vm.err), 0);
	assert_int_equal(header(vm.tap), GUEST_HEADER);
	assert_int_equal(offload(&vm), GUEST_OFFLOAD);
	/* And we are where we were. */
	closep(&after);
	after = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(after, &y), 0);
	assert_int_equal(x.st_ino, y.st_ino);
	assert_int_equal(setns(before, CLONE_NEWNET), 0);
	stop(&vm);
}

static void a_tap_that_is_another_now_is_left_alone(void **state)
{
	int other;
	struct vm vm;

	if (!start(&vm, IFF_VNET_HDR))
		skip();
	set(vm.tap, GUEST_HEADER, 0);
	note(&vm);
	free(vm.plan.taps[0]->name);
	vm.plan.taps[0]->name = strdup("unplugged");
	set(vm.tap, 10, 0);
	assert_int_equal(taps_restore(vm.pidfd, &vm.plan, &vm.err), 0);
	assert_int_equal(header(vm.tap), 10);
	/* Nor is a number that is no tap any more, or nothing. */
	for (size_t i = 0; i < 2; i++) {
		other = i ? 1000 : 0;
		vm.plan.taps[0]->fd = other;
		assert_int_equal(taps_restore(vm.pidfd, &vm.plan, &vm.err), 0);
	}
	stop(&vm);
}

static void a_tap_without_headers_needs_nothing(void **state)
{
	struct vm vm;

	if (!start(&vm, 0))
		skip();
	note(&vm);
	assert_int_equal(vm.plan.n_taps, 0);
	assert_int_equal(taps_restore(vm.pidfd, &vm.plan, &vm.err), 0);
	stop(&vm);
}

/* A tap of ours may not meet one of the machine's. */
static int own_namespace(void **state)
{
	if (unshare(CLONE_NEWNET) < 0)
		print_message("no network namespace of its own: %s\n", strerror(errno));
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_a_second_opener_resets_is_restored),
		cmocka_unit_test(a_tap_of_another_namespace_is_restored),
		cmocka_unit_test(a_tap_that_is_another_now_is_left_alone),
		cmocka_unit_test(a_tap_without_headers_needs_nothing),
	};

	return cmocka_run_group_tests(tests, own_namespace, NULL);
}
