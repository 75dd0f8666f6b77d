/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for the tests of KVM_GMEM_LINK and KVM_GMEM_TRANSFER, i.e. of handing
 * a guest's guest_memfd memory over from one VM to another.
 *
 * All VMs run the same guest code, a loop that executes the "job" which the
 * host leaves in the VM's copy of gmem_jobs[].  The guest's code, stack, page
 * tables and jobs are in memslot 0, which is ordinary anonymous memory, and so
 * is never part of a transfer.
 */
#ifndef SELFTEST_KVM_GMEM_TRANSFER_UTIL_H
#define SELFTEST_KVM_GMEM_TRANSFER_UTIL_H

#include <linux/falloc.h>
#include <linux/sizes.h>
#include <sys/stat.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "test_util.h"
#include "ucall_common.h"

#ifndef GMEM_TRANSFER_NO_TESTS
#include "kvm_test_harness.h"

/* Emulated hosts and debug kernels are slow, let only a hang be a timeout. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300
#endif

#define GMEM_SLOT		5
#define GMEM_GPA		SZ_4G
/* A test may choose another size, before it includes this. */
#ifndef GMEM_SIZE
#define GMEM_SIZE		SZ_4M
#endif
#define GMEM_PAGE_SIZE		SZ_4K
#define GMEM_NR_PAGES		(GMEM_SIZE / GMEM_PAGE_SIZE)
#define GMEM_PATTERN		0x5a00c0de00000000ull

#define GMEM_MAX_VCPUS		4
#define GMEM_MAX_SLOTS		32

#define GMEM_SHARED_FLAGS	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

#define GMEM_TRANSFER_FLAGS	(KVM_GMEM_TRANSFER_DRY_RUN |		\
				 KVM_GMEM_TRANSFER_REQUIRE_ALL |	\
				 KVM_GMEM_TRANSFER_NO_STAGE2 |		\
				 KVM_GMEM_TRANSFER_UNMAP)

enum gmem_op {
	GMEM_OP_NOP,
	/* Write @value + i to the i-th of @nr addresses, which are @stride apart. */
	GMEM_OP_WRITE,
	/* Compare with what GMEM_OP_WRITE writes. */
	GMEM_OP_VERIFY,
	/* Read the u64 at @gva into @seen. */
	GMEM_OP_READ,
	/* Increment the u64 at @gva forever, exit every @nr increments. */
	GMEM_OP_COUNT,
};

struct gmem_job {
	u64 op;
	u64 gva;
	u64 nr;
	u64 stride;
	u64 value;
	u64 seq;

	/* Written by the guest. */
	u64 done;
	u64 bad;
	u64 bad_index;
	u64 seen;
};

/* Both the host and the guests use the symbol, each VM has its own copy. */
static struct gmem_job gmem_jobs[GMEM_MAX_VCPUS];

struct gmem_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[GMEM_MAX_VCPUS];
	int nr_vcpus;

	/* The VM's view of the memory that most tests use. */
	int fd;
};

/* What the ioctl returned, and all that it wrote. */
struct gmem_result {
	int ret;
	int err;
	struct kvm_gmem_transfer args;
	struct kvm_gmem_transfer_slot slots[GMEM_MAX_SLOTS];
};

static inline void gmem_guest_job(struct gmem_job *job)
{
	u64 i, nr = READ_ONCE(job->nr), stride = READ_ONCE(job->stride);
	u64 value = READ_ONCE(job->value), gva = READ_ONCE(job->gva);
	u64 seen, nr_bad = 0;

	switch (READ_ONCE(job->op)) {
	case GMEM_OP_WRITE:
		for (i = 0; i < nr; i++)
			WRITE_ONCE(*(u64 *)(gva + i * stride), value + i);
		break;
	case GMEM_OP_VERIFY:
		for (i = 0; i < nr; i++) {
			seen = READ_ONCE(*(u64 *)(gva + i * stride));
			if (seen == value + i)
				continue;
			if (!nr_bad++) {
				WRITE_ONCE(job->bad_index, i);
				WRITE_ONCE(job->seen, seen);
			}
		}
		WRITE_ONCE(job->bad, nr_bad);
		break;
	case GMEM_OP_READ:
		WRITE_ONCE(job->seen, READ_ONCE(*(u64 *)gva));
		break;
	case GMEM_OP_COUNT:
		for (;;) {
			for (i = 0; i < nr; i++)
				WRITE_ONCE(*(u64 *)gva, READ_ONCE(*(u64 *)gva) + 1);
			/* A bare exit, the host doesn't look for a ucall. */
			ucall_arch_do_ucall(0);
		}
		break;
	default:
		break;
	}
}

