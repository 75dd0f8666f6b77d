// SPDX-License-Identifier: GPL-2.0-only
/*
 * The x86 half of KVM_GMEM_TRANSFER: move the TDP MMU's page tables from one VM
 * to another.  See virt/kvm/gmem_transfer.c for the rules and the lock order.
 *
 * A root of the TDP MMU and everything below it consist of physical addresses,
 * and of bits which are the same for two VMs of the same kind.  The tables know
 * neither their VM nor its memslots.  There are exceptions, and each is dealt
 * with before the roots, as a whole, change the VM:
 *
 *  - SPTEs for gfns that are not in a matching memslot.  Zapped.
 *  - SPTEs for the shared half of a memslot which isn't gmem-only.  Zapped.
 *  - MMIO SPTEs, which are valid for one generation of one VM's memslots.  Zapped
 *    outside of the matching memslots.  Inside there may be some from before the
 *    memslot was created.  They stay, and the destination skips to a generation
 *    newer than all of them.
 *  - Roots whose role no vCPU of the destination has, e.g. of another level.
 *    Zapped.
 *  - Shadow pages of nested guests, on both sides, along with the write-tracking
 *    of gfns that comes with them.  Zapped.
 *
 * What is zapped is faulted in again, by whoever owns the memory then.
 *
 * TLBs: no vCPU of the two VMs is running, and all have their roots unloaded.
 * Loading a root flushes the TLB of the current CPU, and so does loading a vCPU
 * on another CPU, so that no CPU runs a vCPU of the destination with what it
 * cached for the source.  That holds for entries tagged by VMID (SVM's ASID, of
 * which each vCPU has its own) as well as for those tagged by the root's address
 * (EPT).
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/workqueue.h>

#include "mmu.h"
#include "mmu_internal.h"
#include "spte.h"
#include "tdp_mmu.h"
#include "x86.h"

/*
 * For how often, and in which intervals, to look whether the last user of a root
 * is done.  Those are other tasks zapping SPTEs of the source, one MMU notifier
 * at a time or all at once when its process is exiting.
 */
#define KVM_GMEM_MOVE_TRIES	1000
#define KVM_GMEM_MOVE_DELAY_US	10

/* Until then, the guest should have got going again. */
#define KVM_GMEM_ZAP_DELAY	(HZ / 10)

/* The quirks that take part in making a SPTE, by way of the memory type. */
#define KVM_GMEM_SPTE_QUIRKS	(KVM_X86_QUIRK_CD_NW_CLEARED |	\
				 KVM_X86_QUIRK_IGNORE_GUEST_PAT)

bool kvm_arch_gmem_transfer_supported(struct kvm *kvm)
{
	if (!tdp_mmu_enabled)
		return false;

	if (!kvm)
		return true;

	return (kvm->arch.vm_type == KVM_X86_DEFAULT_VM ||
		kvm->arch.vm_type == KVM_X86_SW_PROTECTED_VM) &&
	       !kvm_x86_call(has_encrypted_memory)(kvm);
}

int kvm_arch_gmem_transfer_check(struct kvm *dst, struct kvm *src)
{
	if (dst->arch.vm_type != src->arch.vm_type)
		return -EOPNOTSUPP;

#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
	/* Somebody outside of KVM relies on SPTEs being write-protected. */
	if (dst->arch.external_write_tracking_enabled ||
	    src->arch.external_write_tracking_enabled)
		return -EOPNOTSUPP;
#endif

	/* All that is in a SPTE and is up to the VM. */
	if (dst->arch.disable_nx_huge_pages != src->arch.disable_nx_huge_pages ||
	    dst->arch.shadow_mmio_value != src->arch.shadow_mmio_value ||
	    kvm_arch_has_noncoherent_dma(dst) != kvm_arch_has_noncoherent_dma(src) ||
	    (dst->arch.disabled_quirks ^ src->arch.disabled_quirks) & KVM_GMEM_SPTE_QUIRKS)
		return -EOPNOTSUPP;

	return 0;
}

