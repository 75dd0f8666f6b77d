// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hand the memory of a VM, and the page tables that map it, to another VM.
 *
 * KVM_GMEM_LINK gives a VM its own view of another VM's guest_memfd: a file on
 * the same inode, which can be bound to memslots.  KVM_GMEM_TRANSFER compares
 * what the memslots of two VMs are backed by, and for those that agree makes
 * the destination the owner of the memory.  As the same memory is at the same
 * place in both guests, the stage-2 page tables are the same as well, and move
 * along as they are.  Nothing here depends on the amount of memory, other than
 * the removal of what must not move.
 *
 * At any time, one VM owns an inode, and only that VM's guest can access it:
 *
 *                     KVM_GMEM_TRANSFER              KVM_RUN of destination
 *   source owns  -----------------------> pending  -------------------------> committed
 *                <-----------------------
 *                 the reverse transfer, or
 *                 the destination goes away
 *
 * While the transfer is pending, the source is parked.  It refuses to run, but
 * is otherwise intact.  After the commit it is dead.  Should the source go away
 * before that, then there is just no way back.
 *
 * Lock order, a VM's own locks being taken for the destination first:
 *
 *   migration_in_progress	-EBUSY, so that two VMs are never locked crosswise
 *   kvm->lock
 *   vcpu->mutex		of all vCPUs, -EBUSY: a vCPU in KVM_RUN can take forever
 *   kvm->slots_lock		slots and bindings are stable; kvm_gmem_release()
 *				waits, i.e. no inode of a bound slot goes away
 *   mapping->invalidate_lock	of all inodes which change hands, whose owner is then
 *				stable, and which nobody zaps half-way of the move
 *   kvm->mmu_lock
 *   gmem_handover_lock
 *
 * Nothing else takes the invalidate_lock of several inodes, except a transfer
 * that involves another owner and hence other inodes.  User memory is accessed
 * without any of the locks.  A task that is slow to resolve its own page faults
 * must not be able to block the other VM.
 */
#include <linux/bsearch.h>
#include <linux/file.h>
#include <linux/folio_batch.h>
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sort.h>
#include <linux/timekeeping.h>

#include <trace/events/kvm.h>

#include "gmem_transfer.h"
#include "guest_memfd.h"
#include "kvm_mm.h"

#define KVM_GMEM_TRANSFER_VALID_FLAGS	(KVM_GMEM_TRANSFER_DRY_RUN |	\
					 KVM_GMEM_TRANSFER_REQUIRE_ALL |	\
					 KVM_GMEM_TRANSFER_NO_STAGE2 |	\
					 KVM_GMEM_TRANSFER_UNMAP)

#define KVM_GMEM_TRANSFER_PRESENT	BIT(30)

/*
 * A pending transfer.  It belongs to both VMs, and pins neither of them: all
 * members, and the pointers to it in struct kvm, are protected by
 * gmem_handover_lock, and each VM takes itself out when it is destroyed.
 */
struct kvm_gmem_handover {
	struct kvm *src;
	struct kvm *dst;
	/* How many inodes changed hands, and have not gone back since. */
	int nr_inodes;
	/* Memory went back because the destination closed its view of it. */
	bool broken;
	/* If the VMs have exchanged their memory attributes: what of, sorted. */
	int nr_spans;
	struct kvm_gmem_span spans[] __counted_by(nr_spans);
};

static DEFINE_SPINLOCK(gmem_handover_lock);

/* What is known of one memslot of the destination. */
struct kvm_gmem_pair {
	struct kvm_memory_slot *slot;
	struct inode *inode;
	/* The destination has no memory attributes here, but the source has. */
	bool copy_attributes;
	/* A copy, as the slot may be gone when userspace gets to see it. */
	struct kvm_gmem_transfer_slot report;
};

/* An inode which at least one matching memslot is backed by. */
struct kvm_gmem_moving {
	struct inode *inode;
	bool partial;
};

struct kvm_gmem_transfer_ctx {
	struct kvm *dst;
	struct kvm *src;
	u32 flags;
	bool swap_attributes;

	struct kvm_gmem_pair *pairs;
	struct kvm_gmem_moving *inodes;
	int nr_pairs;
	int nr_matched;
	int nr_inodes;
	/* On the way back: how many inodes there are to go back. */
	int nr_pending;

	struct kvm_gmem_stage2 stage2;
};

int kvm_gmem_transfer_capability(struct kvm *kvm)
{
	if (!kvm_arch_gmem_transfer_supported(kvm))
		return 0;

	return KVM_GMEM_TRANSFER_PRESENT | KVM_GMEM_TRANSFER_VALID_FLAGS;
}

