/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which rings of a source are larger than asked for, against a peer that
 * answers as QEMU does. It runs a guest, so to speak: a question that could
 * hurt one ends the peer, and the test.
 */
#include "virtio_rings.h"

#include "cleanup.h"
#include "qmp_query.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

struct device {
	const char *type, *path;
	const char *property; /* its name; NULL: none */
	int64_t value;
	unsigned forbidden; /* that many queues may not be asked about */
	int sizes[6];	    /* 0 ends the list */
};

struct vm {
	const struct device *devices;
	bool knows; /* the experimental commands */
	pid_t pid;
	struct waiter w;
	struct qmp *q;
	struct virtio_rings rings;
	struct error err;
};

static const struct device *find(const struct device *d, const char *path)
{
	while (d->path && strcmp(d->path, path))
		d++;
	return d->path ? d : NULL;
}

static struct json_object *number(const char *key, int64_t value)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, key, json_object_new_int64(value));
	return o;
}

static struct json_object *all(const struct device *d)
{
	struct json_object *list = json_object_new_array();

	for (; d->path; d++) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "path", json_object_new_string(d->path));
		json_object_array_add(list, o);
	}
	return list;
}

/* NULL: an error. */
static struct json_object *answer(const struct vm *vm, struct json_object *command)
{
	struct json_object *args = json_object_object_get(command, "arguments");
	const char *name = json_get_string(command, "execute");
	const struct device *d = find(vm->devices, json_get_string(args, "path") ?: "");
	size_t queue = (size_t)json_get_int(args, "queue");

	if (!strcmp(name, "qmp_capabilities"))
		return json_object_new_object();
	if (!strcmp(name, "x-query-virtio") && vm->knows)
		return all(vm->devices);
	if (!strcmp(name, "qom-get") && d) {
		const char *property = json_get_string(args, "property");

		if (!strcmp(property, "type"))
			return json_object_new_string(d->type);
		if (d->property && !strcmp(property, d->property))
			return !strcmp(property, "ctrl_vq") ? json_object_new_boolean((int)d->value)
							    : json_object_new_int64(d->value);
		return NULL;
	}
	if (!strcmp(name, "x-query-virtio-queue-status") && d) {
		if (queue < d->forbidden)
			_exit(1);
		return queue < ARRAY_SIZE(d->sizes) && d->sizes[queue]
			       ? number("vring-num", d->sizes[queue])
			       : NULL;
	}
	if (strcmp(name, "x-query-virtio"))
		_exit(2);
	return NULL;
}

static void reply(int fd, const struct vm *vm, struct json_object *command)
{
	struct json_object *o = json_object_new_object(), *value = answer(vm, command), *e;
	const char *text;

	if (value) {
		json_object_object_add(o, "return", value);
	} else {
		e = json_object_new_object();
		json_object_object_add(
			e, "class",
			json_object_new_string(vm->knows ? "GenericError" : "CommandNotFound"));
		json_object_object_add(e, "desc", json_object_new_string("no"));
		json_object_object_add(o, "error", e);
	}
	json_object_object_add(o, "id", json_object_get(json_object_object_get(command, "id")));
	text = json_object_to_json_string(o);
	if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
		_exit(0);
	json_object_put(o);
}

static void play(int fd, const struct vm *vm)
{
	static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 13, "
				       "\"minor\": 0, \"major\": 10}, \"package\": \"\"}, "
				       "\"capabilities\": []}}\r\n";
	struct json_tokener *t = json_tokener_new();
	char c;

	alarm(60);
	if (write(fd, greeting, strlen(greeting)) < 0)
		_exit(0);
	while (read(fd, &c, 1) == 1) {
		struct json_object *command = json_tokener_parse_ex(t, &c, 1);

		if (json_object_is_type(command, json_type_object))
			reply(fd, vm, command);
		json_object_put(command);
	}
	_exit(0);
}

static void start(struct vm *vm)
{
	int pair[2];

	vm->w = (struct waiter)WAITER_INIT;
	vm->w.what = "a test";
	vm->w.deadline_us = now_us() + 10000000;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	vm->pid = fork();
	if (!vm->pid) {
		close(pair[0]);
		play(pair[1], vm);
	}
	close(pair[1]);
	assert_int_equal(qmp_open(pair[0], pair[0], "the source", &vm->w, &vm->q, &vm->err), 0);
}

static void stop(struct vm *vm)
{
	int status;

	virtio_rings_clear(&vm->rings);
	qmp_freep(&vm->q);
	error_clear(&vm->err);
	assert_int_equal(waitpid(vm->pid, &status, 0), vm->pid);
	if (status)
		fail_msg("a question that hurts a guest: %d", WEXITSTATUS(status));
}

static void read_rings(struct vm *vm, const char *option)
{
	char *argv[] = { (char *)"qemu", (char *)option, NULL };

	start(vm);
	if (virtio_rings_read(vm->q, argv, &vm->rings, &vm->err) < 0)
		fail_msg("virtio_rings_read: %s", vm->err.text);
}

