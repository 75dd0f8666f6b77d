// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the interface of KVM_GMEM_LINK and KVM_GMEM_TRANSFER: each flag, each
 * verdict on a memslot, each error.
 *
 * An error is asked for with arguments of which nothing else is wrong, and what
 * is left after it must still be good for a transfer.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>

/* Enough to tell offsets and sizes apart, and little to write in each test. */
#define GMEM_SIZE	SZ_256K

#include "gmem_transfer_util.h"

/* LINK */

FIXTURE(link) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(link)
{
	gmem_src_create(&self->src, 1);
	self->dst = gmem_vm_create(1);
}

FIXTURE_TEARDOWN(link)
{
	gmem_vm_free(&self->dst);
	if (self->src.vm)
		gmem_vm_free(&self->src);
}

#define assert_link_fails(g, gmem_fd, errnum)						\
do {											\
	int __fd = __gmem_link(g, gmem_fd);						\
											\
	TEST_ASSERT(__fd == -1 && errno == (errnum),					\
		    "Wanted KVM_GMEM_LINK to fail with %s, got %d, errno: %d (%s)",	\
		    #errnum, __fd, errno, strerror(errno));				\
} while (0)

TEST_F(link, view_is_of_the_same_inode)
{
	struct stat a, b;
	int fd = gmem_link(&self->dst, self->src.fd);

	ASSERT_EQ(fstat(self->src.fd, &a), 0);
	ASSERT_EQ(fstat(fd, &b), 0);
	EXPECT_EQ(a.st_ino, b.st_ino);
	EXPECT_EQ(a.st_dev, b.st_dev);
	EXPECT_EQ(b.st_size, GMEM_SIZE);
	kvm_close(fd);
}

TEST_F(link, view_is_close_on_exec)
{
	int fd = gmem_link(&self->dst, self->src.fd);

	EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
	kvm_close(fd);
}

TEST_F(link, view_can_be_linked_in_turn)
{
	struct gmem_vm third = gmem_vm_create(1);

	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	third.fd = gmem_link(&third, self->dst.fd);
	gmem_vm_free(&self->dst);
	self->dst = gmem_vm_create(1);

	gmem_bind(&third, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, third.fd, 0);
	gmem_map(&third, GMEM_GPA, GMEM_SIZE);
	gmem_transfer(&third, &self->src, 0);
	gmem_assert_owner(&third);
	gmem_vm_free(&third);
}

TEST_F(link, another_vms_view_cannot_be_bound)
{
	int r = __gmem_bind_hva(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE,
				self->src.fd, 0, NULL);

	EXPECT_EQ(r, -1);
	EXPECT_EQ(errno, EINVAL);
}

TEST_F(link, ebadf_without_such_an_fd)
{
	int fd = kvm_dup(self->src.fd);

	kvm_close(fd);
	assert_link_fails(&self->dst, fd, EBADF);
	assert_link_fails(&self->dst, -1, EBADF);
}

TEST_F(link, enodev_if_not_a_guest_memfd)
{
	int memfd = kvm_memfd_alloc(GMEM_SIZE, false);
	int event = kvm_new_eventfd();

	assert_link_fails(&self->dst, memfd, ENODEV);
	assert_link_fails(&self->dst, event, ENODEV);
	assert_link_fails(&self->dst, self->src.vm->fd, ENODEV);
	assert_link_fails(&self->dst, self->src.vcpus[0]->fd, ENODEV);
	kvm_close(memfd);
	kvm_close(event);
}

TEST_F(link, eexist_if_the_vm_is_the_creator)
{
	int fd = kvm_dup(self->src.fd);

	assert_link_fails(&self->src, self->src.fd, EEXIST);
	assert_link_fails(&self->src, fd, EEXIST);
	kvm_close(fd);
}

TEST_F(link, eexist_if_the_vm_has_a_view_until_that_is_closed)
{
	int fd = gmem_link(&self->dst, self->src.fd);

	assert_link_fails(&self->dst, self->src.fd, EEXIST);
	assert_link_fails(&self->dst, fd, EEXIST);
	kvm_close(fd);

	fd = gmem_link(&self->dst, self->src.fd);
	kvm_close(fd);
}

TEST_F(link, einval_for_unknown_flags_and_reserved_fields)
{
	int i;

	for (i = 0; i < 32; i++) {
		struct kvm_gmem_link args = {
			.gmem_fd = self->src.fd,
			.flags = BIT(i),
		};

		EXPECT_EQ(__vm_ioctl(self->dst.vm, KVM_GMEM_LINK, &args), -1);
		EXPECT_EQ(errno, EINVAL);
	}

	for (i = 0; i < 3; i++) {
		struct kvm_gmem_link args = { .gmem_fd = self->src.fd };

		args.reserved[i] = BIT_ULL(63);
		EXPECT_EQ(__vm_ioctl(self->dst.vm, KVM_GMEM_LINK, &args), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	kvm_close(gmem_link(&self->dst, self->src.fd));
}

TEST_F(link, estale_if_the_owner_is_gone)
{
	struct gmem_vm third = gmem_vm_create(1);

	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	gmem_vm_free(&self->src);
	assert_link_fails(&third, self->dst.fd, ESTALE);
	gmem_vm_free(&third);
}

TEST_F(link, estale_if_the_owner_is_dead)
{
	struct gmem_vm third = gmem_vm_create(1);
	int fd;

	/* This one stays behind when the source is handed over. */
	fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_map(&self->dst, GMEM_GPA, GMEM_SIZE);
	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_owner(&self->dst);

	assert_link_fails(&third, fd, ESTALE);
	/* The memory that was handed over has an owner, by whichever view. */
	third.fd = gmem_link(&third, self->src.fd);
	kvm_close(fd);
	gmem_vm_free(&third);
}

#ifdef __x86_64__
TEST_F(link, exdev_if_the_vm_does_not_support_the_inodes_flags)
{
	struct gmem_vm prot = {};

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No KVM_X86_SW_PROTECTED_VM");

	prot.vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	if (vm_check_cap(prot.vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_INIT_SHARED)
		SKIP(return, "All VMs support all flags of guest_memfd");

	assert_link_fails(&prot, self->src.fd, EXDEV);
	kvm_vm_free(prot.vm);
}
#endif

TEST_F(link, efault_for_a_bad_pointer)
{
	EXPECT_EQ(ioctl(self->dst.vm->fd, KVM_GMEM_LINK, NULL), -1);
	EXPECT_EQ(errno, EFAULT);
}

TEST_F(link, emfile_leaves_nothing_behind)
{
	int fds[1024], nr = 0;
	struct rlimit rl;

	ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &rl), 0);
	rl.rlim_cur = min_t(u64, rl.rlim_cur, 256);
	ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &rl), 0);
	while (nr < ARRAY_SIZE(fds) && (fds[nr] = dup(self->src.fd)) >= 0)
		nr++;

	assert_link_fails(&self->dst, self->src.fd, EMFILE);
	while (nr)
		kvm_close(fds[--nr]);
	kvm_close(gmem_link(&self->dst, self->src.fd));
}