int kvm_gmem_link(struct kvm *kvm, struct kvm_gmem_link *args)
{
	struct inode *inode;
	struct gmem_file *f;
	struct file *file;
	struct kvm *owner;
	int fd, r;

	if (args->flags || memchr_inv(args->reserved, 0, sizeof(args->reserved)))
		return -EINVAL;

	if (!kvm_arch_gmem_transfer_supported(kvm))
		return -EOPNOTSUPP;

	CLASS(fd, gmem)(args->gmem_fd);
	if (fd_empty(gmem))
		return -EBADF;

	if (!kvm_gmem_is_gmem_file(fd_file(gmem)))
		return -ENODEV;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;

	inode = file_inode(fd_file(gmem));

	filemap_invalidate_lock(inode->i_mapping);

	r = -EEXIST;
	kvm_gmem_for_each_file(f, inode) {
		if (f->kvm == kvm)
			goto err;
	}

	/* The owner's view is on the list of views, and pins the owner. */
	owner = GMEM_I(inode)->owner;
	r = -ESTALE;
	if (!owner || owner->vm_dead)
		goto err;

	r = -EOPNOTSUPP;
	if (!kvm_arch_gmem_transfer_supported(owner))
		goto err;

	r = -EXDEV;
	if (GMEM_I(inode)->flags & ~kvm_gmem_get_supported_flags(kvm))
		goto err;

	ihold(inode);
	file = kvm_gmem_alloc_view(kvm, inode);
	if (IS_ERR(file)) {
		r = PTR_ERR(file);
		iput(inode);
		goto err;
	}

	filemap_invalidate_unlock(inode->i_mapping);

	trace_kvm_gmem_link(inode->i_ino, i_size_read(inode));
	fd_install(fd, file);
	return fd;

err:
	filemap_invalidate_unlock(inode->i_mapping);
	put_unused_fd(fd);
	return r;
}

int __kvm_gmem_pre_run(struct kvm *kvm, bool commit)
{
	struct kvm_gmem_handover *h;

	if (kvm_gmem_is_parked(kvm))
		return -ESTALE;

	guard(spinlock)(&gmem_handover_lock);

	h = kvm->gmem_handover;
	if (!h)
		return 0;

	/* All that is left to do with this VM is to destroy it. */
	if (h->broken)
		return -ESTALE;

	if (!commit)
		return 0;

	/*
	 * The point of no return.  The source stays parked, for the sake of a
	 * vCPU which is past the check for a dead VM.
	 */
	if (h->src) {
		h->src->gmem_handover = NULL;
		kvm_vm_dead(h->src);
	}
	kvm->gmem_handover = NULL;
	kvfree_atomic(h);
	return 0;
}

static struct gmem_file *kvm_gmem_view_of(struct inode *inode, struct kvm *kvm)
{
	struct gmem_file *f;

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	kvm_gmem_for_each_file(f, inode) {
		if (f->kvm == kvm)
			return f;
	}
	return NULL;
}

/*
 * @kvm, the owner of @inode, has closed its view.  If a transfer is pending then
 * the source takes over again, given that its view is still there.
 */
struct kvm *kvm_gmem_release_owner(struct inode *inode, struct kvm *kvm)
{
	struct kvm_gmem_handover *h;
	struct gmem_file *f;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	guard(spinlock)(&gmem_handover_lock);

	h = kvm->gmem_handover;
	if (!h || h->dst != kvm || !h->src)
		return NULL;

	/* Not if the memory is the destination's own, and the source has linked it. */
	f = kvm_gmem_view_of(inode, h->src);
	if (!f || !f->past_owner)
		return NULL;

	h->nr_inodes--;
	h->broken = true;
	WRITE_ONCE(f->past_owner, false);
	return h->src;
}

#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
static bool kvm_gmem_has_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	unsigned long index = start;

	return start < end && xa_find(kvm->mem_attr_array, &index, end - 1, XA_PRESENT);
}

/* Does @kvm have attributes of gfns that are not going to change hands? */
static bool kvm_gmem_has_other_attributes(struct kvm *kvm,
					  struct kvm_gmem_stage2 *stage2)
{
	gfn_t gfn = 0;
	int i;

	/* VMs with attributes have one address space. */
	for (i = 0; i < stage2->nr_spans; i++) {
		if (kvm_gmem_has_attributes(kvm, gfn, stage2->spans[i].start))
			return true;
		gfn = stage2->spans[i].end;
	}
	return kvm_gmem_has_attributes(kvm, gfn, ~0ull);
}

/* Do two VMs have the same attributes in [start, end)? */
static bool kvm_gmem_same_attributes(struct kvm *a, struct kvm *b,
				     gfn_t start, gfn_t end)
{
	unsigned long i = start, j = start;
	void *x, *y;

	for (;;) {
		x = xa_find(a->mem_attr_array, &i, end - 1, XA_PRESENT);
		y = xa_find(b->mem_attr_array, &j, end - 1, XA_PRESENT);
		if (!x || !y)
			return x == y;
		if (x != y || i != j)
			return false;
		if (++i == end)
			return true;
		j = i;
		cond_resched();
	}
}

static void kvm_gmem_swap_attributes(struct kvm *a, struct kvm *b)
{
	swap(a->mem_attr_array, b->mem_attr_array);
}

