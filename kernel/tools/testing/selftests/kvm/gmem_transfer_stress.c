// SPDX-License-Identifier: GPL-2.0-only
/*
 * A fuzzer for KVM_GMEM_LINK and KVM_GMEM_TRANSFER: threads do random things to
 * a few VMs and the memory that these hand to each other, VMs and views come and
 * go, and some of the arguments are nonsense.
 *
 * Whatever happens,
 *  - what a guest or user space reads is what an owner's guest wrote last,
 *  - a VM that has been parked does not run,
 *  - at the end no descriptor, VM or page table is left.
 *
 * The locks in here only serve the book-keeping of that.  Above all, nothing
 * orders a transfer against anything else.
 *
 * The same seed gives the same choices, but not the same interleaving.
 */
#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define NR_VMS		6
#define NR_VCPUS	2
#define NR_MEMS		4
#define NR_PAGES	32
#define PAGE		SZ_4K
#define MEM_SIZE	(NR_PAGES * PAGE)
#define MAX_THREADS	64

/* The guest: 32 bits, flat, no paging.  Each job ends with HLT, i.e. an exit. */
#define CODE_GPA	0x1000
#define CODE_SIZE	PAGE
#define CODE_WRITE	(CODE_GPA + 0x00)
#define CODE_READ	(CODE_GPA + 0x10)
#define CODE_COUNT	(CODE_GPA + 0x20)

static const u8 guest_code[] = {
	[0x00] = 0x89, 0x07,		/* mov %eax, (%edi) */
	[0x02] = 0xf4,			/* hlt */
	[0x10] = 0x8b, 0x07,		/* mov (%edi), %eax */
	[0x12] = 0xf4,			/* hlt */
	[0x20] = 0xff, 0x07,		/* 1: incl (%edi) */
	[0x22] = 0x49,			/* dec %ecx */
	[0x23] = 0x75, 0xfb,		/* jnz 1b */
	[0x25] = 0xf4,			/* hlt */
};

#define CODE_SLOT	0
#define HVA_SLOT	1
#define HVA_GPA		SZ_2M
#define MEM_SLOT(i)	(4 + 2 * (i))

/* All in one page table, but for the last. */
static u64 mem_gpa(int i)
{
	return i == NR_MEMS - 1 ? SZ_1G : SZ_4M + i * 2 * MEM_SIZE;
}

struct vm {
	/* Held for write to create and to destroy, for read to run a vCPU. */
	pthread_rwlock_t life;
	int fd;
	int vcpu_fds[NR_VCPUS];
	struct kvm_run *runs[NR_VCPUS];
	/* The vCPU exited for MMIO, which is to be completed. */
	bool mmio[NR_VCPUS];
	pthread_mutex_t vcpu_locks[NR_VCPUS];
};

/* What a page may contain: more than one value if a write's fate is unknown. */
struct page {
	int nr;
	u32 values[8];
};

struct mem {
	/* Protects the views and the book-keeping of the content. */
	pthread_mutex_t lock;
	int views[NR_VMS];
	ino_t ino;
	struct page pages[NR_PAGES];
};

static struct vm vms[NR_VMS];
static struct mem mems[NR_MEMS];
static void *code_page, *hva_page;
static int kvm_fd;
static size_t run_size;

/*
 * Held for write to look at a VM that is known to be parked, for read by all that
 * can change that: transfers and VMs that go away.
 */
static pthread_rwlock_t world = PTHREAD_RWLOCK_INITIALIZER;

static bool stop;
static u32 next_value = 1;
static u64 nr_wrong, nr_parked_runs;

enum op {
	OP_VM_CREATE,
	OP_VM_DESTROY,
	OP_MEM_CREATE,
	OP_LINK,
	OP_LINK_NONSENSE,
	OP_VIEW_CLOSE,
	OP_BIND,
	OP_UNBIND,
	OP_TRANSFER,
	OP_TRANSFER_NONSENSE,
	OP_TRANSFER_BACK,
	OP_TRANSFER_CHECKED,
	OP_ADOPT,
	OP_GUEST_WRITE,
	OP_GUEST_READ,
	OP_GUEST_COUNT,
	OP_IMMEDIATE_EXIT,
	OP_PRE_FAULT,
	OP_USER_READ,
	OP_PUNCH,
	OP_ALLOCATE,
	OP_HVA_SLOT,
	OP_MADVISE,
	OP_STATE,
	OP_FORK,
	OP_CHECK_PARKED,
	NR_OPS,
};

