// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of handing a guest's memory over from one VM to another: who owns it at
 * which time, what may be done with it, and what becomes of it when VMs go away.
 *
 * Flags, verdicts and errors are in gmem_transfer_api_test.c, threads that race
 * with a transfer in gmem_transfer_race_test.c, what exists on x86 only in
 * x86/gmem_transfer_mmu_test.c.
 *
 * Every test is named after the promise that it holds KVM to.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "gmem_transfer_util.h"

FIXTURE(transfer) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(transfer)
{
	gmem_src_create(&self->src, 1);
	gmem_dst_create(&self->dst, &self->src, 1);
}

FIXTURE_TEARDOWN(transfer)
{
	if (self->dst.vm)
		gmem_vm_free(&self->dst);
	if (self->src.vm)
		gmem_vm_free(&self->src);
}

/* The capability */

TEST_F(transfer, cap_names_all_flags_on_vm_and_system_fd)
{
	int wanted = GMEM_TRANSFER_FLAGS | BIT(30);

	EXPECT_EQ(kvm_check_cap(KVM_CAP_GMEM_TRANSFER) & wanted, wanted);
	EXPECT_EQ(vm_check_cap(self->src.vm, KVM_CAP_GMEM_TRANSFER) & wanted, wanted);
}

/* What a transfer is for */

TEST_F(transfer, dst_reads_what_src_wrote)
{
	struct gmem_result res = gmem_transfer(&self->dst, &self->src, 0);

	EXPECT_EQ(res.args.nr_slots, 1);
	EXPECT_EQ(res.args.nr_matched, 1);
	EXPECT_EQ(res.slots[0].slot, GMEM_SLOT);
	EXPECT_EQ(res.slots[0].verdict, KVM_GMEM_SLOT_MATCH);
	EXPECT_EQ(res.slots[0].gpa, GMEM_GPA);
	EXPECT_EQ(res.slots[0].size, GMEM_SIZE);

	gmem_guest_verify(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

TEST_F(transfer, dst_takes_no_fault_for_what_src_had_mapped)
{
	struct gmem_result res = gmem_transfer(&self->dst, &self->src, 0);

	EXPECT_NE(res.args.tables, 0);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);

	/* Writes neither, the mappings are writable as they have been before. */
	gmem_guest_write(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN + 1);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN + 1, 0);
}

TEST_F(transfer, no_stage2_costs_one_fault_per_page)
{
	struct gmem_result res;

	res = gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_NO_STAGE2);
	EXPECT_EQ(res.args.tables, 0);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, GMEM_NR_PAGES);
}

TEST_F(transfer, no_stage2_and_pre_fault_costs_no_fault)
{
	gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_NO_STAGE2);
	ASSERT_EQ(gmem_pre_fault(&self->dst, GMEM_GPA, GMEM_SIZE), 0);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(transfer, pages_src_never_touched_read_as_zero)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	kvm_fallocate(src->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      0, GMEM_PAGE_SIZE);
	gmem_transfer(dst, src, 0);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA), 0);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + GMEM_PAGE_SIZE), GMEM_PATTERN + 1);
}