/* Flags of TRANSFER, every combination of them */

#define OTHER_SLOT	(GMEM_SLOT + 1)
#define OTHER_GPA	(GMEM_GPA + SZ_1G)
#define OTHER_PATTERN	(GMEM_PATTERN + 0x1000000ull)

/* Two inodes, the second of which is up to the test to bind. */
FIXTURE(flags) {
	struct gmem_vm src;
	struct gmem_vm dst;
	int src_fd;
	int dst_fd;
	u64 *past;
};

FIXTURE_VARIANT(flags) {
	u32 flags;
};

#define DRY	KVM_GMEM_TRANSFER_DRY_RUN
#define ALL	KVM_GMEM_TRANSFER_REQUIRE_ALL
#define NOS2	KVM_GMEM_TRANSFER_NO_STAGE2
#define UNMAP	KVM_GMEM_TRANSFER_UNMAP

FIXTURE_VARIANT_ADD(flags, none) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(flags, dry) {
	.flags = DRY,
};

FIXTURE_VARIANT_ADD(flags, all) {
	.flags = ALL,
};

FIXTURE_VARIANT_ADD(flags, nos2) {
	.flags = NOS2,
};

FIXTURE_VARIANT_ADD(flags, unmap) {
	.flags = UNMAP,
};

FIXTURE_VARIANT_ADD(flags, dry_all) {
	.flags = DRY | ALL,
};