static const struct {
	const char *name;
	int weight;
} ops[NR_OPS] = {
	[OP_VM_CREATE] =		{ "vm_create", 60 },
	[OP_VM_DESTROY] =		{ "vm_destroy", 60 },
	[OP_MEM_CREATE] =		{ "mem_create", 30 },
	[OP_LINK] =			{ "link", 60 },
	[OP_LINK_NONSENSE] =		{ "link_nonsense", 10 },
	[OP_VIEW_CLOSE] =		{ "view_close", 4 },
	[OP_BIND] =			{ "bind", 80 },
	[OP_UNBIND] =			{ "unbind", 5 },
	[OP_TRANSFER] =			{ "transfer", 150 },
	[OP_TRANSFER_NONSENSE] =	{ "transfer_nonsense", 15 },
	[OP_TRANSFER_BACK] =		{ "transfer_back", 50 },
	[OP_TRANSFER_CHECKED] =		{ "transfer_checked", 40 },
	[OP_ADOPT] =			{ "adopt", 150 },
	[OP_GUEST_WRITE] =		{ "guest_write", 200 },
	[OP_GUEST_READ] =		{ "guest_read", 200 },
	[OP_GUEST_COUNT] =		{ "guest_count", 20 },
	[OP_IMMEDIATE_EXIT] =		{ "immediate_exit", 20 },
	[OP_PRE_FAULT] =		{ "pre_fault", 20 },
	[OP_USER_READ] =		{ "user_read", 40 },
	[OP_PUNCH] =			{ "punch", 20 },
	[OP_ALLOCATE] =			{ "allocate", 20 },
	[OP_HVA_SLOT] =			{ "hva_slot", 10 },
	[OP_MADVISE] =			{ "madvise", 20 },
	[OP_STATE] =			{ "state", 20 },
	[OP_FORK] =			{ "fork", 1 },
	[OP_CHECK_PARKED] =		{ "check_parked", 0 },
};

/* Not an errno: success, nothing to do, an exit for something else. */
#define OUTCOME_NOTHING		250
#define OUTCOME_EXIT		251
#define NR_OUTCOMES		256

static u64 outcomes[NR_OPS][NR_OUTCOMES];

struct thread {
	pthread_t thread;
	struct kvm_random_state rng;
	sigjmp_buf sigbus;
};

static __thread struct thread *self;

static void count(enum op op, int outcome)
{
	__atomic_add_fetch(&outcomes[op][outcome], 1, __ATOMIC_RELAXED);
}

static int count_ret(enum op op, int ret)
{
	count(op, ret < 0 ? min(errno, NR_OUTCOMES - 1) : 0);
	return ret;
}

static u32 rnd(u32 n)
{
	return kvm_random_u32(&self->rng) % n;
}

/* Some VM, preferably one that is there. */
static int random_vm(void)
{
	int i, v = rnd(NR_VMS);

	for (i = 0; i < NR_VMS && READ_ONCE(vms[v].fd) < 0; i++)
		v = (v + 1) % NR_VMS;

	return v;
}

/* The content of memory */

static void page_set(struct page *page, u32 value)
{
	page->nr = 1;
	page->values[0] = value;
}

static void page_may_be(struct page *page, u32 value)
{
	/* The values of old that nobody ever saw are the least probable. */
	if (page->nr == ARRAY_SIZE(page->values))
		memmove(page->values, page->values + 1, --page->nr * sizeof(u32));
	page->values[page->nr++] = value;
}

static void page_seen(struct mem *mem, int index, u32 value, const char *by)
{
	struct page *page = &mem->pages[index];
	int i;

	for (i = 0; i < page->nr; i++) {
		if (page->values[i] == value) {
			page_set(page, value);
			return;
		}
	}

	__atomic_add_fetch(&nr_wrong, 1, __ATOMIC_RELAXED);
	ksft_print_msg("Memory %ld, page %u: the %s read 0x%x, expected 0x%x (of %u)\n",
		       (long)(mem - mems), index, by, value, page->values[0], page->nr);
	page_set(page, value);
}

/* VMs */

static void vm_regs_init(int vcpu_fd)
{
	struct kvm_sregs sregs;

	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs))
		return;

	sregs.cs.base = 0;
	sregs.cs.limit = ~0u;
	sregs.cs.selector = 8;
	sregs.cs.type = 0xb;
	sregs.cs.s = 1;
	sregs.cs.db = 1;
	sregs.cs.g = 1;
	sregs.cs.present = 1;
	sregs.ds = sregs.cs;
	sregs.ds.type = 3;
	sregs.ds.selector = 16;
	sregs.es = sregs.ds;
	sregs.fs = sregs.ds;
	sregs.gs = sregs.ds;
	sregs.ss = sregs.ds;
	sregs.cr0 |= X86_CR0_PE;
	ioctl(vcpu_fd, KVM_SET_SREGS, &sregs);
}

static int set_slot(int vm_fd, u32 slot, u32 flags, u64 gpa, u64 size, void *hva,
		    int fd, u64 offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd = fd,
		.guest_memfd_offset = offset,
	};

	return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static void op_vm_create(void)
{
	struct vm *vm = &vms[rnd(NR_VMS)];
	int i, fd;

	if (READ_ONCE(vm->fd) >= 0 || pthread_rwlock_trywrlock(&vm->life)) {
		count(OP_VM_CREATE, OUTCOME_NOTHING);
		return;
	}
	if (vm->fd >= 0) {
		count(OP_VM_CREATE, OUTCOME_NOTHING);
		goto out;
	}

	fd = count_ret(OP_VM_CREATE, ioctl(kvm_fd, KVM_CREATE_VM, 0));
	if (fd < 0)
		goto out;

	set_slot(fd, CODE_SLOT, 0, CODE_GPA, CODE_SIZE, code_page, -1, 0);
	for (i = 0; i < NR_VCPUS; i++) {
		vm->vcpu_fds[i] = ioctl(fd, KVM_CREATE_VCPU, i);
		vm->runs[i] = NULL;
		vm->mmio[i] = false;
		if (vm->vcpu_fds[i] < 0)
			continue;
		vm->runs[i] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				   vm->vcpu_fds[i], 0);
		if (vm->runs[i] == MAP_FAILED)
			vm->runs[i] = NULL;
		vm_regs_init(vm->vcpu_fds[i]);
	}

	/* Most VMs are of the same kind, for the others a transfer is refused. */
	if (!rnd(32)) {
		struct kvm_enable_cap cap = {
			.cap = KVM_CAP_DISABLE_QUIRKS2,
			.args = { KVM_X86_QUIRK_SLOT_ZAP_ALL },
		};

		ioctl(fd, KVM_ENABLE_CAP, &cap);
	}
	WRITE_ONCE(vm->fd, fd);