TEST_F(transfer, vms_without_vcpus_hand_over_too)
{
	struct gmem_vm a = { .vm = vm_create_barebones() };
	struct gmem_vm b = { .vm = vm_create_barebones() };
	u64 *mem;

	a.fd = vm_create_guest_memfd(a.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(&a, 0, GMEM_GPA, GMEM_SIZE, a.fd, 0);
	mem = gmem_mmap(a.fd, GMEM_SIZE);
	mem[0] = 42;

	b.fd = gmem_link(&b, a.fd);
	gmem_bind(&b, 0, GMEM_GPA, GMEM_SIZE, b.fd, 0);
	EXPECT_EQ(gmem_transfer(&b, &a, 0).args.tables, 0);
	kvm_munmap(mem, GMEM_SIZE);
	gmem_vm_free(&a);

	mem = gmem_mmap(b.fd, GMEM_SIZE);
	EXPECT_EQ(mem[0], 42);
	kvm_munmap(mem, GMEM_SIZE);
	gmem_vm_free(&b);
}

TEST_F(transfer, vcpu_counts_may_differ)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_vm many = gmem_vm_create(4);
	int i;

	/* Have all of them loaded a root of their own VM, which has to go. */
	for (i = 0; i < 4; i++)
		gmem_guest(&many, i, GMEM_OP_NOP, 0, 0, 0, 0);
	many.fd = gmem_link(&many, src->fd);
	gmem_bind(&many, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, many.fd, 0);
	gmem_map(&many, GMEM_GPA, GMEM_SIZE);

	gmem_transfer(&many, src, 0);
	gmem_assert_faults(&many, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	for (i = 0; i < 4; i++)
		__gmem_guest_verify(&many, i, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);

	/* And from four to one, whose view was there all the time. */
	gmem_transfer(dst, &many, 0);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_assert_owner(dst);
	gmem_vm_free(&many);
}

TEST_F(transfer, chain_of_transfers_keeps_data_and_mappings)
{
	struct gmem_vm vms[6];
	int i;

	vms[0] = self->src;
	vms[1] = self->dst;
	for (i = 1; i < ARRAY_SIZE(vms); i++) {
		if (i > 1)
			gmem_dst_create(&vms[i], &vms[i - 1], 1);
		gmem_transfer(&vms[i], &vms[i - 1], KVM_GMEM_TRANSFER_REQUIRE_ALL);
		gmem_assert_faults(&vms[i], GMEM_GPA, GMEM_SIZE, GMEM_PATTERN + i - 1, 0);
		gmem_guest_write(&vms[i], GMEM_GPA, GMEM_SIZE, GMEM_PATTERN + i);
		gmem_vm_free(&vms[i - 1]);
	}
	gmem_vm_free(&vms[i - 1]);
	self->src.vm = NULL;
	self->dst.vm = NULL;
}

TEST_F(transfer, ping_pong_keeps_data_and_mappings)
{
	int i;

	for (i = 0; i < 200; i++) {
		struct gmem_result forth = gmem_transfer(&self->dst, &self->src, 0);
		struct gmem_result back = gmem_transfer(&self->src, &self->dst, 0);

		TEST_ASSERT(forth.args.tables == back.args.tables,
			    "%lu tables went, %lu came back, in round %u",
			    (unsigned long)forth.args.tables,
			    (unsigned long)back.args.tables, i);
	}
	gmem_assert_faults(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

/* Ownership */

TEST_F(transfer, dst_cannot_fault_in_memory_before_it_owns)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_assert_not_owner(dst);
	EXPECT_EQ(gmem_pre_fault(dst, GMEM_GPA, GMEM_SIZE), -EPERM);

	gmem_transfer(dst, src, 0);
	gmem_assert_owner(dst);
}

TEST_F(transfer, only_the_owner_may_allocate_and_punch)
{
	const int alloc = FALLOC_FL_KEEP_SIZE;
	const int punch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	const loff_t last = GMEM_SIZE - GMEM_PAGE_SIZE;
	struct gmem_vm *owner = src, *other = dst, *tmp;
	int i;

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(fallocate(other->fd, alloc, last, GMEM_PAGE_SIZE), -1);
		EXPECT_EQ(errno, EPERM);
		EXPECT_EQ(fallocate(other->fd, punch, last, GMEM_PAGE_SIZE), -1);
		EXPECT_EQ(errno, EPERM);
		EXPECT_EQ(fallocate(owner->fd, punch, last, GMEM_PAGE_SIZE), 0);
		EXPECT_EQ(fallocate(owner->fd, alloc, last, GMEM_PAGE_SIZE), 0);

		/* Forth, back, and forth again. */
		gmem_transfer(other, owner, 0);
		tmp = owner;
		owner = other;
		other = tmp;
	}
	gmem_guest_verify(owner, GMEM_GPA, last, GMEM_PATTERN);
}

TEST_F(transfer, user_mappings_of_linked_view_work_before_transfer)
{
	u64 *mem = gmem_mmap(self->dst.fd, GMEM_SIZE);
	u64 *same = gmem_mmap(self->src.fd, GMEM_SIZE);

	EXPECT_FALSE(gmem_access_is_sigbus(mem));
	EXPECT_EQ(mem[0], GMEM_PATTERN);
	WRITE_ONCE(same[8], 1234);
	EXPECT_EQ(READ_ONCE(mem[8]), 1234);
	gmem_guest_verify(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
}

TEST_F(transfer, new_faults_of_past_owners_mappings_get_sigbus)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 *past = gmem_mmap(src->fd, GMEM_SIZE);
	u64 *new = gmem_mmap(dst->fd, GMEM_SIZE);

	gmem_transfer(dst, src, 0);
	EXPECT_TRUE(gmem_access_is_sigbus(&past[page]));
	EXPECT_FALSE(gmem_access_is_sigbus(&new[page]));
	EXPECT_EQ(new[page], GMEM_PATTERN + 1);

	/* The other way around after the way back. */
	gmem_transfer(src, dst, 0);
	EXPECT_FALSE(gmem_access_is_sigbus(&past[2 * page]));
	EXPECT_EQ(past[2 * page], GMEM_PATTERN + 2);
	EXPECT_TRUE(gmem_access_is_sigbus(&new[3 * page]));
}

TEST_F(transfer, unmap_drops_past_owners_user_mappings)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 *past = gmem_mmap(src->fd, GMEM_SIZE);
	u64 *new = gmem_mmap(dst->fd, GMEM_SIZE);
	int i;

	for (i = 0; i < GMEM_NR_PAGES; i++)
		TEST_ASSERT_EQ(READ_ONCE(past[i * page]), GMEM_PATTERN + i);

	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_UNMAP);
	for (i = 0; i < GMEM_NR_PAGES; i++) {
		TEST_ASSERT(gmem_access_is_sigbus(&past[i * page]),
			    "Page %u is still mapped by the past owner", i);
		TEST_ASSERT_EQ(READ_ONCE(new[i * page]), GMEM_PATTERN + i);
	}

	/* It's about user mappings, the guest's stay. */
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(transfer, discarding_the_vmms_mapping_costs_no_fault)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	u64 *mem = gmem_mmap(dst->fd, GMEM_SIZE);

	gmem_unbind(dst, GMEM_SLOT);
	ASSERT_EQ(__gmem_bind_hva(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0, mem), 0);

	gmem_transfer(dst, src, 0);
	EXPECT_EQ(READ_ONCE(*mem), GMEM_PATTERN);
	kvm_madvise(mem, GMEM_SIZE, MADV_DONTNEED);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	kvm_munmap(mem, GMEM_SIZE);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(transfer, anonymous_memory_of_src_is_not_seen_by_dst)
{
	const u64 both = SZ_1G, src_only = SZ_1G + SZ_2M;
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int r;

	vm_userspace_mem_region_add(src->vm, VM_MEM_SRC_ANONYMOUS, both, 8, 16, 0);
	vm_userspace_mem_region_add(src->vm, VM_MEM_SRC_ANONYMOUS, src_only, 9, 16, 0);
	vm_userspace_mem_region_add(dst->vm, VM_MEM_SRC_ANONYMOUS, both, 8, 16, 0);
	gmem_map(src, both, SZ_64K);
	gmem_map(src, src_only, SZ_64K);
	gmem_map(dst, both, SZ_64K);
	gmem_map(dst, src_only, SZ_64K);
	gmem_guest_write(src, both, SZ_64K, 0xbad);
	gmem_guest_write(src, src_only, SZ_64K, 0xbad);

	EXPECT_GE(gmem_transfer(dst, src, 0).args.zapped, 32);
	EXPECT_EQ(gmem_guest_read(dst, both), 0);
	gmem_guest_write(dst, both, SZ_64K, 0x900d);
	gmem_guest_verify(dst, both, SZ_64K, 0x900d);

	r = __gmem_guest(dst, 0, GMEM_OP_READ, src_only, 1, 0, 0);
	EXPECT_EQ(r, KVM_EXIT_MMIO);
	EXPECT_EQ(dst->vcpus[0]->run->mmio.phys_addr, src_only);
}

