/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/registry.c to its word: a VM is known across a restart by pid
 * and start time, its end is noticed, and no name leads out of the directory.
 * A child of the test stands for the VM's process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "few_fds.h"
#include "registry.h"
#include "temp_dir.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct fixture {
	char dir[TEMP_DIR];
	sd_event *event;
	struct registry *r;
	pid_t child;
	unsigned gone;
};

static void on_gone(struct vm *vm, void *userdata)
{
	struct fixture *f = userdata;

	f->gone++;
}

static void reopen(struct fixture *f)
{
	registry_freep(&f->r);
	assert_int_equal(registry_open(f->event, f->dir, on_gone, f, &f->r, NULL), 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	temp_dir_make(f->dir);
	assert_int_equal(sd_event_new(&f->event), 0);
	f->child = fork();
	if (f->child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	reopen(f);
	*state = f;
	return 0;
}

static void end_child(struct fixture *f)
{
	if (f->child > 0) {
		kill(f->child, SIGKILL);
		waitpid(f->child, NULL, 0);
	}
	f->child = 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	end_child(f);
	while (registry_first(f->r))
		registry_remove(registry_first(f->r));
	registry_freep(&f->r);
	sd_event_unref(f->event);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static int add(struct fixture *f, const char *name, struct vm **ret_vm)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;

	assert_int_equal(process_read(f->child, &facts, NULL), 0);
	return registry_add(f->r, name, "qemu", "none", "", &facts, "/run/x/qmp.sock", ret_vm, NULL);
}

static void vm_is_known_after_a_restart(void **state)
{
	Vm found = UPGRADED__V1__VM__INIT;
	struct fixture *f = *state;
	struct vm *vm;

	assert_int_equal(add(f, "web:1.a-b_c", &vm), 0);
	found.version = (char *)"10.0.13";
	found.memory = 1 << 30;
	assert_int_equal(registry_learn(vm, &found), 0);
	vm->pb->generation = 3;
	registry_save(vm);
	reopen(f);
	vm = registry_find(f->r, "web:1.a-b_c");
	assert_non_null(vm);
	assert_true(vm->pidfd >= 0);
	assert_int_equal(vm->pb->process->pid, f->child);
	assert_string_equal(vm->pb->version, "10.0.13");
	assert_string_equal(vm->pb->qmp, "/run/x/qmp.sock");
	assert_int_equal(vm->pb->memory, 1 << 30);
	assert_int_equal(vm->pb->generation, 3);
	assert_ptr_equal(registry_find_process(f->r, f->child, vm->pb->process->start_time), vm);
	assert_null(registry_find_process(f->r, f->child, vm->pb->process->start_time + 1));
}

static void reused_pid_is_not_taken_for_the_vm(void **state)
{
	struct fixture *f = *state;
	struct vm *vm;

	assert_int_equal(add(f, "a", &vm), 0);
	vm->pb->process->start_time--;
	registry_save(vm);
	reopen(f);
	vm = registry_find(f->r, "a");
	assert_non_null(vm);
	assert_int_equal(vm->pidfd, -EBADF);
}

static void *open_own_thread(void *userdata)
{
	int *r = userdata, fd;

	*r = process_open((pid_t)syscall(SYS_gettid), 0, &fd);
	return NULL;
}

static void pid_that_is_a_thread_by_now_is_a_process_that_ended(void **state)
{
	pthread_t thread;
	int r = 0;

	assert_int_equal(pthread_create(&thread, NULL, open_own_thread, &r), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(r, -ESRCH);
}

static void end_of_the_process_is_noticed_and_the_vm_stays_known(void **state)
{
	struct fixture *f = *state;
	struct vm *vm;

	assert_int_equal(add(f, "a", &vm), 0);
	assert_int_equal(sd_event_run(f->event, 0), 0);
	assert_int_equal(f->gone, 0);
	end_child(f);
	assert_true(sd_event_run(f->event, 5000000) > 0);
	assert_int_equal(f->gone, 1);
	assert_int_equal(vm->pidfd, -EBADF);
	assert_ptr_equal(registry_find(f->r, "a"), vm);
}

static void vm_that_cannot_be_watched_at_the_start_is_watched_later(void **state)
{
	struct fixture *f = *state;
	struct rlimit limit;
	struct vm *vm;

	assert_int_equal(add(f, "a", &vm), 0);
	/* No room for the pidfd; none for the look whether it is the same process. */
	for (int i = 3; i < 5; i++) {
		registry_freep(&f->r);
		limit = few_fds(i);
		assert_int_equal(registry_open(f->event, f->dir, on_gone, f, &f->r, NULL), 0);
		enough_fds(&limit);
		vm = registry_find(f->r, "a");
		assert_non_null(vm);
		assert_int_equal(vm->pidfd, -EBADF);
		assert_false(vm_has_ended(vm));
		/* Nobody else gets its name, and it is found. */
		assert_int_equal(add(f, "a", &vm), -EEXIST);
		assert_ptr_equal(registry_find_process(f->r, f->child, vm->pb->process->start_time),
				 vm);
		assert_true(sd_event_run(f->event, 10000000) > 0);
		assert_true(vm->pidfd >= 0);
	}
	end_child(f);
	assert_true(sd_event_run(f->event, 5000000) > 0);
	assert_int_equal(f->gone, 1);
	assert_true(vm_has_ended(vm));
}

static void process_that_takes_over_is_watched_later_if_not_at_once(void **state)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	struct fixture *f = *state;
	struct rlimit limit;
	pid_t source, target = fork();
	struct vm *vm;
	int r;

	if (target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	assert_int_equal(add(f, "a", &vm), 0);
	assert_int_equal(process_read(target, &facts, NULL), 0);
	source = f->child;
	f->child = target;
	limit = few_fds(0);
	r = registry_set_process(vm, &facts, NULL);
	enough_fds(&limit);
	assert_int_equal(r, 0);
	/* The source's end is none of the VM's. */
	kill(source, SIGKILL);
	waitpid(source, NULL, 0);
	assert_false(vm_has_ended(vm));
	assert_int_equal(sd_event_run(f->event, 0), 0);
	assert_int_equal(f->gone, 0);
	/* It ends before it could be watched. */
	end_child(f);
	assert_true(sd_event_run(f->event, 10000000) > 0);
	assert_int_equal(f->gone, 1);
	assert_true(vm_has_ended(vm));
}

static void name_of_a_live_vm_is_taken_one_of_a_dead_vm_is_free(void **state)
{
	struct fixture *f = *state;
	struct vm *vm, *again;

	assert_int_equal(add(f, "a", &vm), 0);
	assert_int_equal(add(f, "a", &again), -EEXIST);
	vm->pb->process->start_time--;
	registry_save(vm);
	reopen(f);
	assert_int_equal(add(f, "a", &again), 0);
	assert_true(again->pidfd >= 0);
	assert_null(registry_first(f->r)->next);
}

static void names_that_lead_elsewhere_are_refused(void **state)
{
	static const char *const bad[] = { "",	  ".",	 "..",	     ".a", "a/b", "../a",
					   "a b", "a\n", "\xc3\xa4", "%n", "@" };
	char longest[66];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (registry_check_name(bad[i], NULL) != -EINVAL)
			fail_msg("the name \"%s\" was taken", bad[i]);
	memset(longest, 'x', sizeof(longest));
	longest[65] = '\0';
	assert_int_equal(registry_check_name(longest, NULL), -EINVAL);
	longest[64] = '\0';
	assert_int_equal(registry_check_name(longest, NULL), 0);
	assert_int_equal(registry_check_name("a", NULL), 0);
}

static void damaged_file_is_skipped_and_the_others_are_loaded(void **state)
{
	struct fixture *f = *state;
	char path[128];
	struct vm *vm;
	FILE *file;

	assert_int_equal(add(f, "a", &vm), 0);
	snprintf(path, sizeof(path), "%s/b", f->dir);
	file = fopen(path, "w");
	fputs("\xff\xff garbage", file);
	fclose(file);
	reopen(f);
	assert_non_null(registry_find(f->r, "a"));
	assert_null(registry_find(f->r, "b"));
	unlink(path);
}

static void guest_name_is_read_from_the_command_line(void **state)
{
	char *argv[][4] = {
		{ "qemu", "-name", "guest=web,debug-threads=on", NULL },
		{ "qemu", "-name", "web", NULL },
		{ "qemu", "-nodefaults", "-name", NULL },
	};
	_cleanup_free_ char *a = process_guest_name(argv[0]);
	_cleanup_free_ char *b = process_guest_name(argv[1]);

	assert_string_equal(a, "web");
	assert_string_equal(b, "web");
	assert_null(process_guest_name(argv[2]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(vm_is_known_after_a_restart),
		TEST(reused_pid_is_not_taken_for_the_vm),
		TEST(end_of_the_process_is_noticed_and_the_vm_stays_known),
		TEST(vm_that_cannot_be_watched_at_the_start_is_watched_later),
		TEST(process_that_takes_over_is_watched_later_if_not_at_once),
		TEST(name_of_a_live_vm_is_taken_one_of_a_dead_vm_is_free),
		TEST(damaged_file_is_skipped_and_the_others_are_loaded),
		cmocka_unit_test(pid_that_is_a_thread_by_now_is_a_process_that_ended),
		cmocka_unit_test(names_that_lead_elsewhere_are_refused),
		cmocka_unit_test(guest_name_is_read_from_the_command_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