out:
	pthread_rwlock_unlock(&vm->life);
}

static void close_views(int v)
{
	int i;

	for (i = 0; i < NR_MEMS; i++) {
		pthread_mutex_lock(&mems[i].lock);
		if (mems[i].views[v] >= 0)
			close(mems[i].views[v]);
		mems[i].views[v] = -1;
		pthread_mutex_unlock(&mems[i].lock);
	}
}

static void vm_destroy(int v, bool views_first, bool vcpus_first)
{
	struct vm *vm = &vms[v];
	int i, fd = vm->fd;

	if (views_first)
		close_views(v);
	WRITE_ONCE(vm->fd, -1);
	if (!vcpus_first)
		close(fd);
	for (i = 0; i < NR_VCPUS; i++) {
		if (vm->runs[i])
			munmap(vm->runs[i], run_size);
		if (vm->vcpu_fds[i] >= 0)
			close(vm->vcpu_fds[i]);
		vm->runs[i] = NULL;
		vm->vcpu_fds[i] = -1;
	}
	if (vcpus_first)
		close(fd);
	if (!views_first)
		close_views(v);
}

static void op_vm_destroy(void)
{
	int v = rnd(NR_VMS);

	if (pthread_rwlock_tryrdlock(&world)) {
		count(OP_VM_DESTROY, OUTCOME_NOTHING);
		return;
	}
	if (vms[v].fd < 0 || pthread_rwlock_trywrlock(&vms[v].life)) {
		pthread_rwlock_unlock(&world);
		count(OP_VM_DESTROY, OUTCOME_NOTHING);
		return;
	}
	/* Of no more use if it is dead, otherwise of some. */
	if (vms[v].fd < 0 ||
	    (ioctl(vms[v].fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) >= 0 && rnd(10))) {
		count(OP_VM_DESTROY, OUTCOME_NOTHING);
	} else {
		vm_destroy(v, rnd(2), rnd(2));
		count(OP_VM_DESTROY, 0);
	}
	pthread_rwlock_unlock(&vms[v].life);
	pthread_rwlock_unlock(&world);
}

/* Memory and its views */

static int any_view(struct mem *mem)
{
	int i, v = rnd(NR_VMS);

	for (i = 0; i < NR_VMS; i++, v = (v + 1) % NR_VMS) {
		if (mem->views[v] >= 0)
			return mem->views[v];
	}

	return -1;
}

/*
 * A view is remembered as that of a VM, whose fd must not be that of another one
 * by now.  Likewise what creates it, so that the owner is known to be there.
 */
static bool hold_vm(int v)
{
	if (pthread_rwlock_tryrdlock(&vms[v].life))
		return false;
	if (vms[v].fd >= 0)
		return true;
	pthread_rwlock_unlock(&vms[v].life);
	return false;
}