#define ANON(n) "/machine/peripheral-anon/device[" #n "]/virtio-backend"

static void rings_of_the_largest_size_are_found(void **state)
{
	static const struct device devices[] = {
		{ "vhost-user-blk", ANON(0), "queue-size", 128, 6, { 1024 } },
		{ "virtio-crypto-device", ANON(1), NULL, 0, 6, { 1024 } },
		{ "virtio-net-device",
		  "/machine/peripheral/nic/virtio-backend",
		  "ctrl_vq",
		  1,
		  2,
		  { 1024, 1024, 1024, 1024, 1024 } },
		{ "virtio-blk-device", ANON(2), "queue-size", 256, 0, { 1024 } },
		{ "virtio-rng-device", ANON(3), NULL, 0, 0, { 1024 } },
		{ 0 },
	};
	struct vm vm = { .devices = devices, .knows = true };

	read_rings(&vm, "-S");
	assert_int_equal(vm.rings.n, 3);
	assert_string_equal(vm.rings.device, "virtio-net-device 'nic'");
	assert_int_equal(vm.rings.queue, 4);
	assert_int_equal(vm.rings.size, 1024);
	assert_int_equal(vm.rings.own, 64);
	stop(&vm);
}

static void rings_as_asked_for_are_no_sign(void **state)
{
	static const struct device devices[] = {
		/* Large ones that the user asked for; the guest may use less. */
		{ "virtio-blk-device", ANON(0), "queue-size", 1024, 0, { 1024 } },
		{ "virtio-scsi-device", ANON(1), "virtqueue_size", 512, 0, { 512, 512, 512 } },
		{ "virtio-net-device", ANON(2), "ctrl_vq", 1, 2, { 1024, 1024, 64 } },
		{ "virtio-net-device", ANON(3), "ctrl_vq", 0, 2, { 1024, 1024, 1024, 1024 } },
		{ "virtio-balloon-device", ANON(4), NULL, 0, 0, { 32, 1024 } },
		{ "virtio-rng-device", ANON(5), NULL, 0, 0, { 8 } },
		{ "virtio-serial-device", ANON(6), NULL, 0, 0, { 128 } },
		{ "from-the-future-device", ANON(7), NULL, 0, 6, { 1024 } },
		{ 0 },
	};
	struct vm vm = { .devices = devices, .knows = true };

	read_rings(&vm, "-S");
	if (vm.rings.n)
		fail_msg("%s, queue %u: %d", vm.rings.device, vm.rings.queue, (int)vm.rings.size);
	stop(&vm);
}

static void a_qemu_that_cannot_tell_has_no_sign(void **state)
{
	static const struct device devices[] = {
		{ "virtio-rng-device",
		  "/machine/peripheral/rng/virtio-backend",
		  NULL,
		  0,
		  6,
		  { 1024 } },
		{ 0 },
	};
	struct vm vm = { .devices = devices };

	read_rings(&vm, "-S");
	assert_int_equal(vm.rings.n, 0);
	stop(&vm);
	/* One that would crash at experimental commands is not asked. */
	vm = (struct vm){ .devices = devices, .knows = true };
	read_rings(&vm, "deprecated-input=accept,unstable-input=crash");
	assert_int_equal(vm.rings.n, 0);
	stop(&vm);
}

static void a_probe_tells_its_only_ring(void **state)
{
	static const struct device devices[] = {
		{ "virtio-rng-device", "/machine/peripheral-anon/x", NULL, 0, 0, { 8 } },
		{ 0 },
	};
	struct vm vm = { .devices = devices, .knows = true };
	int64_t size;

	start(&vm);
	assert_int_equal(virtio_rings_probed(vm.q, &size, &vm.err), 0);
	assert_int_equal(size, 8);
	stop(&vm);
	vm = (struct vm){ .devices = devices };
	start(&vm);
	assert_int_equal(virtio_rings_probed(vm.q, &size, &vm.err), 0);
	assert_int_equal(size, 0);
	stop(&vm);
}

static void the_probe_has_a_device_for_the_machine(void **state)
{
	char *pci[] = { (char *)"e1000e", (char *)"virtio-blk-pci", NULL };
	char *ccw[] = { (char *)"virtio-blk-ccw", NULL };
	char *mmio[] = { (char *)"virtio-blk-device", NULL };

	assert_string_equal(virtio_rings_device(pci), "virtio-rng-pci");
	assert_string_equal(virtio_rings_device(ccw), "virtio-rng-ccw");
	assert_string_equal(virtio_rings_device(mmio), "virtio-rng-device");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rings_of_the_largest_size_are_found),
		cmocka_unit_test(rings_as_asked_for_are_no_sign),
		cmocka_unit_test(a_qemu_that_cannot_tell_has_no_sign),
		cmocka_unit_test(a_probe_tells_its_only_ring),
		cmocka_unit_test(the_probe_has_a_device_for_the_machine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