static void gmem_guest_code(u64 id)
{
	struct gmem_job *job = &gmem_jobs[id];

	for (;;) {
		u64 seq = READ_ONCE(job->seq);

		gmem_guest_job(job);
		WRITE_ONCE(job->done, seq);
		GUEST_SYNC(seq);
	}
}

static inline struct gmem_job *gmem_job(struct gmem_vm *g, int id)
{
	return addr_gva2hva(g->vm, (gva_t)&gmem_jobs[id]);
}

static inline void gmem_set_job(struct gmem_vm *g, int id, enum gmem_op op,
				u64 gva, u64 nr, u64 stride, u64 value)
{
	struct gmem_job *job = gmem_job(g, id);

	job->op = op;
	job->gva = gva;
	job->nr = nr;
	job->stride = stride;
	job->value = value;
	job->bad = 0;
	job->seen = 0;
	job->seq++;
}

/*
 * Run the vCPU until its job is done.  Returns 0, or the negative errno of
 * KVM_RUN, or the positive exit reason if the guest exits for something else.
 */
static inline int gmem_run(struct gmem_vm *g, int id)
{
	struct gmem_job *job = gmem_job(g, id);
	struct kvm_vcpu *vcpu = g->vcpus[id];
	struct ucall uc;

	do {
		if (__vcpu_run(vcpu)) {
			if (errno == EINTR)
				continue;
			return -errno;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			break;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			return vcpu->run->exit_reason;
		}
	} while (READ_ONCE(job->done) != job->seq);

	return 0;
}

static inline int __gmem_guest(struct gmem_vm *g, int id, enum gmem_op op,
			       u64 gva, u64 nr, u64 stride, u64 value)
{
	gmem_set_job(g, id, op, gva, nr, stride, value);
	return gmem_run(g, id);
}

static inline void gmem_guest(struct gmem_vm *g, int id, enum gmem_op op,
			      u64 gva, u64 nr, u64 stride, u64 value)
{
	int r = __gmem_guest(g, id, op, gva, nr, stride, value);

	TEST_ASSERT(!r, "Guest job %u at 0x%lx: %s %d (%s)", op, gva,
		    r < 0 ? "KVM_RUN failed, errno" : "unexpected exit",
		    r < 0 ? -r : r, r < 0 ? strerror(-r) : exit_reason_str(r));
}

static inline void gmem_guest_write(struct gmem_vm *g, u64 gpa, u64 size, u64 value)
{
	gmem_guest(g, 0, GMEM_OP_WRITE, gpa, size / GMEM_PAGE_SIZE,
		   GMEM_PAGE_SIZE, value);
}

static inline void __gmem_guest_verify(struct gmem_vm *g, int id, u64 gpa,
				       u64 size, u64 value)
{
	struct gmem_job *job = gmem_job(g, id);

	gmem_guest(g, id, GMEM_OP_VERIFY, gpa, size / GMEM_PAGE_SIZE,
		   GMEM_PAGE_SIZE, value);
	TEST_ASSERT(!job->bad,
		    "%lu of %lu pages at 0x%lx are wrong, first is page %lu: wanted 0x%lx, got 0x%lx",
		    job->bad, size / GMEM_PAGE_SIZE, gpa, job->bad_index,
		    value + job->bad_index, job->seen);
}

static inline void gmem_guest_verify(struct gmem_vm *g, u64 gpa, u64 size, u64 value)
{
	__gmem_guest_verify(g, 0, gpa, size, value);
}

static inline u64 gmem_guest_read(struct gmem_vm *g, u64 gpa)
{
	gmem_guest(g, 0, GMEM_OP_READ, gpa, 1, 0, 0);
	return gmem_job(g, 0)->seen;
}

