/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the running source is: the process as /proc shows it, the VM as its own
 * monitor describes it. The command line alone does not tell: "q35" is another
 * machine and "max" another CPU in every QEMU, and devices come and go by
 * hotplug. Called once per upgrade, before anything is started.
 *
 * Owns struct source. Only asks; if the worker dies here, nothing has changed.
 */
#include "source.h"

#include "cpu_pin.h"
#include "procfs.h"
#include "qmp_query.h"
#include "source_fds.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Devices nest (controllers, buses); QOM itself is larger and has loops by links only. */
#define QOM_DEPTH_MAX	8
#define QOM_OBJECTS_MAX 4096

static int read_binary(struct source *s)
{
	_cleanup_free_ char *there = NULL, *exe = NULL, *root = NULL;
	struct stat running, on_disk;
	size_t len;
	int r;

	r = proc_read_exe(s->pid, &s->binary);
	if (r < 0)
		return r;
	/* Shown from our root; the target is executed in the source's. */
	r = proc_readlink(s->pid, "root", &root);
	if (r < 0)
		return r;
	len = strcmp(root, "/") ? strlen(root) : 0;
	if (!strncmp(s->binary, root, len) && s->binary[len] == '/')
		memmove(s->binary, s->binary + len, strlen(s->binary + len) + 1);
	if (asprintf(&there, "/proc/%d/root%s", (int)s->pid, s->binary) < 0 ||
	    asprintf(&exe, "/proc/%d/exe", (int)s->pid) < 0)
		return -ENOMEM;
	if (stat(exe, &running) < 0)
		return -errno;
	s->outdated = stat(there, &on_disk) < 0 || on_disk.st_dev != running.st_dev ||
		      on_disk.st_ino != running.st_ino;
	return 0;
}

static int read_arch(struct source *s, struct qmp *qmp, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-target", NULL, &v, err);
	if (r < 0)
		return r;
	s->arch = strdup(json_get_string(v, "arch") ?: "unknown");
	json_object_put(v);
	return s->arch ? 0 : -ENOMEM;
}

/* "/machine type" is "pc-q35-10.0-machine", also when "q35" was asked for. */
static int read_machine(struct source *s, struct qmp *qmp, struct error *err)
{
	static const char tail[] = "-machine";
	struct json_object *type = NULL;
	size_t len;
	int r;

	r = qmp_qom_get(qmp, "/machine", "type", &type, err);
	if (r < 0)
		return r;
	s->machine = strdup(json_object_get_string(type) ?: "");
	json_object_put(type);
	if (!s->machine)
		return -ENOMEM;
	len = strlen(s->machine);
	if (len > strlen(tail) && !strcmp(s->machine + len - strlen(tail), tail))
		s->machine[len - strlen(tail)] = '\0';
	return 0;
}

/* query-accelerators is of QEMU 10.2; before it only KVM could be asked for. */
static int read_accel(struct source *s, struct qmp *qmp, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	struct json_object *v = NULL;
	const char *name;
	int r;

	r = qmp_execute(qmp, "query-accelerators", NULL, &v, &ignored);
	if (r >= 0 && (name = json_get_string(v, "enabled"))) {
		s->accel = strdup(name);
	} else {
		json_object_put(v);
		v = NULL;
		r = qmp_execute(qmp, "query-kvm", NULL, &v, err);
		if (r < 0)
			return r;
		s->accel = strdup(json_get_bool(v, "enabled") ? "kvm" : "tcg");
	}
	json_object_put(v);
	return s->accel ? 0 : -ENOMEM;
}

static int read_memory(struct source *s, struct qmp *qmp, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-memory-size-summary", NULL, &v, err);
	if (r < 0)
		return r;
	s->memory = (uint64_t)(json_get_int(v, "base-memory") + json_get_int(v, "plugged-memory"));
	json_object_put(v);
	return 0;
}

static int read_status(struct source *s, struct qmp *qmp, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-status", NULL, &v, err);
	if (r < 0)
		return r;
	s->running = json_get_bool(v, "running");
	s->status = strdup(json_get_string(v, "status") ?: "unknown");
	json_object_put(v);
	return s->status ? 0 : -ENOMEM;
}

