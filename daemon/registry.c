/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The registry: every VM that upgraded knows, by name. control.c and
 * upgrade.c look up and change it. A VM's process is watched through a pidfd;
 * when it ends the VM stays known, not alive, until `forget` or a new `run` or
 * `adopt` of its name. For want of a descriptor it may have to be watched later; until
 * then it counts as alive.
 *
 * Each VM is one file in runtime-dir/vms, a packed protobuf Vm, replaced by
 * rename. So a daemon that dies and is started again knows the same VMs: it
 * finds their processes by pid and start time. The fields of the moment
 * (alive, outdated, phase, custody) are not kept in it; control.c fills them
 * in for an answer.
 */
#include "registry.h"

#include "log.h"
#include "oneshot.h"

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#define NAME_MAX_LEN 64
#define FILE_MAX     (64 * 1024)
#define RETRY_US     (1000 * 1000ULL)

struct registry {
	sd_event *event;
	int dir;
	struct vm *vms;
	registry_gone_fn gone;
	void *userdata;
	sd_event_source *again; /* for those that are unwatched; there from the beginning */
};

int registry_check_name(const char *name, struct error *err)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789._:-";

	if (!name[0] || name[0] == '.' || strlen(name) > NAME_MAX_LEN ||
	    name[strspn(name, allowed)])
		return error_set(
			err, -EINVAL,
			"a VM's name has 1 to %d of a-z A-Z 0-9 . _ : - and begins with no dot",
			NAME_MAX_LEN);
	return 0;
}

static void vm_unwatch(struct vm *vm)
{
	vm->exit = sd_event_source_disable_unref(vm->exit);
	closep(&vm->pidfd);
}

static void vm_freep(struct vm **vm)
{
	if (!*vm)
		return;
	vm_unwatch(*vm);
	message_free((*vm)->pb);
	free(*vm);
	*vm = NULL;
}

static int on_exit_of_vm(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct vm *vm = userdata;

	vm_unwatch(vm);
	vm->registry->gone(vm, vm->registry->userdata);
	return 0;
}

static int vm_watch(struct vm *vm)
{
	_cleanup_close_ int fd = -EBADF;
	sd_event_source *source;
	int r;

	r = process_open(vm->pb->process->pid, vm->pb->process->start_time, &fd);
	if (r < 0)
		return r;
	r = sd_event_add_io(vm->registry->event, &source, fd, EPOLLIN, on_exit_of_vm, vm);
	if (r < 0)
		return r;
	vm_unwatch(vm);
	vm->exit = source;
	vm->pidfd = TAKE_FD(fd);
	return 0;
}

/* @vm is another process than before. -ESRCH: that one is gone; else it is watched, if not at once.
 */
static int vm_watch_soon(struct vm *vm)
{
	int r;

	vm_unwatch(vm);
	r = vm_watch(vm);
	if (r >= 0 || r == -ESRCH) {
		vm->unwatched = false;
		return r;
	}
	if (!vm->unwatched)
		log_vm(LOG_WARNING, vm->pb->name, 0, "its process %d cannot be watched yet: %s",
		       vm->pb->process->pid, strerror(-r));
	vm->unwatched = true;
	oneshot_arm(vm->registry->again, RETRY_US);
	return 0;
}

static int on_again(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct registry *r = userdata;

	for (struct vm *vm = r->vms, *next; vm; vm = next) {
		next = vm->next;
		if (vm->unwatched && vm_watch_soon(vm) < 0)
			r->gone(vm, r->userdata);
	}
	return 0;
}

static int vm_new(struct registry *r, const Vm *pb, struct vm **ret_vm)
{
	_cleanup_(vm_freep) struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return -ENOMEM;
	vm->registry = r;
	vm->pidfd = -EBADF;
	vm->pb = message_copy(pb);
	if (!vm->pb)
		return -ENOMEM;
	*ret_vm = TAKE_PTR(vm);
	return 0;
}

static int enter(struct registry *r, const Vm *pb, struct vm **ret_vm)
{
	struct vm *vm;
	int k;

	k = vm_new(r, pb, &vm);
	if (k < 0)
		return k;
	if (vm_watch_soon(vm) < 0)
		log_vm(LOG_NOTICE, pb->name, 0, "its process %d is gone", pb->process->pid);
	vm->next = r->vms;
	r->vms = vm;
	*ret_vm = vm;
	return 0;
}