static void op_mem_create(void)
{
	struct kvm_create_guest_memfd args = {
		.size = MEM_SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int v = random_vm(), i, fd;
	struct mem *mem = &mems[rnd(NR_MEMS)];
	struct stat st;

	if (!hold_vm(v)) {
		count(OP_MEM_CREATE, OUTCOME_NOTHING);
		return;
	}
	pthread_mutex_lock(&mem->lock);
	if (any_view(mem) >= 0) {
		count(OP_MEM_CREATE, OUTCOME_NOTHING);
		goto out;
	}
	fd = count_ret(OP_MEM_CREATE, ioctl(vms[v].fd, KVM_CREATE_GUEST_MEMFD, &args));
	if (fd < 0)
		goto out;
	fstat(fd, &st);
	mem->ino = st.st_ino;
	mem->views[v] = fd;
	for (i = 0; i < NR_PAGES; i++)
		page_set(&mem->pages[i], 0);
out:
	pthread_mutex_unlock(&mem->lock);
	pthread_rwlock_unlock(&vms[v].life);
}

static void op_link(void)
{
	struct mem *mem = &mems[rnd(NR_MEMS)];
	struct kvm_gmem_link args = {};
	int v = random_vm(), fd;
	struct stat st;

	if (!hold_vm(v)) {
		count(OP_LINK, OUTCOME_NOTHING);
		return;
	}
	pthread_mutex_lock(&mem->lock);
	args.gmem_fd = any_view(mem);
	if (args.gmem_fd < 0 || (mem->views[v] >= 0 && rnd(4))) {
		count(OP_LINK, OUTCOME_NOTHING);
		goto out;
	}
	fd = count_ret(OP_LINK, ioctl(vms[v].fd, KVM_GMEM_LINK, &args));
	if (fd < 0)
		goto out;
	TEST_ASSERT(!fstat(fd, &st) && st.st_ino == mem->ino, "A view of another inode");
	TEST_ASSERT(mem->views[v] < 0, "A second view of the same VM");
	mem->views[v] = fd;
out:
	pthread_mutex_unlock(&mem->lock);
	pthread_rwlock_unlock(&vms[v].life);
}

static int random_fd(void)
{
	struct vm *vm = &vms[rnd(NR_VMS)];

	switch (rnd(5)) {
	case 0:
		return READ_ONCE(mems[rnd(NR_MEMS)].views[rnd(NR_VMS)]);
	case 1:
		return READ_ONCE(vm->vcpu_fds[rnd(NR_VCPUS)]);
	case 2:
		return READ_ONCE(vm->fd);
	case 3:
		return kvm_fd;
	default:
		return -1;
	}
}

static void op_link_nonsense(void)
{
	struct kvm_gmem_link args = {
		.gmem_fd = random_fd(),
		.flags = rnd(2) ? BIT(rnd(32)) : 0,
	};
	int fd;

	/* A view that really comes out of it isn't remembered. */
	args.reserved[rnd(3)] = rnd(2);
	fd = count_ret(OP_LINK_NONSENSE,
		       ioctl(READ_ONCE(vms[random_vm()].fd), KVM_GMEM_LINK, &args));
	if (fd >= 0)
		close(fd);
}

static void op_view_close(void)
{
	struct mem *mem = &mems[rnd(NR_MEMS)];
	int v = random_vm();

	if (pthread_rwlock_tryrdlock(&world)) {
		count(OP_VIEW_CLOSE, OUTCOME_NOTHING);
		return;
	}
	pthread_mutex_lock(&mem->lock);
	if (mem->views[v] >= 0) {
		close(mem->views[v]);
		mem->views[v] = -1;
		count(OP_VIEW_CLOSE, 0);
	} else {
		count(OP_VIEW_CLOSE, OUTCOME_NOTHING);
	}
	pthread_mutex_unlock(&mem->lock);
	pthread_rwlock_unlock(&world);
}

static void op_bind(void)
{
	int v = random_vm(), m = rnd(NR_MEMS);
	u64 gpa = mem_gpa(m), size = MEM_SIZE, offset = 0;
	struct mem *mem = &mems[m];
	u32 slot = MEM_SLOT(m);

	/* Sometimes elsewhere, and sometimes in two parts. */
	switch (rnd(24)) {
	case 0:
		gpa += MEM_SIZE;
		break;
	case 1:
		size /= 2;
		break;
	case 2:
		slot++;
		gpa += MEM_SIZE / 2;
		offset = MEM_SIZE / 2;
		size /= 2;
		break;
	}

	pthread_mutex_lock(&mem->lock);
	if (vms[v].fd < 0 || mem->views[v] < 0)
		count(OP_BIND, OUTCOME_NOTHING);
	else
		count_ret(OP_BIND, set_slot(vms[v].fd, slot, KVM_MEM_GUEST_MEMFD, gpa, size,
					    NULL, mem->views[v], offset));
	pthread_mutex_unlock(&mem->lock);
}

static void op_unbind(void)
{
	u32 slot = MEM_SLOT(rnd(NR_MEMS)) + !rnd(4);

	count_ret(OP_UNBIND, set_slot(READ_ONCE(vms[random_vm()].fd), slot, 0, 0, 0, NULL, -1, 0));
}

static void op_hva_slot(void)
{
	int fd = READ_ONCE(vms[random_vm()].fd);

	count_ret(OP_HVA_SLOT, set_slot(fd, HVA_SLOT, 0, HVA_GPA, PAGE, hva_page, -1, 0));
	set_slot(fd, HVA_SLOT, 0, HVA_GPA, 0, NULL, -1, 0);
}

/* Guests */

/* Completes MMIO.  A VM that is parked doesn't, but will once it runs again. */
static int run_for_immediate_exit(struct vm *vm, int i)
{
	int r;

	vm->runs[i]->immediate_exit = 1;
	r = ioctl(vm->vcpu_fds[i], KVM_RUN, NULL) ? -errno : 0;
	vm->runs[i]->immediate_exit = 0;
	if (r == -EINTR)
		vm->mmio[i] = false;
	return r;
}

/* Or else KVM completes the old instruction on top of the registers of a new job. */
static int complete_mmio(struct vm *vm, int i)
{
	int r;

	if (!vm->mmio[i])
		return 0;

	r = run_for_immediate_exit(vm, i);
	return r == -EINTR ? 0 : r ?: -EIO;
}

/* Returns 0 if the guest did the job, or a negative errno, or an exit reason. */
static int run_guest_job(int v, int i, u32 code, u32 gpa, u32 *value)
{
	struct vm *vm = &vms[v];
	struct kvm_regs regs = {
		.rip = code,
		.rdi = gpa,
		.rax = *value,
		.rcx = *value,
		.rflags = 2,
	};
	int r = -ENODEV;

	pthread_mutex_lock(&vm->vcpu_locks[i]);
	if (vm->vcpu_fds[i] < 0 || !vm->runs[i])
		goto out;

	r = complete_mmio(vm, i);
	if (r)
		goto out;
	if (ioctl(vm->vcpu_fds[i], KVM_SET_REGS, &regs)) {
		r = -errno;
		goto out;
	}
	do {
		r = ioctl(vm->vcpu_fds[i], KVM_RUN, NULL) ? -errno : 0;
	} while (r == -EINTR);
	if (!r && vm->runs[i]->exit_reason != KVM_EXIT_HLT)
		r = vm->runs[i]->exit_reason;
	vm->mmio[i] = r == KVM_EXIT_MMIO;
	/* By now it may be parked or dead, and what it read remains unknown. */
	if (!r && code == CODE_READ) {
		r = ioctl(vm->vcpu_fds[i], KVM_GET_REGS, &regs) ? -errno : 0;
		*value = regs.rax;
	}
out:
	pthread_mutex_unlock(&vm->vcpu_locks[i]);
	return r;
}

static void count_run(enum op op, int r)
{
	count(op, r < 0 ? min(-r, NR_OUTCOMES - 1) : r ? OUTCOME_EXIT : 0);
}

/* Page 0 is for those who count, and for the fuzzer's own nonsense. */
static int random_page(void)
{
	return 1 + rnd(NR_PAGES - 1);
}

static void op_guest_write(void)
{
	int v = random_vm(), m = rnd(NR_MEMS), p = random_page(), r;
	u32 value = __atomic_fetch_add(&next_value, 1, __ATOMIC_RELAXED);
	struct mem *mem = &mems[m];

	if (pthread_rwlock_tryrdlock(&vms[v].life)) {
		count(OP_GUEST_WRITE, OUTCOME_NOTHING);
		return;
	}
	pthread_mutex_lock(&mem->lock);
	if (vms[v].fd < 0 || mem->views[v] < 0) {
		count(OP_GUEST_WRITE, OUTCOME_NOTHING);
	} else {
		r = run_guest_job(v, rnd(NR_VCPUS), CODE_WRITE, mem_gpa(m) + p * PAGE, &value);
		count_run(OP_GUEST_WRITE, r);
		if (!r)
			page_set(&mem->pages[p], value);
		else if (r > 0 && r != KVM_EXIT_MMIO)
			page_may_be(&mem->pages[p], value);
	}
	pthread_mutex_unlock(&mem->lock);
	pthread_rwlock_unlock(&vms[v].life);
}

static void guest_read(enum op op, int v, int m, int p)
{
	struct mem *mem = &mems[m];
	u32 value = 0;
	int r;

	pthread_mutex_lock(&mem->lock);
	if (vms[v].fd < 0 || mem->views[v] < 0) {
		count(op, OUTCOME_NOTHING);
	} else {
		r = run_guest_job(v, rnd(NR_VCPUS), CODE_READ, mem_gpa(m) + p * PAGE, &value);
		count_run(op, r);
		if (!r)
			page_seen(mem, p, value, "guest");
	}
	pthread_mutex_unlock(&mem->lock);
}

static void op_guest_read(void)
{
	int v = random_vm();

	if (pthread_rwlock_tryrdlock(&vms[v].life)) {
		count(OP_GUEST_READ, OUTCOME_NOTHING);
		return;
	}
	guest_read(OP_GUEST_READ, v, rnd(NR_MEMS), random_page());
	pthread_rwlock_unlock(&vms[v].life);
}

static void op_guest_count(void)
{
	int v = random_vm();
	u32 nr = 1 + rnd(100000);

	if (pthread_rwlock_tryrdlock(&vms[v].life)) {
		count(OP_GUEST_COUNT, OUTCOME_NOTHING);
		return;
	}
	if (vms[v].fd < 0)
		count(OP_GUEST_COUNT, OUTCOME_NOTHING);
	else
		count_run(OP_GUEST_COUNT, run_guest_job(v, rnd(NR_VCPUS), CODE_COUNT,
							mem_gpa(rnd(NR_MEMS)), &nr));
	pthread_rwlock_unlock(&vms[v].life);
}

static void op_immediate_exit(void)
{
	int v = random_vm(), i = rnd(NR_VCPUS);
	struct vm *vm = &vms[v];

	if (pthread_rwlock_tryrdlock(&vm->life)) {
		count(OP_IMMEDIATE_EXIT, OUTCOME_NOTHING);
		return;
	}
	pthread_mutex_lock(&vm->vcpu_locks[i]);
	if (vm->fd < 0 || vm->vcpu_fds[i] < 0 || !vm->runs[i])
		count(OP_IMMEDIATE_EXIT, OUTCOME_NOTHING);
	else
		count_run(OP_IMMEDIATE_EXIT, run_for_immediate_exit(vm, i));
	pthread_mutex_unlock(&vm->vcpu_locks[i]);
	pthread_rwlock_unlock(&vm->life);
}

static void op_pre_fault(void)
{
	struct kvm_pre_fault_memory args = {
		.gpa = mem_gpa(rnd(NR_MEMS)),
		.size = MEM_SIZE,
	};
	struct vm *vm = &vms[random_vm()];
	int i = rnd(NR_VCPUS);

	/* It leaves an exit reason behind if it fails, as KVM_RUN does. */
	pthread_mutex_lock(&vm->vcpu_locks[i]);
	count_ret(OP_PRE_FAULT, ioctl(READ_ONCE(vm->vcpu_fds[i]), KVM_PRE_FAULT_MEMORY, &args));
	pthread_mutex_unlock(&vm->vcpu_locks[i]);
}

static void op_state(void)
{
	int fd = READ_ONCE(vms[random_vm()].vcpu_fds[rnd(NR_VCPUS)]);
	struct kvm_sregs sregs;

	count_ret(OP_STATE, ioctl(fd, KVM_GET_SREGS, &sregs));
}

/* User space */

static void sigbus_handler(int signum)
{
	siglongjmp(self->sigbus, 1);
}

static void op_user_read(void)
{
	struct mem *mem = &mems[rnd(NR_MEMS)];
	int v = random_vm(), p = random_page();
	void *addr;
	u32 value;

	pthread_mutex_lock(&mem->lock);
	if (mem->views[v] < 0) {
		count(OP_USER_READ, OUTCOME_NOTHING);
		goto out;
	}
	addr = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mem->views[v], 0);
	if (addr == MAP_FAILED) {
		count(OP_USER_READ, errno);
		goto out;
	}
	if (!sigsetjmp(self->sigbus, 1)) {
		value = READ_ONCE(*(u32 *)(addr + p * PAGE));
		page_seen(mem, p, value, "user");
		count(OP_USER_READ, 0);
	} else {
		count(OP_USER_READ, EFAULT);
	}
	munmap(addr, MEM_SIZE);
out:
	pthread_mutex_unlock(&mem->lock);
}