TEST_F(transfer, eventfds_of_both_vms_stay_alive)
{
	const u64 mmio_gpa = SZ_2G;
	struct gmem_vm *vms[] = { &self->src, &self->dst };
	struct kvm_ioeventfd io = { .addr = mmio_gpa, .len = 8 };
	int irq[2], event[2], i;
	u64 nr = 1;

	for (i = 0; i < 2; i++) {
		irq[i] = kvm_new_eventfd();
		event[i] = eventfd(0, EFD_NONBLOCK);
		kvm_assign_irqfd(vms[i]->vm, 10, irq[i]);
		io.fd = event[i];
		vm_ioctl(vms[i]->vm, KVM_IOEVENTFD, &io);
		gmem_map(vms[i], mmio_gpa, GMEM_PAGE_SIZE);
	}

	gmem_guest(&self->src, 0, GMEM_OP_WRITE, mmio_gpa, 1, 0, 0);
	EXPECT_EQ(read(event[0], &nr, sizeof(nr)), sizeof(nr));

	for (i = 0; i < 10; i++) {
		gmem_transfer(vms[(i + 1) % 2], vms[i % 2], 0);
		nr = 1;
		ASSERT_EQ(write(irq[0], &nr, sizeof(nr)), sizeof(nr));
		ASSERT_EQ(write(irq[1], &nr, sizeof(nr)), sizeof(nr));
	}

	/* The source owns now. */
	gmem_guest(&self->src, 0, GMEM_OP_WRITE, mmio_gpa, 1, 0, 0);
	EXPECT_EQ(read(event[0], &nr, sizeof(nr)), sizeof(nr));
	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_guest(&self->dst, 0, GMEM_OP_WRITE, mmio_gpa, 1, 0, 0);
	EXPECT_EQ(read(event[1], &nr, sizeof(nr)), sizeof(nr));
	EXPECT_EQ(read(event[0], &nr, sizeof(nr)), -1);

	nr = 1;
	EXPECT_EQ(write(irq[0], &nr, sizeof(nr)), sizeof(nr));
	EXPECT_EQ(write(irq[1], &nr, sizeof(nr)), sizeof(nr));
	kvm_deassign_irqfd(self->dst.vm, 10, irq[1]);
}

/* Parking, the way back, the commit */

TEST_F(transfer, parked_src_cannot_run)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct kvm_vcpu *vcpu = src->vcpus[0];
	struct kvm_regs regs;

	gmem_transfer(dst, src, 0);

	gmem_assert_run_fails(src, ESTALE);

	vcpu->run->immediate_exit = 1;
	EXPECT_EQ(__vcpu_run(vcpu), -1);
	EXPECT_EQ(errno, ESTALE);
	vcpu->run->immediate_exit = 0;

	EXPECT_EQ(gmem_pre_fault(src, GMEM_GPA, GMEM_SIZE), -ESTALE);
	EXPECT_EQ(gmem_pre_fault(src, 0, GMEM_PAGE_SIZE), -ESTALE);

	/* But its state can be read. */
	vcpu_regs_get(vcpu, &regs);
	EXPECT_FALSE(gmem_vm_is_dead(src));
}