static void kvm_gmem_erase_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	unsigned long index;
	void *entry;

	if (start >= end)
		return;

	xa_for_each_range(kvm->mem_attr_array, index, entry, start, end - 1) {
		xa_erase(kvm->mem_attr_array, index);
		cond_resched();
	}
}

static void kvm_gmem_uncopy_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_memory_slot *slot;
	int i;

	for (i = 0; i < ctx->nr_pairs; i++) {
		if (!ctx->pairs[i].copy_attributes)
			continue;

		slot = ctx->pairs[i].slot;
		kvm_gmem_erase_attributes(ctx->dst, slot->base_gfn,
					  slot->base_gfn + slot->npages);
	}
}

/*
 * Give the destination the attributes of what matches.  Until it owns the memory
 * they have no effect, and the source doesn't change its own while it is parked.
 */
static int kvm_gmem_copy_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_memory_slot *slot;
	unsigned long index;
	void *entry;
	int i, r;

	for (i = 0; i < ctx->nr_pairs; i++) {
		if (!ctx->pairs[i].copy_attributes)
			continue;

		slot = ctx->pairs[i].slot;
		xa_for_each_range(ctx->src->mem_attr_array, index, entry, slot->base_gfn,
				  slot->base_gfn + slot->npages - 1) {
			r = xa_err(xa_store(ctx->dst->mem_attr_array, index, entry,
					    GFP_KERNEL_ACCOUNT));
			if (r) {
				kvm_gmem_uncopy_attributes(ctx);
				return r;
			}
			cond_resched();
		}
	}
	return 0;
}

/* Tell the arch which of the destination's slots have new attributes. */
static void kvm_gmem_attributes_moved(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_gmem_pair *pair;
	struct kvm_memslots *slots;
	int i;

	for (i = 0; i < ctx->nr_pairs; i++) {
		pair = &ctx->pairs[i];
		if (pair->report.verdict != KVM_GMEM_SLOT_MATCH ||
		    !(ctx->swap_attributes || pair->copy_attributes))
			continue;

		slots = __kvm_memslots(ctx->src, pair->slot->as_id);
		kvm_arch_gmem_attributes_moved(ctx->dst, pair->slot,
					       __gfn_to_memslot(slots, pair->slot->base_gfn));
	}
}

/*
 * The source has got back all attributes of a VM that went away.  By now that may
 * have some of its own, for other memory, which are nothing to the source.
 */
static void kvm_gmem_attributes_came_back(struct kvm_gmem_handover *h, struct kvm *src)
{
	struct kvm_memory_slot *slot;
	gfn_t gfn = 0;
	int i, bkt;

	for (i = 0; i < h->nr_spans; i++) {
		kvm_gmem_erase_attributes(src, gfn, h->spans[i].start);
		gfn = h->spans[i].end;
	}
	kvm_gmem_erase_attributes(src, gfn, ~0ull);

	kvm_for_each_memslot(slot, bkt, kvm_memslots(src))
		kvm_arch_gmem_attributes_moved(src, slot, NULL);
}

/*
 * Memory attributes belong to the memory.  Exchanging all of them is a matter of
 * two pointers, and is possible if there are none but those of what changes hands.
 */
static void kvm_gmem_plan_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_memory_slot *slot;
	int i;

	if (xa_empty(ctx->src->mem_attr_array))
		return;

	if (xa_empty(ctx->dst->mem_attr_array) &&
	    !kvm_gmem_has_other_attributes(ctx->src, &ctx->stage2)) {
		ctx->swap_attributes = true;
		return;
	}

	for (i = 0; i < ctx->nr_pairs; i++) {
		slot = ctx->pairs[i].slot;
		ctx->pairs[i].copy_attributes =
			ctx->pairs[i].report.verdict == KVM_GMEM_SLOT_MATCH &&
			!kvm_gmem_has_attributes(ctx->dst, slot->base_gfn,
						 slot->base_gfn + slot->npages);
	}
}
#else
static bool kvm_gmem_has_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	return false;
}

static bool kvm_gmem_same_attributes(struct kvm *a, struct kvm *b,
				     gfn_t start, gfn_t end)
{
	return true;
}

static void kvm_gmem_swap_attributes(struct kvm *a, struct kvm *b)
{
}

static void kvm_gmem_uncopy_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
}

static int kvm_gmem_copy_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
	return 0;
}

static void kvm_gmem_attributes_moved(struct kvm_gmem_transfer_ctx *ctx)
{
}

static void kvm_gmem_attributes_came_back(struct kvm_gmem_handover *h, struct kvm *src)
{
}

static void kvm_gmem_plan_attributes(struct kvm_gmem_transfer_ctx *ctx)
{
}
#endif

static void kvm_gmem_unpark(struct kvm *kvm)
{
	/* Ownership and attributes are back where they were before. */
	smp_store_release(&kvm->gmem_parked, false);
}

/*
 * @kvm is about to be destroyed.  All its views are closed, as they pin it.  If
 * it got memory that it never used, let the source continue.
 */
