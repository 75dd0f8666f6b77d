/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QMP client for one monitor. Used by the worker's phases for the source and
 * the target, and by the probe. QEMU sends JSON objects back to back: the
 * greeting, one reply per command (which carries the command's id) and, at any
 * moment, events. Commands may be sent several at once; replies go to the ones
 * that wait for them. Events are queued in the order they came, with QEMU's own
 * timestamps, from which the blackout is computed.
 *
 * What comes in is not trusted: it may be cut anywhere, be no JSON, be endless
 * or answer what was never asked; all of that is an error, none is a crash.
 * A client whose stream went wrong is of no use any more and says so again.
 *
 * Owns the connection and the queued events. If the worker dies, QEMU sees the
 * connection close and goes on as it was; the monitor is free again.
 */
#include "qmp.h"

#include "scm_rights.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* query-qmp-schema of QEMU 11 is 350 KiB; nothing honest comes near this. */
#define OBJECT_MAX (16 * 1024 * 1024)
#define EVENTS_MAX 16384
/* query-block nests one level per backing file. */
#define DEPTH_MAX 512

struct event {
	struct event *next;
	struct json_object *object;
};

/* What the commands with the ids @first, @first + 1, ... were answered. */
struct replies {
	uint64_t first;
	size_t n, came;
	struct json_object **v;
};

struct qmp {
	int in;
	int out; /* may be the same as in */
	int passing; /* borrowed: goes with the next byte; -EBADF: none */
	char *name;
	char *version;
	struct waiter *w;
	struct json_tokener *tokener;
	size_t object_size; /* bytes of the unfinished object so far */
	uint64_t id;	    /* of the last command */
	struct replies due; /* what is waited for: the greeting or replies */
	struct event *first;
	struct event **tail;
	size_t n_events;
	struct json_object *shown; /* the event handed out last */
	uint64_t overtime;	   /* the deadline after which something was read */
	int broken;		   /* the stream is of no use any more: why */
};

static int broken(struct qmp *q, int code)
{
	q->broken = code;
	return code;
}

static int queue_event(struct qmp *q, struct json_object *object, struct error *err)
{
	struct event *e;

	if (q->n_events >= EVENTS_MAX)
		return error_set(err, broken(q, -ENOBUFS), "%s floods its monitor with events",
				 q->name);
	e = malloc(sizeof(*e));
	if (!e)
		return -ENOMEM;
	*e = (struct event){ .object = json_object_get(object) };
	*q->tail = e;
	q->tail = &e->next;
	q->n_events++;
	return 0;
}

static struct json_object *dequeue_event(struct qmp *q)
{
	struct event *e = q->first;
	struct json_object *object;

	if (!e)
		return NULL;
	q->first = e->next;
	if (!q->first)
		q->tail = &q->first;
	q->n_events--;
	object = e->object;
	free(e);
	return object;
}

static int expect(struct qmp *q, uint64_t first, size_t n)
{
	q->due = (struct replies){ .first = first, .n = n, .v = calloc(n, sizeof(*q->due.v)) };
	return q->due.v ? 0 : -ENOMEM;
}

/* What comes for them from here on is a late reply. */
static void expect_nothing(struct qmp *q)
{
	for (size_t i = 0; q->due.v && i < q->due.n; i++)
		json_object_put(q->due.v[i]);
	free(q->due.v);
	q->due = (struct replies){ 0 };
}

/* Where the object belongs that is no event; NULL: nobody waits for it (any more). */
static struct json_object **place(struct qmp *q, struct json_object *object)
{
	struct json_object *id;
	uint64_t i;

	/*
	 * The greeting has no id, nor has an error about a command that QEMU
	 * could not parse: they go to the first who waits.
	 */
	if (!json_object_object_get_ex(object, "id", &id)) {
		for (i = 0; i < q->due.n && q->due.v[i]; i++)
			;
	} else if (json_object_is_type(id, json_type_int)) {
		i = json_object_get_uint64(id) - q->due.first;
	} else {
		return NULL;
	}
	return i < q->due.n && !q->due.v[i] ? &q->due.v[i] : NULL;
}

/* Sorts one object: an event, the greeting, or a reply. */
static int handle_object(struct qmp *q, struct json_object *object, struct error *err)
{
	struct json_object **to;

	if (!json_object_is_type(object, json_type_object))
		return error_set(err, broken(q, -EBADMSG), "%s sent JSON that is no QMP", q->name);
	if (json_object_object_get_ex(object, "event", NULL))
		return queue_event(q, object, err);
	to = place(q, object);
	/* The late reply of a command that was given up is dropped. */
	if (!to && json_object_object_get_ex(object, "id", NULL))
		return 0;
	if (!json_object_object_get_ex(object, "QMP", NULL) &&
	    !json_object_object_get_ex(object, "return", NULL) &&
	    !json_object_object_get_ex(object, "error", NULL))
		return error_set(err, broken(q, -EBADMSG), "%s sent JSON that is no QMP", q->name);
	if (to) {
		*to = json_object_get(object);
		q->due.came++;
	}
	return 0;
}

static int parse(struct qmp *q, const char *buf, size_t len, struct error *err)
{
	while (len) {
		struct json_object *object = json_tokener_parse_ex(q->tokener, buf, (int)len);
		enum json_tokener_error e = json_tokener_get_error(q->tokener);
		size_t used;
		int r;

		if (!object && e == json_tokener_continue) {
			q->object_size += len;
			if (q->object_size > OBJECT_MAX)
				return error_set(err, broken(q, -EMSGSIZE),
						 "%s sent a QMP message without an end", q->name);
			return 0;
		}
		used = json_tokener_get_parse_end(q->tokener);
		if (e != json_tokener_success || !used) {
			json_object_put(object);
			return error_set(err, broken(q, -EBADMSG), "%s sent no valid JSON: %s",
					 q->name, json_tokener_error_desc(e));
		}
		r = handle_object(q, object, err);
		json_object_put(object);
		if (r < 0)
			return r;
		q->object_size = 0;
		buf += used;
		len -= used;
	}
	return 0;
}

/* Takes in what is there. Returns 1 if something was, 0 if nothing. */
static int read_some(struct qmp *q, struct error *err)
{
	char buf[64 * 1024];
	ssize_t n;
	int r;

	if (q->broken)
		return error_set(err, q->broken, "the monitor of %s cannot be used any more",
				 q->name);
	do
		n = read(q->in, buf, sizeof(buf));
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		return error_errno(err, broken(q, -errno), "cannot read from the monitor of %s",
				   q->name);
	if (n == 0)
		return error_set(err, broken(q, -ECONNRESET), "%s closed its monitor or exited",
				 q->name);
	r = parse(q, buf, (size_t)n, err);
	return r < 0 ? r : 1;
}

static double seconds_since(uint64_t us)
{
	return (double)(now_us() - us) / 1e6;
}

static int timed_out(struct qmp *q, uint64_t since, struct error *err)
{
	return error_set(err, -ETIMEDOUT, "%s did not answer within %.1f s while waiting for %s",
			 q->name, seconds_since(since), q->w->what ?: "an answer");
}

/*
 * Before anything is read: who never stops talking is never waited for. After the
 * deadline it is read from once, because the answer may be there.
 */
static int check_time(struct qmp *q, uint64_t since, struct error *err)
{
	uint64_t deadline = q->w->deadline_us;

	if (now_us() < deadline)
		return 0;
	if (q->overtime == deadline)
		return timed_out(q, since, err);
	q->overtime = deadline;
	return 0;
}

static int wait_on(struct qmp *q, int fd, short events, uint64_t since, struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	int r;

	r = wait_for(q->w, fd, events, &why);
	if (r == -ETIMEDOUT)
		return timed_out(q, since, err);
	if (r < 0 && err && !err->code)
		error_move(err, &why);
	return r;
}

/* Takes in what is there, or waits for it. */
static int read_more(struct qmp *q, uint64_t since, struct error *err)
{
	int r = check_time(q, since, err);

	if (r >= 0)
		r = read_some(q, err);
	return r == 0 ? wait_on(q, q->in, POLLIN, since, err) : r;
}

/* Waits until all that is due came; it is in q->due.v then. */
static int wait_replies(struct qmp *q, uint64_t since, struct error *err)
{
	int r = 0;

	while (q->due.came < q->due.n && r >= 0)
		r = read_more(q, since, err);
	return r < 0 ? r : 0;
}

/* As send(): errno says what went wrong. */
static ssize_t put(struct qmp *q, const char *buf, size_t len)
{
	ssize_t n;

	if (q->passing >= 0) {
		n = scm_send(q->out, buf, len, &q->passing, 1);
		if (n < 0) {
			errno = (int)-n;
			return -1;
		}
		q->passing = -EBADF;
		return n;
	}
	n = send(q->out, buf, len, MSG_NOSIGNAL);
	return n < 0 && errno == ENOTSOCK ? write(q->out, buf, len) : n;
}

/* Keeps reading while it writes, so that neither side can block the other. */
static int write_all(struct qmp *q, const char *buf, size_t len, uint64_t since, struct error *err)
{
	size_t done = 0;
	ssize_t n;
	int r;

	while (done < len) {
		n = put(q, buf + done, len - done);
		if (n >= 0) {
			done += (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return error_errno(err, broken(q, -errno),
					   "cannot write to the monitor of %s", q->name);
		r = check_time(q, since, err);
		if (r >= 0)
			r = read_some(q, err);
		if (r == 0)
			r = wait_on(q, q->out, q->in == q->out ? POLLIN | POLLOUT : POLLOUT, since,
				    err);
		if (r < 0) {
			/* Half a command is out: the next one would be garbage. */
			if (done)
				broken(q, r);
			return r;
		}
	}
	return 0;
}

static struct json_object *make_command(uint64_t id, const char *command, struct json_object *args)
{
	struct json_object *c = json_object_new_object();

	if (!c)
		return NULL;
	json_object_object_add(c, "execute", json_object_new_string(command));
	if (args)
		json_object_object_add(c, "arguments", json_object_get(args));
	json_object_object_add(c, "id", json_object_new_uint64(id));
	return c;
}

static int remote_error(struct qmp *q, const char *command, struct json_object *error,
			struct error *err)
{
	struct json_object *class = NULL, *desc = NULL;
	int code = -EREMOTEIO;

	json_object_object_get_ex(error, "class", &class);
	json_object_object_get_ex(error, "desc", &desc);
	if (class && !strcmp(json_object_get_string(class), "CommandNotFound"))
		code = -ENOSYS;
	return error_set(err, code, "%s refused '%s': %s", q->name, command,
			 desc ? json_object_get_string(desc) : "it gave no reason");
}

/* The commands one after the other, as they go over the wire. */
static int print_calls(struct qmp *q, struct qmp_call *calls, size_t n, char **ret_text,
		       size_t *ret_len)
{
	_cleanup_free_ char *text = NULL;
	FILE *out = open_memstream(&text, ret_len);
	int r = 0;

	if (!out)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct json_object *c = make_command(++q->id, calls[i].command, calls[i].args);
		const char *s =
			c ? json_object_to_json_string_ext(c, JSON_C_TO_STRING_PLAIN) : NULL;

		if (!s || fputs(s, out) < 0)
			r = -ENOMEM;
		json_object_put(c);
	}
	if (fclose(out) || r < 0)
		return -ENOMEM;
	*ret_text = TAKE_PTR(text);
	return 0;
}

/* What a command came to, from its reply. */
static int take_reply(struct qmp *q, struct qmp_call *call, struct json_object *reply,
		      struct error *err)
{
	struct json_object *value;

	if (json_object_object_get_ex(reply, "error", &value))
		return remote_error(q, call->command, value, err);
	if (!json_object_object_get_ex(reply, "return", &value))
		return error_set(err, broken(q, -EBADMSG), "%s answered '%s' with no QMP reply",
				 q->name, call->command);
	call->value = json_object_get(value);
	return 0;
}

static int execute(struct qmp *q, struct qmp_call *calls, size_t n, struct error *err)
{
	_cleanup_free_ char *text = NULL;
	uint64_t since = now_us();
	size_t len;
	int r;

	if (q->broken)
		return error_set(err, q->broken, "the monitor of %s cannot be used any more",
				 q->name);
	if (expect(q, q->id + 1, n) < 0 || print_calls(q, calls, n, &text, &len) < 0)
		return error_errno(err, -ENOMEM, "cannot ask %s", q->name);
	r = write_all(q, text, len, since, err);
	return r < 0 ? r : wait_replies(q, since, err);
}

/* Forgets what was shown and waited for before, and what the calls had. */
static void begin_calls(struct qmp *q, struct qmp_call *calls, size_t n)
{
	json_object_put(q->shown);
	q->shown = NULL;
	for (size_t i = 0; i < n; i++) {
		calls[i].value = NULL;
		calls[i].r = -ECANCELED;
	}
}

static void end_calls(struct qmp *q, struct qmp_call *calls, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		json_object_put(calls[i].args);
		calls[i].args = NULL;
	}
	expect_nothing(q);
}

int qmp_execute_all(struct qmp *q, struct qmp_call *calls, size_t n, struct error *err)
{
	int r;

	if (!n)
		return 0;
	begin_calls(q, calls, n);
	r = execute(q, calls, n, err);
	if (r < 0)
		error_prefix(err, "'%s' and %zu more", calls[0].command, n - 1);
	for (size_t i = 0; i < n && r >= 0; i++) {
		calls[i].r = take_reply(q, &calls[i], q->due.v[i], NULL);
		if (q->broken)
			r = error_set(err, q->broken, "%s answered '%s' with no QMP reply", q->name,
				      calls[i].command);
	}
	end_calls(q, calls, n);
	return r;
}

void qmp_calls_clear(struct qmp_call *calls, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		json_object_put(calls[i].args);
		json_object_put(calls[i].value);
		calls[i].args = calls[i].value = NULL;
	}
}