TEST_F(transfer, src_runs_on_after_the_way_back)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	gmem_transfer(src, dst, 0);

	gmem_assert_faults(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	gmem_assert_owner(src);
	gmem_assert_not_owner(dst);

	/* And can be handed over again. */
	gmem_transfer(dst, src, 0);
	gmem_assert_owner(dst);
}

TEST_F(transfer, way_back_is_refused_after_commit)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	gmem_guest(dst, 0, GMEM_OP_NOP, 0, 0, 0, 0);

	gmem_assert_transfer_fails(src, dst->vm->fd, 0, EIO);
	gmem_assert_owner(dst);
}

TEST_F(transfer, src_is_dead_after_commit)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct kvm_vcpu *vcpu = src->vcpus[0];
	struct kvm_regs regs;

	gmem_transfer(dst, src, 0);
	gmem_guest(dst, 0, GMEM_OP_NOP, 0, 0, 0, 0);

	gmem_assert_run_fails(src, EIO);
	vcpu->run->immediate_exit = 1;
	EXPECT_EQ(__vcpu_run(vcpu), -1);
	EXPECT_EQ(errno, EIO);
	EXPECT_EQ(gmem_pre_fault(src, GMEM_GPA, GMEM_SIZE), -EIO);
	EXPECT_EQ(__vcpu_ioctl(vcpu, KVM_GET_REGS, &regs), -1);
	EXPECT_EQ(errno, EIO);
	EXPECT_TRUE(gmem_vm_is_dead(src));
}

TEST_F(transfer, immediate_exit_of_dst_does_not_commit)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct kvm_vcpu *vcpu = dst->vcpus[0];

	gmem_transfer(dst, src, 0);
	vcpu->run->immediate_exit = 1;
	EXPECT_EQ(__vcpu_run(vcpu), -1);
	EXPECT_EQ(errno, EINTR);
	vcpu->run->immediate_exit = 0;
	gmem_assert_run_fails(src, ESTALE);

	gmem_transfer(src, dst, 0);
	gmem_assert_owner(src);
}

TEST_F(transfer, pre_fault_of_dst_does_not_commit)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_NO_STAGE2);
	EXPECT_EQ(gmem_pre_fault(dst, GMEM_GPA, GMEM_SIZE), 0);
	gmem_assert_run_fails(src, ESTALE);

	/* What the destination mapped comes along. */
	gmem_transfer(src, dst, 0);
	gmem_assert_faults(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(transfer, first_run_of_any_vcpu_commits)
{
	struct gmem_vm *src = &self->src;
	struct gmem_vm many = gmem_vm_create(3);

	many.fd = gmem_link(&many, src->fd);
	gmem_bind(&many, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, many.fd, 0);
	gmem_map(&many, GMEM_GPA, GMEM_SIZE);
	gmem_transfer(&many, src, 0);
	gmem_assert_run_fails(src, ESTALE);
	gmem_guest(&many, 2, GMEM_OP_NOP, 0, 0, 0, 0);
	gmem_assert_run_fails(src, EIO);
	gmem_vm_free(&many);
}

TEST_F(transfer, src_runs_again_when_uncommitted_dst_dies)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_transfer(dst, src, 0);
	gmem_assert_run_fails(src, ESTALE);
	gmem_vm_free(dst);
	gmem_assert_owner(src);

	/* And is as good a source as before. */
	gmem_dst_create(dst, src, 1);
	gmem_transfer(dst, src, 0);
	gmem_assert_owner(dst);
}

TEST_F(transfer, reverse_wants_all_slots)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;
	int fd;

	/* A slot of the source's that is of no interest on the way forth. */
	fd = vm_create_guest_memfd(src->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_transfer(dst, src, 0);
	gmem_bind(src, GMEM_SLOT + 1, 2 * GMEM_GPA, GMEM_SIZE, fd, 0);

	res = gmem_assert_transfer_fails(src, dst->vm->fd, 0, ENXIO);
	EXPECT_EQ(res.args.nr_slots, 2);
	EXPECT_EQ(res.args.nr_matched, 1);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_MATCH);

	gmem_unbind(src, GMEM_SLOT + 1);
	gmem_transfer(src, dst, 0);
	gmem_assert_owner(src);
	kvm_close(fd);
}