void kvm_gmem_transfer_destroy_vm(struct kvm *kvm)
{
	struct kvm_gmem_handover *h;
	struct kvm *src = NULL;

	scoped_guard(spinlock, &gmem_handover_lock) {
		h = kvm->gmem_handover;
		if (!h)
			return;
		kvm->gmem_handover = NULL;

		if (h->src == kvm) {
			/* The destination keeps what it has. */
			h->src = NULL;
			return;
		}

		if (h->src) {
			h->src->gmem_handover = NULL;
			/* Fails if the source is on its way out as well. */
			if (kvm_get_kvm_safe(h->src))
				src = h->src;
		}
	}

	if (src) {
		mutex_lock(&src->slots_lock);
		if (h->nr_spans) {
			kvm_gmem_swap_attributes(kvm, src);
			kvm_gmem_attributes_came_back(h, src);
		}
		kvm_gmem_unpark(src);
		mutex_unlock(&src->slots_lock);
		kvm_put_kvm(src);
	}
	kvfree(h);
}

/*
 * The inode behind @slot, NULL if it has none or the view was closed.  Valid
 * until slots_lock is dropped: if this happens to be the last reference to the
 * file, then kvm_gmem_release() needs the lock first.
 */
static struct inode *kvm_gmem_slot_inode(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct inode *inode;
	struct file *file;

	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_slot_has_gmem(slot))
		return NULL;

	file = get_file_active(&slot->gmem.file);
	if (!file)
		return NULL;

	inode = file_inode(file);
	fput(file);
	return inode;
}

/* Is the memory of @d, at this offset, somewhere else in the source? */
static bool kvm_gmem_bound_elsewhere(struct kvm *src, struct inode *inode,
				     struct kvm_memory_slot *d)
{
	struct kvm_memory_slot *s;
	struct gmem_file *f;
	bool found = false;

	filemap_invalidate_lock_shared(inode->i_mapping);
	f = kvm_gmem_view_of(inode, src);
	if (f) {
		s = xa_load(&f->bindings, d->gmem.pgoff);
		found = s && s->gmem.pgoff == d->gmem.pgoff;
	}
	filemap_invalidate_unlock_shared(inode->i_mapping);

	return found;
}

/* Compare one memslot of the destination with its counterpart, if there is one. */
static u32 kvm_gmem_compare_slot(struct kvm_gmem_transfer_ctx *ctx,
				 struct kvm_gmem_pair *pair)
{
	struct kvm_memory_slot *d = pair->slot, *s;
	struct kvm *src = ctx->src;
	struct inode *inode;

	inode = kvm_gmem_slot_inode(ctx->dst, d);
	if (!inode)
		return KVM_GMEM_SLOT_CLOSED;

	pair->inode = inode;
	if (READ_ONCE(GMEM_I(inode)->owner) != src)
		return KVM_GMEM_SLOT_NOT_OWNER;

	s = __gfn_to_memslot(__kvm_memslots(src, d->as_id), d->base_gfn);
	if (!s || s->base_gfn != d->base_gfn) {
		if (kvm_gmem_bound_elsewhere(src, inode, d))
			return KVM_GMEM_SLOT_GPA;
		return KVM_GMEM_SLOT_NO_SOURCE;
	}

	if (kvm_gmem_slot_inode(src, s) != inode)
		return KVM_GMEM_SLOT_INODE;
	if (s->gmem.pgoff != d->gmem.pgoff)
		return KVM_GMEM_SLOT_OFFSET;
	if (s->npages != d->npages)
		return KVM_GMEM_SLOT_SIZE;
	if (s->flags != d->flags)
		return KVM_GMEM_SLOT_FLAGS;
	/* Attributes come along, but are not to overrule the destination's. */
	if (kvm_gmem_has_attributes(ctx->dst, d->base_gfn, d->base_gfn + d->npages) &&
	    !kvm_gmem_same_attributes(src, ctx->dst, d->base_gfn, d->base_gfn + d->npages))
		return KVM_GMEM_SLOT_FLAGS;

	return KVM_GMEM_SLOT_MATCH;
}

static int kvm_gmem_cmp_inode(const void *a, const void *b)
{
	const struct kvm_gmem_moving *x = a, *y = b;

	return x->inode < y->inode ? -1 : x->inode > y->inode;
}

static struct kvm_gmem_moving *kvm_gmem_find_inode(struct kvm_gmem_transfer_ctx *ctx,
						   struct inode *inode)
{
	struct kvm_gmem_moving key = { .inode = inode };

	if (!inode)
		return NULL;

	return bsearch(&key, ctx->inodes, ctx->nr_inodes, sizeof(key), kvm_gmem_cmp_inode);
}

static int kvm_gmem_cmp_span(const void *a, const void *b)
{
	const struct kvm_gmem_span *x = a, *y = b;

	if (x->as_id != y->as_id)
		return x->as_id < y->as_id ? -1 : 1;
	return x->start < y->start ? -1 : x->start > y->start;
}