int qmp_execute(struct qmp *q, const char *command, struct json_object *args,
		struct json_object **ret_value, struct error *err)
{
	struct qmp_call call = { .command = command, .args = args };
	int r;

	begin_calls(q, &call, 1);
	r = execute(q, &call, 1, err);
	if (r < 0)
		error_prefix(err, "'%s'", command);
	else
		r = take_reply(q, &call, q->due.v[0], err);
	end_calls(q, &call, 1);
	if (ret_value && r >= 0)
		*ret_value = call.value;
	else
		json_object_put(call.value);
	return r;
}

int qmp_pass_fd(struct qmp *q, const char *name, int fd, struct error *err)
{
	struct json_object *args = json_object_new_object();
	int r;

	json_object_object_add(args, "fdname", json_object_new_string(name));
	q->passing = fd;
	r = qmp_execute(q, "getfd", args, NULL, err);
	q->passing = -EBADF;
	return r;
}

static int read_version(struct qmp *q, struct json_object *greeting)
{
	struct json_object *v, *major, *minor, *micro;

	if (!json_object_object_get_ex(greeting, "QMP", &v) ||
	    !json_object_object_get_ex(v, "version", &v) ||
	    !json_object_object_get_ex(v, "qemu", &v) ||
	    !json_object_object_get_ex(v, "major", &major) ||
	    !json_object_object_get_ex(v, "minor", &minor) ||
	    !json_object_object_get_ex(v, "micro", &micro))
		return -EBADMSG;
	if (asprintf(&q->version, "%d.%d.%d", json_object_get_int(major),
		     json_object_get_int(minor), json_object_get_int(micro)) < 0)
		return -ENOMEM;
	return 0;
}