/* The guest cannot run, for the given reason. */
#define gmem_assert_run_fails(g, err)						\
do {										\
	struct gmem_vm *__g = (g);						\
	int __r = __gmem_guest(__g, 0, GMEM_OP_NOP, 0, 0, 0, 0);		\
										\
	TEST_ASSERT(__r == -(err), "Wanted KVM_RUN to fail with %s, got %d (%s)",	\
		    #err, __r, __r < 0 ? strerror(-__r) : "success");		\
} while (0)

static inline bool gmem_vm_is_dead(struct gmem_vm *g)
{
	return __vm_ioctl(g->vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_USER_MEMORY) < 0 &&
	       errno == EIO;
}

/* Guest virtual addresses of the memory are its guest physical addresses. */
static inline void gmem_map(struct gmem_vm *g, u64 gpa, u64 size)
{
	virt_map(g->vm, gpa, gpa, size / g->vm->page_size);
}

static inline struct gmem_vm __gmem_vm_create(struct vm_shape shape, int nr_vcpus)
{
	struct gmem_vm g = {
		.nr_vcpus = nr_vcpus,
		.fd = -1,
	};
	int i;

	g.vm = __vm_create_with_vcpus(shape, nr_vcpus, GMEM_NR_PAGES,
				      gmem_guest_code, g.vcpus);
	for (i = 0; i < nr_vcpus; i++)
		vcpu_args_set(g.vcpus[i], 1, (u64)i);

	return g;
}

static inline struct gmem_vm gmem_vm_create(int nr_vcpus)
{
	return __gmem_vm_create(VM_SHAPE_DEFAULT, nr_vcpus);
}

static inline void gmem_close(int *fd)
{
	if (*fd >= 0)
		kvm_close(*fd);
	*fd = -1;
}

static inline void gmem_vm_free(struct gmem_vm *g)
{
	kvm_vm_free(g->vm);
	g->vm = NULL;
	gmem_close(&g->fd);
}

static inline int __gmem_bind_hva(struct gmem_vm *g, u32 slot, u64 gpa, u64 size,
				  int fd, u64 offset, void *hva)
{
	return __vm_set_user_memory_region2(g->vm, slot, size ? KVM_MEM_GUEST_MEMFD : 0,
					    gpa, size, hva, fd, offset);
}

static inline void gmem_bind(struct gmem_vm *g, u32 slot, u64 gpa, u64 size,
			     int fd, u64 offset)
{
	int r = __gmem_bind_hva(g, slot, gpa, size, fd, offset, NULL);

	TEST_ASSERT(!r,
		    "Binding slot %u failed (gpa 0x%lx, size 0x%lx, offset 0x%lx), errno: %d (%s)",
		    slot, gpa, size, offset, errno, strerror(errno));
}

static inline void gmem_unbind(struct gmem_vm *g, u32 slot)
{
	int r = __vm_set_user_memory_region2(g->vm, slot, 0, 0, 0, NULL, -1, 0);

	TEST_ASSERT(!r, "Deleting slot %u failed, errno: %d (%s)", slot, errno,
		    strerror(errno));
}

static inline int __gmem_link(struct gmem_vm *g, int gmem_fd)
{
	struct kvm_gmem_link args = { .gmem_fd = gmem_fd };

	return __vm_ioctl(g->vm, KVM_GMEM_LINK, &args);
}

static inline int gmem_link(struct gmem_vm *g, int gmem_fd)
{
	int fd = __gmem_link(g, gmem_fd);

	TEST_ASSERT(fd >= 0, KVM_IOCTL_ERROR(KVM_GMEM_LINK, fd));
	return fd;
}

static inline struct gmem_result __gmem_transfer_fd(struct gmem_vm *dst, int source_fd,
						    u32 flags)
{
	struct gmem_result res = {
		.args = {
			.source_fd = source_fd,
			.flags = flags,
			.nr_slots = GMEM_MAX_SLOTS,
		},
	};

	memset(res.slots, 0xff, sizeof(res.slots));
	res.args.slots = (uintptr_t)res.slots;

	/* KVM asks to try again if somebody holds a root for a moment. */
	do {
		res.ret = __vm_ioctl(dst->vm, KVM_GMEM_TRANSFER, &res.args);
		res.err = res.ret ? errno : 0;
		if (res.err == EAGAIN)
			res.args.nr_slots = GMEM_MAX_SLOTS;
	} while (res.err == EAGAIN);

	return res;
}

static inline struct gmem_result __gmem_transfer(struct gmem_vm *dst,
						 struct gmem_vm *src, u32 flags)
{
	return __gmem_transfer_fd(dst, src->vm->fd, flags);
}

static inline struct gmem_result gmem_transfer(struct gmem_vm *dst,
					       struct gmem_vm *src, u32 flags)
{
	struct gmem_result res = __gmem_transfer(dst, src, flags);

	TEST_ASSERT(!res.ret,
		    "KVM_GMEM_TRANSFER failed, errno: %d (%s), %u of %u slots match, first verdict: %u",
		    res.err, strerror(res.err), res.args.nr_matched,
		    res.args.nr_slots, res.slots[0].verdict);
	return res;
}

#define gmem_assert_transfer_fails(dst, src_fd, flags, errnum)			\
({										\
	struct gmem_result __res = __gmem_transfer_fd(dst, src_fd, flags);	\
										\
	TEST_ASSERT(__res.ret == -1 && __res.err == (errnum),			\
		    "Wanted KVM_GMEM_TRANSFER to fail with %s, got %d (%s)",	\
		    #errnum, __res.err, strerror(__res.err));			\
	__res;									\
})

static inline struct kvm_gmem_transfer_slot *gmem_find_slot(struct gmem_result *res,
							    u32 slot)
{
	int i;

	for (i = 0; i < res->args.nr_slots && i < GMEM_MAX_SLOTS; i++) {
		if (res->slots[i].slot == slot)
			return &res->slots[i];
	}

	TEST_FAIL("Slot %u isn't among the %u slots that KVM reported",
		  slot, res->args.nr_slots);
}

static inline const char *gmem_verdict_str(u32 verdict)
{
	static const char * const names[] = {
		[KVM_GMEM_SLOT_MATCH] = "MATCH",
		[KVM_GMEM_SLOT_NO_SOURCE] = "NO_SOURCE",
		[KVM_GMEM_SLOT_INODE] = "INODE",
		[KVM_GMEM_SLOT_OFFSET] = "OFFSET",
		[KVM_GMEM_SLOT_GPA] = "GPA",
		[KVM_GMEM_SLOT_SIZE] = "SIZE",
		[KVM_GMEM_SLOT_FLAGS] = "FLAGS",
		[KVM_GMEM_SLOT_NOT_OWNER] = "NOT_OWNER",
		[KVM_GMEM_SLOT_PARTIAL] = "PARTIAL",
		[KVM_GMEM_SLOT_CLOSED] = "CLOSED",
	};

	return verdict < ARRAY_SIZE(names) ? names[verdict] : "(none)";
}

static inline void gmem_assert_verdict(struct gmem_result *res, u32 slot, u32 verdict)
{
	u32 seen = gmem_find_slot(res, slot)->verdict;

	TEST_ASSERT(seen == verdict, "Wanted verdict %s for slot %u, got %s",
		    gmem_verdict_str(verdict), slot, gmem_verdict_str(seen));
}

static inline int gmem_pre_fault(struct gmem_vm *g, u64 gpa, u64 size)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = size,
	};
	int r;

	do {
		r = __vcpu_ioctl(g->vcpus[0], KVM_PRE_FAULT_MEMORY, &range);
	} while (range.size && (!r || errno == EINTR || errno == EAGAIN));

	return r ? -errno : 0;
}