static bool kvm_gmem_matches(struct kvm_gmem_pair *pair)
{
	return pair->report.verdict == KVM_GMEM_SLOT_MATCH;
}

/* Sort what matching slots are backed by, without duplicates. */
static void kvm_gmem_collect_inodes(struct kvm_gmem_transfer_ctx *ctx)
{
	int i, n = 0, nr = 0;

	for (i = 0; i < ctx->nr_pairs; i++) {
		if (kvm_gmem_matches(&ctx->pairs[i]))
			ctx->inodes[n++].inode = ctx->pairs[i].inode;
	}

	sort(ctx->inodes, n, sizeof(*ctx->inodes), kvm_gmem_cmp_inode, NULL);

	for (i = 0; i < n; i++) {
		if (!nr || ctx->inodes[nr - 1].inode != ctx->inodes[i].inode)
			ctx->inodes[nr++] = ctx->inodes[i];
	}
	ctx->nr_inodes = nr;
}

/*
 * Ownership is per inode.  If the source has a slot of an inode without a match
 * in the destination, then none of the inode's slots can move.
 */
static void kvm_gmem_find_partial(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_gmem_moving *moving;
	struct kvm_memory_slot *s, *d;
	int as_id, bkt, i, n = 0;

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(ctx->src); as_id++) {
		kvm_for_each_memslot(s, bkt, __kvm_memslots(ctx->src, as_id)) {
			moving = kvm_gmem_find_inode(ctx, kvm_gmem_slot_inode(ctx->src, s));
			if (!moving)
				continue;

			d = __gfn_to_memslot(__kvm_memslots(ctx->dst, as_id), s->base_gfn);
			if (!d || d->base_gfn != s->base_gfn ||
			    d->npages != s->npages || d->flags != s->flags ||
			    kvm_gmem_slot_inode(ctx->dst, d) != moving->inode ||
			    d->gmem.pgoff != s->gmem.pgoff)
				moving->partial = true;
		}
	}

	/* A counterpart whose memory attributes differ is no match either. */
	for (i = 0; i < ctx->nr_pairs; i++) {
		moving = kvm_gmem_find_inode(ctx, ctx->pairs[i].inode);
		if (moving && ctx->pairs[i].report.verdict == KVM_GMEM_SLOT_FLAGS)
			moving->partial = true;
	}

	for (i = 0; i < ctx->nr_pairs; i++) {
		if (kvm_gmem_matches(&ctx->pairs[i]) &&
		    kvm_gmem_find_inode(ctx, ctx->pairs[i].inode)->partial)
			ctx->pairs[i].report.verdict = KVM_GMEM_SLOT_PARTIAL;
	}

	for (i = 0; i < ctx->nr_inodes; i++) {
		if (!ctx->inodes[i].partial)
			ctx->inodes[n++] = ctx->inodes[i];
	}
	ctx->nr_inodes = n;
}

/* The deep comparison: fills in all verdicts, and what follows from them. */
static int kvm_gmem_compare(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm_memory_slot *slot;
	struct kvm_gmem_span *spans;
	int as_id, bkt, i, n = 0;

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(ctx->dst); as_id++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(ctx->dst, as_id))
			n += kvm_slot_has_gmem(slot);
	}
	if (!n)
		return 0;

	ctx->pairs = kvcalloc(n, sizeof(*ctx->pairs), GFP_KERNEL_ACCOUNT);
	ctx->inodes = kvcalloc(n, sizeof(*ctx->inodes), GFP_KERNEL_ACCOUNT);
	spans = kvcalloc(n, sizeof(*spans), GFP_KERNEL_ACCOUNT);
	ctx->stage2.spans = spans;
	if (!ctx->pairs || !ctx->inodes || !spans)
		return -ENOMEM;

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(ctx->dst); as_id++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(ctx->dst, as_id)) {
			struct kvm_gmem_pair *pair = &ctx->pairs[ctx->nr_pairs];

			if (!kvm_slot_has_gmem(slot))
				continue;

			pair->slot = slot;
			pair->report.slot = as_id << 16 | slot->id;
			pair->report.gpa = gfn_to_gpa(slot->base_gfn);
			pair->report.size = (u64)slot->npages << PAGE_SHIFT;
			pair->report.verdict = kvm_gmem_compare_slot(ctx, pair);
			ctx->nr_pairs++;
		}
	}

	kvm_gmem_collect_inodes(ctx);
	kvm_gmem_find_partial(ctx);

	for (i = 0; i < ctx->nr_pairs; i++) {
		if (!kvm_gmem_matches(&ctx->pairs[i]))
			continue;

		slot = ctx->pairs[i].slot;
		spans[ctx->nr_matched++] = (struct kvm_gmem_span) {
			.start = slot->base_gfn,
			.end = slot->base_gfn + slot->npages,
			.as_id = slot->as_id,
			.gmem_only = kvm_memslot_is_gmem_only(slot),
		};
	}
	sort(spans, ctx->nr_matched, sizeof(*spans), kvm_gmem_cmp_span, NULL);
	ctx->stage2.nr_spans = ctx->nr_matched;

	kvm_gmem_plan_attributes(ctx);
	return 0;
}

