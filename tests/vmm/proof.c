/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The proof that there is exactly one runner, and the figures that tests read.
 * A page of memory belongs to the test and is mapped by every VMM of a guest,
 * source and target alike. Around each KVM_RUN a vCPU's owner is taken and
 * given back by compare-and-swap, so two that run it at the same time are seen.
 * Its epoch is counted up here and in the state that moves with the guest, so
 * one that goes on from the past, after another has run, is seen as well.
 * If a VMM dies here the owner stays, and whoever runs that vCPU next is a
 * violation: a VMM that may be followed by another one must have been stopped.
 */
#include "proof.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct proof *proof_map(int fd)
{
	struct proof *p;

	if (ftruncate(fd, sizeof(*p)) < 0)
		return NULL;
	p = mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static bool swap(uint64_t *at, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(at, &from, to, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST);
}

static uint64_t me(void)
{
	return (uint64_t)getpid() << 8 | 1;
}

static void violation(struct proof *p, int vcpu, const char *what, uint64_t seen)
{
	__atomic_add_fetch(&p->violations, 1, __ATOMIC_SEQ_CST);
	fprintf(stderr, "tinyvmm %d: VIOLATION on vCPU %d: %s (%llx)\n", (int)getpid(), vcpu, what,
		(unsigned long long)seen);
}

void proof_enter(struct proof *p, int vcpu, uint64_t *epoch)
{
	struct proof_vcpu *v = &p->vcpu[vcpu];

	if (!swap(&v->owner, 0, me()))
		violation(p, vcpu, "somebody runs it", v->owner);
	if (!swap(&v->epoch, *epoch, *epoch + 1)) {
		violation(p, vcpu, "somebody has run it since", v->epoch);
		*epoch = __atomic_load_n(&v->epoch, __ATOMIC_SEQ_CST);
		return;
	}
	++*epoch;
}

void proof_leave(struct proof *p, int vcpu)
{
	if (!swap(&p->vcpu[vcpu].owner, me(), 0))
		violation(p, vcpu, "somebody took it", p->vcpu[vcpu].owner);
}

void proof_insisted(struct proof *p, int vcpu, int r)
{
	/* Parked, or committed to somebody else: a VM that is dead. */
	if (r == -ESTALE || r == -EIO)
		__atomic_add_fetch(&p->vcpu[vcpu].refused, 1, __ATOMIC_SEQ_CST);
	else if (r != -EINTR && r != -EAGAIN)
		violation(p, vcpu, "whom the guest does not belong to could run it", (uint64_t)-r);
}

void proof_tick(struct proof *p, int vcpu, uint64_t errors)
{
	struct proof_vcpu *v = &p->vcpu[vcpu];
	struct timespec t;
	uint64_t now;

	clock_gettime(CLOCK_MONOTONIC, &t);
	now = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
	if (v->last_ns && now - v->last_ns > v->gap_ns)
		v->gap_ns = now - v->last_ns;
	v->last_ns = now;
	v->errors = errors;
	v->ticks++;
}