/*
 * Map all of slot 0, so that of the faults that are taken later none is for the
 * guest's own code, data and page tables.  Write to it, or else what nobody ever
 * wrote to would be the zero page, and only be mapped for reading.
 */
static inline void gmem_warm_up(struct gmem_vm *g)
{
	struct userspace_mem_region *region = memslot2region(g->vm, 0);
	u64 i, size = region->region.memory_size;
	u8 *mem = region->host_mem;
	int r;

	for (i = 0; i < size; i += GMEM_PAGE_SIZE)
		WRITE_ONCE(mem[i], READ_ONCE(mem[i]));

	r = gmem_pre_fault(g, region->region.guest_phys_addr, size);
	TEST_ASSERT(!r, "KVM_PRE_FAULT_MEMORY of slot 0 failed: %d (%s)", -r, strerror(-r));
}

static inline u64 gmem_nr_faults(struct gmem_vm *g)
{
	u64 nr = 0;
	int i;

	for (i = 0; i < g->nr_vcpus; i++)
		nr += vcpu_get_stat(g->vcpus[i], pf_taken);

	return nr;
}

/* Verify the memory, return the number of stage-2 faults which that took. */
static inline u64 gmem_faults_to_verify(struct gmem_vm *g, u64 gpa, u64 size, u64 value)
{
	u64 before;

	gmem_warm_up(g);
	before = gmem_nr_faults(g);
	gmem_guest_verify(g, gpa, size, value);
	return gmem_nr_faults(g) - before;
}