static int read_fdsets(struct source *s, struct qmp *qmp, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-fdsets", NULL, &v, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(v, NULL)); i++) {
		struct json_object *set = json_object_array_get_idx(v, i);
		struct json_object *fds = json_get_array(set, "fds");

		for (size_t j = 0; r >= 0 && j < json_array_size(fds); j++) {
			struct json_object *fd = json_object_array_get_idx(fds, j);
			const char *opaque = json_get_string(fd, "opaque");
			struct source_fdset *more;

			more = reallocarray(s->fdsets, s->n_fdsets + 1, sizeof(*more));
			if (!more) {
				r = -ENOMEM;
				break;
			}
			s->fdsets = more;
			more[s->n_fdsets++] = (struct source_fdset){
				.set = json_get_int(set, "fdset-id"),
				.fd = (int)json_get_int(fd, "fd"),
				.opaque = opaque ? strdup(opaque) : NULL,
			};
		}
	}
	json_object_put(v);
	return r;
}

/* A walk through the composition tree, keeping what is a device. */
struct walk {
	struct qmp *qmp;
	struct json_object *types; /* all device types of the source */
	struct json_object *found;
	size_t objects;
	int depth;
};

/* The TYPE of "child<TYPE>", malloc()ed; NULL: no child. */
static char *child_type(const char *type)
{
	size_t len = type ? strlen(type) : 0;

	if (len < 7 || strncmp(type, "child<", 6) || type[len - 1] != '>')
		return NULL;
	return strndup(type + 6, len - 7);
}

