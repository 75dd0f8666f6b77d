/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/custody.c to its word: what was put is held whole, nothing is
 * left open afterwards, no worker can make it hold without end, and with systemd
 * (here: a socket, and a list of names) it outlives the daemon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "custody.h"
#include "few_fds.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

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
	/* Each has one fd, and the memfd that it is whole in. */
	assert_int_equal(count_fds(), f->fds + 4);
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

/* ---- the fd store ---- */

/* What systemd would have: the fds by their names, in the order they came. */
struct systemd {
	sd_event *event; /* the daemon's, in which it tries again */
	int sock;
	char dir[TEMP_DIR];
	char path[48];
	char name[64][FD_STORE_NAME];
	int fd[64];
	size_t n, removed;
};

static void systemd_hears(struct systemd *s)
{
	setenv("NOTIFY_SOCKET", s->path, 1);
}

/* Until systemd_hears(). */
static void systemd_is_deaf(void)
{
	setenv("NOTIFY_SOCKET", "/nonexistent/socket", 1);
}

static void systemd_start(struct systemd *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	*s = (struct systemd){ 0 };
	temp_dir_make(s->dir);
	snprintf(s->path, sizeof(s->path), "%s/notify", s->dir);
	strcpy(addr.sun_path, s->path);
	s->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(s->sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
	systemd_hears(s);
	assert_true(sd_event_default(&s->event) >= 0);
}

static void remove_name(struct systemd *s, const char *name)
{
	for (size_t i = 0; i < s->n; i++)
		if (!strcmp(s->name[i], name)) {
			close(s->fd[i]);
			s->n--;
			s->removed++;
			memmove(&s->fd[i], &s->fd[i + 1], (s->n - i) * sizeof(s->fd[0]));
			memmove(s->name[i], s->name[i + 1], (s->n - i) * sizeof(s->name[0]));
			return;
		}
	fail_msg("%s is not there to be removed", name);
}

/* Does what it was told until now. */
static void systemd_obey(struct systemd *s)
{
	char text[1024];
	ssize_t n;

	for (;;) {
		_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
		char *name;

		n = scm_recv(s->sock, text, sizeof(text) - 1, &fds);
		if (n == -EAGAIN)
			return;
		assert_true(n > 0);
		text[n] = '\0';
		name = strstr(text, "FDNAME=") + 7;
		if (strstr(text, "FDSTORE=1"))
			assert_non_null(strstr(text, "FDPOLL=0"));
		name[strcspn(name, "\n")] = '\0';
		if (!strncmp(text, "FDSTOREREMOVE=1", 15)) {
			remove_name(s, name);
			continue;
		}
		assert_int_equal(fds.n, 1);
		assert_true(s->n < 64);
		strcpy(s->name[s->n], name);
		s->fd[s->n++] = scm_fds_take(&fds, 0);
	}
}

static void systemd_end(struct systemd *s)
{
	systemd_obey(s);
	for (size_t i = 0; i < s->n; i++)
		close(s->fd[i]);
	close(s->sock);
	temp_dir_remove(s->dir);
	unsetenv("NOTIFY_SOCKET");
	sd_event_unref(s->event);
}

static struct fd_store *new_store(void)
{
	struct fd_store *store;
	sd_event *event;

	assert_true(sd_event_default(&event) >= 0);
	assert_int_equal(fd_store_new(event, &store), 0);
	sd_event_unref(event);
	return store;
}

/* The next daemon, which gets the first @n of what the store has. */
static struct fd_store *next_daemon(struct systemd *s, size_t n)
{
	struct fd_store *store;

	systemd_obey(s);
	store = new_store();
	for (size_t i = 0; i < s->n && i < n; i++)
		assert_int_equal(fd_store_inherit(store, s->name[i], dup(s->fd[i])), 0);
	return store;
}

static void begin(struct fixture *f, struct fd_store **ret_store)
{
	*ret_store = new_store();
	f->c.store = *ret_store;
	f->c.id = 17;
}

/* Ends a daemon, and starts the next one with what it has left. */
static void restart(struct fixture *f, struct systemd *s, struct fd_store **store, size_t n)
{
	custody_leave(&f->c);
	fd_store_freep(store);
	*store = next_daemon(s, n);
	f->c.store = *store;
	assert_int_equal(custody_restore(&f->c, NULL), 0);
	fd_store_drop_unused(*store);
	systemd_obey(s);
}

static ino_t inode(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

static void custody_outlives_the_daemon(void **state)
{
	const struct custody_item *item;
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;
	ino_t first;

	systemd_start(&s);
	begin(f, &store);
	assert_int_equal(put(f, "cpr", "one", 3, 2, true), 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	assert_int_equal(put(f, "cpr", "two", 3, 1, false), 0);
	assert_int_equal(put(f, "target", "", 0, 1, false), 0);
	first = inode(custody_find(&f->c, "cpr")->fds[0]);
	for (int i = 0; i < 2; i++) {
		restart(f, &s, &store, SIZE_MAX);
		assert_int_equal(s.n, 6);
		assert_int_equal(f->c.n, 2);
		item = custody_find(&f->c, "cpr");
		assert_int_equal(item->len, 6);
		assert_memory_equal(item->payload, "onetwo", 6);
		assert_int_equal(item->n_fds, 3);
		assert_int_equal(inode(item->fds[0]), first);
	}
	/* What is put after a restart gets a number that nobody has. */
	assert_int_equal(put(f, "offer", "", 0, 1, false), 0);
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(f->c.n, 3);
	custody_clear(&f->c);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	assert_int_equal(s.removed, 8);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_cannot_be_taken_out_now_is_taken_out_later(void **state)
{
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;

	systemd_start(&s);
	begin(f, &store);
	assert_int_equal(put(f, "cpr", "bytes", 5, 1, false), 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 2);
	systemd_is_deaf();
	custody_clear(&f->c);
	systemd_hears(&s);
	systemd_obey(&s);
	assert_int_equal(s.n, 2);
	assert_true(sd_event_run(s.event, 10000000) > 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_cannot_be_stored_now_is_stored_later(void **state)
{
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;

	systemd_start(&s);
	begin(f, &store);
	assert_int_equal(put(f, "cpr", "bytes", 5, 2, false), 0);
	systemd_is_deaf();
	assert_int_equal(put(f, "target", "new", 3, 1, false), 0);
	systemd_hears(&s);
	systemd_obey(&s);
	assert_int_equal(s.n, 3);
	assert_true(sd_event_run(s.event, 10000000) > 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 5);
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(f->c.n, 2);
	assert_memory_equal(custody_find(&f->c, "target")->payload, "new", 3);
	custody_clear(&f->c);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_systemd_never_had_it_need_not_let_go_of(void **state)
{
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;

	systemd_start(&s);
	begin(f, &store);
	systemd_is_deaf();
	assert_int_equal(put(f, "offer", "bytes", 5, 1, false), 0);
	custody_clear(&f->c);
	systemd_hears(&s);
	(void)sd_event_run(s.event, 1500000);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	assert_int_equal(s.removed, 0);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_cannot_be_taken_back_now_is_there_for_the_next_daemon(void **state)
{
	struct fixture *f = *state;
	struct fd_store *store;
	struct rlimit limit;
	struct systemd s;
	int r;

	systemd_start(&s);
	begin(f, &store);
	assert_int_equal(put(f, "cpr", "bytes", 5, 3, false), 0);
	assert_int_equal(put(f, "device-state", "", 0, 1, false), 0);
	for (int i = 0; i < 6; i++) {
		custody_leave(&f->c);
		fd_store_freep(&store);
		f->c.store = store = next_daemon(&s, SIZE_MAX);
		limit = few_fds(i);
		r = custody_restore(&f->c, NULL);
		enough_fds(&limit);
		assert_int_equal(r, -EMFILE);
		systemd_obey(&s);
		assert_int_equal(s.n, 6);
	}
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(custody_find(&f->c, "cpr")->n_fds, 3);
	assert_int_equal(custody_find(&f->c, "device-state")->n_fds, 1);
	custody_clear(&f->c);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_was_stored_in_part_was_never_put(void **state)
{
	struct fixture *f = *state;

	for (size_t n = 0; n < 4; n++) {
		struct fd_store *store;
		struct systemd s;

		systemd_start(&s);
		begin(f, &store);
		assert_int_equal(put(f, "cpr", "bytes", 5, 3, false), 0);
		/* The daemon died after the first @n of its four messages. */
		systemd_obey(&s);
		while (s.n > n)
			close(s.fd[--s.n]);
		restart(f, &s, &store, n);
		assert_int_equal(f->c.n, 0);
		assert_int_equal(s.n, 0);
		fd_store_freep(&store);
		systemd_end(&s);
	}
}

static void newer_of_two_counts_when_one_was_being_replaced(void **state)
{
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s, kept;

	systemd_start(&s);
	begin(f, &store);
	assert_int_equal(put(f, "target", "old", 3, 1, false), 0);
	assert_int_equal(put(f, "target", "new", 3, 1, true), 0);
	/* Not whole yet: the old one is what is held. */
	assert_memory_equal(custody_find(&f->c, "target")->payload, "old", 3);
	systemd_obey(&s);
	kept = s;
	for (size_t i = 0; i < s.n; i++)
		kept.fd[i] = dup(s.fd[i]);
	assert_int_equal(put(f, "target", "", 0, 0, false), 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 2);
	/* The daemon died before it took the old one out. */
	for (size_t i = 0; i < kept.n; i++) {
		strcpy(s.name[s.n], kept.name[i]);
		s.fd[s.n++] = kept.fd[i];
	}
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(f->c.n, 1);
	assert_memory_equal(custody_find(&f->c, "target")->payload, "new", 3);
	assert_int_equal(s.n, 2);
	custody_clear(&f->c);
	fd_store_freep(&store);
	systemd_end(&s);
}

/* systemd would keep it once, and drop the second name without a word. */
static void one_open_file_is_stored_once_however_often_it_is_held(void **state)
{
	_cleanup_close_ int fd = memfd(4096);
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;

	systemd_start(&s);
	begin(f, &store);
	for (int i = 0; i < 2; i++) {
		_cleanup_scm_fds_ struct scm_fds fds = { .n = 2, .fd = { dup(fd), dup(fd) } };
		CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;

		msg.name = (char *)(i ? "cpr" : "offer");
		assert_int_equal(custody_put(&f->c, &msg, false, &fds, NULL), 0);
	}
	systemd_obey(&s);
	assert_int_equal(s.n, 3);
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(custody_find(&f->c, "offer")->n_fds, 2);
	assert_int_equal(inode(custody_find(&f->c, "cpr")->fds[1]), inode(fd));
	custody_drop(&f->c, "offer");
	systemd_obey(&s);
	assert_int_equal(s.n, 2);
	custody_clear(&f->c);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void item_of_a_newer_version_is_left_alone(void **state)
{
	Upgraded__V1__HeldItem held = UPGRADED__V1__HELD_ITEM__INIT;
	CustodyPut inner = UPGRADED__V1__CUSTODY_PUT__INIT;
	_cleanup_free_ uint8_t *data = NULL;
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;
	size_t len;

	systemd_start(&s);
	begin(f, &store);
	inner.name = "cpr";
	held.version = 99;
	held.put = &inner;
	held.fd = (char *[]){ "upgrade-17.cpr.1" };
	held.n_fd = 1;
	assert_int_equal(message_pack(&held, &data, &len), 0);
	s.fd[0] = memfd(4096);
	strcpy(s.name[0], "upgrade-17.cpr.1");
	s.fd[1] = memfd(0);
	assert_int_equal(write(s.fd[1], data, len), len);
	strcpy(s.name[1], "upgrade-17.cpr.whole.2");
	s.n = 2;
	restart(f, &s, &store, SIZE_MAX);
	assert_int_equal(f->c.n, 0);
	assert_int_equal(s.n, 2);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void what_is_for_this_daemon_only_is_not_stored(void **state)
{
	_cleanup_scm_fds_ struct scm_fds fds = { .n = 1, .fd = { memfd(4096) } };
	CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;
	struct fixture *f = *state;
	struct fd_store *store;
	struct systemd s;

	systemd_start(&s);
	begin(f, &store);
	msg.name = "target-vm";
	msg.here_only = true;
	assert_int_equal(custody_put(&f->c, &msg, false, &fds, NULL), 0);
	systemd_obey(&s);
	assert_int_equal(s.n, 0);
	assert_non_null(custody_find(&f->c, "target-vm"));
	custody_clear(&f->c);
	fd_store_freep(&store);
	systemd_end(&s);
}

static void names_of_others_are_not_ours(void **state)
{
	struct fd_store *store;

	store = new_store();
	assert_int_equal(fd_store_inherit(store, "control", 0), -ENOENT);
	assert_int_equal(fd_store_inherit(store, "upgrade-nothing", 0), -ENOENT);
	assert_int_equal(fd_store_peek(store, "control"), -ENOENT);
	fd_store_freep(&store);
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
		TEST(custody_outlives_the_daemon),
		TEST(what_cannot_be_taken_out_now_is_taken_out_later),
		TEST(what_cannot_be_stored_now_is_stored_later),
		TEST(what_systemd_never_had_it_need_not_let_go_of),
		TEST(what_cannot_be_taken_back_now_is_there_for_the_next_daemon),
		TEST(what_was_stored_in_part_was_never_put),
		TEST(newer_of_two_counts_when_one_was_being_replaced),
		TEST(one_open_file_is_stored_once_however_often_it_is_held),
		TEST(item_of_a_newer_version_is_left_alone),
		TEST(what_is_for_this_daemon_only_is_not_stored),
		TEST(names_of_others_are_not_ours),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