static void kvm_gmem_unload_vcpus(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	/* Nobody but the holder of vcpu->mutex uses a vCPU's MMU. */
	kvm_for_each_vcpu(i, vcpu, kvm)
		kvm_mmu_unload(vcpu);
}

/* Zap invalidated roots when nobody is waiting for it. */
void kvm_mmu_gmem_zap_work(struct work_struct *work)
{
	struct kvm *kvm = container_of(to_delayed_work(work), struct kvm,
				       arch.gmem_zap_work);
	gfn_t gfn = 0;
	bool more;

	/* The roots go along with the VM, see kvm_mmu_uninit_tdp_mmu(). */
	while (refcount_read(&kvm->users_count)) {
		mutex_lock(&kvm->slots_lock);
		more = kvm_tdp_mmu_zap_some_invalidated(kvm, &gfn);
		mutex_unlock(&kvm->slots_lock);

		if (!more)
			break;
		cond_resched();
	}
}

/*
 * Get rid of all page tables of a VM, in no time.  Until they are zapped, MMU
 * notifiers and guest_memfd keep on looking into invalid roots, and changes of
 * memslots zap them if they have to.
 */
static void kvm_gmem_drop_roots(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);

	if (list_empty(&kvm->arch.tdp_mmu_roots))
		return;

	scoped_guard(write_lock, &kvm->mmu_lock)
		kvm_tdp_mmu_invalidate_roots(kvm, KVM_DIRECT_ROOTS);

	queue_delayed_work(system_dfl_wq, &kvm->arch.gmem_zap_work,
			   KVM_GMEM_ZAP_DELAY);
}

static int kvm_gmem_alloc_headers(struct list_head *headers, int nr)
{
	struct kvm_mmu_page *sp;

	while (nr--) {
		sp = kmem_cache_zalloc(mmu_page_header_cache, GFP_KERNEL_ACCOUNT);
		if (!sp)
			return -ENOMEM;
		list_add(&sp->link, headers);
	}
	return 0;
}

int kvm_arch_gmem_transfer_prepare(struct kvm *dst, struct kvm *src,
				   struct kvm_gmem_stage2 *stage2)
{
	int nr_roots, r;

	INIT_LIST_HEAD(&stage2->spare);

	/* Page tables are charged like the memory that they map. */
	if (!stage2->drop &&
	    obj_cgroup_pool_prepare_move(src->arch.tdp_mmu_charges, dst->mm,
					 stage2->reverse))
		return -EDQUOT;

	kvm_gmem_unload_vcpus(dst);
	kvm_gmem_unload_vcpus(src);

	stage2->nr_leafs = kvm_tdp_mmu_nr_leafs(src);

	kvm_mmu_zap_all_shadow_pages(dst);
	kvm_mmu_zap_all_shadow_pages(src);

	if (stage2->drop)
		return 0;

	nr_roots = kvm_tdp_mmu_invalidate_unfit_roots(src, dst);
	if (!nr_roots) {
		stage2->drop = true;
		return 0;
	}

	/* Also what is left of an earlier transfer, if anything. */
	kvm_tdp_mmu_zap_invalidated_roots(src, true);
	kvm_tdp_mmu_zap_outside(src, stage2->spans, stage2->nr_spans);

	r = kvm_gmem_alloc_headers(&stage2->spare, nr_roots);
	if (r)
		obj_cgroup_pool_cancel_move(src->arch.tdp_mmu_charges);
	return r;
}

/*
 * The page tables have changed the VM.  What they are charged to goes with them,
 * in exchange for that of the destination, whose page tables are on their way
 * out.  Nobody allocates page tables for either VM at the moment.
 */
static void kvm_gmem_move_charges(struct kvm *dst, struct kvm *src)
{
	lockdep_assert_held(&dst->slots_lock);
	lockdep_assert_held(&src->slots_lock);

	obj_cgroup_pool_commit_move(src->arch.tdp_mmu_charges);
	swap(src->arch.tdp_mmu_charges, dst->arch.tdp_mmu_charges);
}

/*
 * Make sure that no MMIO SPTE of the source is valid in the destination, by
 * giving the memslots of the destination a newer generation, in every address
 * space.  Returns false if there is none, because the counter is about to wrap.
 */