TEST_F(transfer, reverse_wants_all_memory)
{
	static const u32 flags[] = { 0, KVM_GMEM_TRANSFER_DRY_RUN };
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	const u64 gpa = 2 * GMEM_GPA;
	struct gmem_result res;
	int i, fd, view;

	fd = vm_create_guest_memfd(src->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(src, GMEM_SLOT + 1, gpa, GMEM_SIZE, fd, 0);
	gmem_map(src, gpa, GMEM_SIZE);
	gmem_guest_write(src, gpa, GMEM_SIZE, ~GMEM_PATTERN);
	view = gmem_link(dst, fd);
	gmem_bind(dst, GMEM_SLOT + 1, gpa, GMEM_SIZE, view, 0);
	EXPECT_EQ(gmem_transfer(dst, src, 0).args.nr_matched, 2);

	/* What the source still has would match, but the other half would stay. */
	gmem_unbind(src, GMEM_SLOT + 1);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		res = gmem_assert_transfer_fails(src, dst->vm->fd, flags[i], ENXIO);
		EXPECT_EQ(res.args.nr_slots, 1);
		EXPECT_EQ(res.args.nr_matched, 1);
		gmem_assert_run_fails(src, ESTALE);
	}

	gmem_bind(src, GMEM_SLOT + 1, gpa, GMEM_SIZE, fd, 0);
	EXPECT_EQ(gmem_transfer(src, dst, 0).args.nr_matched, 2);
	gmem_assert_owner(src);
	gmem_guest_verify(src, gpa, GMEM_SIZE, ~GMEM_PATTERN);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(transfer, dsts_own_memory_does_not_go_to_src)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int fd = vm_create_guest_memfd(dst->vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	int view = gmem_link(src, fd);

	/* It may close that at any time, also if it has not run yet. */
	gmem_transfer(dst, src, 0);
	kvm_close(fd);
	EXPECT_EQ(fallocate(view, FALLOC_FL_KEEP_SIZE, 0, GMEM_PAGE_SIZE), -1);
	EXPECT_EQ(errno, EPERM);
	gmem_assert_owner(dst);
	kvm_close(view);
}

/* Layouts: what of which inode is where */

struct layout_slot {
	u64 gpa;
	u64 size;
	int inode;
	u64 offset;
};

#define LAYOUT_MAX_SLOTS	6
#define LAYOUT_NR_INODES	3
#define LAYOUT_INODE_SIZE	(8 * SZ_1M)

FIXTURE(layout) {
	struct gmem_vm src;
	struct gmem_vm dst;
	int src_fds[LAYOUT_NR_INODES];
	int dst_fds[LAYOUT_NR_INODES];
};

FIXTURE_VARIANT(layout) {
	struct layout_slot slots[LAYOUT_MAX_SLOTS];
};

FIXTURE_VARIANT_ADD(layout, slots_with_gaps) {
	.slots = {
		{ SZ_4G, SZ_1M, 0, 0 },
		{ SZ_4G + SZ_2M + SZ_4K, SZ_1M, 1, 0 },
		{ SZ_4G + SZ_1G, SZ_1M, 2, 0 },
	},
};

FIXTURE_VARIANT_ADD(layout, adjacent_slots_on_one_inode) {
	.slots = {
		{ SZ_4G, SZ_1M, 0, 0 },
		{ SZ_4G + SZ_1M, SZ_1M, 0, SZ_1M },
	},
};

/* Like a PC's memory, below and above the hole for PCI. */
FIXTURE_VARIANT_ADD(layout, distant_slots_on_one_inode) {
	.slots = {
		{ SZ_2G, SZ_2M, 0, 0 },
		{ SZ_4G, SZ_4M, 0, SZ_2M },
	},
};

FIXTURE_VARIANT_ADD(layout, slots_on_one_inode_in_reverse_order) {
	.slots = {
		{ SZ_4G, SZ_2M, 0, SZ_4M },
		{ SZ_4G + SZ_4M, SZ_2M, 0, SZ_2M },
		{ SZ_4G + SZ_8M, SZ_2M, 0, 0 },
	},
};

FIXTURE_VARIANT_ADD(layout, slot_on_the_middle_of_an_inode) {
	.slots = {
		{ SZ_4G + SZ_4K, 3 * SZ_4K, 0, 5 * SZ_4K },
	},
};

FIXTURE_VARIANT_ADD(layout, single_page_slots) {
	.slots = {
		{ SZ_4G, SZ_4K, 0, 7 * SZ_4K },
		{ SZ_4G + SZ_2M - SZ_4K, SZ_4K, 0, 6 * SZ_4K },
		{ SZ_4G + SZ_2M, SZ_4K, 1, 0 },
	},
};

FIXTURE_VARIANT_ADD(layout, several_inodes_with_several_slots) {
	.slots = {
		{ SZ_4G, SZ_2M, 0, 0 },
		{ SZ_4G + SZ_2M, SZ_2M, 1, 0 },
		{ SZ_4G + SZ_4M, SZ_2M, 0, SZ_2M },
		{ SZ_4G + SZ_1G - SZ_1M, SZ_2M, 1, SZ_4M },
		{ SZ_4G + 3ull * SZ_1G, SZ_1M, 2, SZ_1M },
		{ SZ_2G, SZ_1M, 2, SZ_4M },
	},
};

static void layout_bind(struct gmem_vm *g, int *fds, const struct layout_slot *slots)
{
	int i;

	for (i = 0; i < LAYOUT_MAX_SLOTS && slots[i].size; i++) {
		gmem_bind(g, GMEM_SLOT + i, slots[i].gpa, slots[i].size,
			  fds[slots[i].inode], slots[i].offset);
		gmem_map(g, slots[i].gpa, slots[i].size);
	}
}

FIXTURE_SETUP(layout)
{
	int i;

	self->src = gmem_vm_create(1);
	self->dst = gmem_vm_create(1);
	for (i = 0; i < LAYOUT_NR_INODES; i++) {
		self->src_fds[i] = vm_create_guest_memfd(self->src.vm, LAYOUT_INODE_SIZE,
							 GMEM_SHARED_FLAGS);
		self->dst_fds[i] = gmem_link(&self->dst, self->src_fds[i]);
	}
	layout_bind(&self->src, self->src_fds, variant->slots);
	layout_bind(&self->dst, self->dst_fds, variant->slots);
}

FIXTURE_TEARDOWN(layout)
{
	int i;

	gmem_vm_free(&self->src);
	for (i = 0; i < LAYOUT_NR_INODES; i++) {
		gmem_close(&self->dst_fds[i]);
		gmem_close(&self->src_fds[i]);
	}
	gmem_vm_free(&self->dst);
}

/* Distinct for every page of every slot. */
static u64 layout_value(int i)
{
	return GMEM_PATTERN + i * 0x1000000ull;
}

TEST_F(layout, is_handed_over_with_all_data_and_mappings)
{
	const struct layout_slot *slots = variant->slots;
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct gmem_result res;
	int i, nr;

	for (nr = 0; nr < LAYOUT_MAX_SLOTS && slots[nr].size; nr++)
		gmem_guest_write(src, slots[nr].gpa, slots[nr].size, layout_value(nr));

	res = gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	EXPECT_EQ(res.args.nr_slots, nr);
	EXPECT_EQ(res.args.nr_matched, nr);
	for (i = 0; i < nr; i++) {
		struct kvm_gmem_transfer_slot *slot = gmem_find_slot(&res, GMEM_SLOT + i);

		EXPECT_EQ(slot->verdict, KVM_GMEM_SLOT_MATCH);
		EXPECT_EQ(slot->gpa, slots[i].gpa);
		EXPECT_EQ(slot->size, slots[i].size);
		gmem_assert_faults(dst, slots[i].gpa, slots[i].size, layout_value(i), 0);
	}

	/* Whatever is between the slots is not there. */
	EXPECT_EQ(gmem_pre_fault(dst, slots[0].gpa - GMEM_PAGE_SIZE, GMEM_PAGE_SIZE), -ENOENT);
}

TEST_F(layout, survives_the_way_back)
{
	const struct layout_slot *slots = variant->slots;
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	int i, nr;

	for (nr = 0; nr < LAYOUT_MAX_SLOTS && slots[nr].size; nr++)
		gmem_guest_write(src, slots[nr].gpa, slots[nr].size, layout_value(nr));

	gmem_transfer(dst, src, 0);
	gmem_transfer(src, dst, 0);
	for (i = 0; i < nr; i++)
		gmem_assert_faults(src, slots[i].gpa, slots[i].size, layout_value(i), 0);
}

/* Lifetimes: VMs and views go away at any stage, in any order */

enum life_stage {
	LIFE_LINKED,
	LIFE_BOUND,
	LIFE_TRANSFERRED,
	LIFE_COMMITTED,
	LIFE_REVERSED,
};

enum life_end {
	LIFE_VM_THEN_VIEW,
	LIFE_VIEW_THEN_VM,
	LIFE_VIEW_LONG_BEFORE_VM,
};

FIXTURE(lifetime) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_VARIANT(lifetime) {
	enum life_stage stage;
};

FIXTURE_VARIANT_ADD(lifetime, linked) {
	.stage = LIFE_LINKED,
};

FIXTURE_VARIANT_ADD(lifetime, bound) {
	.stage = LIFE_BOUND,
};

FIXTURE_VARIANT_ADD(lifetime, transferred) {
	.stage = LIFE_TRANSFERRED,
};

FIXTURE_VARIANT_ADD(lifetime, committed) {
	.stage = LIFE_COMMITTED,
};

FIXTURE_VARIANT_ADD(lifetime, reversed) {
	.stage = LIFE_REVERSED,
};

FIXTURE_SETUP(lifetime)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;

	gmem_src_create(src, 1);
	*dst = gmem_vm_create(1);
	gmem_map(dst, GMEM_GPA, GMEM_SIZE);
	dst->fd = gmem_link(dst, src->fd);
	if (variant->stage == LIFE_LINKED)
		return;

	gmem_bind(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0);
	if (variant->stage == LIFE_BOUND)
		return;

	gmem_transfer(dst, src, 0);
	if (variant->stage == LIFE_COMMITTED)
		gmem_guest(dst, 0, GMEM_OP_NOP, 0, 0, 0, 0);
	if (variant->stage == LIFE_REVERSED)
		gmem_transfer(src, dst, 0);
}

