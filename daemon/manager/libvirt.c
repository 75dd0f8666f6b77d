/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manager driver for libvirt's domains. Nobody has to adopt them: whenever VMs are
 * asked for, the status files of libvirt's QEMU driver say which domains run in which
 * process. control.c calls in before it looks into the registry; reading the files of
 * a hundred domains takes some milliseconds.
 *
 * Owns nothing. What a restarted daemon has in its registry of a domain that has ended
 * or was started anew meanwhile is put right at the next question.
 */
#include "manager/libvirt.h"

#include "log.h"
#include "manager/libvirt_status.h"
#include "procfs.h"
#include "registry.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define STATUS_DIR "/run/libvirt/qemu"

#define _cleanup_status_ _cleanup_(libvirt_status_freep)

static int read_status(int dir, const char *file, struct libvirt_status **ret, struct error *err)
{
	_cleanup_close_ int fd = openat(dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ char *text = NULL;
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return error_errno(err, -errno, "cannot open %s/%s", STATUS_DIR, file);
	text = malloc(LIBVIRT_STATUS_MAX + 1);
	if (!text)
		return -ENOMEM;
	while (len <= LIBVIRT_STATUS_MAX &&
	       (n = read(fd, text + len, LIBVIRT_STATUS_MAX + 1 - len)) > 0)
		len += (size_t)n;
	return libvirt_status_parse(text, len, ret, err);
}

/* @vm: that has the name already, or NULL. */
static int learn(struct context *ctx, const struct libvirt_status *s, struct vm *vm,
		 struct error *err)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	int r;

	if (vm && vm->pidfd >= 0 && vm->pb->process->pid == s->pid)
		return 0;
	/* Another VM that has the name keeps it while it runs. */
	if (vm && vm->pidfd >= 0)
		return error_set(err, -EEXIST, "a VM that is not libvirt's has the name %s",
				 s->name);
	r = process_read(s->pid, &facts, err);
	if (r < 0)
		return r;
	return registry_add(ctx->registry, s->name, "qemu", manager_libvirt.name, s->uuid, &facts,
			    s->monitor, &vm, err);
}

void libvirt_look(struct context *ctx)
{
	_cleanup_closedir_ DIR *dir = opendir(STATUS_DIR);

	/* A domain that was shut down is libvirt's to remember. */
	for (struct vm *vm = registry_first(ctx->registry), *next; vm; vm = next) {
		next = vm->next;
		if (vm->pidfd < 0 && !vm->upgrade && !vm->working &&
		    manager_of(vm) == &manager_libvirt)
			registry_remove(vm);
	}
	if (!dir)
		return;
	for (struct dirent *de; (de = readdir(dir));) {
		_cleanup_status_ struct libvirt_status *s = NULL;
		_cleanup_error_ struct error err = ERROR_INIT;
		size_t len = strlen(de->d_name);
		struct vm *vm;

		if (len < 5 || strcmp(de->d_name + len - 4, ".xml"))
			continue;
		if (read_status(dirfd(dir), de->d_name, &s, &err) < 0) {
			log_error(LOG_DEBUG, NULL, 0, &err, de->d_name);
			continue;
		}
		vm = registry_find(ctx->registry, s->name);
		if ((vm && vm->upgrade) || learn(ctx, s, vm, &err) >= 0)
			continue;
		log_error(LOG_DEBUG, s->name, 0, &err, "libvirt's domain stays unknown");
	}
}

static int libvirt_begin(struct context *ctx, struct vm *vm, struct error *err)
{
	error_set(err, -EOPNOTSUPP,
		  "%s is libvirt's, and upgraded cannot tell libvirt of another process yet",
		  vm->pb->name);
	error_hint(err, "upgradectl check %s says what else would be in the way", vm->pb->name);
	return -EOPNOTSUPP;
}

static void libvirt_commit(struct context *ctx, struct vm *vm, pid_t source, pid_t target)
{
}

static void libvirt_done(struct context *ctx, struct vm *vm, const Report *report)
{
}

static void libvirt_gone(struct context *ctx, struct vm *vm)
{
}

static int libvirt_place(struct context *ctx, struct vm *vm, Process *ret_process)
{
	return 0;
}

const struct manager_driver manager_libvirt = {
	.name = "libvirt",
	.begin = libvirt_begin,
	.commit = libvirt_commit,
	.done = libvirt_done,
	.gone = libvirt_gone,
	.place = libvirt_place,
};
