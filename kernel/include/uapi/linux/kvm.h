/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What the kernel extension adds to <linux/kvm.h>, on top of the system's own copy: put the folder
 * kernel/include/uapi before the system's (-I), and include <linux/kvm.h> as ever. It needs nothing
 * of guest_memfd from the system's header, and adds nothing where that has the additions already.
 *
 * The patched kernel's own header says the same; tests/kernel/uapi.py holds the two together.
 */
#ifndef UPGRADED_LINUX_KVM_H
#define UPGRADED_LINUX_KVM_H

#include_next <linux/kvm.h>

#ifndef KVM_GMEM_LINK

/*
 * KVM_CHECK_EXTENSION, on /dev/kvm or on a VM: 0, or the supported KVM_GMEM_TRANSFER_* flags with
 * bit 30 set.
 */
#define KVM_CAP_GMEM_TRANSFER 0x474d

/*
 * KVM_GMEM_LINK, on the destination VM: returns a new file descriptor, close-on-exec, which is this
 * VM's view of the memory behind gmem_fd. The view can be bound to memslots of this VM; guest accesses
 * through it fail until KVM_GMEM_TRANSFER makes this VM the owner of the memory.
 *
 * gmem_fd	a guest_memfd of any VM; borrowed, the caller may close it afterwards
 * flags	must be 0
 * reserved	must be 0
 *
 * The new descriptor belongs to the caller, and keeps this VM and the memory alive.
 *
 * EBADF gmem_fd is not open; ENODEV it is no guest_memfd; EEXIST this VM has a view of the memory
 * already; EINVAL unknown flag or reserved not 0; ESTALE the memory's owner is dead; EOPNOTSUPP this VM
 * or the owner cannot hand over memory; EXDEV this VM does not support the flags which the memory was
 * created with.
 */
struct kvm_gmem_link {
	__s32 gmem_fd;
	__u32 flags;
	__u64 reserved[3];
};

#define KVM_GMEM_LINK		_IOW(KVMIO, 0xf0, struct kvm_gmem_link)

/* kvm_gmem_transfer_slot.verdict: what the comparison found first that differs, or that nothing does. */
enum {
	KVM_GMEM_SLOT_MATCH = 0,
	KVM_GMEM_SLOT_NO_SOURCE = 1,	/* the source has no memslot at this guest physical address */
	KVM_GMEM_SLOT_INODE = 2,	/* the source's memslot there has other memory behind it */
	KVM_GMEM_SLOT_OFFSET = 3,	/* the same memory, from another offset */
	KVM_GMEM_SLOT_GPA = 4,		/* the same memory and offset, at another guest physical address */
	KVM_GMEM_SLOT_SIZE = 5,		/* another size */
	KVM_GMEM_SLOT_FLAGS = 6,	/* other KVM_MEM_* flags */
	KVM_GMEM_SLOT_NOT_OWNER = 7,	/* the source does not own the memory */
	KVM_GMEM_SLOT_PARTIAL = 8,	/* another memslot of the same memory does not match */
	KVM_GMEM_SLOT_CLOSED = 9,	/* one of the two views was closed */
};

/*
 * The verdict on one memslot of the destination that is backed by a guest_memfd.
 *
 * slot		address space << 16 | id, as in kvm_userspace_memory_region2
 * gpa, size	in bytes
 */
struct kvm_gmem_transfer_slot {
	__u32 slot;
	__u32 verdict;
	__u64 gpa;
	__u64 size;
};

#define KVM_GMEM_TRANSFER_DRY_RUN	(1U << 0) /* compare only; vCPUs may run, nothing changes */
#define KVM_GMEM_TRANSFER_REQUIRE_ALL	(1U << 1) /* no effect unless every memslot matches */
#define KVM_GMEM_TRANSFER_NO_STAGE2	(1U << 2) /* move the ownership, drop the page tables */
#define KVM_GMEM_TRANSFER_UNMAP		(1U << 3) /* drop the past owner's user mappings, page by page */

/*
 * KVM_GMEM_TRANSFER, on the destination VM: makes it the owner of the memory of all matching memslots,
 * and hands it the source's finished stage-2 page tables. Returns 0. The source is parked: it cannot
 * run. Until the destination's first KVM_RUN, the same call on the source, with the destination as
 * source_fd, takes everything back: all of its memslots must match, and have all the memory that was
 * handed over. That KVM_RUN is the commit, after which the source is dead.
 *
 * source_fd	in: file descriptor of the source VM; borrowed
 * flags	in: KVM_GMEM_TRANSFER_*
 * nr_slots	in: number of elements that slots[] has room for; out: number of memslots of the
 *		destination with a guest_memfd, which may be more than there was room for
 * nr_matched	out: how many of them match
 * slots	in: user address of struct kvm_gmem_transfer_slot[nr_slots], or 0
 * tables	out: page-table pages handed over
 * zapped	out: leaf entries dropped
 * reserved	in: must be 0
 *
 * EBADF source_fd is not open; ENODEV it is no VM; EINVAL unknown flag, reserved not 0, or the VM
 * itself; EBUSY a vCPU of either VM runs or is being created, or another transfer is pending; ESTALE
 * the source is parked or dead; ENXIO REQUIRE_ALL and a memslot does not match, or memory would be left
 * behind on the way back; ENOENT no memslot matches; EAGAIN page tables stayed in use, try again;
 * EFAULT, only before anything changed; EDQUOT the limit of the destination's memory cgroup, if that is
 * another one than the source's; EOPNOTSUPP these two VMs cannot hand over memory. After any error both
 * VMs are as before. Nothing is written but after success, ENXIO and ENOENT.
 */
struct kvm_gmem_transfer {
	__s32 source_fd;
	__u32 flags;
	__u32 nr_slots;
	__u32 nr_matched;
	__u64 slots;
	__u64 tables;
	__u64 zapped;
	__u64 reserved[4];
};

#define KVM_GMEM_TRANSFER	_IOWR(KVMIO, 0xf1, struct kvm_gmem_transfer)

#endif /* KVM_GMEM_LINK */

#endif /* UPGRADED_LINUX_KVM_H */