FIXTURE_TEARDOWN(lifetime)
{
	if (self->src.vm)
		gmem_vm_free(&self->src);
	if (self->dst.vm)
		gmem_vm_free(&self->dst);
}

static void life_end(struct gmem_vm *g, enum life_end end)
{
	if (end == LIFE_VIEW_THEN_VM)
		gmem_close(&g->fd);
	gmem_vm_free(g);
}

/* One of the VMs goes away, the other works if it owns the memory then. */
static void life_test(struct gmem_vm *src, struct gmem_vm *dst,
		      enum life_stage stage, bool src_first, enum life_end end)
{
	bool dst_owns = stage == LIFE_TRANSFERRED || stage == LIFE_COMMITTED;
	struct gmem_vm *first = src_first ? src : dst;
	struct gmem_vm *last = src_first ? dst : src;
	int r;

	if (end == LIFE_VIEW_LONG_BEFORE_VM) {
		/* The guest's memory is gone with the view, but not the VM. */
		gmem_close(&first->fd);
		r = __gmem_guest(first, 0, GMEM_OP_READ, GMEM_GPA, 1, 0, 0);
		TEST_ASSERT(r, "The guest reads memory of a closed view");
		/* It had committed to nothing yet, and now cannot. */
		if (stage == LIFE_TRANSFERRED && !src_first)
			TEST_ASSERT_EQ(r, -ESTALE);
	}

