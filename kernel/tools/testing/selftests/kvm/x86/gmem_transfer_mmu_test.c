// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is particular to x86 when a guest's memory is handed over: the page tables
 * themselves, the address space of SMM, MMIO that is cached in page tables,
 * private memory, nested guests, what KVM itself writes to guest memory, and VMs
 * that cannot exchange page tables.
 */
#include <asm/kvm_para.h>
#include <asm/pvclock-abi.h>
#include <sched.h>

#include "apic.h"
#include "gmem_transfer_util.h"
#include "processor.h"
#include "smm.h"
#include "svm_util.h"
#include "vmx.h"

FIXTURE(mmu) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(mmu)
{
	gmem_src_create(&self->src, 1);
	self->dst = gmem_vm_create(1);
}

FIXTURE_TEARDOWN(mmu)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

static void dst_bind(struct gmem_vm *dst, struct gmem_vm *src)
{
	dst->fd = gmem_link(dst, src->fd);
	gmem_bind(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0);
	gmem_map(dst, GMEM_GPA, GMEM_SIZE);
}

/* Page tables */

static u64 nr_spans(u64 gpa, u64 size, u64 span)
{
	return (gpa + size - 1) / span - gpa / span + 1;
}

/* Page tables for 4KiB mappings of a range below 512GiB, and for nothing else. */
static u64 nr_tables(u64 gpa, u64 size)
{
	return nr_spans(gpa, size, SZ_2M) + nr_spans(gpa, size, SZ_1G) + 1 + 1;
}

TEST_F(mmu, tables_are_those_of_the_memory)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 tables, expected = nr_tables(GMEM_GPA, GMEM_SIZE);

	dst_bind(dst, src);
	tables = gmem_transfer(dst, src, 0).args.tables;
	/* A fifth level of the page tables is one more table. */
	TEST_ASSERT(tables == expected ||
		    (kvm_cpu_has(X86_FEATURE_LA57) && tables == expected + 1),
		    "Wanted %lu tables for 0x%x bytes, got %lu", expected, GMEM_SIZE, tables);
}

TEST_F(mmu, tables_grow_with_the_memory)
{
	const u64 size = 64 * SZ_1M, gpa = 2 * GMEM_GPA;
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fd = vm_create_guest_memfd(src->vm, size, GMEM_SHARED_FLAGS);
	int view = gmem_link(dst, fd);
	u64 small, large;

	dst_bind(dst, src);
	small = gmem_transfer(dst, src, 0).args.tables;
	gmem_transfer(src, dst, 0);

	gmem_bind(src, GMEM_SLOT + 1, gpa, size, fd, 0);
	ASSERT_EQ(gmem_pre_fault(src, gpa, size), 0);
	gmem_bind(dst, GMEM_SLOT + 1, gpa, size, view, 0);
	large = gmem_transfer(dst, src, 0).args.tables;
	EXPECT_EQ(large - small, size / SZ_2M + 1);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(mmu, tables_of_anonymous_memory_are_not_handed_over)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;
	u64 before;

	dst_bind(dst, src);
	res = gmem_transfer(dst, src, 0);
	gmem_transfer(src, dst, 0);

	/* More of it than slot 0 has, and close to the gmem. */
	vm_userspace_mem_region_add(src->vm, VM_MEM_SRC_ANONYMOUS, GMEM_GPA + GMEM_SIZE,
				    8, GMEM_NR_PAGES, 0);
	ASSERT_EQ(gmem_pre_fault(src, GMEM_GPA + GMEM_SIZE, GMEM_SIZE), 0);
	before = res.args.tables;
	res = gmem_transfer(dst, src, 0);
	EXPECT_EQ(res.args.tables, before);
	EXPECT_GE(res.args.zapped, GMEM_SIZE / SZ_2M);
}

TEST_F(mmu, slots_deleted_without_the_quirk_leave_the_rest_mapped)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_vm *vms[] = { src, dst };
	int i;

	if (!(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "KVM_X86_QUIRK_SLOT_ZAP_ALL cannot be disabled");

	for (i = 0; i < 2; i++) {
		vm_enable_cap(vms[i]->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);
		vm_userspace_mem_region_add(vms[i]->vm, VM_MEM_SRC_ANONYMOUS, SZ_1G, 8, 16, 0);
		gmem_map(vms[i], SZ_1G, SZ_64K);
	}
	gmem_guest_write(src, SZ_1G, SZ_64K, 0);
	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	gmem_guest_write(dst, SZ_1G, SZ_64K, 0);
	vm_mem_region_delete(dst->vm, 8);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(mmu, slot_deleted_after_the_transfer_is_gone)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	gmem_unbind(dst, GMEM_SLOT);
	EXPECT_EQ(__gmem_guest(dst, 0, GMEM_OP_READ, GMEM_GPA, 1, 0, 0), KVM_EXIT_MMIO);
}

TEST_F(mmu, hole_punched_after_the_transfer_is_unmapped)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	gmem_guest_verify(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	kvm_fallocate(dst->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      GMEM_PAGE_SIZE, GMEM_PAGE_SIZE);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA), GMEM_PATTERN);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + GMEM_PAGE_SIZE), 0);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + 2 * GMEM_PAGE_SIZE), GMEM_PATTERN + 2);
}

TEST_F(mmu, pages_are_counted_for_whom_they_are_mapped)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	EXPECT_EQ(vm_get_stat(src->vm, pages_4k), 0);
	EXPECT_EQ(vm_get_stat(dst->vm, pages_4k), GMEM_NR_PAGES);
	gmem_transfer(src, dst, 0);
	EXPECT_EQ(vm_get_stat(src->vm, pages_4k), GMEM_NR_PAGES);
	EXPECT_EQ(vm_get_stat(dst->vm, pages_4k), 0);
}

TEST_F(mmu, tables_are_counted_for_whom_they_are_handed_over)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 tables;

	dst_bind(dst, src);
	tables = gmem_transfer(dst, src, 0).args.tables;
	EXPECT_EQ(vm_get_stat(dst->vm, gmem_tables_received), tables);
	EXPECT_EQ(vm_get_stat(src->vm, gmem_tables_received), 0);
	gmem_transfer(src, dst, 0);
	EXPECT_EQ(vm_get_stat(dst->vm, gmem_tables_received), tables);
	EXPECT_EQ(vm_get_stat(src->vm, gmem_tables_received), tables);
}

TEST_F(mmu, memory_of_dsts_own_stays)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	const u64 gpa = GMEM_GPA + GMEM_SIZE;
	int fd = vm_create_guest_memfd(dst->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	struct gmem_result res;

	gmem_bind(dst, GMEM_SLOT + 1, gpa, GMEM_SIZE, fd, 0);
	gmem_map(dst, gpa, GMEM_SIZE);
	gmem_guest_write(dst, gpa, GMEM_SIZE, ~GMEM_PATTERN);
	dst_bind(dst, src);

	res = gmem_transfer(dst, src, 0);
	EXPECT_EQ(res.args.nr_matched, 1);
	gmem_assert_verdict(&res, GMEM_SLOT + 1, KVM_GMEM_SLOT_NOT_OWNER);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_guest_verify(dst, gpa, GMEM_SIZE, ~GMEM_PATTERN);
	kvm_close(fd);
}

/* CPUID */

TEST_F(mmu, maxphyaddr_may_differ)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 nr;

	vcpu_set_cpuid_property(dst->vcpus[0], X86_PROPERTY_MAX_PHY_ADDR, 36);
	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	nr = gmem_faults_to_verify(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	ksft_print_msg("%lu faults\n", nr);
	/* All or none: it depends on whether a root has as many levels as before. */
	EXPECT_TRUE(nr == 0 || nr == GMEM_NR_PAGES);
}

