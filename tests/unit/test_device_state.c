/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Holds daemon/worker/device_state.c to its word: the marks, and that nobody can take them off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cleanup.h"
#include "device_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static enum device_state mark_of(int fd)
{
	enum device_state state;

	assert_int_equal(device_state_get(fd, &state), 0);
	return state;
}

static void marks_go_one_way_and_show_in_every_duplicate(void **state)
{
	_cleanup_close_ int fd = -EBADF, other = -EBADF;
	void *map;

	assert_int_equal(device_state_make(&fd), 0);
	assert_int_equal(ftruncate(fd, 4096), 0);
	/* As the relay has it, which writes through a mapping. */
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	other = dup(fd);
	assert_int_equal(mark_of(other), DEVICE_STATE_PART);
	assert_int_equal(device_state_complete(fd), 0);
	assert_int_equal(mark_of(other), DEVICE_STATE_WHOLE);
	assert_int_equal(ftruncate(other, 0), -1);
	assert_int_equal(device_state_use(other), 0);
	assert_int_equal(mark_of(fd), DEVICE_STATE_USED);
	assert_int_equal(device_state_complete(fd), 0);
	assert_int_equal(device_state_use(fd), 0);
	assert_int_equal(mark_of(fd), DEVICE_STATE_USED);
	munmap(map, 4096);
}

static void time_of_the_last_write_is_known(void **state)
{
	uint64_t first, second;
	int fd;

	assert_int_equal(device_state_make(&fd), 0);
	assert_int_equal(device_state_written_us(fd), 0);
	assert_int_equal(write(fd, "a", 1), 1);
	first = device_state_written_us(fd);
	assert_true(first > 0);
	usleep(20000); /* the kernel's clock for files is a coarse one */
	assert_int_equal(write(fd, "b", 1), 1);
	second = device_state_written_us(fd);
	assert_true(second > first && second - first < 10000000);
	assert_int_equal(device_state_complete(fd), 0);
	assert_int_equal(device_state_use(fd), 0);
	assert_int_equal(device_state_written_us(fd), second);
	close(fd);
	assert_int_equal(device_state_written_us(-EBADF), 0);
}

static void state_that_was_used_before_it_was_whole_is_used(void **state)
{
	_cleanup_close_ int fd = -EBADF;

	assert_int_equal(device_state_make(&fd), 0);
	assert_int_equal(device_state_use(fd), 0);
	assert_int_equal(device_state_complete(fd), 0);
	assert_int_equal(mark_of(fd), DEVICE_STATE_USED);
}

static void what_takes_no_mark_is_no_state(void **state)
{
	_cleanup_close_ int memfd = memfd_create("test", MFD_CLOEXEC), null = open("/dev/null", O_RDONLY);
	_cleanup_close_ int shut = -EBADF;
	enum device_state what;

	assert_true(device_state_get(null, &what) < 0);
	/* Nobody could mark it as used. */
	assert_int_equal(device_state_get(memfd, &what), -EPERM);
	assert_int_equal(device_state_make(&shut), 0);
	assert_int_equal(device_state_complete(shut), 0);
	assert_int_equal(fcntl(shut, F_ADD_SEALS, F_SEAL_SEAL), 0);
	assert_int_equal(device_state_get(shut, &what), -EPERM);
	assert_int_equal(device_state_use(-EBADF), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(marks_go_one_way_and_show_in_every_duplicate),
		cmocka_unit_test(time_of_the_last_write_is_known),
		cmocka_unit_test(state_that_was_used_before_it_was_whole_is_used),
		cmocka_unit_test(what_takes_no_mark_is_no_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
