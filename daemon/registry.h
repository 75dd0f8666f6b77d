/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The VMs that upgraded knows: see registry.c. */
#ifndef UPGRADED_REGISTRY_H
#define UPGRADED_REGISTRY_H

#include "error.h"
#include "message.h"
#include "vmm_process.h"

#include <stdbool.h>
#include <systemd/sd-event.h>

struct registry;
struct upgrade;

struct vm {
	struct vm *next;
	struct registry *registry;
	Vm *pb;	   /* what is saved; the fields of the moment are zero in it */
	int pidfd; /* -EBADF: the process is gone, or unwatched */
	bool unwatched; /* there was no room for a pidfd: again later */
	sd_event_source *exit;
	struct upgrade *upgrade; /* the one waiting or under way, borrowed */
	bool working;		 /* a worker talks to its monitor */
};

static inline bool vm_has_ended(const struct vm *vm)
{
	return vm->pidfd < 0 && !vm->unwatched;
}

/* The process of @vm ended, by no upgrade of ours. */
typedef void (*registry_gone_fn)(struct vm *vm, void *userdata);

/*
 * Loads what an earlier daemon saved in @dir; files that are no VM are
 * skipped with a log line. @event is borrowed.
 */
int registry_open(sd_event *event, const char *dir, registry_gone_fn gone, void *userdata,
		  struct registry **ret_registry, struct error *err);

/* -EINVAL and the rule that was broken. */
int registry_check_name(const char *name, struct error *err);

struct vm *registry_first(struct registry *r);
/* NULL: unknown. */
struct vm *registry_find(struct registry *r, const char *name);
struct vm *registry_find_process(struct registry *r, pid_t pid, uint64_t start_time);

/*
 * Makes @name known as the process @facts; a VM of that name whose process is
 * gone is replaced. -EEXIST if one is alive.
 */
int registry_add(struct registry *r, const char *name, const char *driver, const char *manager,
		 const char *unit, const struct process_facts *facts, const char *qmp,
		 struct vm **ret_vm, struct error *err);

/* Makes @pb known as it is, though its process may be gone. */
int registry_restore(struct registry *r, const Vm *pb, struct vm **ret_vm, struct error *err);

/* From now on @vm is this process, which upgraded watches as soon as it can. -ESRCH: it is gone. */
int registry_set_process(struct vm *vm, const struct process_facts *facts, struct error *err);

/* 0: vm->pidfd is one. -ESRCH: the process is gone; -EMFILE: it cannot be watched yet. */
int registry_watched(const struct vm *vm, struct error *err);

/* Takes over what a worker found out (version, machine, memory, tier, qmp). */
int registry_learn(struct vm *vm, const Vm *found);

/* Writes the VM's file. A failure is logged: the VM is then forgotten by a restart. */
void registry_save(struct vm *vm);

void registry_remove(struct vm *vm);

void registry_freep(struct registry **r);

#endif
