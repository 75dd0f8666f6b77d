/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-libvirt-monitor: the monitor of a domain whose only client is libvirt,
 * as a monitor of our own.
 *
 *   upgraded-libvirt-monitor UUID     speaks QMP on fd 3
 *
 * Each command goes through libvirt's passthrough, its answer comes back with our
 * id; events come as QEMU sent them, with its time stamps. So a worker talks to a
 * domain's QEMU as to any other, and libvirt goes on seeing its events. (It marks the
 * domain as tainted, as it does for virsh qemu-monitor-command.)
 *
 * The worker starts one for each source that libvirt manages. It holds nothing: if
 * it dies, or libvirt's daemon does, the worker reads the end of its monitor and rolls
 * back or finishes by what it has; if the worker dies, this reads the end and exits.
 *
 * Two threads: libvirt's event loop, and the one that reads commands. What either
 * writes is whole objects, under a lock.
 */
#include "cleanup.h"

#include <errno.h>
#include <json-c/json.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define QMP_FD	 3
#define URI	 "qemu:///system"
#define READ_MAX 65536
#define FDS_MAX	 16

static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

__attribute__((noreturn)) static void end(const char *why)
{
	if (why)
		fprintf(stderr, "upgraded-libvirt-monitor: %s\n", why);
	exit(why ? EXIT_FAILURE : EXIT_SUCCESS);
}

static const char *libvirts_words(void)
{
	const char *text = virGetLastErrorMessage();

	return text ? text : "libvirt does not say why";
}

/* Takes @object. */
static void say(struct json_object *object)
{
	const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN);
	size_t len = strlen(text), done = 0;
	ssize_t n;

	pthread_mutex_lock(&writing);
	while (done <= len) {
		/* The 0 at the end becomes the end of the line. */
		n = done < len ? send(QMP_FD, text + done, len - done, MSG_NOSIGNAL)
			       : send(QMP_FD, "\n", 1, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			end(NULL);
		done += (size_t)n;
	}
	pthread_mutex_unlock(&writing);
	json_object_put(object);
}

static struct json_object *object_of(const char *key, struct json_object *value)
{
	struct json_object *o = json_object_new_object();

	if (!o || json_object_object_add(o, key, value) < 0)
		end("out of memory");
	return o;
}

static struct json_object *error_of(const char *text)
{
	struct json_object *error = object_of("class", json_object_new_string("GenericError"));

	json_object_object_add(error, "desc", json_object_new_string(text));
	return object_of("error", error);
}

/* libvirt prints every error by itself otherwise; here they are answers. */
static void say_nothing(void *userdata, virErrorPtr error)
{
}

/* ---- events ---- */

static void on_event(virConnectPtr conn, virDomainPtr domain, const char *event, long long seconds,
		     unsigned int micros, const char *details, void *userdata)
{
	struct json_object *o = object_of("event", json_object_new_string(event));
	struct json_object *at = object_of("seconds", json_object_new_int64(seconds));
	struct json_object *data = details ? json_tokener_parse(details) : NULL;

	json_object_object_add(at, "microseconds", json_object_new_int64(micros));
	json_object_object_add(o, "timestamp", at);
	if (data)
		json_object_object_add(o, "data", data);
	say(o);
}

static void on_close(virConnectPtr conn, int reason, void *userdata)
{
	end("libvirt's daemon closed the connection");
}

static void *event_loop(void *unused)
{
	for (;;)
		if (virEventRunDefaultImpl() < 0)
			end(libvirts_words());
	return NULL;
}

/* ---- commands ---- */

struct input {
	struct json_tokener *tokener;
	int fds[FDS_MAX]; /* that came with the command that is being read */
	unsigned n_fds;
};

static void close_fds(struct input *in)
{
	while (in->n_fds)
		close(in->fds[--in->n_fds]);
}