static int greet(struct qmp *q, struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	uint64_t since = now_us();
	int r;

	if (expect(q, 0, 1) < 0)
		return -ENOMEM;
	r = wait_replies(q, since, &why);
	if (r == -ETIMEDOUT)
		return error_set(err, -EBUSY, "%s sent no QMP greeting within %.1f s", q->name,
				 seconds_since(since));
	if (r < 0) {
		if (err && !err->code)
			error_move(err, &why);
		return r;
	}
	r = read_version(q, q->due.v[0]);
	expect_nothing(q);
	if (r == -EBADMSG)
		error_set(err, r, "%s did not greet as a QMP monitor does", q->name);
	if (r < 0)
		return r;
	return qmp_execute(q, "qmp_capabilities", NULL, NULL, err);
}

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

int qmp_open(int in, int out, const char *name, struct waiter *w, struct qmp **ret_qmp,
	     struct error *err)
{
	_cleanup_qmp_ struct qmp *q = NULL;
	int r;

	q = calloc(1, sizeof(*q));
	if (!q) {
		close(in);
		if (out != in)
			close(out);
		return error_errno(err, -ENOMEM, "cannot talk to %s", name);
	}
	q->in = in;
	q->out = out;
	q->passing = -EBADF;
	q->w = w;
	q->tail = &q->first;
	q->name = strdup(name);
	q->tokener = json_tokener_new_ex(DEPTH_MAX);
	if (!q->name || !q->tokener)
		return error_errno(err, -ENOMEM, "cannot talk to %s", name);
	json_tokener_set_flags(q->tokener, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS);
	r = set_nonblocking(in);
	if (r >= 0)
		r = set_nonblocking(out);
	if (r < 0)
		return error_errno(err, r, "cannot use the monitor of %s", name);
	r = greet(q, err);
	if (r < 0)
		return r;
	*ret_qmp = TAKE_PTR(q);
	return 0;
}