	life_end(first, end);

	if (dst_owns == src_first) {
		gmem_assert_owner(last);
	} else if (src_first) {
		/* The owner is gone before it handed anything over. */
		if (stage == LIFE_LINKED)
			gmem_guest(last, 0, GMEM_OP_NOP, 0, 0, 0, 0);
		else
			gmem_assert_not_owner(last);
	} else if (stage == LIFE_TRANSFERRED) {
		/* The destination never had a use for it. */
		gmem_assert_owner(last);
	} else {
		gmem_assert_run_fails(last, EIO);
	}

	life_end(last, end);
}

TEST_F(lifetime, src_goes_first_vm_then_view)
{
	life_test(&self->src, &self->dst, variant->stage, true, LIFE_VM_THEN_VIEW);
}

TEST_F(lifetime, src_goes_first_view_then_vm)
{
	life_test(&self->src, &self->dst, variant->stage, true, LIFE_VIEW_THEN_VM);
}

TEST_F(lifetime, src_goes_first_view_long_before_vm)
{
	life_test(&self->src, &self->dst, variant->stage, true, LIFE_VIEW_LONG_BEFORE_VM);
}

TEST_F(lifetime, dst_goes_first_vm_then_view)
{
	life_test(&self->src, &self->dst, variant->stage, false, LIFE_VM_THEN_VIEW);
}

TEST_F(lifetime, dst_goes_first_view_then_vm)
{
	life_test(&self->src, &self->dst, variant->stage, false, LIFE_VIEW_THEN_VM);
}

TEST_F(lifetime, dst_goes_first_view_long_before_vm)
{
	life_test(&self->src, &self->dst, variant->stage, false, LIFE_VIEW_LONG_BEFORE_VM);
}

/* Two processes */

static void send_fds(int sock, int *fds, int nr)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = {};
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(nr * sizeof(int)),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(nr * sizeof(int));
	memcpy(CMSG_DATA(cmsg), fds, nr * sizeof(int));
	TEST_ASSERT(sendmsg(sock, &msg, 0) == 1, "sendmsg() failed, errno: %d", errno);
}

static void recv_fds(int sock, int *fds, int nr)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = {};
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;

	TEST_ASSERT(recvmsg(sock, &msg, 0) == 1, "recvmsg() failed, errno: %d", errno);
	cmsg = CMSG_FIRSTHDR(&msg);
	TEST_ASSERT(cmsg && cmsg->cmsg_type == SCM_RIGHTS, "No descriptors came");
	memcpy(fds, CMSG_DATA(cmsg), nr * sizeof(int));
}

static void tell(int sock, char what)
{
	TEST_ASSERT_EQ(write(sock, &what, 1), 1);
}

static void await(int sock, char what)
{
	char c = 0;
	ssize_t r = read(sock, &c, 1);

	TEST_ASSERT(r == 1 && c == what, "Wanted '%c' from the other process, got '%c'",
		    what, r == 1 ? c : '-');
}

/* The source's process: hand out the descriptors, then do as told. */
static void src_process(int sock)
{
	struct gmem_vm src;
	int dst_fd;
	char c;

	gmem_src_create(&src, 1);
	send_fds(sock, (int []){ src.vm->fd, src.fd }, 2);

	while (read(sock, &c, 1) == 1) {
		switch (c) {
		case 'p':
			gmem_assert_run_fails(&src, ESTALE);
			break;
		case 'd':
			gmem_assert_run_fails(&src, EIO);
			break;
		case 'o':
			gmem_assert_owner(&src);
			break;
		case 'r': {
			struct gmem_result res;

			recv_fds(sock, &dst_fd, 1);
			res = __gmem_transfer_fd(&src, dst_fd, 0);
			TEST_ASSERT(!res.ret, "The way back failed, errno: %d", res.err);
			kvm_close(dst_fd);
			break;
		}
		case 'x':
			_exit(0);
		}
		tell(sock, '.');
	}
	_exit(1);
}

