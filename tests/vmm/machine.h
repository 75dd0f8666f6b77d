/* SPDX-License-Identifier: GPL-2.0-or-later */
/* tinyvmm's VM: see machine.c. */
#ifndef TINYVMM_MACHINE_H
#define TINYVMM_MACHINE_H

#include "kvm_compat.h"
#include "proof.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#define PAGES_GPA 0x100000 /* where the pages are that the guest writes */

struct vm;

struct vcpu {
	struct vm *vm;
	int index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	bool stopped;
	bool unfinished; /* the last exit was I/O, which the next KVM_RUN completes */
	uint64_t epoch;	 /* see proof.c */
	struct timespec thawed;
};

struct vm {
	/* Options. */
	const char *name, *socket, *proof_path, *fault;
	unsigned int n_vcpus, pages, rest_ms;
	size_t memory;
	bool irqchip, memfd;

	int kvm, fd;
	int ram_fd; /* memfd, guest_memfd, or a view of one */
	bool gmem;  /* it is one of the latter two */
	bool bound; /* and the memslot is bound to it */
	char *ram;
	int source_vm; /* stage2: whose memory we take over */
	int proof_fd;
	struct proof *proof;
	struct vcpu vcpu[VCPUS_MAX];

	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool paused;
	bool quit;
	struct upgraded *upgraded;
};

/* What moves from one tinyvmm to the next. A real VMM has more, and versions it. */
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_lapic_state lapic;
	uint64_t epoch;
};

struct state {
	uint64_t magic;
	uint64_t n_vcpus;
	uint64_t irqchip;
	struct kvm_irqchip chip[3];
	struct vcpu_state vcpu[VCPUS_MAX];
};

/* Says it on stderr, after whose words it is. */
__attribute__((format(printf, 2, 3))) void say(const struct vm *vm, const char *fmt, ...);
/* Says what failed and why, and returns -errno. */
int failed(const struct vm *vm, const char *what);

/* The VM with its vCPUs, without memory. */
int make_vm(struct vm *vm);
/* Memory of its own, in vm->ram_fd: a guest_memfd where there is one that can be mapped. */
int make_ram(struct vm *vm);
/* Maps vm->ram_fd and makes it the guest's memory. */
int use_ram(struct vm *vm);
/* Puts the guest at its beginning. */
int load_guest(struct vm *vm);

/* Before any vCPU is started. */
void catch_kicks(void);
int start_vcpus(struct vm *vm);
/* Returns when none of them runs. */
void pause_vcpus(struct vm *vm);
void resume_vcpus(struct vm *vm);
void end_vcpus(struct vm *vm);

/* While none of them runs. */
int save_state(struct vm *vm, struct state *s);
int load_state(struct vm *vm, const struct state *s);
/* Is it the state of a VM of the same form? */
bool state_fits(const struct vm *vm, const struct state *s);

#endif