static int held(const char *path, const char *name, struct error *err)
{
	error_set(err, -EBUSY, "the monitor %s of %s is held by another client", path, name);
	error_hint(err, "give QEMU a second -qmp socket, or close the other client");
	return -EBUSY;
}

/*
 * A monitor that serves somebody does not accept: the first who comes hangs in
 * the backlog and is never greeted, later ones do not even get that far.
 */
static int connect_to(const char *path, const char *name, struct error *err)
{
	_cleanup_close_ int fd = -EBADF;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG, "the monitor's path %s is too long", path);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, -errno, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == EAGAIN)
			return held(path, name, err);
		return error_errno(err, -errno, "cannot connect to the monitor %s of %s", path,
				   name);
	}
	return TAKE_FD(fd);
}

int qmp_connect(const char *path, const char *name, struct waiter *w, struct qmp **ret_qmp,
		struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	int fd, r;

	fd = connect_to(path, name, err);
	if (fd < 0)
		return fd;
	r = qmp_open(fd, fd, name, w, ret_qmp, &why);
	if (r == -EBUSY)
		return held(path, name, err);
	if (r < 0) {
		error_prefix(&why, "%s", path);
		if (err && !err->code)
			error_move(err, &why);
	}
	return r;
}

const char *qmp_version(const struct qmp *q)
{
	return q->version;
}