FIXTURE_VARIANT_ADD(flags, dry_nos2) {
	.flags = DRY | NOS2,
};

FIXTURE_VARIANT_ADD(flags, dry_unmap) {
	.flags = DRY | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, all_nos2) {
	.flags = ALL | NOS2,
};

FIXTURE_VARIANT_ADD(flags, all_unmap) {
	.flags = ALL | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, nos2_unmap) {
	.flags = NOS2 | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, dry_all_nos2) {
	.flags = DRY | ALL | NOS2,
};

FIXTURE_VARIANT_ADD(flags, dry_all_unmap) {
	.flags = DRY | ALL | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, dry_nos2_unmap) {
	.flags = DRY | NOS2 | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, all_nos2_unmap) {
	.flags = ALL | NOS2 | UNMAP,
};

FIXTURE_VARIANT_ADD(flags, dry_all_nos2_unmap) {
	.flags = DRY | ALL | NOS2 | UNMAP,
};

FIXTURE_SETUP(flags)
{
	gmem_src_create(&self->src, 1);
	self->src_fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	gmem_bind(&self->src, OTHER_SLOT, OTHER_GPA, GMEM_SIZE, self->src_fd, 0);
	gmem_map(&self->src, OTHER_GPA, GMEM_SIZE);
	gmem_guest_write(&self->src, OTHER_GPA, GMEM_SIZE, OTHER_PATTERN);
	self->past = gmem_mmap(self->src.fd, GMEM_SIZE);

	gmem_dst_create(&self->dst, &self->src, 1);
	self->dst_fd = gmem_link(&self->dst, self->src_fd);
}

FIXTURE_TEARDOWN(flags)
{
	kvm_munmap(self->past, GMEM_SIZE);
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
	gmem_close(&self->dst_fd);
	gmem_close(&self->src_fd);
}

/* One page is mapped by the past owner, what became of it?  @dst will have run. */
static void check_flags(struct gmem_vm *src, struct gmem_vm *dst, u32 flags,
			struct gmem_result *res, u64 *past)
{
	u64 nr_faults = flags & NOS2 ? GMEM_NR_PAGES : 0;

	TEST_ASSERT_EQ(res->args.nr_slots, 2);

	if (flags & DRY) {
		TEST_ASSERT_EQ(res->args.tables, 0);
		TEST_ASSERT_EQ(res->args.zapped, 0);
		TEST_ASSERT(!gmem_access_is_sigbus(past), "A dry run dropped a user mapping");
		gmem_guest_verify(src, OTHER_GPA, GMEM_SIZE, OTHER_PATTERN);
		return;
	}

	TEST_ASSERT(!res->args.tables == !!(flags & NOS2),
		    "%lu tables were handed over", (unsigned long)res->args.tables);
	if (flags & UNMAP)
		TEST_ASSERT(gmem_access_is_sigbus(past), "The past owner's page is mapped");
	gmem_assert_run_fails(src, ESTALE);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, nr_faults);
}

TEST_F(flags, hold_if_all_slots_match)
{
	u32 flags = variant->flags;
	struct gmem_result res;

	gmem_map(&self->dst, OTHER_GPA, GMEM_SIZE);
	gmem_bind(&self->dst, OTHER_SLOT, OTHER_GPA, GMEM_SIZE, self->dst_fd, 0);
	EXPECT_EQ(READ_ONCE(*self->past), GMEM_PATTERN);

	res = gmem_transfer(&self->dst, &self->src, flags);
	EXPECT_EQ(res.args.nr_matched, 2);
	check_flags(&self->src, &self->dst, flags, &res, self->past);
	if (flags & DRY)
		gmem_assert_nothing_changed(&self->src, &self->dst);
	else
		gmem_assert_faults(&self->dst, OTHER_GPA, GMEM_SIZE, OTHER_PATTERN,
				   flags & NOS2 ? GMEM_NR_PAGES : 0);
}