TEST_F(mmu, maxphyaddr_may_differ_on_the_way_back)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	vcpu_set_cpuid_property(dst->vcpus[0], X86_PROPERTY_MAX_PHY_ADDR, 36);
	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	ASSERT_EQ(gmem_pre_fault(dst, GMEM_GPA, GMEM_SIZE), 0);
	gmem_transfer(src, dst, 0);
	gmem_assert_owner(src);
}

TEST_F(mmu, dst_vcpu_may_have_no_cpuid_yet)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_vm bare = { .vm = vm_create_barebones(), .nr_vcpus = 1 };

	bare.vcpus[0] = __vm_vcpu_add(bare.vm, 0);
	bare.fd = gmem_link(&bare, src->fd);
	gmem_bind(&bare, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, bare.fd, 0);
	gmem_transfer(&bare, src, 0);
	gmem_transfer(src, &bare, 0);
	gmem_assert_owner(src);
	gmem_vm_free(&bare);

	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	gmem_assert_owner(dst);
}

/* Refusals, of VMs whose page tables cannot be the same */

static void assert_refused(struct gmem_vm *dst, struct gmem_vm *src)
{
	gmem_assert_transfer_fails(dst, src->vm->fd, 0, EOPNOTSUPP);
	gmem_assert_transfer_fails(dst, src->vm->fd, KVM_GMEM_TRANSFER_REQUIRE_ALL, EOPNOTSUPP);
}

TEST_F(mmu, eopnotsupp_if_quirks_of_page_tables_differ)
{
	static const u64 quirks[] = {
		KVM_X86_QUIRK_CD_NW_CLEARED,
		KVM_X86_QUIRK_IGNORE_GUEST_PAT,
	};
	u64 valid = kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2);
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int i, nr = 0;

	dst_bind(dst, src);
	for (i = 0; i < ARRAY_SIZE(quirks); i++) {
		/* The guest's PAT is honored on AMD, no VM can have it otherwise. */
		if (!(valid & quirks[i]) ||
		    (quirks[i] == KVM_X86_QUIRK_IGNORE_GUEST_PAT && !host_cpu_is_intel))
			continue;

		nr++;
		vm_enable_cap(dst->vm, KVM_CAP_DISABLE_QUIRKS2, quirks[i]);
		assert_refused(dst, src);
		gmem_assert_owner(src);
		gmem_assert_not_owner(dst);
		vm_enable_cap(src->vm, KVM_CAP_DISABLE_QUIRKS2, quirks[i]);
	}
	if (!nr)
		SKIP(return, "No such quirk can be disabled");

	gmem_transfer(dst, src, 0);
	gmem_assert_owner(dst);
}

TEST_F(mmu, quirks_of_page_tables_may_differ_on_the_way_back)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;

	if (!(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_CD_NW_CLEARED))
		SKIP(return, "KVM_X86_QUIRK_CD_NW_CLEARED cannot be disabled");

	/* The memory comes back, and the page tables, of no use, don't. */
	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	vm_enable_cap(dst->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_CD_NW_CLEARED);
	res = gmem_transfer(src, dst, 0);
	EXPECT_EQ(res.args.nr_matched, 1);
	EXPECT_EQ(res.args.tables, 0);
	gmem_assert_faults(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, GMEM_NR_PAGES);
	gmem_assert_owner(src);
	assert_refused(dst, src);
}