static inline void gmem_assert_faults(struct gmem_vm *g, u64 gpa, u64 size,
				      u64 value, u64 expected)
{
	u64 nr = gmem_faults_to_verify(g, gpa, size, value);

	TEST_ASSERT(nr == expected,
		    "Wanted %lu stage-2 faults for %lu pages at 0x%lx, took %lu",
		    expected, size / GMEM_PAGE_SIZE, gpa, nr);
}

static inline u64 *gmem_mmap(int fd, u64 size)
{
	return kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

/*
 * The usual pair: @src has written a pattern to its memory and has completed
 * all I/O, @dst has a view of that memory bound to a memslot like @src's.
 */
static inline void gmem_src_create(struct gmem_vm *src, int nr_vcpus)
{
	*src = gmem_vm_create(nr_vcpus);
	src->fd = vm_create_guest_memfd(src->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src->fd, 0);
	gmem_map(src, GMEM_GPA, GMEM_SIZE);
	gmem_guest_write(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

static inline void gmem_dst_create(struct gmem_vm *dst, struct gmem_vm *src, int nr_vcpus)
{
	*dst = gmem_vm_create(nr_vcpus);
	dst->fd = gmem_link(dst, src->fd);
	gmem_bind(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0);
	gmem_map(dst, GMEM_GPA, GMEM_SIZE);
}

/* The VM owns the memory and can use it. */
static inline void gmem_assert_owner(struct gmem_vm *g)
{
	gmem_guest_verify(g, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	gmem_guest_write(g, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

/* The VM may run, but not touch the memory. */
static inline void gmem_assert_not_owner(struct gmem_vm *g)
{
	struct kvm_run *run = g->vcpus[0]->run;
	int r = __gmem_guest(g, 0, GMEM_OP_READ, GMEM_GPA, 1, 0, 0);

	TEST_ASSERT(r == -EPERM, "Wanted the guest's access to fail with EPERM, got %d", r);
	TEST_ASSERT_KVM_EXIT_REASON(g->vcpus[0], KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT(run->memory_fault.gpa == GMEM_GPA &&
		    run->memory_fault.size == GMEM_PAGE_SIZE,
		    "Wanted a fault at 0x%llx, size 0x%x, got 0x%llx, size 0x%llx",
		    (u64)GMEM_GPA + 0ull, GMEM_PAGE_SIZE, run->memory_fault.gpa,
		    run->memory_fault.size);
}

/* Neither a failure nor a dry run may have changed anything. */
static inline void gmem_assert_nothing_changed(struct gmem_vm *src, struct gmem_vm *dst)
{
	gmem_assert_faults(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_assert_owner(src);
	gmem_assert_not_owner(dst);
	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_owner(dst);
}

/* Whether an access gets SIGBUS.  Unlike TEST_EXPECT_SIGBUS(), for either case. */
static inline bool gmem_access_is_sigbus(u64 *mem)
{
	struct sigaction sa_old, sa_new = {
		.sa_handler = expect_sigbus_handler,
	};
	bool sigbus = true;

	sigaction(SIGBUS, &sa_new, &sa_old);
	if (!sigsetjmp(expect_sigbus_jmpbuf, 1)) {
		(void)READ_ONCE(*mem);
		/* Only now. */
		asm volatile("" ::: "memory");
		WRITE_ONCE(sigbus, false);
	}
	sigaction(SIGBUS, &sa_old, NULL);

	return READ_ONCE(sigbus);
}

static inline void gmem_test_require(void)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GMEM_TRANSFER));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_MMAP);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_INIT_SHARED);
}

#endif /* SELFTEST_KVM_GMEM_TRANSFER_UTIL_H */