static void show_event(struct qmp *q, struct json_object *object, struct qmp_event *ret_event)
{
	struct json_object *name = NULL, *data = NULL, *stamp, *s = NULL, *us = NULL;

	q->shown = object;
	json_object_object_get_ex(object, "event", &name);
	json_object_object_get_ex(object, "data", &data);
	if (json_object_object_get_ex(object, "timestamp", &stamp)) {
		json_object_object_get_ex(stamp, "seconds", &s);
		json_object_object_get_ex(stamp, "microseconds", &us);
	}
	*ret_event = (struct qmp_event){
		.name = name ? json_object_get_string(name) : "",
		.data = data,
		.qemu_us = json_object_get_uint64(s) * 1000000 + json_object_get_uint64(us),
	};
}

int qmp_next_event(struct qmp *q, struct qmp_event *ret_event, struct error *err)
{
	struct json_object *object;
	uint64_t since = now_us();
	int r;

	json_object_put(q->shown);
	q->shown = NULL;
	while (!(object = dequeue_event(q))) {
		r = read_more(q, since, err);
		if (r < 0)
			return r;
	}
	show_event(q, object, ret_event);
	return 0;
}

int qmp_wait_event(struct qmp *q, const char *name, struct qmp_event *ret_event, struct error *err)
{
	struct qmp_event event;
	int r;

	do {
		r = qmp_next_event(q, &event, err);
		if (r < 0) {
			error_prefix(err, "event %s", name);
			return r;
		}
	} while (strcmp(event.name, name));
	*ret_event = event;
	return 0;
}

void qmp_drop_events(struct qmp *q)
{
	struct json_object *object;

	while ((object = dequeue_event(q)))
		json_object_put(object);
}

void qmp_freep(struct qmp **qp)
{
	struct qmp *q = *qp;

	*qp = NULL;
	if (!q)
		return;
	qmp_drop_events(q);
	json_object_put(q->shown);
	expect_nothing(q);
	if (q->tokener)
		json_tokener_free(q->tokener);
	if (q->in >= 0)
		close(q->in);
	if (q->out >= 0 && q->out != q->in)
		close(q->out);
	free(q->name);
	free(q->version);
	free(q);
}