FIXTURE(processes) {
	struct gmem_vm dst;
	int sock;
	int src_vm_fd;
	int src_fd;
	pid_t pid;
};

FIXTURE_SETUP(processes)
{
	int socks[2], fds[2];

	TEST_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks), 0);
	self->pid = fork();
	TEST_ASSERT(self->pid >= 0, "fork() failed, errno: %d", errno);
	if (!self->pid) {
		close(socks[0]);
		src_process(socks[1]);
	}
	close(socks[1]);
	self->sock = socks[0];

	recv_fds(self->sock, fds, 2);
	self->src_vm_fd = fds[0];
	self->src_fd = fds[1];
	self->dst = gmem_vm_create(1);
	self->dst.fd = gmem_link(&self->dst, self->src_fd);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_map(&self->dst, GMEM_GPA, GMEM_SIZE);
}

FIXTURE_TEARDOWN(processes)
{
	if (self->pid > 0) {
		kill(self->pid, SIGKILL);
		waitpid(self->pid, NULL, 0);
	}
	gmem_close(&self->src_vm_fd);
	gmem_close(&self->src_fd);
	gmem_vm_free(&self->dst);
}

static void src_does(int sock, char what)
{
	tell(sock, what);
	await(sock, '.');
}

static void processes_transfer(struct gmem_vm *dst, int src_vm_fd)
{
	struct gmem_result res = __gmem_transfer_fd(dst, src_vm_fd, 0);

	TEST_ASSERT(!res.ret, "KVM_GMEM_TRANSFER failed, errno: %d", res.err);
}

static void src_exits(int sock, pid_t *pid)
{
	int status;

	tell(sock, 'x');
	TEST_ASSERT_EQ(waitpid(*pid, &status, 0), *pid);
	*pid = 0;
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "The source's process ended with status 0x%x", status);
}

TEST_F(processes, memory_goes_to_another_process)
{
	processes_transfer(&self->dst, self->src_vm_fd);
	src_does(self->sock, 'p');
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	src_does(self->sock, 'd');
	src_exits(self->sock, &self->pid);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(processes, memory_comes_back_to_the_process)
{
	processes_transfer(&self->dst, self->src_vm_fd);
	tell(self->sock, 'r');
	send_fds(self->sock, &self->dst.vm->fd, 1);
	await(self->sock, '.');
	src_does(self->sock, 'o');
	gmem_assert_not_owner(&self->dst);
}

TEST_F(processes, exit_of_src_before_commit_costs_no_fault)
{
	processes_transfer(&self->dst, self->src_vm_fd);
	gmem_close(&self->src_vm_fd);
	gmem_close(&self->src_fd);
	src_exits(self->sock, &self->pid);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

static void src_is_killed(pid_t *pid)
{
	kill(*pid, SIGKILL);
	TEST_ASSERT_EQ(waitpid(*pid, NULL, 0), *pid);
	*pid = 0;
}

TEST_F(processes, killed_srcs_memory_is_handed_over_if_its_fds_are_held)
{
	src_is_killed(&self->pid);

	/* What the dying process had mapped may be gone, the data is not. */
	processes_transfer(&self->dst, self->src_vm_fd);
	gmem_close(&self->src_fd);
	gmem_assert_owner(&self->dst);
}

TEST_F(processes, killed_srcs_memory_is_nobodys_if_its_view_is_gone)
{
	struct gmem_result res;

	gmem_close(&self->src_fd);
	src_is_killed(&self->pid);

	res = __gmem_transfer_fd(&self->dst, self->src_vm_fd, 0);
	EXPECT_EQ(res.ret, -1);
	EXPECT_EQ(res.err, ENOENT);
	gmem_assert_not_owner(&self->dst);
}

TEST_F(processes, dst_in_another_process_that_dies_gives_back)
{
	struct gmem_vm *src = &self->dst, dst;
	int socks[2], fds[2], status;
	pid_t pid;

	/* Now this process is the owner, and a child the destination. */
	processes_transfer(src, self->src_vm_fd);
	gmem_assert_owner(src);

	TEST_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks), 0);
	pid = fork();
	if (!pid) {
		recv_fds(socks[1], fds, 2);
		dst = gmem_vm_create(1);
		dst.fd = gmem_link(&dst, fds[1]);
		gmem_bind(&dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst.fd, 0);
		processes_transfer(&dst, fds[0]);
		tell(socks[1], '.');
		pause();
	}
	send_fds(socks[0], (int []){ src->vm->fd, src->fd }, 2);
	await(socks[0], '.');
	gmem_assert_run_fails(src, ESTALE);

	kill(pid, SIGKILL);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	gmem_assert_owner(src);
}

int main(int argc, char *argv[])
{
	gmem_test_require();

	return test_harness_run(argc, argv);
}