/*
 * Is there a pending transfer that has a say in this one?  Returns 1 if it is
 * the one to take back, i.e. this is the reverse of it.
 */
static int kvm_gmem_check_pending(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm *dst = ctx->dst, *src = ctx->src;
	struct kvm_gmem_handover *h;

	if (dst->vm_dead)
		return -EIO;

	guard(spinlock)(&gmem_handover_lock);

	h = dst->gmem_handover;
	if (h && h->src == dst && h->dst == src) {
		ctx->nr_pending = h->nr_inodes;
		return 1;
	}

	if (src->gmem_parked || src->vm_dead)
		return -ESTALE;

	if (dst->gmem_parked || dst->gmem_handover || src->gmem_handover)
		return -EBUSY;

	return 0;
}

/*
 * Does everything go back?  What the parked VM's slots match says nothing about
 * slots that it has deleted, and nobody could ask for their memory any more.
 */
static bool kvm_gmem_all_go_back(struct kvm_gmem_transfer_ctx *ctx)
{
	struct gmem_file *f;
	int i, nr = 0;

	for (i = 0; i < ctx->nr_inodes; i++) {
		struct inode *inode = ctx->inodes[i].inode;

		filemap_invalidate_lock_shared(inode->i_mapping);
		f = kvm_gmem_view_of(inode, ctx->dst);
		nr += f && f->past_owner;
		filemap_invalidate_unlock_shared(inode->i_mapping);
	}
	return nr >= ctx->nr_pending;
}

static int kvm_gmem_trylock_vcpus(struct kvm *kvm)
{
	/* Not worth the WARN in kvm_trylock_all_vcpus(). */
	if (kvm_is_vcpu_creation_in_progress(kvm))
		return -EBUSY;

	return kvm_trylock_all_vcpus(kvm) ? -EBUSY : 0;
}

static struct obj_cgroup_pool *kvm_gmem_charges(struct kvm_gmem_transfer_ctx *ctx,
						int i)
{
	return GMEM_I(ctx->inodes[i].inode)->charges;
}

/*
 * Charge the memory that is to change hands to the memory cgroup of the new
 * owner, while that can still be refused.  Taking a transfer back can't be: the
 * memory was charged there before.  The source's slots_lock keeps anybody else
 * from moving the same charges, see kvm_gmem_release().
 */
static int kvm_gmem_memcg_prepare(struct kvm_gmem_transfer_ctx *ctx)
{
	int i;

	for (i = 0; i < ctx->nr_inodes; i++) {
		if (obj_cgroup_pool_prepare_move(kvm_gmem_charges(ctx, i),
						 ctx->dst->mm, ctx->stage2.reverse))
			break;
	}
	if (i == ctx->nr_inodes)
		return 0;

	while (i--)
		obj_cgroup_pool_cancel_move(kvm_gmem_charges(ctx, i));
	return -EDQUOT;
}

static void kvm_gmem_memcg_cancel(struct kvm_gmem_transfer_ctx *ctx)
{
	int i;

	for (i = 0; i < ctx->nr_inodes; i++)
		obj_cgroup_pool_cancel_move(kvm_gmem_charges(ctx, i));
}

static void kvm_gmem_memcg_commit(struct kvm_gmem_transfer_ctx *ctx)
{
	int i;

	for (i = 0; i < ctx->nr_inodes; i++)
		obj_cgroup_pool_commit_move(kvm_gmem_charges(ctx, i));
}

/* With all locks held: from here on, nothing fails. */
static void kvm_gmem_change_owner(struct kvm_gmem_transfer_ctx *ctx)
{
	struct gmem_file *f;
	struct inode *inode;
	int i;

	for (i = 0; i < ctx->nr_inodes; i++) {
		inode = ctx->inodes[i].inode;

		WRITE_ONCE(GMEM_I(inode)->owner, ctx->dst);
		f = kvm_gmem_view_of(inode, ctx->src);
		if (f)
			WRITE_ONCE(f->past_owner, true);
		f = kvm_gmem_view_of(inode, ctx->dst);
		if (!WARN_ON_ONCE(!f))
			WRITE_ONCE(f->past_owner, false);
	}

	if (ctx->swap_attributes)
		kvm_gmem_swap_attributes(ctx->dst, ctx->src);
}

static struct kvm_gmem_handover *kvm_gmem_alloc_handover(struct kvm_gmem_transfer_ctx *ctx)
{
	int nr = ctx->swap_attributes ? ctx->stage2.nr_spans : 0;
	struct kvm_gmem_handover *h;

	h = kvzalloc_flex(*h, spans, nr, GFP_KERNEL_ACCOUNT);
	if (!h)
		return NULL;

	h->src = ctx->src;
	h->dst = ctx->dst;
	h->nr_inodes = ctx->nr_inodes;
	h->nr_spans = nr;
	memcpy(h->spans, ctx->stage2.spans, array_size(nr, sizeof(*h->spans)));
	return h;
}