TEST_F(mmu, quirks_of_anything_else_may_differ)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	if (!(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "KVM_X86_QUIRK_SLOT_ZAP_ALL cannot be disabled");

	vm_enable_cap(dst->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);
	dst_bind(dst, src);
	gmem_transfer(dst, src, 0);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(mmu, eopnotsupp_if_nx_huge_pages_differ)
{
	struct gmem_vm bare = { .vm = vm_create_barebones() };

	if (!kvm_check_cap(KVM_CAP_VM_DISABLE_NX_HUGE_PAGES) ||
	    __vm_disable_nx_huge_pages(bare.vm))
		SKIP(return, "NX huge pages cannot be disabled, errno: %d", errno);

	bare.fd = gmem_link(&bare, self->src.fd);
	gmem_bind(&bare, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, bare.fd, 0);
	assert_refused(&bare, &self->src);
	gmem_assert_owner(&self->src);
	gmem_vm_free(&bare);
}

TEST_F(mmu, eopnotsupp_if_dst_has_a_dirty_ring)
{
	struct gmem_vm ring = { .vm = vm_create_barebones() };

	if (!vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING) &&
	    !vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm_enable_dirty_ring(ring.vm, SZ_64K);
	ring.fd = gmem_link(&ring, self->src.fd);
	gmem_bind(&ring, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, ring.fd, 0);
	assert_refused(&ring, &self->src);
	gmem_assert_owner(&self->src);
	gmem_vm_free(&ring);
}

TEST_F(mmu, eopnotsupp_if_src_has_a_dirty_ring)
{
	struct gmem_vm ring = { .vm = vm_create_barebones() };

	if (!vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING) &&
	    !vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	vm_enable_dirty_ring(ring.vm, SZ_64K);
	ring.fd = vm_create_guest_memfd(ring.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(&ring, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, ring.fd, 0);
	dst_bind(&self->dst, &ring);
	assert_refused(&self->dst, &ring);
	gmem_assert_not_owner(&self->dst);
	gmem_vm_free(&ring);
}

TEST_F(mmu, dst_may_have_a_dirty_ring_on_the_way_back)
{
	struct gmem_vm ring = { .vm = vm_create_barebones() };
	struct gmem_vm *src = &self->src;

	if (!vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING) &&
	    !vm_check_cap(ring.vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "No dirty ring");

	ring.fd = gmem_link(&ring, src->fd);
	gmem_bind(&ring, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, ring.fd, 0);
	gmem_transfer(&ring, src, 0);
	vm_enable_dirty_ring(ring.vm, SZ_64K);
	EXPECT_EQ(gmem_transfer(src, &ring, 0).args.tables, 0);
	gmem_assert_owner(src);
	gmem_vm_free(&ring);
}

/* For a host whose KVM was loaded like that. */
TEST_F(mmu, eopnotsupp_without_the_tdp_mmu)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	if (get_kvm_param_bool("tdp_mmu"))
		SKIP(return, "The TDP MMU is in use");

	EXPECT_EQ(kvm_check_cap(KVM_CAP_GMEM_TRANSFER), 0);
	EXPECT_EQ(vm_check_cap(src->vm, KVM_CAP_GMEM_TRANSFER), 0);
	EXPECT_EQ(__gmem_link(dst, src->fd), -1);
	EXPECT_EQ(errno, EOPNOTSUPP);
	assert_refused(dst, src);
	gmem_assert_owner(src);
}

/* Also for a host like that, where page tables are made in another way. */
TEST_F(mmu, guest_sees_the_guest_memfd_whatever_is_at_the_userspace_address)
{
	struct gmem_vm *src = &self->src;
	void *other = kvm_mmap(GMEM_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	memset(other, 0x55, GMEM_SIZE);
	gmem_unbind(src, GMEM_SLOT);
	ASSERT_EQ(__gmem_bind_hva(src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src->fd, 0, other), 0);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	kvm_munmap(other, GMEM_SIZE);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

/*
 * A root that somebody else uses.  That is whoever zaps memory, for as long as it
 * takes: here, a task that doesn't get the CPU any more in the middle of that.
 */
#define BUSY_GPA	(2 * GMEM_GPA)
#define BUSY_SLOT	(GMEM_SLOT + 1)
#define BUSY_SIZE	(16 * SZ_1M)

struct busy_root {
	void *mem;
	int cpu;
	bool hog;
	bool stop;
};

static bool run_on(int cpu, int priority)
{
	struct sched_param param = { .sched_priority = priority };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	return !sched_setaffinity(0, sizeof(cpus), &cpus) &&
	       !sched_setscheduler(0, priority ? SCHED_FIFO : SCHED_OTHER, &param);
}

static void *zap_thread(void *arg)
{
	struct busy_root *busy = arg;

	TEST_ASSERT(run_on(busy->cpu, 0), "Cannot leave real-time priority, errno: %d", errno);
	kvm_madvise(busy->mem, BUSY_SIZE, MADV_DONTNEED);
	return NULL;
}

/* Take the CPU from the one above, when told to. */
static void *hog_thread(void *arg)
{
	struct busy_root *busy = arg;

	TEST_ASSERT(run_on(busy->cpu, 1), "No real-time priority, errno: %d", errno);
	while (!READ_ONCE(busy->stop)) {
		if (!READ_ONCE(busy->hog))
			usleep(10);
	}
	return NULL;
}

/* Returns the errno of a transfer when the zapping had @us to make progress. */
static int transfer_while_zapping(struct gmem_vm *dst, struct gmem_vm *src,
				  struct busy_root *busy, int us)
{
	struct kvm_gmem_transfer args = { .source_fd = src->vm->fd };
	pthread_t zapper, hog;
	int r;

	WRITE_ONCE(busy->hog, false);
	WRITE_ONCE(busy->stop, false);
	run_on(busy->cpu, 2);
	kvm_pthread_create(&hog, NULL, hog_thread, busy);
	kvm_pthread_create(&zapper, NULL, zap_thread, busy);
	usleep(us);

	WRITE_ONCE(busy->hog, true);
	r = __vm_ioctl(dst->vm, KVM_GMEM_TRANSFER, &args) ? errno : 0;

	WRITE_ONCE(busy->stop, true);
	run_on(busy->cpu, 0);
	kvm_pthread_join(hog, NULL);
	kvm_pthread_join(zapper, NULL);
	return r;
}

TEST_F(mmu, eagain_if_a_root_stays_in_use)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct busy_root busy = { .cpu = sched_getcpu() };
	int i, r;

	if (!run_on(busy.cpu, 1) || !run_on(busy.cpu, 0))
		SKIP(return, "No real-time priority, errno: %d", errno);

	busy.mem = kvm_mmap(BUSY_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_madvise(busy.mem, BUSY_SIZE, MADV_NOHUGEPAGE);
	vm_set_user_memory_region(src->vm, BUSY_SLOT, 0, BUSY_GPA, BUSY_SIZE, busy.mem);
	dst_bind(dst, src);

	for (i = 0; i < 200; i++) {
		memset(busy.mem, 1, BUSY_SIZE);
		ASSERT_EQ(gmem_pre_fault(src, BUSY_GPA, BUSY_SIZE), 0);

		r = transfer_while_zapping(dst, src, &busy, 100 << (i % 8));
		if (r == EAGAIN)
			break;
		/* It was too early or too late for that. */
		ASSERT_EQ(r, 0);
		gmem_transfer(src, dst, 0);
	}
	EXPECT_EQ(r, EAGAIN);
	ksft_print_msg("EAGAIN after %d transfers\n", i);

	gmem_assert_nothing_changed(src, dst);
	kvm_munmap(busy.mem, BUSY_SIZE);
}

/* Private memory */

#define PRIVATE_SIZE	(GMEM_SIZE / 2)

/* The first half of the slot is private, the rest is anonymous memory. */
FIXTURE(private) {
	struct gmem_vm src;
	struct gmem_vm dst;
	void *mem[2];
};

static bool has_private_vms(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
}

static void private_bind(struct gmem_vm *g, void **mem)
{
	/* Both at the same offset from a huge page. */
	*mem = kvm_mmap(GMEM_SIZE + SZ_2M, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	*mem = align_ptr_up(*mem, SZ_2M);
	TEST_ASSERT(!__gmem_bind_hva(g, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, g->fd, 0, *mem),
		    "Binding private memory failed, errno: %d", errno);
	gmem_map(g, GMEM_GPA, GMEM_SIZE);
}

FIXTURE_SETUP(private)
{
	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	if (!has_private_vms())
		SKIP(return, "No KVM_X86_SW_PROTECTED_VM");

	self->src = __gmem_vm_create(shape, 1);
	self->src.fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, 0);
	private_bind(&self->src, &self->mem[0]);
	vm_mem_set_private(self->src.vm, GMEM_GPA, PRIVATE_SIZE);
	gmem_guest_write(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);

	self->dst = __gmem_vm_create(shape, 1);
	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	private_bind(&self->dst, &self->mem[1]);
}

FIXTURE_TEARDOWN(private)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

TEST_F(private, memory_is_handed_over_with_its_attributes)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;

	/* What is shared isn't of the guest_memfd, each VM has its own. */
	EXPECT_EQ(*(u64 *)(self->mem[0] + PRIVATE_SIZE), GMEM_PATTERN + GMEM_NR_PAGES / 2);
	EXPECT_EQ(*(u64 *)self->mem[0], 0);
	memset(self->mem[1], 0x11, GMEM_SIZE);

	res = gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	EXPECT_EQ(res.args.nr_matched, 1);
	gmem_assert_faults(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN, 0);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + PRIVATE_SIZE), 0x1111111111111111ull);
}

TEST_F(private, attributes_are_handed_over_without_page_tables_too)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_NO_STAGE2);
	gmem_assert_faults(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN,
			   PRIVATE_SIZE / GMEM_PAGE_SIZE);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + PRIVATE_SIZE), 0);
}

TEST_F(private, attributes_come_back)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	gmem_transfer(src, dst, 0);
	gmem_assert_faults(src, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN, 0);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);

	gmem_transfer(dst, src, 0);
	gmem_assert_faults(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN, 0);
}

/* The first page is shared, and KVM would like to map it by a hugepage. */
static void check_mixed(struct gmem_vm *g)
{
	TEST_ASSERT_EQ(gmem_guest_read(g, GMEM_GPA), 0x1111111111111111ull);
	gmem_guest_verify(g, GMEM_GPA + GMEM_PAGE_SIZE, PRIVATE_SIZE - GMEM_PAGE_SIZE,
			  GMEM_PATTERN + 1);
}

TEST_F(private, shared_hugepages_do_not_cover_private_memory)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int i;

	for (i = 0; i < 2; i++) {
		madvise(self->mem[i], GMEM_SIZE, MADV_HUGEPAGE);
		memset(self->mem[i], 0x11, GMEM_SIZE);
	}
	vm_mem_set_shared(src->vm, GMEM_GPA, GMEM_PAGE_SIZE);

	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_NO_STAGE2);
	gmem_transfer(src, dst, KVM_GMEM_TRANSFER_NO_STAGE2);
	check_mixed(src);

	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_NO_STAGE2);
	check_mixed(dst);
	gmem_guest_read(dst, GMEM_GPA + PRIVATE_SIZE);
	ksft_print_msg("%lu hugepages\n", (unsigned long)vm_get_stat(dst->vm, pages_2m));
}

TEST_F(private, same_attributes_match)
{
	struct gmem_result res;

	vm_mem_set_private(self->dst.vm, GMEM_GPA, PRIVATE_SIZE);
	res = gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_MATCH);
	gmem_assert_faults(&self->dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN, 0);
}

TEST_F(private, flags_is_the_verdict_if_attributes_contradict)
{
	struct gmem_result res;

	/* The destination wants private what is shared in the source. */
	vm_mem_set_private(self->dst.vm, GMEM_GPA + PRIVATE_SIZE, PRIVATE_SIZE);
	res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, ENOENT);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_FLAGS);
	gmem_guest_verify(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);

	vm_mem_set_shared(self->dst.vm, GMEM_GPA + PRIVATE_SIZE, PRIVATE_SIZE);
	gmem_transfer(&self->dst, &self->src, 0);
	gmem_guest_verify(&self->dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN);
}

TEST_F(private, attributes_come_back_if_dst_dies)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	gmem_vm_free(dst);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

TEST_F(private, parked_src_cannot_change_attributes)
{
	struct kvm_memory_attributes attr = { .address = GMEM_GPA, .size = GMEM_PAGE_SIZE };
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	EXPECT_EQ(__vm_ioctl(src->vm, KVM_SET_MEMORY_ATTRIBUTES, &attr), -1);
	EXPECT_EQ(errno, ESTALE);
	gmem_transfer(src, dst, 0);
	EXPECT_EQ(__vm_ioctl(src->vm, KVM_SET_MEMORY_ATTRIBUTES, &attr), 0);
}