TEST_F(flags, hold_if_one_slot_does_not_match)
{
	const u64 gpa = OTHER_GPA + GMEM_SIZE;
	u32 flags = variant->flags;
	struct gmem_result res;

	gmem_map(&self->dst, gpa, GMEM_SIZE);
	gmem_bind(&self->dst, OTHER_SLOT, gpa, GMEM_SIZE, self->dst_fd, 0);
	EXPECT_EQ(READ_ONCE(*self->past), GMEM_PATTERN);

	if (flags & ALL)
		res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, flags, ENXIO);
	else
		res = gmem_transfer(&self->dst, &self->src, flags);
	EXPECT_EQ(res.args.nr_slots, 2);
	EXPECT_EQ(res.args.nr_matched, 1);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_MATCH);
	gmem_assert_verdict(&res, OTHER_SLOT, KVM_GMEM_SLOT_GPA);

	if (flags & ALL) {
		EXPECT_FALSE(gmem_access_is_sigbus(self->past));
		gmem_guest_verify(&self->src, OTHER_GPA, GMEM_SIZE, OTHER_PATTERN);
	} else {
		check_flags(&self->src, &self->dst, flags, &res, self->past);
	}

	if (flags & (ALL | DRY)) {
		gmem_unbind(&self->dst, OTHER_SLOT);
		gmem_assert_nothing_changed(&self->src, &self->dst);
	} else {
		EXPECT_EQ(__gmem_guest(&self->dst, 0, GMEM_OP_READ, gpa, 1, 0, 0), -EPERM);
	}
}

#undef DRY
#undef ALL
#undef NOS2
#undef UNMAP

/* Verdicts */

FIXTURE(verdict) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(verdict)
{
	gmem_src_create(&self->src, 1);
	self->dst = gmem_vm_create(1);
	gmem_map(&self->dst, GMEM_GPA, GMEM_SIZE);
	self->dst.fd = gmem_link(&self->dst, self->src.fd);
}

FIXTURE_TEARDOWN(verdict)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

/*
 * The destination's only slot has this verdict, in a dry run and for real, and
 * nothing happens.
 */
static void assert_only_verdict(struct gmem_vm *src, struct gmem_vm *dst, u32 verdict)
{
	static const u32 flags[] = { KVM_GMEM_TRANSFER_DRY_RUN, 0 };
	struct gmem_result res;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		res = gmem_assert_transfer_fails(dst, src->vm->fd, flags[i], ENOENT);
		TEST_ASSERT_EQ(res.args.nr_slots, 1);
		TEST_ASSERT_EQ(res.args.nr_matched, 0);
		gmem_assert_verdict(&res, GMEM_SLOT, verdict);
	}
	gmem_assert_faults(src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

/* Mend the slot and see that it was all that stood in the way. */
static void assert_mended(struct gmem_vm *src, struct gmem_vm *dst)
{
	struct gmem_result res;

	gmem_unbind(dst, GMEM_SLOT);
	gmem_bind(dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, dst->fd, 0);
	res = gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_MATCH);
	gmem_assert_owner(dst);
}

TEST_F(verdict, match_whatever_the_slots_number_is)
{
	struct gmem_result res;

	gmem_bind(&self->dst, GMEM_SLOT + 2, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	res = gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_verdict(&res, GMEM_SLOT + 2, KVM_GMEM_SLOT_MATCH);
	gmem_assert_faults(&self->dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(verdict, no_source_if_src_has_nothing_there)
{
	/* The inode is the source's, but nothing of it is in a memslot. */
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_unbind(&self->src, GMEM_SLOT);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_NO_SOURCE);

	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->src.fd, 0);
	gmem_assert_owner(&self->src);
	assert_mended(&self->src, &self->dst);
}

TEST_F(verdict, no_source_if_another_part_of_the_inode_is_elsewhere)
{
	gmem_unbind(&self->src, GMEM_SLOT);
	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE / 2, self->src.fd, 0);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA + GMEM_SIZE / 2, GMEM_SIZE / 2,
		  self->dst.fd, GMEM_SIZE / 2);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_NO_SOURCE);
}