static void op_punch(void)
{
	struct mem *mem = &mems[rnd(NR_MEMS)];
	int v = random_vm(), p = random_page(), r;

	pthread_mutex_lock(&mem->lock);
	if (mem->views[v] < 0) {
		count(OP_PUNCH, OUTCOME_NOTHING);
	} else {
		r = fallocate(mem->views[v], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      p * PAGE, PAGE);
		count_ret(OP_PUNCH, r);
		if (!r)
			page_set(&mem->pages[p], 0);
	}
	pthread_mutex_unlock(&mem->lock);
}

static void op_allocate(void)
{
	/* Nobody has to know what is in there for that. */
	int fd = READ_ONCE(mems[rnd(NR_MEMS)].views[rnd(NR_VMS)]);

	if (fd < 0)
		count(OP_ALLOCATE, OUTCOME_NOTHING);
	else
		count_ret(OP_ALLOCATE, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, MEM_SIZE));
}

static void op_madvise(void)
{
	count_ret(OP_MADVISE, madvise(rnd(2) ? hva_page : code_page, PAGE, MADV_COLD));
}

static void op_fork(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	count(OP_FORK, pid < 0 ? errno : 0);
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

/* Transfers */

static u32 random_flags(void)
{
	u32 flags = 0;

	if (!rnd(8))
		flags |= KVM_GMEM_TRANSFER_DRY_RUN;
	if (!rnd(2))
		flags |= KVM_GMEM_TRANSFER_REQUIRE_ALL;
	if (!rnd(4))
		flags |= KVM_GMEM_TRANSFER_NO_STAGE2;
	if (!rnd(4))
		flags |= KVM_GMEM_TRANSFER_UNMAP;

	return flags;
}

static int transfer(enum op op, int dst_fd, int src_fd, u32 flags)
{
	struct kvm_gmem_transfer_slot slots[8];
	struct kvm_gmem_transfer args = {
		.source_fd = src_fd,
		.flags = flags,
		.slots = (uintptr_t)slots,
		.nr_slots = rnd(ARRAY_SIZE(slots) + 1),
	};

	if (!rnd(16)) {
		args.slots = 0;
		args.nr_slots = 0;
	}
	return count_ret(op, ioctl(dst_fd, KVM_GMEM_TRANSFER, &args));
}

static void op_transfer(void)
{
	int dst = random_vm(), src = random_vm();

	if (dst == src && rnd(8)) {
		count(OP_TRANSFER, OUTCOME_NOTHING);
		return;
	}
	pthread_rwlock_rdlock(&world);
	transfer(OP_TRANSFER, READ_ONCE(vms[dst].fd), READ_ONCE(vms[src].fd), random_flags());
	pthread_rwlock_unlock(&world);
}

/* Forth and at once back, so that there are many transfers without a commit. */
static void op_transfer_back(void)
{
	int dst = READ_ONCE(vms[random_vm()].fd), src = READ_ONCE(vms[random_vm()].fd);

	pthread_rwlock_rdlock(&world);
	if (!transfer(OP_TRANSFER_BACK, dst, src, 0))
		transfer(OP_TRANSFER_BACK, src, dst, random_flags());
	pthread_rwlock_unlock(&world);
}

static void op_transfer_nonsense(void)
{
	struct kvm_gmem_transfer args = {
		.source_fd = random_fd(),
		.flags = rnd(2) ? BIT(rnd(32)) : random_flags(),
		.nr_slots = rnd(4) ? rnd(8) : kvm_random_u32(&self->rng),
		.slots = rnd(2) ? 0x1000 : kvm_random_u64(&self->rng),
	};

	args.reserved[rnd(4)] = rnd(4) ? 0 : 1;
	pthread_rwlock_rdlock(&world);
	count_ret(OP_TRANSFER_NONSENSE,
		  ioctl(READ_ONCE(vms[random_vm()].fd), KVM_GMEM_TRANSFER,
			rnd(16) ? &args : (void *)0x1000));
	pthread_rwlock_unlock(&world);
}

static bool is_parked(int v)
{
	struct vm *vm = &vms[v];
	bool parked = false;

	pthread_mutex_lock(&vm->vcpu_locks[0]);
	if (vm->runs[0])
		parked = run_for_immediate_exit(vm, 0) == -ESTALE;
	pthread_mutex_unlock(&vm->vcpu_locks[0]);

	return parked;
}

/* The source doesn't run, and the destination reads what it must. */
static void op_transfer_checked(void)
{
	int dst = random_vm(), src = random_vm(), m, r;
	bool reverse;
	u32 nr = 1;

	if (dst == src || pthread_rwlock_trywrlock(&world)) {
		count(OP_TRANSFER_CHECKED, OUTCOME_NOTHING);
		return;
	}

	/* Nobody destroys them now, and nobody transfers anything. */
	if (vms[dst].fd < 0 || vms[src].fd < 0) {
		count(OP_TRANSFER_CHECKED, OUTCOME_NOTHING);
		goto out;
	}
	/* On the way back, nobody is parked. */
	reverse = is_parked(dst);
	if (transfer(OP_TRANSFER_CHECKED, vms[dst].fd, vms[src].fd,
		     random_flags() & ~KVM_GMEM_TRANSFER_DRY_RUN) || reverse)
		goto out;

	r = run_guest_job(src, rnd(NR_VCPUS), CODE_COUNT, CODE_GPA + CODE_SIZE / 2, &nr);
	count_run(OP_CHECK_PARKED, r);
	if (r >= 0) {
		__atomic_add_fetch(&nr_parked_runs, 1, __ATOMIC_RELAXED);
		ksft_print_msg("A parked VM ran, %d\n", r);
	}

	/* Without a commit sometimes, it may be handed back then. */
	if (rnd(2))
		goto out;
	for (m = 0; m < NR_MEMS; m++)
		guest_read(OP_GUEST_READ, dst, m, random_page());
	nr = 1;
	r = run_guest_job(src, rnd(NR_VCPUS), CODE_COUNT, CODE_GPA + CODE_SIZE / 2, &nr);
	count_run(OP_CHECK_PARKED, r);
	if (r >= 0) {
		__atomic_add_fetch(&nr_parked_runs, 1, __ATOMIC_RELAXED);
		ksft_print_msg("A VM ran whose memory was handed over, %d\n", r);
	}
out:
	pthread_rwlock_unlock(&world);
}

/* What a new VMM does, as a whole: link and bind all of another VM's, transfer. */
static void op_adopt(void)
{
	int dst = random_vm(), src = random_vm(), m, fd;

	if (dst == src || !hold_vm(dst)) {
		count(OP_ADOPT, OUTCOME_NOTHING);
		return;
	}

	for (m = 0; m < NR_MEMS; m++) {
		int vm_fd = vms[dst].fd;
		struct mem *mem = &mems[m];
		struct kvm_gmem_link args = {};

		pthread_mutex_lock(&mem->lock);
		if (mem->views[src] >= 0 && mem->views[dst] < 0) {
			args.gmem_fd = mem->views[src];
			fd = count_ret(OP_LINK, ioctl(vm_fd, KVM_GMEM_LINK, &args));
			if (fd >= 0)
				mem->views[dst] = fd;
		}
		if (mem->views[dst] >= 0)
			count_ret(OP_BIND, set_slot(vm_fd, MEM_SLOT(m), KVM_MEM_GUEST_MEMFD,
						    mem_gpa(m), MEM_SIZE, NULL,
						    mem->views[dst], 0));
		pthread_mutex_unlock(&mem->lock);
	}
	pthread_rwlock_unlock(&vms[dst].life);

	pthread_rwlock_rdlock(&world);
	transfer(OP_ADOPT, READ_ONCE(vms[dst].fd), READ_ONCE(vms[src].fd), random_flags());
	pthread_rwlock_unlock(&world);
}

static void (*const op_fns[NR_OPS])(void) = {
	[OP_VM_CREATE] = op_vm_create,
	[OP_VM_DESTROY] = op_vm_destroy,
	[OP_MEM_CREATE] = op_mem_create,
	[OP_LINK] = op_link,
	[OP_LINK_NONSENSE] = op_link_nonsense,
	[OP_VIEW_CLOSE] = op_view_close,
	[OP_BIND] = op_bind,
	[OP_UNBIND] = op_unbind,
	[OP_TRANSFER] = op_transfer,
	[OP_TRANSFER_NONSENSE] = op_transfer_nonsense,
	[OP_TRANSFER_BACK] = op_transfer_back,
	[OP_TRANSFER_CHECKED] = op_transfer_checked,
	[OP_ADOPT] = op_adopt,
	[OP_GUEST_WRITE] = op_guest_write,
	[OP_GUEST_READ] = op_guest_read,
	[OP_GUEST_COUNT] = op_guest_count,
	[OP_IMMEDIATE_EXIT] = op_immediate_exit,
	[OP_PRE_FAULT] = op_pre_fault,
	[OP_USER_READ] = op_user_read,
	[OP_PUNCH] = op_punch,
	[OP_ALLOCATE] = op_allocate,
	[OP_HVA_SLOT] = op_hva_slot,
	[OP_MADVISE] = op_madvise,
	[OP_STATE] = op_state,
	[OP_FORK] = op_fork,
};

static void *stress_thread(void *arg)
{
	int i, n, sum = 0;

	self = arg;
	for (i = 0; i < NR_OPS; i++)
		sum += ops[i].weight;

	while (!READ_ONCE(stop)) {
		n = rnd(sum);
		for (i = 0; n >= ops[i].weight; i++)
			n -= ops[i].weight;
		op_fns[i]();
	}

	return NULL;
}

/* What must not be left over */

static int nr_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int nr = 0;

	TEST_ASSERT(dir, "Cannot read /proc/self/fd, errno: %d", errno);
	while (readdir(dir))
		nr++;
	closedir(dir);

	return nr;
}

