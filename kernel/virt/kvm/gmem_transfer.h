/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_GMEM_TRANSFER_H__
#define __KVM_GMEM_TRANSFER_H__

#include <linux/kvm_host.h>

#ifdef CONFIG_KVM_GMEM_TRANSFER
int kvm_gmem_transfer_capability(struct kvm *kvm);
int kvm_gmem_link(struct kvm *kvm, struct kvm_gmem_link *args);
int kvm_gmem_transfer(struct kvm *dst, struct kvm_gmem_transfer __user *uarg);
int __kvm_gmem_pre_run(struct kvm *kvm, bool commit);
struct kvm *kvm_gmem_release_owner(struct inode *inode, struct kvm *kvm);
void kvm_gmem_transfer_destroy_vm(struct kvm *kvm);

/*
 * To be called with a mutex of one of @kvm's vCPUs held, before the vCPU may
 * fault in memory.  Returns -ESTALE if it must not.  @commit says whether the
 * guest is going to run, after which there is no way back for a transfer.
 */
static inline int kvm_gmem_pre_run(struct kvm *kvm, bool commit)
{
	if (likely(!kvm_gmem_is_parked(kvm) && !READ_ONCE(kvm->gmem_handover)))
		return 0;

	return __kvm_gmem_pre_run(kvm, commit);
}
#else
static inline struct kvm *kvm_gmem_release_owner(struct inode *inode, struct kvm *kvm)
{
	return NULL;
}

static inline void kvm_gmem_transfer_destroy_vm(struct kvm *kvm)
{
}

static inline int kvm_gmem_pre_run(struct kvm *kvm, bool commit)
{
	return 0;
}
#endif /* CONFIG_KVM_GMEM_TRANSFER */

#endif /* __KVM_GMEM_TRANSFER_H__ */
