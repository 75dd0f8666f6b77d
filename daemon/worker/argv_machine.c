/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The machine, the CPU model, and above all the memory: an upgrade without a
 * copy needs all of the guest's memory behind file descriptors that a second
 * process can map, which is decided when the source is started. Here the
 * command line is read for it, and the sentence says what to write there.
 */
#include "argv_planner.h"

#include "cleanup.h"

#include <string.h>

static void remember(struct planner *p, char **field, const char *value)
{
	free(*field);
	*field = strdup(value);
	if (!*field)
		p->rc = -ENOMEM;
}

/*
 * A QEMU that does not know guest_memfds takes them for memfds, by the same
 * name and as an fd that it can map; only the word must go.
 */
static bool argv_guest_memfd(struct planner *p, struct opts *opts, const char *subject)
{
	if (!p->in->no_guest_memfd || !opts_del(opts, "guest-memfd"))
		return false;
	plan_note(p, "argv.guest-memfd", subject,
		  "Without guest-memfd=on, which the target does not know: it maps the memory as "
		  "it would a memfd");
	return true;
}

void argv_machine(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "type");
	const char *type, *backend;
	bool changed;

	if (!opts)
		return;
	if (opts_get(opts, "aux-ram-share"))
		p->aux_ram_share = opts_on(opts, "aux-ram-share", false);
	backend = opts_get(opts, "memory-backend");
	if (backend)
		remember(p, &p->ram_backend, backend);
	changed = argv_guest_memfd(p, opts, "the machine");
	if (opts_get(opts, "guest-memfd"))
		p->guest_memfd = opts_on(opts, "guest-memfd", false);
	type = opts_get(opts, "type");
	if (type)
		p->machine_type = true;
	if (!type) {
		/* Nothing to resolve. */
	} else if (!p->in->machine) {
		plan_warn(p, "argv.machine", type, "Name a versioned machine type (pc-q35-10.0)",
			  "What machine type the source runs is not known; it is kept as written");
	} else if (strcmp(type, p->in->machine)) {
		plan_note(p, "argv.machine", type, "Becomes %s, which the source runs",
			  p->in->machine);
		plan_set(p, opts, "type", p->in->machine);
		changed = true;
	}
	if (changed)
		plan_emit_opts(p, o->name, opts);
	else
		plan_keep(p, o, arg);
}

void argv_cpu(struct planner *p, const struct argv_option *o, const char *arg)
{
	p->cpu = true;
	if (p->in->cpu && strcmp(arg, p->in->cpu)) {
		plan_note(p, "argv.cpu", arg, "Becomes %s, which the source's vCPUs are",
			  p->in->cpu);
		arg = p->in->cpu;
	}
	plan_keep(p, o, arg);
}

void argv_m(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "size");
	const char *size;

	if (!opts)
		return;
	size = opts_get(opts, "size");
	if (size)
		remember(p, &p->ram_size, size);
	if (opts_get(opts, "slots") || opts_get(opts, "maxmem"))
		plan_warn(p, "argv.memory-hotplug", arg,
			  "Unplug memory that was plugged in while the guest ran",
			  "Memory plugged in since the start is not on the command line and would "
			  "be missing in the target");
	plan_keep(p, o, arg);
}

void argv_numa(struct planner *p, const struct argv_option *o, const char *arg)
{
	_cleanup_opts_ struct opts *opts = plan_parse(p, o, arg, "type");
	const char *type, *memdev;
	size_t n = 0;
	char **v;

	plan_keep(p, o, arg);
	type = opts ? opts_get(opts, "type") : NULL;
	if (!type || strcmp(type, "node"))
		return;
	if (opts_get(opts, "mem"))
		p->numa_plain = true;
	memdev = opts_get(opts, "memdev");
	if (!memdev)
		return;
	while (p->memdevs && p->memdevs[n])
		n++;
	v = reallocarray(p->memdevs, n + 2, sizeof(*v));
	if (!v) {
		p->rc = -ENOMEM;
		return;
	}
	p->memdevs = v;
	v[n] = strdup(memdev);
	v[n + 1] = NULL;
	if (!v[n])
		p->rc = -ENOMEM;
}

void argv_mem_path(struct planner *p, const struct argv_option *o, const char *arg)
{
	p->mem_path = true;
	plan_keep(p, o, arg);
}

/*
 * A file behind memory is opened again by the target, by its name. If the name
 * is a directory (hugetlbfs), QEMU makes a nameless file in it, and the
 * target would make another one: an empty guest.
 */