static void kvm_gmem_begin_pending(struct kvm_gmem_handover *h)
{
	guard(spinlock)(&gmem_handover_lock);

	h->src->gmem_handover = h;
	h->dst->gmem_handover = h;
	WRITE_ONCE(h->src->gmem_parked, true);
}

static void kvm_gmem_end_pending(struct kvm *src, struct kvm *dst)
{
	guard(spinlock)(&gmem_handover_lock);

	kvfree_atomic(src->gmem_handover);
	src->gmem_handover = NULL;
	dst->gmem_handover = NULL;
	kvm_gmem_unpark(src);
}

static int __kvm_gmem_transfer(struct kvm_gmem_transfer_ctx *ctx)
{
	struct kvm *dst = ctx->dst, *src = ctx->src;
	struct kvm_gmem_handover *h = NULL;
	bool reverse;
	int i, r;

	r = kvm_gmem_check_pending(ctx);
	if (r < 0)
		return r;
	reverse = r;
	ctx->stage2.reverse = reverse;
	if (reverse)
		ctx->flags |= KVM_GMEM_TRANSFER_REQUIRE_ALL;

	if (!kvm_arch_gmem_transfer_supported(dst) ||
	    !kvm_arch_gmem_transfer_supported(src))
		return -EOPNOTSUPP;

	/*
	 * What differs only now is no reason to keep the memory from the VM that it
	 * was handed over by.  It can do without the page tables.
	 */
	if (dst->dirty_ring_size || src->dirty_ring_size ||
	    kvm_arch_gmem_transfer_check(dst, src)) {
		if (!reverse)
			return -EOPNOTSUPP;
		ctx->stage2.drop = true;
	}

	r = kvm_gmem_compare(ctx);
	if (r)
		return r;

	if ((ctx->flags & KVM_GMEM_TRANSFER_REQUIRE_ALL) && ctx->nr_matched != ctx->nr_pairs)
		return -ENXIO;
	if (!ctx->nr_matched)
		return -ENOENT;
	if (reverse && !kvm_gmem_all_go_back(ctx))
		return -ENXIO;
	if (ctx->flags & KVM_GMEM_TRANSFER_DRY_RUN)
		return 0;

	if (!reverse) {
		h = kvm_gmem_alloc_handover(ctx);
		if (!h)
			return -ENOMEM;
	}

	r = kvm_gmem_memcg_prepare(ctx);
	if (r)
		goto out;

	r = kvm_gmem_copy_attributes(ctx);
	if (r)
		goto out_uncharge;

	/*
	 * Zap what can't move.  That takes its time, and there are no vCPUs that
	 * could fault in anything new.
	 */
	r = kvm_arch_gmem_transfer_prepare(dst, src, &ctx->stage2);
	if (r)
		goto out_attributes;

	for (i = 0; i < ctx->nr_inodes; i++)
		down_write_nest_lock(&ctx->inodes[i].inode->i_mapping->invalidate_lock,
				     &src->slots_lock);

	r = kvm_arch_gmem_transfer_commit(dst, src, &ctx->stage2);
	if (!r) {
		kvm_gmem_memcg_commit(ctx);
		kvm_gmem_change_owner(ctx);
	}

	for (i = ctx->nr_inodes - 1; i >= 0; i--) {
		if (!r)
			ihold(ctx->inodes[i].inode);
		filemap_invalidate_unlock(ctx->inodes[i].inode->i_mapping);
	}
	if (r)
		goto out_attributes;

	kvm_gmem_attributes_moved(ctx);

	if (reverse) {
		kvm_gmem_end_pending(dst, src);
	} else {
		kvm_gmem_begin_pending(h);
		h = NULL;
	}

	/* What runs asynchronously to vCPUs must let go of guest memory, too. */
	gfn_to_pfn_cache_invalidate_all(src);
out:
	kvfree(h);
	return r;

out_attributes:
	kvm_gmem_uncopy_attributes(ctx);
out_uncharge:
	kvm_gmem_memcg_cancel(ctx);
	goto out;
}

static int kvm_gmem_transfer_locked(struct kvm_gmem_transfer_ctx *ctx)
{
	bool dry_run = ctx->flags & KVM_GMEM_TRANSFER_DRY_RUN;
	struct kvm *dst = ctx->dst, *src = ctx->src;
	int r;

	r = kvm_lock_two_vms(dst, src);
	if (r)
		return r;

	if (!dry_run) {
		r = kvm_gmem_trylock_vcpus(dst);
		if (r)
			goto unlock_vms;
		r = kvm_gmem_trylock_vcpus(src);
		if (r)
			goto unlock_dst_vcpus;
	}

	mutex_lock(&dst->slots_lock);
	mutex_lock_nested(&src->slots_lock, SINGLE_DEPTH_NESTING);

	r = __kvm_gmem_transfer(ctx);

	mutex_unlock(&src->slots_lock);
	mutex_unlock(&dst->slots_lock);

	if (!dry_run)
		kvm_unlock_all_vcpus(src);
unlock_dst_vcpus:
	if (!dry_run)
		kvm_unlock_all_vcpus(dst);
unlock_vms:
	kvm_unlock_two_vms(dst, src);
	return r;
}

