/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What tests see of a tinyvmm, and how it proves that there is one runner: see proof.c. */
#ifndef TINYVMM_PROOF_H
#define TINYVMM_PROOF_H

#include <stdint.h>

#define PROOF_MAGIC 0x32796e6974ULL
#define VCPUS_MAX   8

/* tests/vmm/tiny.py reads the same layout. */
struct proof_vcpu {
	uint64_t owner;	  /* who runs it now: pid << 8 | 1; 0: nobody */
	uint64_t epoch;	  /* how often it was run, by whomever */
	uint64_t ticks;	  /* rounds through its memory */
	uint64_t errors;  /* wrong words that the guest found */
	uint64_t last_ns; /* of the last tick, CLOCK_MONOTONIC */
	uint64_t gap_ns;  /* the longest between two ticks */
	uint64_t refused; /* times that KVM did not let run it whom it did not belong to */
	uint64_t pad;
};

struct proof {
	uint64_t magic;
	uint64_t n_vcpus;
	uint64_t violations; /* two ran one vCPU, or one went on from the past */
	uint64_t pid;	     /* who runs the guest, or did last */
	uint64_t tier;	     /* how it got the memory; 0: it was started with it */
	uint64_t runs;	     /* how many VMMs have run the guest */
	uint64_t tables;     /* page-table pages that came with the memory, the last time */
	uint64_t kvm_gmem;   /* is the memory a guest_memfd? */
	struct proof_vcpu vcpu[VCPUS_MAX];
};

/* Maps @fd, making it large enough. */
struct proof *proof_map(int fd);

/* Before and after each KVM_RUN. *epoch is the caller's own count, part of the guest's state. */
void proof_enter(struct proof *p, int vcpu, uint64_t *epoch);
void proof_leave(struct proof *p, int vcpu);

/* Somebody whom the guest does not belong to has tried to run it; KVM_RUN came back with @r. */
void proof_insisted(struct proof *p, int vcpu, int r);

/* The guest went once more through its memory, and has found so many errors. */
void proof_tick(struct proof *p, int vcpu, uint64_t errors);

#endif
