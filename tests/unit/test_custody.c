/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/custody.c to its word: what was put is held whole, nothing is
 * left open afterwards, and no worker can make it hold without end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "custody.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

struct fixture {
	struct custody c;
	size_t fds;
};

static size_t count_fds(void)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	return n;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fds = count_fds();
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	custody_clear(&f->c);
	assert_int_equal(count_fds(), f->fds);
	free(f);
	return 0;
}

static int memfd(size_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

/* Puts @len bytes of @payload and @n memfds of one page each. */
static int put(struct fixture *f, const char *name, const char *payload, size_t len, size_t n,
	       bool more)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;

	msg.name = (char *)name;
	msg.payload.data = (uint8_t *)payload;
	msg.payload.len = len;
	for (size_t i = 0; i < n; i++)
		fds.fd[fds.n++] = memfd(4096);
	return custody_put(&f->c, &msg, more, &fds, NULL);
}

static void item_is_held_with_payload_and_fds(void **state)
{
	struct fixture *f = *state;
	const struct custody_item *item;

	assert_int_equal(put(f, "cpr", "bytes", 5, 3, false), 0);
	item = custody_find(&f->c, "cpr");
	assert_non_null(item);
	assert_int_equal(item->len, 5);
	assert_memory_equal(item->payload, "bytes", 5);
	assert_int_equal(item->n_fds, 3);
	for (size_t i = 0; i < 3; i++)
		assert_true(fcntl(item->fds[i], F_GETFD) >= 0);
	assert_null(custody_find(&f->c, "other"));
}

static void packets_of_one_item_are_joined(void **state)
{
	struct fixture *f = *state;
	const struct custody_item *item;

	assert_int_equal(put(f, "cpr", "one", 3, 253, true), 0);
	assert_null(custody_find(&f->c, "cpr"));
	assert_int_equal(put(f, "cpr", "two", 3, 2, false), 0);
	item = custody_find(&f->c, "cpr");
	assert_non_null(item);
	assert_memory_equal(item->payload, "onetwo", 6);
	assert_int_equal(item->n_fds, 255);
}

static void second_put_replaces_and_closes_the_first(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(put(f, "target", "a", 1, 2, false), 0);
	assert_int_equal(put(f, "other", "b", 1, 1, false), 0);
	assert_int_equal(put(f, "target", "c", 1, 1, false), 0);
	assert_int_equal(f->c.n, 2);
	assert_memory_equal(custody_find(&f->c, "target")->payload, "c", 1);
	assert_int_equal(count_fds(), f->fds + 2);
}

static void item_without_a_name_is_refused(void **state)
{
	assert_int_equal(put(*state, "", "a", 1, 2, false), -EINVAL);
}

static void more_than_the_limit_is_refused_and_held_items_stay(void **state)
{
	struct fixture *f = *state;
	char *big = calloc(1, CUSTODY_BYTES_MAX / 2 + 1);

	assert_non_null(big);
	assert_int_equal(put(f, "state", big, CUSTODY_BYTES_MAX / 2 + 1, 1, false), 0);
	assert_int_equal(put(f, "state2", big, CUSTODY_BYTES_MAX / 2 + 1, 1, false), -E2BIG);
	free(big);
	assert_non_null(custody_find(&f->c, "state"));
	assert_int_equal(f->c.n, 1);
}

static void sums_tell_state_from_guest_memory(void **state)
{
	struct fixture *f = *state;
	CustodyItem **items;

	assert_int_equal(put(f, "cpr", "12345", 5, 2, false), 0);
	assert_int_equal(put(f, "device-state", "", 0, 1, false), 0);
	assert_int_equal(custody_describe(&f->c, &items), 0);
	assert_string_equal(items[0]->name, "cpr");
	assert_int_equal(items[0]->bytes, 5);
	assert_int_equal(items[0]->fds, 2);
	assert_int_equal(items[0]->pinned, 8192);
	assert_int_equal(items[1]->bytes, 4096);
	assert_int_equal(items[1]->pinned, 0);
	custody_free_items(items, f->c.n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(item_is_held_with_payload_and_fds),
		TEST(packets_of_one_item_are_joined),
		TEST(second_put_replaces_and_closes_the_first),
		TEST(item_without_a_name_is_refused),
		TEST(more_than_the_limit_is_refused_and_held_items_stay),
		TEST(sums_tell_state_from_guest_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