/*
 * Both VMs have another slot, of memory of their own, at the same place.  In the
 * source it is private.
 */
#define OWN_GPA		(2 * GMEM_GPA)

static void own_slots(struct gmem_vm *src, struct gmem_vm *dst, int *fds)
{
	int i;

	for (i = 0; i < 2; i++) {
		struct gmem_vm *g = i ? dst : src;
		void *mem = kvm_mmap(GMEM_SIZE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1);

		fds[i] = vm_create_guest_memfd(g->vm, GMEM_SIZE, 0);
		TEST_ASSERT_EQ(__gmem_bind_hva(g, GMEM_SLOT + 1, OWN_GPA, GMEM_SIZE,
					       fds[i], 0, mem), 0);
		gmem_map(g, OWN_GPA, GMEM_SIZE);
		*(u64 *)mem = 42;
	}
	vm_mem_set_private(src->vm, OWN_GPA, GMEM_SIZE);
	TEST_ASSERT_EQ(gmem_guest_read(src, OWN_GPA), 0);
	TEST_ASSERT_EQ(gmem_guest_read(dst, OWN_GPA), 42);
}

TEST_F(private, attributes_of_what_does_not_match_stay)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fds[2];

	own_slots(src, dst, fds);
	EXPECT_EQ(gmem_transfer(dst, src, 0).args.nr_matched, 1);
	gmem_assert_faults(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN, 0);
	EXPECT_EQ(gmem_guest_read(dst, OWN_GPA), 42);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + PRIVATE_SIZE), 0);
}

TEST_F(private, attributes_of_what_does_not_match_stay_if_dst_dies)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fds[2];

	own_slots(src, dst, fds);
	gmem_transfer(dst, src, 0);
	kvm_close(fds[1]);
	gmem_vm_free(dst);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	EXPECT_EQ(gmem_guest_read(src, OWN_GPA), 0);
}

TEST_F(private, attributes_of_dsts_own_memory_stay)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fds[2];

	own_slots(src, dst, fds);
	vm_mem_set_shared(src->vm, OWN_GPA, GMEM_SIZE);
	vm_mem_set_private(dst->vm, OWN_GPA, GMEM_SIZE);
	gmem_transfer(dst, src, 0);
	/* The source's comes along, though there were attributes already. */
	gmem_guest_verify(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + PRIVATE_SIZE), 0);
	EXPECT_EQ(gmem_guest_read(dst, OWN_GPA), 0);
}

TEST_F(private, attributes_of_dsts_own_memory_go_with_it)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fds[2];

	/* There are none but the memory's own, until the destination sets some. */
	own_slots(src, dst, fds);
	vm_mem_set_shared(src->vm, OWN_GPA, GMEM_SIZE);
	gmem_transfer(dst, src, 0);
	vm_mem_set_private(dst->vm, OWN_GPA, GMEM_SIZE);

	kvm_close(fds[1]);
	gmem_vm_free(dst);
	gmem_guest_verify(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	EXPECT_EQ(gmem_guest_read(src, OWN_GPA), 42);
}

struct toggler {
	struct gmem_vm *vms[2];
	bool stop;
	u64 nr_done;
	u64 nr_refused;
};

static void *toggle_thread(void *arg)
{
	struct toggler *toggler = arg;
	int i;

	for (i = 0; !READ_ONCE(toggler->stop); i++) {
		struct kvm_memory_attributes attr = {
			.address = GMEM_GPA + GMEM_SIZE - GMEM_PAGE_SIZE,
			.size = GMEM_PAGE_SIZE,
			.attributes = i & 2 ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		};

		if (!__vm_ioctl(toggler->vms[i & 1]->vm, KVM_SET_MEMORY_ATTRIBUTES, &attr)) {
			toggler->nr_done++;
		} else {
			TEST_ASSERT_EQ(errno, ESTALE);
			toggler->nr_refused++;
		}
	}

	return NULL;
}

TEST_F(private, attributes_that_change_race_with_transfers)
{
	struct gmem_vm *owner = &self->src, *other = &self->dst, *tmp;
	struct toggler toggler = { .vms = { owner, other } };
	struct gmem_result res;
	u64 nr_moves = 0, nr_refused = 0;
	pthread_t thread;
	int i;

	kvm_pthread_create(&thread, NULL, toggle_thread, &toggler);
	for (i = 0; i < 1000; i++) {
		res = __gmem_transfer(other, owner, 0);
		if (res.ret) {
			/* Contradicting attributes, for the moment. */
			TEST_ASSERT(res.err == ENOENT || res.err == ENXIO,
				    "Transfer %u failed, errno: %d", i, res.err);
			nr_refused++;
			sched_yield();
			continue;
		}
		nr_moves++;
		tmp = owner;
		owner = other;
		other = tmp;
	}
	WRITE_ONCE(toggler.stop, true);
	kvm_pthread_join(thread, NULL);
	ksft_print_msg("%lu transfers, %lu refused, attributes: %lu times set, %lu refused\n",
		       nr_moves, nr_refused, toggler.nr_done, toggler.nr_refused);

	EXPECT_NE(nr_moves, 0);
	gmem_guest_verify(owner, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN);
}

TEST_F(private, attributes_can_be_changed_after_the_transfer)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	vm_mem_set_shared(dst->vm, GMEM_GPA, GMEM_PAGE_SIZE);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA), 0);
	vm_mem_set_private(dst->vm, GMEM_GPA, GMEM_PAGE_SIZE);
	gmem_guest_verify(dst, GMEM_GPA, PRIVATE_SIZE, GMEM_PATTERN);
}

TEST_F(private, dst_cannot_fault_in_memory_before_it_owns)
{
	vm_mem_set_private(self->dst.vm, GMEM_GPA, PRIVATE_SIZE);
	gmem_assert_not_owner(&self->dst);
}