TEST_F(verdict, inode_if_src_has_other_memory_there)
{
	int fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	int view = gmem_link(&self->dst, fd);

	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, view, 0);
	assert_only_verdict(&self->src, &self->dst, KVM_GMEM_SLOT_INODE);
	assert_mended(&self->src, &self->dst);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(verdict, inode_if_src_has_anonymous_memory_there)
{
	const u64 gpa = SZ_1G;
	int fd = vm_create_guest_memfd(self->src.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	int view = gmem_link(&self->dst, fd);

	vm_userspace_mem_region_add(self->src.vm, VM_MEM_SRC_ANONYMOUS, gpa, 8,
				    GMEM_NR_PAGES, 0);
	gmem_bind(&self->dst, GMEM_SLOT, gpa, GMEM_SIZE, view, 0);
	assert_only_verdict(&self->src, &self->dst, KVM_GMEM_SLOT_INODE);
	assert_mended(&self->src, &self->dst);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(verdict, offset_if_another_part_of_the_inode_is_there)
{
	gmem_unbind(&self->src, GMEM_SLOT);
	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE / 2, self->src.fd, 0);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE / 2, self->dst.fd, GMEM_SIZE / 2);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_OFFSET);
}

TEST_F(verdict, gpa_if_the_memory_is_elsewhere_in_src)
{
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA + GMEM_SIZE, GMEM_SIZE, self->dst.fd, 0);
	assert_only_verdict(&self->src, &self->dst, KVM_GMEM_SLOT_GPA);
	assert_mended(&self->src, &self->dst);
}

TEST_F(verdict, size_if_the_slot_is_shorter_or_longer)
{
	u64 size = GMEM_SIZE - GMEM_PAGE_SIZE;

	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, size, self->dst.fd, 0);
	assert_only_verdict(&self->src, &self->dst, KVM_GMEM_SLOT_SIZE);

	gmem_unbind(&self->dst, GMEM_SLOT);
	gmem_unbind(&self->src, GMEM_SLOT);
	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, size, self->src.fd, 0);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_SIZE);
}

TEST_F(verdict, not_owner_if_the_memory_is_a_third_vms)
{
	struct gmem_vm third;
	int view;

	/* Source and destination have the same slot, of what is not theirs. */
	gmem_src_create(&third, 1);
	view = gmem_link(&self->src, third.fd);
	gmem_unbind(&self->src, GMEM_SLOT);
	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, view, 0);
	gmem_close(&self->dst.fd);
	self->dst.fd = gmem_link(&self->dst, third.fd);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_NOT_OWNER);

	/* Whose it is can be asked. */
	gmem_transfer(&self->dst, &third, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_owner(&self->dst);
	kvm_close(view);
	gmem_vm_free(&third);
}

TEST_F(verdict, not_owner_if_the_memory_is_dsts_own)
{
	int fd = vm_create_guest_memfd(self->dst.vm, GMEM_SIZE, GMEM_SHARED_FLAGS);
	int view = gmem_link(&self->src, fd);

	gmem_unbind(&self->src, GMEM_SLOT);
	gmem_bind(&self->src, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, view, 0);
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, fd, 0);

	struct gmem_result res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
							    0, ENOENT);

	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_NOT_OWNER);
	kvm_close(view);
	kvm_close(fd);
}

TEST_F(verdict, partial_if_another_slot_of_the_inode_does_not_match)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	const u64 half = GMEM_SIZE / 2;
	struct gmem_result res;

	gmem_unbind(src, GMEM_SLOT);
	gmem_bind(src, GMEM_SLOT, GMEM_GPA, half, src->fd, 0);
	gmem_bind(src, GMEM_SLOT + 1, GMEM_GPA + half, half, src->fd, half);
	gmem_assert_owner(src);

	/* The second is missing. */
	gmem_bind(dst, GMEM_SLOT, GMEM_GPA, half, dst->fd, 0);
	assert_only_verdict(src, dst, KVM_GMEM_SLOT_PARTIAL);

	/* The second is elsewhere. */
	gmem_bind(dst, GMEM_SLOT + 1, GMEM_GPA + SZ_1G, half, dst->fd, half);
	res = gmem_assert_transfer_fails(dst, src->vm->fd, 0, ENOENT);
	gmem_assert_verdict(&res, GMEM_SLOT, KVM_GMEM_SLOT_PARTIAL);
	gmem_assert_verdict(&res, GMEM_SLOT + 1, KVM_GMEM_SLOT_GPA);

	gmem_unbind(dst, GMEM_SLOT + 1);
	gmem_bind(dst, GMEM_SLOT + 1, GMEM_GPA + half, half, dst->fd, half);
	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	gmem_assert_faults(dst, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
}