static long kib_of(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long kib = -1;

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, field, strlen(field)))
			kib = atol(line + strlen(field));
	}
	fclose(f);

	return kib;
}

/* The kernel frees in the background, and counts per CPU. */
static bool came_down(const char *field, long before)
{
	long slack = 1024 * sysconf(_SC_NPROCESSORS_ONLN), now = 0;
	int i;

	for (i = 0; i < 100; i++) {
		now = kib_of(field);
		if (now <= before + slack)
			return true;
		usleep(100000);
	}
	ksft_print_msg("%s %ld kB before, %ld kB after\n", field, before, now);
	return false;
}

static void print_outcomes(void)
{
	int i, j;

	for (i = 0; i < NR_OPS; i++) {
		char line[1024];
		int n = 0;

		for (j = 0; j < NR_OUTCOMES; j++) {
			const char *name = j == 0 ? "ok" :
					   j == OUTCOME_NOTHING ? "nothing-to-do" :
					   j == OUTCOME_EXIT ? "other-exit" : NULL;

			if (!outcomes[i][j])
				continue;
			if (name)
				n += snprintf(line + n, sizeof(line) - n, " %s=%lu", name,
					      outcomes[i][j]);
			else
				n += snprintf(line + n, sizeof(line) - n, " \"%s\"=%lu",
					      strerror(j), outcomes[i][j]);
		}
		ksft_print_msg("%-18s%s\n", ops[i].name, n ? line : "");
	}
}