TEST_F(private, eopnotsupp_if_vm_types_differ)
{
	struct gmem_vm plain = gmem_vm_create(1);
	void *mem;

	plain.fd = gmem_link(&plain, self->src.fd);
	private_bind(&plain, &mem);
	assert_refused(&plain, &self->src);
	gmem_guest_verify(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	gmem_vm_free(&plain);
}

/* MMIO that was cached where there is memory now */

#define NR_MMIO_PAGES	16
#define WIND_SLOT	(GMEM_SLOT + 3)
#define BUMP_SLOT	(GMEM_SLOT + 4)

/* A generation has 18 bits in the page tables, and goes up by two with each change. */
#define NR_GENERATIONS	BIT(17)

/* Add some slot, the @index-th.  That is the next generation. */
static void bump_generation(struct gmem_vm *g, int index, void *mem)
{
	vm_set_user_memory_region(g->vm, BUMP_SLOT + index, 0,
				  SZ_2G + (u64)index * GMEM_PAGE_SIZE, GMEM_PAGE_SIZE, mem);
}

/*
 * Wind on by @nr generations, and be quick about it.  Unlike the deletion of a
 * slot, a change of its flags zaps nothing.
 */
static void wind_generation(struct gmem_vm *g, u64 nr, void *mem)
{
	u64 i;

	for (i = 0; i < nr; i++)
		vm_set_user_memory_region(g->vm, WIND_SLOT, i & 1 ? 0 : KVM_MEM_LOG_DIRTY_PAGES,
					  SZ_2G - GMEM_PAGE_SIZE, GMEM_PAGE_SIZE, mem);
}

static void touch_mmio(struct gmem_vm *g, u64 gpa)
{
	struct kvm_run *run = g->vcpus[0]->run;
	int r = __gmem_guest(g, 0, GMEM_OP_READ, gpa, 1, 0, 0);

	TEST_ASSERT(r == KVM_EXIT_MMIO, "Wanted an exit for MMIO, got %d", r);
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	run->mmio.data[0] = 0x42;
	r = gmem_run(g, 0);
	TEST_ASSERT(!r, "Completing MMIO failed: %d", r);
	TEST_ASSERT_EQ(gmem_job(g, 0)->seen, 0x42);
}

/*
 * Each page was MMIO under another generation of the source's memslots, and is
 * looked at under another generation of the destination's.
 */
static void test_stale_mmio(u64 wind, int nr_src_bumps, int nr_dst_bumps)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	struct gmem_vm src = gmem_vm_create(1), dst;
	u64 *mem, *bump, seen;
	int i;

	bump = kvm_mmap(GMEM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	src.fd = vm_create_guest_memfd(src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	mem = gmem_mmap(src.fd, GMEM_SIZE);
	for (i = 0; i < NR_MMIO_PAGES; i++)
		mem[i * page] = GMEM_PATTERN + i;
	gmem_map(&src, GMEM_GPA, GMEM_SIZE);

	wind_generation(&src, wind, bump);
	for (i = 0; i < nr_src_bumps; i++)
		bump_generation(&src, i, bump);
	for (i = 0; i < NR_MMIO_PAGES; i++) {
		touch_mmio(&src, GMEM_GPA + i * GMEM_PAGE_SIZE);
		bump_generation(&src, nr_src_bumps + i, bump);
	}
	gmem_bind(&src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src.fd, 0);

	gmem_dst_create(&dst, &src, 1);
	for (i = 0; i < nr_dst_bumps; i++)
		bump_generation(&dst, i, bump);
	gmem_transfer(&dst, &src, 0);
	for (i = 0; i < NR_MMIO_PAGES; i++) {
		seen = gmem_guest_read(&dst, GMEM_GPA + i * GMEM_PAGE_SIZE);
		TEST_ASSERT(seen == GMEM_PATTERN + i, "Page %u is 0x%lx", i, seen);
		bump_generation(&dst, nr_dst_bumps + i, bump);
	}

	kvm_munmap(mem, GMEM_SIZE);
	kvm_munmap(bump, GMEM_PAGE_SIZE);
	gmem_vm_free(&dst);
	gmem_vm_free(&src);
}

TEST(memory_is_never_taken_for_mmio)
{
	int i;

	/* Without further ado the generations would collide somewhere in between. */
	for (i = 0; i < 16; i++)
		test_stale_mmio(0, 8, i);
}

TEST(memory_is_never_taken_for_mmio_after_a_wrap)
{
	/* It wraps while the pages are touched, or while they are looked at. */
	test_stale_mmio(NR_GENERATIONS - NR_MMIO_PAGES / 2, 0, 0);
	test_stale_mmio(NR_GENERATIONS - NR_MMIO_PAGES * 3 / 2, 0, 0);
}

/*
 * The source has MMIO from its first generations in its page tables, and is about
 * to have its last one.  A newer one for the destination would be one of the first.
 */
TEST(memory_is_never_taken_for_mmio_when_a_transfer_would_wrap)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64), nr_hops = 16;
	const int nr_pages = nr_hops * NR_MMIO_PAGES;
	const u64 size = nr_pages * GMEM_PAGE_SIZE;
	struct gmem_vm src = gmem_vm_create(1), dst;
	u64 *mem, *bump, gpa, seen;
	int i, hop;

	bump = kvm_mmap(GMEM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	src.fd = vm_create_guest_memfd(src.vm, size, GMEM_SHARED_FLAGS);
	mem = gmem_mmap(src.fd, size);
	for (i = 0; i < nr_pages; i++)
		mem[i * page] = GMEM_PATTERN + i;
	gmem_map(&src, GMEM_GPA, size);

	/* For each hop a page of each generation. */
	for (i = 0; i < NR_MMIO_PAGES; i++) {
		for (hop = 0; hop < nr_hops; hop++) {
			gpa = GMEM_GPA + (hop * NR_MMIO_PAGES + i) * GMEM_PAGE_SIZE;
			touch_mmio(&src, gpa);
		}
		bump_generation(&src, i, bump);
	}
	wind_generation(&src, NR_GENERATIONS - NR_MMIO_PAGES - nr_hops / 2, bump);
	gmem_bind(&src, GMEM_SLOT, GMEM_GPA, size, src.fd, 0);

	/* Each hop takes one generation, and somewhere in the middle is the last. */
	for (hop = 0; hop < nr_hops; hop++) {
		dst = gmem_vm_create(1);
		dst.fd = gmem_link(&dst, src.fd);
		gmem_bind(&dst, GMEM_SLOT, GMEM_GPA, size, dst.fd, 0);
		gmem_map(&dst, GMEM_GPA, size);
		gmem_transfer(&dst, &src, 0);
		gmem_vm_free(&src);
		src = dst;

		for (i = hop * NR_MMIO_PAGES; i < (hop + 1) * NR_MMIO_PAGES; i++) {
			seen = gmem_guest_read(&src, GMEM_GPA + i * GMEM_PAGE_SIZE);
			TEST_ASSERT(seen == GMEM_PATTERN + i, "Page %u is 0x%lx", i, seen);
		}
	}

	kvm_munmap(mem, size);
	kvm_munmap(bump, GMEM_PAGE_SIZE);
	gmem_vm_free(&src);
}

TEST(memory_that_went_and_came_as_mmio_is_memory_again)
{
	struct gmem_vm src, dst;

	/* Delete the slot, touch, add it again: stale MMIO in both VMs. */
	gmem_src_create(&src, 1);
	gmem_unbind(&src, GMEM_SLOT);
	touch_mmio(&src, GMEM_GPA);
	gmem_bind(&src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src.fd, 0);

	dst = gmem_vm_create(1);
	gmem_map(&dst, GMEM_GPA, GMEM_SIZE);
	touch_mmio(&dst, GMEM_GPA);
	dst.fd = gmem_link(&dst, src.fd);
	gmem_bind(&dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst.fd, 0);

	gmem_transfer(&dst, &src, 0);
	gmem_assert_owner(&dst);
	gmem_vm_free(&dst);
	gmem_vm_free(&src);
}

/* System management mode, the second address space */

#define SMM_GPA		SZ_1G
#define SMM_SIZE	SZ_64K
#define SMM_SLOT	((1 << 16) | GMEM_SLOT)
#define SMM_PORT	0xe
#define SMRAM_GPA	0x1000000

/* Increment the memory, tell user space, return.  In real-address mode. */
static const u8 smi_handler[] = {
	0x66, 0x67, 0xff, 0x05, 0x00, 0x00, 0x00, 0x40,	/* incl SMM_GPA */
	0x66, 0x67, 0xa1, 0x00, 0x00, 0x00, 0x40,	/* mov SMM_GPA, %eax */
	0xe4, SMM_PORT,					/* in $SMM_PORT, %al */
	0x0f, 0xaa,					/* rsm */
};

static u32 run_smi(struct gmem_vm *g)
{
	struct kvm_vcpu *vcpu = g->vcpus[0];
	struct kvm_regs regs;
	int r;

	inject_smi(vcpu);
	r = __gmem_guest(g, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	TEST_ASSERT(r == KVM_EXIT_IO && vcpu->run->io.port == SMM_PORT,
		    "Wanted an exit for port 0x%x, got %d", SMM_PORT, r);
	vcpu_regs_get(vcpu, &regs);

	/* Complete the I/O, leave SMM, and finish the job. */
	r = gmem_run(g, 0);
	TEST_ASSERT(!r, "The guest didn't return from SMM: %d", r);
	return regs.rax;
}

static void smm_setup(struct gmem_vm *g, int fd)
{
	setup_smram(g->vm, g->vcpus[0], SMRAM_GPA, smi_handler, sizeof(smi_handler));
	gmem_bind(g, SMM_SLOT, SMM_GPA, SMM_SIZE, fd, 0);
}

TEST_F(mmu, memory_of_smm_is_handed_over)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;
	int fd, view;
	u64 before;

	if (!kvm_has_cap(KVM_CAP_X86_SMM) || kvm_check_cap(KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "No SMM");

	fd = vm_create_guest_memfd(src->vm, SMM_SIZE, GMEM_SHARED_FLAGS);
	smm_setup(src, fd);
	EXPECT_EQ(run_smi(src), 1);
	EXPECT_EQ(run_smi(src), 2);

	view = gmem_link(dst, fd);
	smm_setup(dst, view);
	dst_bind(dst, src);

	/* Forth, back, with a run of the source, and forth again. */
	res = gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	EXPECT_EQ(res.args.nr_matched, 2);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_MATCH);
	gmem_assert_verdict(&res, SMM_SLOT, KVM_GMEM_SLOT_MATCH);
	gmem_transfer(src, dst, 0);
	EXPECT_EQ(run_smi(src), 3);
	gmem_transfer(dst, src, 0);

	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	before = gmem_nr_faults(dst);
	EXPECT_EQ(run_smi(dst), 4);
	/* The handler's code is in anonymous memory. */
	EXPECT_EQ(gmem_nr_faults(dst) - before, 1);
	gmem_assert_owner(dst);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(mmu, memory_of_smm_and_of_the_rest_are_told_apart)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;

	if (!kvm_has_cap(KVM_CAP_X86_SMM) || kvm_check_cap(KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "No SMM");

	/* The same memory, at the same address, but in the other address space. */
	dst->fd = gmem_link(dst, src->fd);
	gmem_bind(dst, SMM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0);
	res = gmem_assert_transfer_fails(dst, src->vm->fd, 0, ENOENT);
	EXPECT_EQ(res.args.nr_slots, 1);
	gmem_assert_verdict(&res, SMM_SLOT, KVM_GMEM_SLOT_GPA);
}

/* What KVM itself writes to guest memory: event channels of Xen, and the clock */

#define XEN_MSR		0x40000200
#define XEN_GSI		24
#define CLOCK_OFFSET	GMEM_PAGE_SIZE

/* What is of interest in the page which a 64-bit guest shares with Xen. */
struct xen_shared_info {
	u8 vcpu_info[0x800];
	u64 evtchn_pending[64];
	u64 evtchn_mask[64];
};

FIXTURE(cached) {
	struct gmem_vm src;
	struct gmem_vm dst;
	/* The two VMs' mappings of the same memory. */
	void *mem[2];
	struct xen_shared_info *shared;
	struct pvclock_vcpu_time_info *clock;
};

/* These go by way of the mapping in user space. */
static void *cached_bind(struct gmem_vm *g)
{
	void *mem = gmem_mmap(g->fd, GMEM_SIZE);

	TEST_ASSERT_EQ(__gmem_bind_hva(g, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, g->fd, 0, mem), 0);
	gmem_map(g, GMEM_GPA, GMEM_SIZE);
	return mem;
}

FIXTURE_SETUP(cached)
{
	self->src = gmem_vm_create(1);
	self->src.fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	self->mem[0] = cached_bind(&self->src);
	self->dst = gmem_vm_create(1);
	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	self->mem[1] = cached_bind(&self->dst);

	self->shared = self->mem[0];
	memset(self->shared->evtchn_mask, 0xff, sizeof(self->shared->evtchn_mask));
	self->clock = self->mem[0] + CLOCK_OFFSET;
	memset(self->clock, 0, sizeof(*self->clock));
}

FIXTURE_TEARDOWN(cached)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
	kvm_munmap(self->mem[1], GMEM_SIZE);
	kvm_munmap(self->mem[0], GMEM_SIZE);
}

static bool has_xen(void)
{
	return kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_EVTCHN_SEND;
}

static int __xen_share(struct gmem_vm *g, u64 gpa)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = gpa / GMEM_PAGE_SIZE,
	};

	return __vm_ioctl(g->vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void xen_enable(struct gmem_vm *g)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = XEN_MSR,
	};
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE,
		.u.long_mode = 1,
	};

	vm_ioctl(g->vm, KVM_XEN_HVM_CONFIG, &config);
	vm_ioctl(g->vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static int xen_send(struct gmem_vm *g, u32 port)
{
	struct kvm_irq_routing_xen_evtchn event = {
		.port = port,
		.vcpu = g->vcpus[0]->id,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};

	return __vm_ioctl(g->vm, KVM_XEN_HVM_EVTCHN_SEND, &event) ? errno : 0;
}

/* Raise an event by an eventfd, and wait until KVM is done with that. */
static void xen_send_by_irqfd(struct gmem_vm *g, u32 port)
{
	struct {
		struct kvm_irq_routing routing;
		struct kvm_irq_routing_entry entry;
	} routes = {
		.routing.nr = 1,
		.entry = {
			.gsi = XEN_GSI,
			.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
			.u.xen_evtchn = {
				.port = port,
				.vcpu = g->vcpus[0]->id,
				.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			},
		},
	};
	int fd = kvm_new_eventfd();
	u64 one = 1;

	vm_ioctl(g->vm, KVM_SET_GSI_ROUTING, &routes.routing);
	kvm_assign_irqfd(g->vm, XEN_GSI, fd);
	TEST_ASSERT_EQ(write(fd, &one, sizeof(one)), sizeof(one));
	kvm_deassign_irqfd(g->vm, XEN_GSI, fd);
	kvm_close(fd);
}

TEST_F(cached, event_channels_of_xen_are_the_owners)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 *pending = self->shared->evtchn_pending;

	if (!has_xen())
		SKIP(return, "No event channels of Xen");

	xen_enable(src);
	xen_enable(dst);
	ASSERT_EQ(__xen_share(src, GMEM_GPA), 0);
	EXPECT_EQ(xen_send(src, 1), 0);
	xen_send_by_irqfd(src, 2);
	EXPECT_EQ(*pending, BIT(1) | BIT(2));

	/* The cache is as valid as before, was it not for the transfer. */
	gmem_transfer(dst, src, 0);
	EXPECT_EQ(xen_send(src, 3), EFAULT);
	xen_send_by_irqfd(src, 4);
	EXPECT_EQ(__xen_share(src, GMEM_GPA + GMEM_PAGE_SIZE), -1);
	EXPECT_EQ(__xen_share(src, GMEM_GPA), -1);
	EXPECT_EQ(*pending, BIT(1) | BIT(2));

	ASSERT_EQ(__xen_share(dst, GMEM_GPA), 0);
	EXPECT_EQ(xen_send(dst, 5), 0);
	xen_send_by_irqfd(dst, 6);
	EXPECT_EQ(*pending, BIT(1) | BIT(2) | BIT(5) | BIT(6));

	/* And back. */
	gmem_transfer(src, dst, KVM_GMEM_TRANSFER_UNMAP);
	ASSERT_EQ(__xen_share(src, GMEM_GPA), 0);
	EXPECT_EQ(xen_send(src, 7), 0);
	xen_send_by_irqfd(src, 8);
	EXPECT_EQ(*pending, BIT(1) | BIT(2) | BIT(5) | BIT(6) | BIT(7) | BIT(8));
	/* The destination's own mapping of the memory is gone. */
	EXPECT_EQ(xen_send(dst, 9), EFAULT);

	/* The commit makes no difference to what is refused. */
	gmem_transfer(dst, src, 0);
	gmem_guest(dst, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	EXPECT_TRUE(gmem_vm_is_dead(src));
	EXPECT_EQ(xen_send(dst, 10), 0);
	EXPECT_EQ(*pending, BIT(1) | BIT(2) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(10));
}

TEST_F(cached, clock_is_written_by_the_owner_only)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct pvclock_vcpu_time_info before;
	u64 msr = (GMEM_GPA + CLOCK_OFFSET) | KVM_MSR_ENABLED;

	if (!kvm_check_cap(KVM_CAP_KVMCLOCK_CTRL))
		SKIP(return, "No KVM_KVMCLOCK_CTRL");

	vcpu_set_msr(src->vcpus[0], MSR_KVM_SYSTEM_TIME_NEW, msr);
	gmem_guest(src, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	EXPECT_NE(self->clock->version, 0);
	EXPECT_EQ(self->clock->version & 1, 0);
	before = *self->clock;

	/* What the source is asked for while it is parked comes when it runs again. */
	gmem_transfer(dst, src, 0);
	vcpu_ioctl(src->vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
	gmem_assert_run_fails(src, ESTALE);
	EXPECT_EQ(memcmp(self->clock, &before, sizeof(before)), 0);
	gmem_transfer(src, dst, 0);
	EXPECT_EQ(memcmp(self->clock, &before, sizeof(before)), 0);
	gmem_guest(src, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	EXPECT_NE(self->clock->version, before.version);
	EXPECT_EQ(self->clock->flags & PVCLOCK_GUEST_STOPPED, PVCLOCK_GUEST_STOPPED);
	before = *self->clock;

	gmem_transfer(dst, src, 0);
	vcpu_set_msr(dst->vcpus[0], MSR_KVM_SYSTEM_TIME_NEW, msr);
	gmem_guest(dst, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	EXPECT_NE(self->clock->version, before.version);
	before = *self->clock;

	/* Its vCPU and the cache go away, the memory stays as it is. */
	gmem_vm_free(src);
	EXPECT_EQ(memcmp(self->clock, &before, sizeof(before)), 0);
}

/* Nested guests */

#define L2_SIZE		SZ_256K

FIXTURE(nested) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_VARIANT(nested) {
	bool tdp;
};

FIXTURE_VARIANT_ADD(nested, without_tdp) {
	.tdp = false,
};

FIXTURE_VARIANT_ADD(nested, with_tdp) {
	.tdp = true,
};

static void l2_guest_code(void)
{
	u64 i, round;

	for (round = 0; ; round++) {
		for (i = 0; i < L2_SIZE / GMEM_PAGE_SIZE; i++)
			WRITE_ONCE(*(u64 *)(GMEM_GPA + i * GMEM_PAGE_SIZE),
				   GMEM_PATTERN + round + i);
		GUEST_SYNC(round);
		for (i = 0; i < L2_SIZE / GMEM_PAGE_SIZE; i++)
			GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)(GMEM_GPA + i * GMEM_PAGE_SIZE)),
					GMEM_PATTERN + round + i);
	}
}

/*
 * Read the first word of pages next to each other.  The host skips what fails,
 * i.e. the three bytes of an instruction.
 */
#define PEEK_NR		8
#define PEEK_INSN_SIZE	3
#define PEEK_UNSEEN	0xdeadbeefull

static u64 peek_gva = GMEM_GPA;
static u64 peek_seen[PEEK_NR];

static void l2_peek_guest_code(void)
{
	u64 gva, seen;
	int i;

	for (i = 0; i < PEEK_NR; i++) {
		gva = READ_ONCE(peek_gva) + i * GMEM_PAGE_SIZE;
		seen = PEEK_UNSEEN;
		asm volatile(".byte 0x48, 0x8b, 0x18	# mov (%%rax), %%rbx"
			     : "+b"(seen) : "a"(gva) : "memory");
		WRITE_ONCE(peek_seen[i], seen);
	}
	GUEST_SYNC(0);
}

/* The host and each guest have their own copy. */
static void (*l2_entry)(void) = l2_guest_code;

static void l1_vmx_code(struct vmx_pages *vmx)
{
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, READ_ONCE(l2_entry));
	GUEST_ASSERT(!vmlaunch());
	GUEST_FAIL("L2 exited to L1, reason 0x%lx", vmreadz(VM_EXIT_REASON));
}