static struct json_object *pass(virDomainPtr domain, struct json_object *command,
				const struct input *in)
{
	const char *text = json_object_to_json_string_ext(command, JSON_C_TO_STRING_PLAIN);
	struct json_object *reply;
	char *result = NULL;
	int r;

	if (in->n_fds)
		r = virDomainQemuMonitorCommandWithFiles(domain, text, in->n_fds, (int *)in->fds,
							 NULL, NULL, &result, 0);
	else
		r = virDomainQemuMonitorCommand(domain, text, &result, 0);
	if (r < 0)
		return error_of(libvirts_words());
	reply = json_tokener_parse(result);
	free(result);
	return reply && json_object_is_type(reply, json_type_object)
		       ? reply
		       : error_of("libvirt's answer is no JSON object");
}

/* libvirt gives commands ids of its own. */
static void answer(virDomainPtr domain, struct json_object *command, const struct input *in)
{
	struct json_object *name = NULL, *id = NULL, *reply;

	if (json_object_object_get_ex(command, "id", &id)) {
		json_object_get(id);
		json_object_object_del(command, "id");
	}
	if (json_object_object_get_ex(command, "execute", &name) &&
	    !strcmp(json_object_get_string(name), "qmp_capabilities"))
		reply = object_of("return", json_object_new_object());
	else
		reply = pass(domain, command, in);
	json_object_object_del(reply, "id");
	if (id)
		json_object_object_add(reply, "id", id);
	say(reply);
}

/* false: the other end is closed. */
static bool receive(struct input *in, char *buf, size_t *ret_len)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	} control;
	struct iovec iov = { buf, READ_MAX };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n;

	do
		n = recvmsg(QMP_FD, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return false;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (in->n_fds < FDS_MAX)
				in->fds[in->n_fds++] = fd;
			else
				close(fd);
		}
	}
	if (msg.msg_flags & MSG_CTRUNC)
		end("descriptors were lost");
	*ret_len = (size_t)n;
	return true;
}

static void serve(virDomainPtr domain)
{
	struct input in = { .tokener = json_tokener_new() };
	_cleanup_free_ char *buf = malloc(READ_MAX);
	size_t len;

	if (!in.tokener || !buf)
		end("out of memory");
	while (receive(&in, buf, &len)) {
		for (size_t at = 0; at < len;) {
			struct json_object *command =
				json_tokener_parse_ex(in.tokener, buf + at, (int)(len - at));

			if (!command && json_tokener_get_error(in.tokener) == json_tokener_continue)
				break;
			if (!json_object_is_type(command, json_type_object))
				end("what came is no command");
			at += json_tokener_get_parse_end(in.tokener);
			while (at < len && strchr(" \r\n\t", buf[at]))
				at++;
			answer(domain, command, &in);
			close_fds(&in);
			json_object_put(command);
		}
	}
}

static void greet(virDomainPtr domain)
{
	struct input none = { 0 };
	struct json_object *query = object_of("execute", json_object_new_string("query-version"));
	struct json_object *reply = pass(domain, query, &none), *version = NULL, *qmp;

	json_object_put(query);
	if (!json_object_object_get_ex(reply, "return", &version))
		end(json_object_to_json_string(reply));
	qmp = object_of("version", json_object_get(version));
	json_object_object_add(qmp, "capabilities", json_object_new_array());
	say(object_of("QMP", qmp));
	json_object_put(reply);
}

int main(int argc, char **argv)
{
	virConnectPtr conn;
	virDomainPtr domain;
	pthread_t thread;

	if (argc != 2) {
		fprintf(stderr, "upgraded-libvirt-monitor is started by upgraded, not by hand\n");
		return 2;
	}
	virSetErrorFunc(NULL, say_nothing);
	if (virEventRegisterDefaultImpl() < 0 || !(conn = virConnectOpen(URI)))
		end(libvirts_words());
	domain = virDomainLookupByUUIDString(conn, argv[1]);
	if (!domain)
		end(libvirts_words());
	if (virConnectRegisterCloseCallback(conn, on_close, NULL, NULL) < 0 ||
	    virConnectDomainQemuMonitorEventRegister(conn, domain, NULL, on_event, NULL, NULL, 0) <
		    0)
		end(libvirts_words());
	if (pthread_create(&thread, NULL, event_loop, NULL))
		end("cannot start a thread");
	greet(domain);
	serve(domain);
	/* The thread is in libvirt's event loop, which nobody else is to take down. */
	_exit(EXIT_SUCCESS);
}