TEST_F(verdict, closed_if_dsts_view_is_closed)
{
	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_close(&self->dst.fd);
	assert_only_verdict(&self->src, &self->dst, KVM_GMEM_SLOT_CLOSED);

	self->dst.fd = gmem_link(&self->dst, self->src.fd);
	assert_mended(&self->src, &self->dst);
}

TEST_F(verdict, none_matches_after_srcs_view_is_closed)
{
	struct gmem_result res;

	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_close(&self->src.fd);
	res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, ENOENT);
	EXPECT_EQ(res.args.nr_matched, 0);
	EXPECT_NE(gmem_find_slot(&res, GMEM_SLOT)->verdict, KVM_GMEM_SLOT_MATCH);
}

TEST_F(verdict, slots_deleted_after_the_link_are_not_asked_about)
{
	struct gmem_result res;

	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	gmem_unbind(&self->dst, GMEM_SLOT);
	res = gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, ENOENT);
	EXPECT_EQ(res.args.nr_slots, 0);

	gmem_bind(&self->dst, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, self->dst.fd, 0);
	assert_mended(&self->src, &self->dst);
}

TEST_F(verdict, more_slots_than_room_are_counted_but_not_written)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct kvm_gmem_transfer_slot slots[3];
	struct kvm_gmem_transfer args = {
		.source_fd = src->vm->fd,
		.flags = KVM_GMEM_TRANSFER_DRY_RUN,
		.slots = (uintptr_t)slots,
		.nr_slots = 2,
	};
	const u64 part = GMEM_SIZE / 4;
	int i;

	for (i = 0; i < 4; i++)
		gmem_bind(dst, GMEM_SLOT + i, GMEM_GPA + i * part, part, dst->fd, i * part);

	memset(slots, 0xab, sizeof(slots));
	EXPECT_EQ(__vm_ioctl(dst->vm, KVM_GMEM_TRANSFER, &args), -1);
	EXPECT_EQ(errno, ENOENT);
	EXPECT_EQ(args.nr_slots, 4);
	EXPECT_EQ(args.nr_matched, 0);
	EXPECT_NE(slots[0].slot, 0xabababab);
	EXPECT_NE(slots[1].slot, 0xabababab);
	EXPECT_EQ(slots[2].slot, 0xabababab);

	/* No room at all is fine, too. */
	args.slots = 0;
	args.nr_slots = 0;
	EXPECT_EQ(__vm_ioctl(dst->vm, KVM_GMEM_TRANSFER, &args), -1);
	EXPECT_EQ(errno, ENOENT);
	EXPECT_EQ(args.nr_slots, 4);
}

/* Errors of TRANSFER */

FIXTURE(error) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(error)
{
	gmem_src_create(&self->src, 1);
	gmem_dst_create(&self->dst, &self->src, 1);
}

FIXTURE_TEARDOWN(error)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