static void help(const char *name)
{
	printf("usage: %s [-s SEED] [-t SECONDS] [-j THREADS]\n\n"
	       " -s: seed of the random choices, default: the time\n"
	       " -t: how long, default: 10 seconds\n"
	       " -j: how many threads, default: 4\n", name);
	exit(KSFT_FAIL);
}

int main(int argc, char *argv[])
{
	int i, j, opt, seconds = 10, nr_threads = 4, fds_before, fds_after;
	struct sigaction sa = { .sa_handler = sigbus_handler };
	struct thread threads[MAX_THREADS] = {};
	long tables_before, pages_before;
	u32 seed = time(NULL);

	while ((opt = getopt(argc, argv, "s:t:j:h")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 'j':
			nr_threads = atoi_positive("Threads", optarg);
			break;
		default:
			help(argv[0]);
		}
	}
	TEST_ASSERT(nr_threads <= MAX_THREADS, "At most %u threads", MAX_THREADS);

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GMEM_TRANSFER));

	ksft_print_header();
	ksft_set_plan(5);
	ksft_print_msg("seed %u, %d seconds, %d threads\n", seed, seconds, nr_threads);

	kvm_fd = open_kvm_dev_path_or_exit();
	run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	sigaction(SIGBUS, &sa, NULL);

	code_page = kvm_mmap(CODE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
	memcpy(code_page, guest_code, sizeof(guest_code));
	hva_page = kvm_mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);

	for (i = 0; i < NR_VMS; i++) {
		vms[i].fd = -1;
		pthread_rwlock_init(&vms[i].life, NULL);
		for (j = 0; j < NR_VCPUS; j++) {
			vms[i].vcpu_fds[j] = -1;
			pthread_mutex_init(&vms[i].vcpu_locks[j], NULL);
		}
	}
	for (i = 0; i < NR_MEMS; i++) {
		pthread_mutex_init(&mems[i].lock, NULL);
		for (j = 0; j < NR_VMS; j++)
			mems[i].views[j] = -1;
	}

	fds_before = nr_fds();
	tables_before = kib_of("SecPageTables:");
	pages_before = kib_of("Unevictable:");

	for (i = 0; i < nr_threads; i++) {
		threads[i].rng = new_kvm_random_state(seed + i * 7919);
		kvm_pthread_create(&threads[i].thread, NULL, stress_thread, &threads[i]);
	}
	sleep(seconds);
	WRITE_ONCE(stop, true);
	for (i = 0; i < nr_threads; i++)
		kvm_pthread_join(threads[i].thread, NULL);

	for (i = 0; i < NR_VMS; i++) {
		if (vms[i].fd >= 0)
			vm_destroy(i, i % 2, i / 2 % 2);
	}
	for (i = 0; i < NR_VMS; i++)
		close_views(i);
	fds_after = nr_fds();

	print_outcomes();

	ksft_test_result(!nr_wrong, "memory is what its owners wrote\n");
	ksft_test_result(!nr_parked_runs, "no parked VM runs\n");
	if (fds_before != fds_after)
		ksft_print_msg("%d descriptors before, %d after\n", fds_before, fds_after);
	ksft_test_result(fds_before == fds_after, "no descriptor is left\n");
	ksft_test_result(came_down("SecPageTables:", tables_before), "no page table is left\n");
	ksft_test_result(came_down("Unevictable:", pages_before), "no page is left\n");

	ksft_finished();
}
