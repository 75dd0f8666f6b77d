/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel extension that hands guest_memfd memory from one VM to another,
 * for VMMs: three ioctls in a form that a VMM can use without the patched
 * kernel's header. Called by a VMM's callbacks (accept, verify, own, reclaim);
 * owns nothing. If the process dies here: a transfer is done as a whole or not
 * at all, and a destination that dies before it ran gives the memory back.
 */
#include "clock.h"
#include "upgraded.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define SLOTS_MAX      64
#define RETRY_LIMIT_MS 500

bool upgraded_gmem_supported(int kvm)
{
	return ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_GMEM_TRANSFER) > 0;
}

int upgraded_gmem_link(int vm, int gmem, int *ret_view)
{
	struct kvm_gmem_link link = { .gmem_fd = gmem };
	int fd = ioctl(vm, KVM_GMEM_LINK, &link);

	if (fd < 0)
		return -errno;
	*ret_view = fd;
	return 0;
}

static void fill_result(const struct kvm_gmem_transfer *t,
			const struct kvm_gmem_transfer_slot *slots,
			struct upgraded_gmem_result *ret_result)
{
	uint32_t n = t->nr_slots < SLOTS_MAX ? t->nr_slots : SLOTS_MAX;

	*ret_result = (struct upgraded_gmem_result){
		.slots = t->nr_slots,
		.matched = t->nr_matched,
		.tables = t->tables,
		.zapped = t->zapped,
	};
	for (uint32_t i = 0; i < n; i++)
		if (slots[i].verdict != KVM_GMEM_SLOT_MATCH) {
			ret_result->gpa = slots[i].gpa;
			ret_result->verdict = slots[i].verdict;
			return;
		}
}

int upgraded_gmem_transfer(int vm, int source_vm, uint32_t flags,
			   struct upgraded_gmem_result *ret_result)
{
	struct kvm_gmem_transfer_slot slots[SLOTS_MAX];
	int64_t deadline = now_ms() + RETRY_LIMIT_MS;
	int r;

	if (flags & ~UPGRADED_GMEM_DRY_RUN)
		return -EINVAL;
	for (;;) {
		struct kvm_gmem_transfer t = {
			.source_fd = source_vm,
			.flags = KVM_GMEM_TRANSFER_REQUIRE_ALL,
			.nr_slots = SLOTS_MAX,
			.slots = (uintptr_t)slots,
		};
		const struct timespec pause = { .tv_nsec = 100000 };

		if (flags & UPGRADED_GMEM_DRY_RUN)
			t.flags |= KVM_GMEM_TRANSFER_DRY_RUN;
		r = ioctl(vm, KVM_GMEM_TRANSFER, &t) < 0 ? -errno : 0;
		if (ret_result && (r == 0 || r == -ENXIO || r == -ENOENT))
			fill_result(&t, slots, ret_result);
		if ((r != -EAGAIN && r != -EBUSY && r != -EINTR) || now_ms() >= deadline)
			return r;
		nanosleep(&pause, NULL);
	}
}

const char *upgraded_gmem_verdict(uint32_t verdict)
{
	static const char *const text[] = {
		[KVM_GMEM_SLOT_MATCH] = "the same in both VMs",
		[KVM_GMEM_SLOT_NO_SOURCE] = "the source has no memory there",
		[KVM_GMEM_SLOT_INODE] = "the source has other memory there",
		[KVM_GMEM_SLOT_OFFSET] = "the source has another part of the memory there",
		[KVM_GMEM_SLOT_GPA] = "the source has this memory at another guest address",
		[KVM_GMEM_SLOT_SIZE] = "the source's memslot has another size",
		[KVM_GMEM_SLOT_FLAGS] = "the source's memslot has other flags",
		[KVM_GMEM_SLOT_NOT_OWNER] = "the source does not own the memory",
		[KVM_GMEM_SLOT_PARTIAL] = "another memslot of the same memory differs",
		[KVM_GMEM_SLOT_CLOSED] = "one of the two views was closed",
	};

	return verdict < sizeof(text) / sizeof(text[0]) ? text[verdict]
							: "a verdict that is not known here";
}