TEST_F(error, ebadf_without_such_an_fd)
{
	int fd = kvm_dup(self->src.vm->fd);

	kvm_close(fd);
	gmem_assert_transfer_fails(&self->dst, fd, 0, EBADF);
	gmem_assert_transfer_fails(&self->dst, -1, 0, EBADF);
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

TEST_F(error, enodev_if_not_a_vm)
{
	int fds[] = {
		kvm_new_eventfd(),
		kvm_dup(self->src.fd),
		kvm_dup(self->src.vcpus[0]->fd),
		open_kvm_dev_path_or_exit(),
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		gmem_assert_transfer_fails(&self->dst, fds[i], 0, ENODEV);
		kvm_close(fds[i]);
	}
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

TEST_F(error, einval_if_src_is_dst)
{
	int fd = kvm_dup(self->src.vm->fd);

	gmem_assert_transfer_fails(&self->src, self->src.vm->fd, 0, EINVAL);
	gmem_assert_transfer_fails(&self->src, fd, 0, EINVAL);
	gmem_assert_transfer_fails(&self->dst, self->dst.vm->fd, 0, EINVAL);
	kvm_close(fd);
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

TEST_F(error, einval_for_unknown_flags)
{
	int i;

	for (i = 0; i < 32; i++) {
		if (!(BIT(i) & GMEM_TRANSFER_FLAGS))
			gmem_assert_transfer_fails(&self->dst, self->src.vm->fd,
						   BIT(i), EINVAL);
	}
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

TEST_F(error, einval_for_reserved_fields)
{
	int i;

	for (i = 0; i < 4; i++) {
		struct kvm_gmem_transfer args = { .source_fd = self->src.vm->fd };

		args.reserved[i] = 1;
		EXPECT_EQ(__vm_ioctl(self->dst.vm, KVM_GMEM_TRANSFER, &args), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

/* A vCPU that stays in KVM_RUN until it is told to stop. */
struct runner {
	struct gmem_vm *g;
	pthread_t thread;
	bool stop;
};

static void *run_thread(void *arg)
{
	struct runner *runner = arg;

	while (!READ_ONCE(runner->stop))
		__vcpu_run(runner->g->vcpus[0]);

	return NULL;
}

static void nop_handler(int signum)
{
}

static void start_running(struct runner *runner, struct gmem_vm *g)
{
	struct sigaction sa = { .sa_handler = nop_handler };

	sigaction(SIGUSR1, &sa, NULL);
	runner->g = g;
	runner->stop = false;

	/* The guest spins on a counter in slot 0, and all but never exits. */
	gmem_set_job(g, 0, GMEM_OP_COUNT, (u64)&gmem_jobs[0].seen, 1ull << 60, 0, 0);
	kvm_pthread_create(&runner->thread, NULL, run_thread, runner);
	while (!READ_ONCE(gmem_job(g, 0)->seen))
		sched_yield();
}

static void stop_running(struct runner *runner)
{
	struct kvm_run *run = runner->g->vcpus[0]->run;

	WRITE_ONCE(runner->stop, true);
	WRITE_ONCE(run->immediate_exit, 1);
	pthread_kill(runner->thread, SIGUSR1);
	kvm_pthread_join(runner->thread, NULL);
	WRITE_ONCE(run->immediate_exit, 0);
}

/* There is no verdict to write, so nothing is written. */
static void assert_fails_silently(struct gmem_vm *dst, struct gmem_vm *src, int err)
{
	struct kvm_gmem_transfer_slot slots[2], slots_before[2];
	struct kvm_gmem_transfer args, args_before;

	memset(slots, 0xab, sizeof(slots));
	memcpy(slots_before, slots, sizeof(slots));
	args = (struct kvm_gmem_transfer) {
		.source_fd = src->vm->fd,
		.nr_slots = 2,
		.nr_matched = 0xabababab,
		.slots = (uintptr_t)slots,
		.tables = 0xabababab,
		.zapped = 0xabababab,
	};
	args_before = args;

	TEST_ASSERT_EQ(__vm_ioctl(dst->vm, KVM_GMEM_TRANSFER, &args), -1);
	TEST_ASSERT_EQ(errno, err);
	TEST_ASSERT(!memcmp(&args, &args_before, sizeof(args)), "The arguments have changed");
	TEST_ASSERT(!memcmp(slots, slots_before, sizeof(slots)), "The slots have changed");
}

TEST_F(error, ebusy_while_a_vcpu_of_src_runs)
{
	struct gmem_result res;
	struct runner runner;

	start_running(&runner, &self->src);
	gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, EBUSY);
	assert_fails_silently(&self->dst, &self->src, EBUSY);
	res = gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_DRY_RUN);
	EXPECT_EQ(res.args.nr_matched, 1);
	stop_running(&runner);

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_owner(&self->dst);
}

TEST_F(error, ebusy_while_a_vcpu_of_dst_runs)
{
	struct gmem_result res;
	struct runner runner;

	start_running(&runner, &self->dst);
	gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, EBUSY);
	res = gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_DRY_RUN);
	EXPECT_EQ(res.args.nr_matched, 1);
	stop_running(&runner);

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_run_fails(&self->src, ESTALE);
	gmem_transfer(&self->src, &self->dst, 0);
	gmem_assert_owner(&self->src);
}

TEST_F(error, ebusy_if_src_is_the_destination_of_a_pending_transfer)
{
	struct gmem_vm third;

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_dst_create(&third, &self->dst, 1);
	gmem_assert_transfer_fails(&third, self->dst.vm->fd, 0, EBUSY);

	/* With the commit it isn't pending anymore. */
	gmem_assert_owner(&self->dst);
	gmem_transfer(&third, &self->dst, 0);
	gmem_assert_owner(&third);
	gmem_vm_free(&third);
}

TEST_F(error, ebusy_if_dst_is_the_destination_of_a_pending_transfer)
{
	struct gmem_vm third;
	int view;

	gmem_src_create(&third, 1);
	view = gmem_link(&self->dst, third.fd);
	gmem_bind(&self->dst, GMEM_SLOT + 1, GMEM_GPA + GMEM_SIZE, GMEM_SIZE, view, 0);
	gmem_unbind(&third, GMEM_SLOT);
	gmem_bind(&third, GMEM_SLOT, GMEM_GPA + GMEM_SIZE, GMEM_SIZE, third.fd, 0);

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_transfer_fails(&self->dst, third.vm->fd, 0, EBUSY);

	gmem_assert_owner(&self->dst);
	gmem_transfer(&self->dst, &third, 0);
	gmem_map(&self->dst, GMEM_GPA + GMEM_SIZE, GMEM_SIZE);
	gmem_guest_verify(&self->dst, GMEM_GPA + GMEM_SIZE, GMEM_SIZE, GMEM_PATTERN);
	kvm_close(view);
	gmem_vm_free(&third);
}

TEST_F(error, estale_if_src_is_parked)
{
	struct gmem_vm third;

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_dst_create(&third, &self->src, 1);
	gmem_assert_transfer_fails(&third, self->src.vm->fd, 0, ESTALE);

	/* Also for the one which it has been handed over to. */
	gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, ESTALE);
	assert_fails_silently(&self->dst, &self->src, ESTALE);
	gmem_assert_owner(&self->dst);
	gmem_vm_free(&third);
}

TEST_F(error, estale_if_src_is_dead)
{
	struct gmem_vm third;

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_assert_owner(&self->dst);
	gmem_dst_create(&third, &self->src, 1);
	gmem_assert_transfer_fails(&third, self->src.vm->fd, 0, ESTALE);
	gmem_assert_transfer_fails(&self->dst, self->src.vm->fd, 0, ESTALE);
	gmem_assert_owner(&self->dst);
	gmem_vm_free(&third);
}

TEST_F(error, parked_vm_cannot_be_the_destination_of_a_third)
{
	struct gmem_vm third;
	struct gmem_result res;

	gmem_src_create(&third, 1);
	gmem_transfer(&self->dst, &self->src, 0);
	res = __gmem_transfer(&self->src, &third, 0);
	TEST_ASSERT(res.ret == -1 && (res.err == EBUSY || res.err == ESTALE),
		    "Wanted EBUSY or ESTALE, got %d (%s)", res.err, strerror(res.err));
	gmem_assert_owner(&third);
	gmem_vm_free(&third);
}

TEST_F(error, enoent_without_any_gmem_slot)
{
	struct gmem_vm third = gmem_vm_create(1);
	struct gmem_result res;

	res = gmem_assert_transfer_fails(&third, self->src.vm->fd, 0, ENOENT);
	EXPECT_EQ(res.args.nr_slots, 0);
	EXPECT_EQ(res.args.nr_matched, 0);
	gmem_vm_free(&third);
	gmem_assert_nothing_changed(&self->src, &self->dst);
}

TEST_F(error, efault_changes_nothing)
{
	struct kvm_gmem_transfer *args, good = {
		.source_fd = self->src.vm->fd,
		.slots = 0x1000,
		.nr_slots = 1,
	};

	/* No arguments, no room for the verdicts, no room for the results. */
	EXPECT_EQ(ioctl(self->dst.vm->fd, KVM_GMEM_TRANSFER, NULL), -1);
	EXPECT_EQ(errno, EFAULT);

	EXPECT_EQ(__vm_ioctl(self->dst.vm, KVM_GMEM_TRANSFER, &good), -1);
	EXPECT_EQ(errno, EFAULT);

	args = kvm_mmap(getpagesize(), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	good.slots = 0;
	good.nr_slots = 0;
	*args = good;
	ASSERT_EQ(mprotect(args, getpagesize(), PROT_READ), 0);
	EXPECT_EQ(__vm_ioctl(self->dst.vm, KVM_GMEM_TRANSFER, args), -1);
	EXPECT_EQ(errno, EFAULT);

	gmem_assert_nothing_changed(&self->src, &self->dst);
}

int main(int argc, char *argv[])
{
	gmem_test_require();

	return test_harness_run(argc, argv);
}