static void l1_svm_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, READ_ONCE(l2_entry));
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_FAIL("L2 exited to L1, code 0x%lx", (u64)svm->vmcb->control.exit_code);
}

static void l1_guest_code(void *data)
{
	if (this_cpu_has(X86_FEATURE_VMX))
		l1_vmx_code(data);
	else
		l1_svm_code(data);
}

static void run_l2(struct gmem_vm *g, u64 round)
{
	struct ucall uc;

	vcpu_run(g->vcpus[0]);
	switch (get_ucall(g->vcpus[0], &uc)) {
	case UCALL_SYNC:
		TEST_ASSERT_EQ(uc.args[1], round);
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit %u (%s)", g->vcpus[0]->run->exit_reason,
			  exit_reason_str(g->vcpus[0]->run->exit_reason));
	}
}

FIXTURE_SETUP(nested)
{
	struct gmem_vm *src = &self->src;
	gva_t nested_gva;

	if (!kvm_cpu_has(X86_FEATURE_VMX) && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested virtualization");
	if (variant->tdp && !kvm_cpu_has_tdp())
		SKIP(return, "No nested EPT or NPT");

	src->nr_vcpus = 1;
	src->vm = __vm_create_with_one_vcpu(&src->vcpus[0], 2 * GMEM_NR_PAGES, l1_guest_code);
	src->fd = vm_create_guest_memfd(src->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src->fd, 0);
	gmem_map(src, GMEM_GPA, GMEM_SIZE);

	if (variant->tdp)
		vm_enable_tdp(src->vm);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(src->vm, &nested_gva);
	else
		vcpu_alloc_svm(src->vm, &nested_gva);
	vcpu_args_set(src->vcpus[0], 1, nested_gva);
	/* All pages that are in use by now. */
	if (variant->tdp) {
		tdp_identity_map_default_memslots(src->vm);
		tdp_map(src->vm, GMEM_GPA, GMEM_GPA, L2_SIZE);
	}

	gmem_dst_create(&self->dst, src, 1);
}

FIXTURE_TEARDOWN(nested)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

TEST_F(nested, what_l2_wrote_is_handed_over)
{
	run_l2(&self->src, 0);
	run_l2(&self->src, 1);
	gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_guest_verify(&self->dst, GMEM_GPA, L2_SIZE, GMEM_PATTERN + 1);
	gmem_guest_write(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

TEST_F(nested, l2_runs_on_after_the_way_back)
{
	int i;

	run_l2(&self->src, 0);
	for (i = 1; i < 5; i++) {
		gmem_transfer(&self->dst, &self->src, 0);
		gmem_transfer(&self->src, &self->dst, 0);
		run_l2(&self->src, i);
	}
	gmem_transfer(&self->dst, &self->src, 0);
	gmem_guest_verify(&self->dst, GMEM_GPA, L2_SIZE, GMEM_PATTERN + 4);
}

TEST_F(nested, l2_in_src_maps_nothing_anymore)
{
	run_l2(&self->src, 0);
	gmem_transfer(&self->dst, &self->src, 0);
	EXPECT_EQ(vm_get_stat(self->src.vm, pages_4k), 0);
	EXPECT_EQ(vm_get_stat(self->src.vm, pages_2m), 0);
	/* L1 itself didn't touch the memory, and shadow pages aren't handed over. */
	if (variant->tdp)
		EXPECT_EQ(vm_get_stat(self->dst.vm, pages_4k), 0);
}

static void peek_set(struct gmem_vm *g, u64 gva)
{
	l2_entry = l2_peek_guest_code;
	peek_gva = gva;
	sync_global_to_guest(g->vm, l2_entry);
	sync_global_to_guest(g->vm, peek_gva);
}

/* As if L2 had accessed the pages before: KVM maps none without a need otherwise. */
static void peek_set_accessed(struct gmem_vm *g, u64 gva, bool tdp)
{
	struct kvm_vm *vm = g->vm;
	u64 *pte;
	int i;

	for (i = 0; i < PEEK_NR; i++, gva += GMEM_PAGE_SIZE) {
		pte = vm_get_pte(vm, gva);
		*pte |= PTE_ACCESSED_MASK(&vm->mmu) | PTE_DIRTY_MASK(&vm->mmu);
		if (!tdp)
			continue;

		pte = tdp_get_pte(vm, gva);
		*pte |= PTE_ACCESSED_MASK(&vm->stage2_mmu) | PTE_DIRTY_MASK(&vm->stage2_mmu);
	}
}

TEST_F(nested, l2_sees_the_guest_memfd_whatever_is_at_the_userspace_address)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	struct gmem_vm *src = &self->src;
	u64 *mem = gmem_mmap(src->fd, GMEM_SIZE);
	void *other;
	int i;

	for (i = 0; i < PEEK_NR; i++)
		WRITE_ONCE(mem[i * page], GMEM_PATTERN + i);

	other = kvm_mmap(GMEM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(other, 0x55, GMEM_SIZE);
	gmem_unbind(src, GMEM_SLOT);
	ASSERT_EQ(__gmem_bind_hva(src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, src->fd, 0, other), 0);
	peek_set(src, GMEM_GPA);
	peek_set_accessed(src, GMEM_GPA, variant->tdp);

	run_l2(src, 0);
	sync_global_from_guest(src->vm, peek_seen);
	for (i = 0; i < PEEK_NR; i++)
		EXPECT_EQ(peek_seen[i], GMEM_PATTERN + i);

	kvm_munmap(other, GMEM_SIZE);
	kvm_munmap(mem, GMEM_SIZE);
}

/* Of the pages that L2 reads the first is the VM's own, the others are next to it. */
#define PEEK_GVA	(GMEM_GPA + L2_SIZE)

static void peek_map(struct gmem_vm *g, u64 gva, u64 gpa, bool tdp)
{
	u64 *pte;

	if (tdp) {
		tdp_map(g->vm, gva, gpa, GMEM_PAGE_SIZE);
		return;
	}
	pte = vm_get_pte(g->vm, gva);
	*pte = (*pte & ~PHYSICAL_PAGE_MASK) | gpa;
}

TEST_F(nested, l2_maps_nothing_before_the_vm_owns)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	struct gmem_vm *dst = &self->src, owner;
	struct kvm_vcpu *vcpu = dst->vcpus[0];
	struct kvm_regs regs;
	u64 *mem, gpa;
	int i, view;

	gmem_src_create(&owner, 1);
	view = gmem_link(dst, owner.fd);
	mem = gmem_mmap(view, GMEM_SIZE);
	gmem_unbind(dst, GMEM_SLOT);
	ASSERT_EQ(__gmem_bind_hva(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, view, 0, mem), 0);

	/* The VMM may look into the memory. */
	for (i = 0; i < GMEM_NR_PAGES; i++)
		WRITE_ONCE(mem[i * page], READ_ONCE(mem[i * page]));

	gpa = addr_gva2gpa(dst->vm, (gva_t)peek_seen & ~(GMEM_PAGE_SIZE - 1ull));
	peek_map(dst, PEEK_GVA, gpa, variant->tdp);
	for (i = 1; i < PEEK_NR; i++)
		peek_map(dst, PEEK_GVA + i * GMEM_PAGE_SIZE, GMEM_GPA + i * GMEM_PAGE_SIZE,
			 variant->tdp);
	peek_set(dst, PEEK_GVA);
	peek_set_accessed(dst, PEEK_GVA, variant->tdp);

	for (i = 1; i < PEEK_NR; i++) {
		ASSERT_EQ(__vcpu_run(vcpu), -1);
		ASSERT_EQ(errno, EPERM);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
		EXPECT_EQ(vcpu->run->memory_fault.gpa, GMEM_GPA + i * GMEM_PAGE_SIZE);

		vcpu_regs_get(vcpu, &regs);
		regs.rip += PEEK_INSN_SIZE;
		vcpu_regs_set(vcpu, &regs);
	}
	run_l2(dst, 0);
	sync_global_from_guest(dst->vm, peek_seen);
	for (i = 1; i < PEEK_NR; i++)
		EXPECT_EQ(peek_seen[i], PEEK_UNSEEN);

	kvm_munmap(mem, GMEM_SIZE);
	kvm_close(view);
	gmem_vm_free(&owner);
}

/* The VMCB of L2 is in the memory itself, and KVM writes it when L2 exits. */
#define VMCB_GPA	(GMEM_GPA + L2_SIZE)

static void l2_vmcb_guest_code(void)
{
	GUEST_SYNC(0);
	vmmcall();
	GUEST_FAIL("L1 was to stay");
}

static void l1_vmcb_guest_code(struct svm_test_data *svm)
{
	/* Before it is written to, an APIC is in no map, and no INIT gets to it. */
	x2apic_enable();
	generic_svm_setup(svm, l2_vmcb_guest_code);
	svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_INIT);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	GUEST_SYNC(1);
}

/* An INIT, which makes L2 exit when KVM gets to deal with it. */
static void send_init(struct gmem_vm *g)
{
	struct kvm_msi msi = { .address_lo = APIC_DEFAULT_GPA, .data = APIC_DM_INIT };
	int r = __vm_ioctl(g->vm, KVM_SIGNAL_MSI, &msi);

	TEST_ASSERT(r == 1, KVM_IOCTL_ERROR(KVM_SIGNAL_MSI, r));
}

static void test_vmcb_in_the_memory(u32 flags, bool init)
{
	const u64 exit_code = VMCB_GPA + offsetof(struct vmcb, control.exit_code);
	struct gmem_vm src = { .nr_vcpus = 1 }, dst;
	struct kvm_mp_state mp_state;
	struct svm_test_data *svm;
	struct vmcb *vmcb, before;
	u32 expected;
	gva_t svm_gva;
	void *mem;

	src.vm = __vm_create_with_one_vcpu(&src.vcpus[0], 2 * GMEM_NR_PAGES, l1_vmcb_guest_code);
	src.fd = vm_create_guest_memfd(src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	mem = cached_bind(&src);
	svm = vcpu_alloc_svm(src.vm, &svm_gva);
	svm->vmcb = (void *)VMCB_GPA;
	svm->vmcb_gpa = VMCB_GPA;
	vcpu_args_set(src.vcpus[0], 1, svm_gva);
	gmem_dst_create(&dst, &src, 1);

	/* Forth and back in the middle of L2. */
	run_l2(&src, 0);
	if (init)
		send_init(&src);
	vmcb = mem + L2_SIZE;
	memcpy(&before, vmcb, sizeof(before));
	gmem_transfer(&dst, &src, 0);
	vcpu_mp_state_get(src.vcpus[0], &mp_state);
	TEST_ASSERT(!memcmp(&before, vmcb, sizeof(before)), "A parked VM's VMCB has changed");
	gmem_transfer(&src, &dst, flags);

	/* What is pending comes with the next opportunity.  L1 is not to run then. */
	expected = init ? SVM_EXIT_INIT : SVM_EXIT_VMMCALL;
	if (init)
		vcpu_mp_state_get(src.vcpus[0], &mp_state);
	else
		run_l2(&src, 1);
	TEST_ASSERT_EQ(vmcb->control.exit_code, expected);

	gmem_transfer(&dst, &src, flags);
	TEST_ASSERT_EQ((u32)gmem_guest_read(&dst, exit_code), expected);

	kvm_munmap(mem, GMEM_SIZE);
	gmem_vm_free(&dst);
	gmem_vm_free(&src);
}

TEST(vmcb_in_the_memory_is_written_after_the_way_back)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested SVM");

	test_vmcb_in_the_memory(0, false);
	test_vmcb_in_the_memory(KVM_GMEM_TRANSFER_UNMAP, false);
}

TEST(vmcb_in_the_memory_is_not_written_while_parked)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested SVM");

	test_vmcb_in_the_memory(0, true);
	test_vmcb_in_the_memory(KVM_GMEM_TRANSFER_UNMAP, true);
}

int main(int argc, char *argv[])
{
	if (get_kvm_param_bool("tdp_mmu"))
		gmem_test_require();

	return test_harness_run(argc, argv);
}