static bool kvm_gmem_skip_mmio_generations(struct kvm *dst, struct kvm *src)
{
	int nr = kvm_arch_nr_memslot_as_ids(dst), i;
	u64 src_gen, dst_gen;

	for (i = 0; i < nr; i++) {
		src_gen = __kvm_memslots(src, i)->generation & MMIO_SPTE_GEN_MASK;
		if (src_gen + nr > MMIO_SPTE_GEN_MASK)
			return false;
	}

	for (i = 0; i < nr; i++) {
		struct kvm_memslots *slots = __kvm_memslots(dst, i);

		src_gen = __kvm_memslots(src, i)->generation & MMIO_SPTE_GEN_MASK;
		dst_gen = slots->generation & MMIO_SPTE_GEN_MASK;
		if (dst_gen <= src_gen)
			WRITE_ONCE(slots->generation,
				   slots->generation + (src_gen - dst_gen) + nr);
	}
	return true;
}

static long kvm_gmem_move_roots(struct kvm *dst, struct kvm *src,
				struct kvm_gmem_stage2 *stage2)
{
	u64 nr_leafs;
	long nr;

	guard(write_lock)(&dst->mmu_lock);

	write_lock_nested(&src->mmu_lock, SINGLE_DEPTH_NESTING);
	nr_leafs = kvm_tdp_mmu_nr_leafs(src);
	/*
	 * Noncoherent DMA and write-tracking are turned on under none of the locks
	 * that were held so far, and act on page tables under mmu_lock after that.
	 */
	nr = kvm_arch_gmem_transfer_check(dst, src);
	if (!nr)
		nr = kvm_tdp_mmu_move_roots(dst, src, &stage2->spare);
	write_unlock(&src->mmu_lock);

	if (nr >= 0) {
		stage2->tables = nr;
		stage2->zapped = stage2->nr_leafs - nr_leafs;
		dst->stat.gmem_tables_received += nr;
	}
	return nr;
}

int kvm_arch_gmem_transfer_commit(struct kvm *dst, struct kvm *src,
				  struct kvm_gmem_stage2 *stage2)
{
	int tries;
	long r;

	/* vCPUs use the first root that has the right role. */
	kvm_gmem_drop_roots(dst);

	if (stage2->drop || !kvm_gmem_skip_mmio_generations(dst, src))
		goto drop;

	for (tries = 0; tries < KVM_GMEM_MOVE_TRIES; tries++) {
		r = kvm_gmem_move_roots(dst, src, stage2);
		if (r != -EAGAIN)
			break;

		usleep_range(KVM_GMEM_MOVE_DELAY_US, 5 * KVM_GMEM_MOVE_DELAY_US);
	}
	if (r == -EOPNOTSUPP && stage2->reverse)
		goto drop;
	if (r < 0) {
		obj_cgroup_pool_cancel_move(src->arch.tdp_mmu_charges);
		return r;
	}
	kvm_gmem_move_charges(dst, src);
	return 0;

drop:
	kvm_gmem_drop_roots(src);
	stage2->zapped = stage2->nr_leafs;
	obj_cgroup_pool_cancel_move(src->arch.tdp_mmu_charges);
	return 0;
}

void kvm_arch_gmem_transfer_finish(struct kvm_gmem_stage2 *stage2)
{
	struct kvm_mmu_page *sp, *tmp;

	if (!stage2->spare.next)
		return;

	list_for_each_entry_safe(sp, tmp, &stage2->spare, link)
		kmem_cache_free(mmu_page_header_cache, sp);
}

void kvm_arch_gmem_attributes_moved(struct kvm *kvm, struct kvm_memory_slot *slot,
				    struct kvm_memory_slot *from)
{
#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
	lockdep_assert_held(&kvm->slots_lock);

	/* Which hugepages are possible depends on the attributes. */
	if (from)
		kvm_mmu_copy_memslot_memory_attributes(kvm, slot, from);
	else
		kvm_mmu_init_memslot_memory_attributes(kvm, slot);
#endif
}