static void check_file(struct planner *p, const char *id, const char *path)
{
	size_t len = path ? strlen(path) : 0;
	bool directory = len && path[len - 1] == '/', found = false;

	if (!len)
		return;
	for (size_t i = 0; i < p->in->n_fds; i++) {
		const char *link = p->in->fds[i].link;

		if (!link || strncmp(link, path, len))
			continue;
		found |= !link[len];
		directory |= link[len] == '/';
	}
	if (directory)
		plan_block(p, "argv.memory-directory", id,
			   "Use memory-backend-memfd, with hugetlb=on for huge pages "
			   "(libvirt: <source type='memfd'/>)",
			   "The memory is a nameless file in %s, which the target cannot open", path);
	else if (!found)
		plan_warn(p, "argv.memory-file", id, "Use memory-backend-memfd",
			  "The target opens %s again: it must be the same file, not a directory",
			  path);
}

void memory_object(struct planner *p, const struct argv_option *o, struct opts *opts,
		   const char *arg)
{
	const char *type = opts_get(opts, "qom-type"), *id = opts_get(opts, "id");
	bool anonymous = !strcmp(type, "memory-backend-memfd") ||
			 !strcmp(type, "memory-backend-shm");
	struct plan_memory *v = reallocarray(p->memory, p->n_memory + 1, sizeof(*v)), *m;
	const char *path = opts_get(opts, "mem-path");
	bool changed;

	if (!v) {
		p->rc = -ENOMEM;
		return;
	}
	p->memory = v;
	m = &v[p->n_memory++];
	*m = (struct plan_memory){ .shared = opts_on(opts, "share", anonymous) };
	m->id = strdup(id ?: "");
	m->type = strdup(type);
	m->path = path ? strdup(path) : NULL;
	if (!m->id || !m->type || (path && !m->path))
		p->rc = -ENOMEM;

	if (!strcmp(type, "memory-backend-epc"))
		plan_block(p, "argv.memory-backend", id, "Start the guest without SGX",
			   "SGX enclave memory cannot be carried");
	else if (!m->shared)
		plan_block(p, "argv.memory-backend", id,
			   "Start the guest with share=on on this object (libvirt: <access mode='shared'/>)",
			   "The memory of %s is private to the source", type);
	else if (!strcmp(type, "memory-backend-file"))
		check_file(p, id, path);

	changed = argv_guest_memfd(p, opts, id);
	if (opts_del(opts, "prealloc")) {
		opts_del(opts, "prealloc-threads");
		opts_del(opts, "prealloc-context");
		plan_note(p, "argv.memory-prealloc", id,
			  "Without prealloc in the target: the memory is there already");
		changed = true;
	}
	if (changed)
		plan_emit_opts(p, o->name, opts);
	else
		plan_keep(p, o, arg);
}

static bool is_backend(const struct planner *p, const char *id)
{
	for (size_t i = 0; i < p->n_memory; i++)
		if (!strcmp(p->memory[i].id, id))
			return true;
	return false;
}

/* "2048" on -m means MiB, but bytes on -object. */
static char *size_words(struct planner *p)
{
	const char *s = p->ram_size ?: "128";

	return plan_format(p, "%s%s", s, s[strspn(s, "0123456789")] ? "" : "M");
}

/* Is all of the memory in backends that another process can map? */
static bool is_backed(struct planner *p)
{
	/* The machine makes a backend of its own then, which is shared. */
	if (!p->ram_backend && !p->memdevs)
		return p->guest_memfd;
	if (p->ram_backend && !is_backend(p, p->ram_backend))
		return false;
	for (char **id = p->memdevs; id && *id; id++) {
		if (!is_backend(p, *id))
			return false;
	}
	return true;
}

void memory_finish(struct planner *p)
{
	_cleanup_free_ char *size = size_words(p), *remedy = NULL;

	if (!is_backed(p) || p->mem_path || p->numa_plain) {
		remedy = plan_format(p, "Start the guest with -object memory-backend-memfd,id=ram0,"
				     "size=%s,share=on -machine memory-backend=ram0%s (libvirt: "
				     "<memoryBacking><source type='memfd'/><access mode='shared'/>"
				     "</memoryBacking>)", size ?: "SIZE",
				     p->mem_path ? " instead of -mem-path" :
				     p->numa_plain ? " instead of -numa node,mem=" : "");
		plan_block(p, "argv.memory", size ?: "-m", remedy,
			   "The guest's memory is private to the source: no other process can map it");
	}
	if (!p->aux_ram_share)
		plan_block(p, "argv.aux-ram-share", "-machine",
			   "Start the guest with -machine aux-ram-share=on (libvirt: <qemu:arg "
			   "value='-machine'/><qemu:arg value='aux-ram-share=on'/>)",
			   "Video memory and firmware are private to the source");
}