/*
 * Drop all userspace mappings of @inode.  Those of its owner come back on demand.
 */
static void kvm_gmem_unmap_users(struct inode *inode)
{
	struct address_space *mapping = inode->i_mapping;
	struct folio_batch fbatch;
	pgoff_t index = 0;
	int i;

	unmap_mapping_range(mapping, 0, 0, 0);

	/*
	 * A fault by way of the past owner's view, which looked at the view
	 * before it became that, maps the folio before it unlocks it.
	 */
	folio_batch_init(&fbatch);
	while (filemap_get_folios(mapping, &index, -1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++) {
			struct folio *folio = fbatch.folios[i];

			folio_lock(folio);
			if (folio_mapped(folio))
				unmap_mapping_range(mapping, folio_pos(folio),
						    folio_size(folio), 0);
			folio_unlock(folio);
		}
		folio_batch_release(&fbatch);
		cond_resched();
	}
}

static void kvm_gmem_finish(struct kvm_gmem_transfer_ctx *ctx, bool moved)
{
	int i;

	kvm_arch_gmem_transfer_finish(&ctx->stage2);

	for (i = 0; moved && i < ctx->nr_inodes; i++) {
		if (ctx->flags & KVM_GMEM_TRANSFER_UNMAP)
			kvm_gmem_unmap_users(ctx->inodes[i].inode);
		iput(ctx->inodes[i].inode);
	}

	kvfree(ctx->stage2.spans);
	kvfree(ctx->inodes);
	kvfree(ctx->pairs);
}

/*
 * Tell userspace.  The memory was writable a moment ago.  If it isn't any more,
 * then somebody else in the process took it away, and has to live without the
 * numbers: what is done is done.
 */
static void kvm_gmem_report(struct kvm_gmem_transfer_ctx *ctx,
			    struct kvm_gmem_transfer *args,
			    struct kvm_gmem_transfer __user *uargs)
{
	struct kvm_gmem_transfer_slot __user *uslots = u64_to_user_ptr(args->slots);
	u32 i;

	for (i = 0; uslots && i < args->nr_slots && i < ctx->nr_pairs; i++) {
		if (copy_to_user(&uslots[i], &ctx->pairs[i].report, sizeof(*uslots)))
			return;
	}

	args->nr_slots = ctx->nr_pairs;
	args->nr_matched = ctx->nr_matched;
	args->tables = ctx->stage2.tables;
	args->zapped = ctx->stage2.zapped;
	if (copy_to_user(uargs, args, sizeof(*args)))
		return;
}

int kvm_gmem_transfer(struct kvm *dst, struct kvm_gmem_transfer __user *uargs)
{
	struct kvm_gmem_transfer_ctx ctx = { .dst = dst };
	struct kvm_gmem_transfer args;
	u64 start = ktime_get_ns();
	bool moved;
	size_t len;
	int r;

	if (copy_from_user(&args, uargs, sizeof(args)))
		return -EFAULT;

	if (args.flags & ~KVM_GMEM_TRANSFER_VALID_FLAGS ||
	    memchr_inv(args.reserved, 0, sizeof(args.reserved)))
		return -EINVAL;

	CLASS(fd, source)(args.source_fd);
	if (fd_empty(source))
		return -EBADF;

	if (!file_is_kvm(fd_file(source)))
		return -ENODEV;

	ctx.src = fd_file(source)->private_data;
	if (ctx.src == dst)
		return -EINVAL;

	/* After the fact it would be too late to complain. */
	len = array_size(min_t(u32, args.nr_slots, KVM_GMEM_MAX_SLOTS),
			 sizeof(struct kvm_gmem_transfer_slot));
	if (fault_in_safe_writeable((char __user *)uargs, sizeof(args)) ||
	    (args.slots && fault_in_safe_writeable(u64_to_user_ptr(args.slots), len)))
		return -EFAULT;

	ctx.flags = args.flags;
	ctx.stage2.drop = args.flags & KVM_GMEM_TRANSFER_NO_STAGE2;

	r = kvm_gmem_transfer_locked(&ctx);
	moved = !r && !(ctx.flags & KVM_GMEM_TRANSFER_DRY_RUN);

	trace_kvm_gmem_transfer(ctx.flags, ctx.nr_pairs, ctx.nr_matched,
				ctx.stage2.tables, ctx.stage2.zapped,
				ktime_get_ns() - start, r);

	/* After any other error there is nothing to tell, or nothing that would hold. */
	if (!r || r == -ENXIO || r == -ENOENT)
		kvm_gmem_report(&ctx, &args, uargs);
	kvm_gmem_finish(&ctx, moved);
	return r;
}