static int load(struct registry *r, const char *file)
{
	_cleanup_close_ int fd = openat(r->dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_message_ Vm *pb = NULL;
	_cleanup_free_ uint8_t *data = malloc(FILE_MAX);
	struct vm *vm;
	ssize_t n;

	if (!data)
		return -ENOMEM;
	if (fd < 0)
		return -errno;
	n = read(fd, data, FILE_MAX);
	if (n < 0)
		return -errno;
	pb = upgraded__v1__vm__unpack(NULL, (size_t)n, data);
	if (!pb || strcmp(pb->name, file) != 0 || !pb->process)
		return -EBADMSG;
	return enter(r, pb, &vm);
}

static int load_all(struct registry *r)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	int fd;

	fd = openat(r->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((entry = readdir(dir))) {
		int k;

		/* No name begins with a dot, so ".new-NAME" is a save that was cut short. */
		if (entry->d_name[0] == '.')
			continue;
		k = load(r, entry->d_name);
		if (k < 0)
			log_line(LOG_WARNING, "vms/%s is not a VM that can be read: %s",
				 entry->d_name, strerror(-k));
	}
	return 0;
}

int registry_open(sd_event *event, const char *dir, registry_gone_fn gone, void *userdata,
		  struct registry **ret_registry, struct error *err)
{
	_cleanup_(registry_freep) struct registry *r = calloc(1, sizeof(*r));
	int k;

	if (!r)
		return error_set(err, -ENOMEM, "out of memory");
	r->event = event;
	r->gone = gone;
	r->userdata = userdata;
	r->dir = -EBADF;
	/* Made now, as it is needed when there is no room for anything. */
	k = sd_event_add_time(event, &r->again, CLOCK_MONOTONIC, UINT64_MAX, 0, on_again, r);
	if (k >= 0 && mkdir(dir, 0700) < 0 && errno != EEXIST)
		k = -errno;
	if (k >= 0) {
		r->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		k = r->dir < 0 ? -errno : load_all(r);
	}
	if (k < 0)
		return error_errno(err, k, "cannot load the known VMs from %s", dir);
	*ret_registry = TAKE_PTR(r);
	return 0;
}

struct vm *registry_first(struct registry *r)
{
	return r->vms;
}

struct vm *registry_find(struct registry *r, const char *name)
{
	struct vm *vm = r->vms;

	while (vm && strcmp(vm->pb->name, name) != 0)
		vm = vm->next;
	return vm;
}

struct vm *registry_find_process(struct registry *r, pid_t pid, uint64_t start_time)
{
	struct vm *vm = r->vms;

	while (vm && (vm_has_ended(vm) || vm->pb->process->pid != pid ||
		      vm->pb->process->start_time != start_time))
		vm = vm->next;
	return vm;
}

/* Writes "process" and what follows from it; the process is not yet watched. */
static int set_facts(Vm *pb, const struct process_facts *facts)
{
	if (!pb->process)
		pb->process = message_new(&upgraded__v1__process__descriptor);
	if (!pb->process || message_set_string(&pb->binary, facts->binary) < 0)
		return -ENOMEM;
	/* What another process ran. */
	if ((pb->process->pid != facts->pid || pb->process->start_time != facts->start_time) &&
	    message_set_string(&pb->binary_sha256, "") < 0)
		return -ENOMEM;
	pb->process->pid = facts->pid;
	pb->process->start_time = facts->start_time;
	pb->since_us = facts->since_us;
	return 0;
}

int registry_add(struct registry *r, const char *name, const char *driver, const char *manager,
		 const char *unit, const struct process_facts *facts, const char *qmp,
		 struct vm **ret_vm, struct error *err)
{
	_cleanup_message_ Vm *pb = message_new(&upgraded__v1__vm__descriptor);
	_cleanup_(vm_freep) struct vm *vm = NULL;
	struct vm *old;
	int k;

	k = registry_check_name(name, err);
	if (k < 0)
		return k;
	old = registry_find(r, name);
	if (old && (!vm_has_ended(old) || old->upgrade || old->working)) {
		error_set(err, -EEXIST, "a VM named %s is known already, process %d", name,
			  old->pb->process->pid);
		error_hint(err, "upgradectl show %s", name);
		return -EEXIST;
	}
	if (!pb || message_set_string(&pb->name, name) < 0 ||
	    message_set_string(&pb->driver, driver) < 0 ||
	    message_set_string(&pb->manager, manager) < 0 ||
	    message_set_string(&pb->unit, unit) < 0 || message_set_string(&pb->qmp, qmp) < 0 ||
	    set_facts(pb, facts) < 0 || vm_new(r, pb, &vm) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	k = vm_watch(vm);
	if (k < 0)
		return error_errno(err, k, "cannot watch process %d", (int)facts->pid);
	if (old)
		registry_remove(old);
	vm->next = r->vms;
	r->vms = vm;
	registry_save(vm);
	*ret_vm = TAKE_PTR(vm);
	return 0;
}

int registry_restore(struct registry *r, const Vm *pb, struct vm **ret_vm, struct error *err)
{
	int k = registry_check_name(pb->name, err);

	if (k < 0)
		return k;
	k = enter(r, pb, ret_vm);
	if (k < 0)
		return error_set(err, k, "out of memory");
	registry_save(*ret_vm);
	return 0;
}

int registry_set_process(struct vm *vm, const struct process_facts *facts, struct error *err)
{
	int k;

	k = set_facts(vm->pb, facts);
	if (k >= 0)
		k = vm_watch_soon(vm);
	registry_save(vm);
	return k < 0 ? error_errno(err, k, "cannot watch process %d", (int)facts->pid) : 0;
}

int registry_watched(const struct vm *vm, struct error *err)
{
	if (vm->pidfd >= 0)
		return 0;
	if (vm_has_ended(vm))
		return error_set(err, -ESRCH, "its process is gone");
	return error_set(err, -EMFILE, "no room for its pidfd");
}

int registry_learn(struct vm *vm, const Vm *found)
{
	int k = 0;

	if (found->version[0])
		k |= message_set_string(&vm->pb->version, found->version);
	if (found->machine[0])
		k |= message_set_string(&vm->pb->machine, found->machine);
	if (found->qmp[0])
		k |= message_set_string(&vm->pb->qmp, found->qmp);
	if (found->binary_sha256[0])
		k |= message_set_string(&vm->pb->binary_sha256, found->binary_sha256);
	if (found->memory)
		vm->pb->memory = found->memory;
	if (found->tier)
		vm->pb->tier = found->tier;
	registry_save(vm);
	return k ? -ENOMEM : 0;
}

static int save(struct vm *vm)
{
	_cleanup_free_ uint8_t *data = NULL;
	_cleanup_close_ int fd = -EBADF;
	char fresh[NAME_MAX_LEN + sizeof(".new-")];
	size_t len;
	ssize_t n;
	int k;

	k = message_pack(vm->pb, &data, &len);
	if (k < 0)
		return k;
	snprintf(fresh, sizeof(fresh), ".new-%s", vm->pb->name);
	fd = openat(vm->registry->dir, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		    0600);
	if (fd < 0)
		return -errno;
	n = write(fd, data, len);
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -ENOSPC;
	if (renameat(vm->registry->dir, fresh, vm->registry->dir, vm->pb->name) < 0)
		return -errno;
	return 0;
}

void registry_save(struct vm *vm)
{
	int k = save(vm);

	if (k < 0)
		log_vm(LOG_WARNING, vm->pb->name, 0,
		       "could not be saved, a restart of upgraded would forget it: %s",
		       strerror(-k));
}

void registry_remove(struct vm *vm)
{
	struct vm **at = &vm->registry->vms;

	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
	if (unlinkat(vm->registry->dir, vm->pb->name, 0) < 0 && errno != ENOENT)
		log_vm(LOG_WARNING, vm->pb->name, 0, "its file could not be removed: %m");
	vm_freep(&vm);
}

void registry_freep(struct registry **r)
{
	if (!*r)
		return;
	while ((*r)->vms) {
		struct vm *vm = (*r)->vms;

		(*r)->vms = vm->next;
		vm_freep(&vm);
	}
	sd_event_source_disable_unref((*r)->again);
	closep(&(*r)->dir);
	free(*r);
	*r = NULL;
}