static int walk(struct walk *w, const char *path, struct error *err)
{
	struct json_object *list = NULL;
	int r;

	if (++w->depth > QOM_DEPTH_MAX || ++w->objects > QOM_OBJECTS_MAX) {
		w->depth--;
		return 0;
	}
	r = qmp_qom_list(w->qmp, path, &list, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(list, NULL)); i++) {
		struct json_object *p = json_object_array_get_idx(list, i);
		_cleanup_free_ char *type = child_type(json_get_string(p, "type"));
		_cleanup_free_ char *below = NULL;

		if (!type || !json_object_object_get_ex(w->types, type, NULL))
			continue;
		json_object_object_add(w->found, type, json_object_new_boolean(1));
		if (asprintf(&below, "%s/%s", path, json_get_string(p, "name") ?: "") < 0)
			r = -ENOMEM;
		else
			r = walk(w, below, err);
		/* It may have been unplugged meanwhile. */
		if (r == -EREMOTEIO) {
			error_clear(err);
			r = 0;
		}
	}
	json_object_put(list);
	w->depth--;
	return r;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int sorted_keys(struct json_object *set, char ***ret_v)
{
	_cleanup_strv_ char **v = NULL;
	size_t n = 0;

	v = calloc((size_t)json_object_object_length(set) + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	json_object_object_foreach(set, key, value)
	{
		(void)value;
		v[n] = strdup(key);
		if (!v[n++])
			return -ENOMEM;
	}
	qsort(v, n, sizeof(*v), by_text);
	*ret_v = TAKE_PTR(v);
	return 0;
}

static int walk_all(struct qmp *qmp, struct json_object *types, const char *const *paths,
		    char ***ret_types, struct error *err)
{
	struct walk w = { .qmp = qmp, .types = types, .found = json_object_new_object() };
	int r = 0;

	for (; *paths && r >= 0; paths++)
		r = walk(&w, *paths, err);
	if (r >= 0)
		r = sorted_keys(w.found, ret_types);
	json_object_put(w.found);
	return r;
}

static int read_devices(struct source *s, struct qmp *qmp, struct error *err)
{
	static const char *const added[] = { "/machine/peripheral", "/machine/peripheral-anon",
					     NULL };
	static const char *const onboard[] = { "/machine/unattached", NULL };
	struct json_object *types = NULL;
	int r;

	r = qmp_types(qmp, "device", &types, err);
	if (r >= 0)
		r = walk_all(qmp, types, added, &s->devices, err);
	if (r >= 0)
		r = walk_all(qmp, types, onboard, &s->onboard, err);
	json_object_put(types);
	return r;
}

static int read_process(struct source *s, int pidfd, struct error *err)
{
	int r;

	r = proc_read_strv(s->pid, "cmdline", &s->argv);
	if (r < 0)
		return error_errno(err, r, "cannot read the source's command line");
	if (!s->argv[0])
		return error_set(err, -ESRCH, "the source has no command line: it is dying");
	r = read_binary(s);
	if (r < 0)
		return error_errno(err, r, "cannot find the source's binary");
	return source_fds_read(s->pid, pidfd, &s->fds, &s->n_fds, err);
}

int source_read(pid_t pid, int pidfd, struct qmp *qmp, struct source **ret_source,
		struct error *err)
{
	__attribute__((cleanup(source_freep))) struct source *s = NULL;
	int r;

	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->pid = pid;
	s->version = strdup(qmp_version(qmp));
	if (!s->version)
		return -ENOMEM;
	r = read_process(s, pidfd, err);
	if (r >= 0)
		r = read_arch(s, qmp, err);
	if (r >= 0)
		r = read_machine(s, qmp, err);
	if (r >= 0)
		r = read_accel(s, qmp, err);
	if (r >= 0)
		r = read_memory(s, qmp, err);
	if (r >= 0)
		r = read_status(s, qmp, err);
	if (r >= 0)
		r = read_fdsets(s, qmp, err);
	if (r >= 0)
		r = read_devices(s, qmp, err);
	if (r >= 0)
		r = cpu_pin_read(s, qmp, err);
	if (r >= 0)
		r = gmem_read(&s->gmem, qmp, err);
	if (r >= 0)
		r = virtio_rings_read(qmp, s->argv, &s->rings, err);
	if (r < 0)
		return error_errno(err, r, "cannot read what the source is");
	*ret_source = TAKE_PTR(s);
	return 0;
}

void source_freep(struct source **sp)
{
	struct source *s = *sp;

	*sp = NULL;
	if (!s)
		return;
	gmem_clear(&s->gmem);
	strv_freep(&s->argv);
	strv_freep(&s->devices);
	strv_freep(&s->onboard);
	free(s->binary);
	free(s->version);
	free(s->arch);
	free(s->machine);
	free(s->cpu);
	free(s->cpu_model);
	free(s->cpu_options);
	json_object_put(s->cpu_props);
	json_object_put(s->cpu_names);
	free(s->accel);
	free(s->status);
	source_fds_free(s->fds, s->n_fds);
	for (size_t i = 0; i < s->n_fdsets; i++)
		free(s->fdsets[i].opaque);
	free(s->fdsets);
	virtio_rings_clear(&s->rings);
	free(s);
}

/* Copies a QEMU option value up to the next single comma; ",," is one comma. */
static char *option_value(const char *text)
{
	char *value = malloc(strlen(text) + 1), *to = value;

	if (!value)
		return NULL;
	for (; *text; text++) {
		if (*text == ',' && *++text != ',')
			break;
		*to++ = *text;
	}
	*to = '\0';
	return value;
}

/* The value of @key in "a=1,key=value,..."; NULL: not there. malloc()ed. */
static char *option_get(const char *options, const char *key)
{
	size_t len = strlen(key);

	while (options && *options) {
		if (!strncmp(options, key, len) && options[len] == '=')
			return option_value(options + len + 1);
		while (*options && (*options != ',' || options[1] == ','))
			options += *options == ',' ? 2 : 1;
		options += *options == ',';
	}
	return NULL;
}

/* The path of "-chardev socket,id=@id,path=PATH". */
static char *chardev_path(char **argv, const char *id)
{
	for (char **a = argv; *a && a[1]; a++) {
		_cleanup_free_ char *its_id = NULL;

		if (strcmp(*a + strspn(*a, "-"), "chardev") || strncmp(a[1], "socket,", 7))
			continue;
		its_id = option_get(a[1], "id");
		if (its_id && !strcmp(its_id, id))
			return option_get(a[1], "path");
	}
	return NULL;
}

char *source_find_qmp(char **argv)
{
	for (char **a = argv; *a && a[1]; a++) {
		const char *option = *a + strspn(*a, "-");
		char *path = NULL;

		if (**a != '-')
			continue;
		if ((!strcmp(option, "qmp") || !strcmp(option, "qmp-pretty")) &&
		    !strncmp(a[1], "unix:", 5)) {
			path = option_value(a[1] + 5);
		} else if (!strcmp(option, "mon")) {
			_cleanup_free_ char *mode = option_get(a[1], "mode");
			_cleanup_free_ char *id = option_get(a[1], "chardev");

			/* "-mon NAME,mode=control" names the chardev without a key. */
			if (!id && !strchr(a[1], '='))
				id = strdup(a[1]);
			else if (!id && strcspn(a[1], ",") < strcspn(a[1], "="))
				id = option_value(a[1]);
			if (mode && id && !strcmp(mode, "control"))
				path = chardev_path(argv, id);
		}
		if (path)
			return path;
	}
	return NULL;
}
