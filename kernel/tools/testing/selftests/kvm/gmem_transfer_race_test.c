// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads that race with KVM_GMEM_TRANSFER: vCPUs that run, holes that are
 * punched, pages that are allocated, faulted in and poisoned, memslots and vCPUs
 * that come and go, and other transfers.
 *
 * GMEM_RACE_SECONDS in the environment says how long each of them takes.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "gmem_transfer_util.h"

#define NOISE_SIZE	(64 * GMEM_PAGE_SIZE)
/* The end of the memory is for the noise, the rest is verified. */
#define QUIET_SIZE	(GMEM_SIZE - NOISE_SIZE)

#define HVA_SLOT	(GMEM_SLOT + 4)
#define HVA_GPA		SZ_1G
#define HVA_SIZE	SZ_1M

FIXTURE(race) {
	struct gmem_vm src;
	struct gmem_vm dst;
};

FIXTURE_SETUP(race)
{
	gmem_src_create(&self->src, 1);
	gmem_dst_create(&self->dst, &self->src, 1);
}

FIXTURE_TEARDOWN(race)
{
	gmem_vm_free(&self->dst);
	gmem_vm_free(&self->src);
}

struct noise {
	struct gmem_vm *src;
	struct gmem_vm *dst;
	void (*fn)(struct noise *noise);

	pthread_t thread;
	bool stop;
	u64 rounds;

	/* What the noise maker needs for itself. */
	u64 *src_mem;
	u64 *dst_mem;
	u64 nr_done;
	u64 nr_refused;
};

static void *noise_thread(void *arg)
{
	struct noise *noise = arg;

	while (!READ_ONCE(noise->stop)) {
		noise->fn(noise);
		WRITE_ONCE(noise->rounds, noise->rounds + 1);
	}

	return NULL;
}

static u64 race_ns(void)
{
	const char *seconds = getenv("GMEM_RACE_SECONDS");

	return (seconds ? atoi_positive("GMEM_RACE_SECONDS", seconds) : 2) * NSEC_PER_SEC;
}

static bool time_is_up(struct timespec start)
{
	return timespec_to_ns(timespec_elapsed(start)) > race_ns();
}

/*
 * Hand the memory forth and back while the noise is on, with only these errors.
 * In the end the source owns it.
 */
static void __ping_pong(struct noise *noise, const int *errors, int nr_errors)
{
	struct gmem_vm *owner = noise->src, *other = noise->dst, *tmp;
	u64 nr_moves = 0, nr_errnos[256] = {};
	struct timespec start;
	struct gmem_result res;
	int i;

	kvm_pthread_create(&noise->thread, NULL, noise_thread, noise);
	while (!READ_ONCE(noise->rounds))
		sched_yield();

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		res = __gmem_transfer(other, owner, 0);
		if (res.ret) {
			for (i = 0; i < nr_errors && errors[i] != res.err; i++)
				;
			TEST_ASSERT(i < nr_errors, "Transfer %lu failed, errno: %d (%s)",
				    nr_moves, res.err, strerror(res.err));
			nr_errnos[res.err]++;
			sched_yield();
			continue;
		}
		nr_moves++;
		tmp = owner;
		owner = other;
		other = tmp;
	} while (!time_is_up(start));

	WRITE_ONCE(noise->stop, true);
	kvm_pthread_join(noise->thread, NULL);

	if (owner != noise->src) {
		gmem_transfer(noise->src, noise->dst, 0);
		nr_moves++;
	}

	ksft_print_msg("%lu transfers, %lu rounds of noise, %lu done, %lu refused\n",
		       nr_moves, noise->rounds, noise->nr_done, noise->nr_refused);
	for (i = 0; i < ARRAY_SIZE(nr_errnos); i++) {
		if (nr_errnos[i])
			ksft_print_msg("%lu times %s\n", nr_errnos[i], strerror(i));
	}
	TEST_ASSERT(nr_moves > 1, "Not one transfer in %lu rounds of noise", noise->rounds);
}

#define ping_pong(noise, ...)						\
do {									\
	const int __errors[] = { __VA_ARGS__ };				\
									\
	__ping_pong(noise, __errors, ARRAY_SIZE(__errors));		\
} while (0)

/* What the owner's user space writes is what its guest reads, page by page. */
static void assert_coherent(struct gmem_vm *owner)
{
	const int page = GMEM_PAGE_SIZE / sizeof(u64);
	u64 *mem = gmem_mmap(owner->fd, GMEM_SIZE);
	int i;

	gmem_guest_verify(owner, GMEM_GPA, QUIET_SIZE, GMEM_PATTERN);
	for (i = 0; i < GMEM_NR_PAGES; i++)
		WRITE_ONCE(mem[i * page], ~GMEM_PATTERN + i);
	gmem_guest_verify(owner, GMEM_GPA, GMEM_SIZE, ~GMEM_PATTERN);
	gmem_guest_write(owner, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);
	for (i = 0; i < GMEM_NR_PAGES; i++)
		TEST_ASSERT_EQ(READ_ONCE(mem[i * page]), GMEM_PATTERN + i);
	kvm_munmap(mem, GMEM_SIZE);
}

/* Both VMs are as good as before. */
static void assert_all_is_well(struct gmem_vm *src, struct gmem_vm *dst)
{
	assert_coherent(src);
	gmem_transfer(dst, src, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	assert_coherent(dst);
}

static void noise_result(struct noise *noise, int r, int refusal)
{
	if (!r) {
		noise->nr_done++;
		return;
	}

	TEST_ASSERT(errno == refusal, "Wanted success or %s, got errno: %d (%s)",
		    strerror(refusal), errno, strerror(errno));
	noise->nr_refused++;
}

static void punch_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	u64 offset = noise->rounds / 2 % 64 * GMEM_PAGE_SIZE;

	noise_result(noise, fallocate(g->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      QUIET_SIZE + offset, GMEM_PAGE_SIZE), EPERM);
}

TEST_F(race, punching_holes)
{
	struct noise noise = { &self->src, &self->dst, punch_noise };

	ping_pong(&noise);
	assert_all_is_well(&self->src, &self->dst);
}

static void fallocate_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	int punch = noise->rounds & 2 ? FALLOC_FL_PUNCH_HOLE : 0;

	noise_result(noise, fallocate(g->fd, punch | FALLOC_FL_KEEP_SIZE,
				      QUIET_SIZE, NOISE_SIZE), EPERM);
}

TEST_F(race, allocating)
{
	struct noise noise = { &self->src, &self->dst, fallocate_noise };

	ping_pong(&noise);
	assert_all_is_well(&self->src, &self->dst);
}

static void fault_noise(struct noise *noise)
{
	u64 *mem = noise->rounds % 2 ? noise->src_mem : noise->dst_mem;
	int page = noise->rounds / 2 % 16 * GMEM_PAGE_SIZE / sizeof(u64);

	kvm_madvise(&mem[page], GMEM_PAGE_SIZE, MADV_DONTNEED);
	if (gmem_access_is_sigbus(&mem[page]))
		noise->nr_refused++;
	else
		noise->nr_done++;
}

TEST_F(race, faults_through_user_mappings)
{
	struct noise noise = { &self->src, &self->dst, fault_noise };
	int i;

	noise.src_mem = gmem_mmap(self->src.fd, GMEM_SIZE);
	noise.dst_mem = gmem_mmap(self->dst.fd, GMEM_SIZE);
	ping_pong(&noise);

	/* The source owns it now, and new faults tell so. */
	for (i = 0; i < 16; i++) {
		u64 *src = noise.src_mem + i * GMEM_PAGE_SIZE / sizeof(u64);
		u64 *dst = noise.dst_mem + i * GMEM_PAGE_SIZE / sizeof(u64);

		kvm_madvise(src, GMEM_PAGE_SIZE, MADV_DONTNEED);
		kvm_madvise(dst, GMEM_PAGE_SIZE, MADV_DONTNEED);
		EXPECT_FALSE(gmem_access_is_sigbus(src));
		EXPECT_TRUE(gmem_access_is_sigbus(dst));
	}
	assert_all_is_well(&self->src, &self->dst);
}

/*
 * With UNMAP, whoever doesn't own has nothing mapped, not even what a fault was
 * about to map when the transfer came.
 */
static void unmap_noise(struct noise *noise)
{
	u64 *mem = noise->src_mem + noise->rounds % 64 * GMEM_PAGE_SIZE / sizeof(u64);

	if (gmem_access_is_sigbus(mem))
		noise->nr_refused++;
	else
		noise->nr_done++;
}

TEST_F(race, no_fault_outlives_unmap)
{
	struct noise noise = { &self->src, &self->dst, unmap_noise };
	struct timespec start;
	u64 nr_moves = 0;
	int i;

	noise.src_mem = gmem_mmap(self->src.fd, GMEM_SIZE);
	kvm_pthread_create(&noise.thread, NULL, noise_thread, &noise);

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!time_is_up(start)) {
		unsigned char vec[64];

		gmem_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_UNMAP);
		/* mincore() looks at the page cache, so ask the page tables. */
		for (i = 0; i < 64; i++) {
			static int pagemap = -1;
			u64 *mem = noise.src_mem + i * GMEM_PAGE_SIZE / sizeof(u64);
			u64 entry = 0;

			if (pagemap < 0)
				pagemap = open("/proc/self/pagemap", O_RDONLY);
			if (pagemap < 0)
				SKIP(goto out, "No /proc/self/pagemap");
			TEST_ASSERT_EQ(pread(pagemap, &entry, sizeof(entry),
					     (uintptr_t)mem / getpagesize() * sizeof(entry)),
				       sizeof(entry));
			vec[i] = entry >> 63;
			TEST_ASSERT(!vec[i], "Page %u is mapped by the past owner", i);
		}
		gmem_transfer(&self->src, &self->dst, 0);
		nr_moves++;
		sched_yield();
	}
out:
	WRITE_ONCE(noise.stop, true);
	kvm_pthread_join(noise.thread, NULL);
	ksft_print_msg("%lu transfers, %lu faults, %lu SIGBUS\n", nr_moves,
		       noise.nr_done, noise.nr_refused);
	if (nr_moves)
		assert_all_is_well(&self->src, &self->dst);
}

static void notifier_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	u64 *mem = noise->rounds % 2 ? noise->src_mem : noise->dst_mem;

	/* Memory of slot 0 that nobody uses, and the VMM's mapping of the gmem. */
	kvm_madvise(mem, GMEM_SIZE, MADV_DONTNEED);
	kvm_madvise(addr_gpa2hva(g->vm, HVA_GPA), HVA_SIZE, MADV_DONTNEED);
	noise->nr_done++;
}

TEST_F(race, mmu_notifiers)
{
	struct noise noise = { &self->src, &self->dst, notifier_noise };
	struct gmem_vm *vms[] = { &self->src, &self->dst };
	int i;

	noise.src_mem = gmem_mmap(self->src.fd, GMEM_SIZE);
	noise.dst_mem = gmem_mmap(self->dst.fd, GMEM_SIZE);
	for (i = 0; i < 2; i++) {
		u64 *mem = i ? noise.dst_mem : noise.src_mem;

		vm_userspace_mem_region_add(vms[i]->vm, VM_MEM_SRC_ANONYMOUS, HVA_GPA,
					    HVA_SLOT, HVA_SIZE / GMEM_PAGE_SIZE, 0);
		gmem_unbind(vms[i], GMEM_SLOT);
		ASSERT_EQ(__gmem_bind_hva(vms[i], GMEM_SLOT, GMEM_GPA, GMEM_SIZE,
					  vms[i]->fd, 0, mem), 0);
	}
	gmem_guest_write(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN);

	ping_pong(&noise);
	gmem_assert_faults(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	assert_all_is_well(&self->src, &self->dst);
}

static void memslot_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;

	vm_set_user_memory_region(g->vm, HVA_SLOT, 0, HVA_GPA, HVA_SIZE, noise->src_mem);
	vm_set_user_memory_region(g->vm, HVA_SLOT, 0, HVA_GPA, 0, NULL);
	noise->nr_done++;
}

TEST_F(race, memslots_that_come_and_go)
{
	struct noise noise = { &self->src, &self->dst, memslot_noise };

	noise.src_mem = kvm_mmap(HVA_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ping_pong(&noise);
	assert_all_is_well(&self->src, &self->dst);
}

static void gmem_slot_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;

	gmem_unbind(g, GMEM_SLOT);
	gmem_bind(g, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, g->fd, 0);
	noise->nr_done++;
}

TEST_F(race, the_slots_themselves_come_and_go)
{
	struct noise noise = { &self->src, &self->dst, gmem_slot_noise };

	ping_pong(&noise, ENOENT, ENXIO);
	assert_all_is_well(&self->src, &self->dst);
}

static void vcpu_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	int id = 1 + noise->rounds / 2 % 200, fd;

	if (noise->rounds / 2 >= 200) {
		sched_yield();
		return;
	}

	fd = __vm_ioctl(g->vm, KVM_CREATE_VCPU, (void *)(unsigned long)id);
	noise_result(noise, fd < 0, ESTALE);
	if (fd >= 0)
		close(fd);
}

TEST_F(race, vcpus_that_are_created)
{
	struct noise noise = { &self->src, &self->dst, vcpu_noise };

	ping_pong(&noise, EBUSY);
	assert_all_is_well(&self->src, &self->dst);
}

static void vcpu_ioctl_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	struct kvm_regs regs;

	vcpu_regs_get(g->vcpus[0], &regs);
	noise->nr_done++;
}

TEST_F(race, vcpu_ioctls)
{
	struct noise noise = { &self->src, &self->dst, vcpu_ioctl_noise };

	ping_pong(&noise, EBUSY);
	assert_all_is_well(&self->src, &self->dst);
}

static void pre_fault_noise(struct noise *noise)
{
	struct gmem_vm *g = noise->rounds % 2 ? noise->src : noise->dst;
	int r = gmem_pre_fault(g, GMEM_GPA, GMEM_SIZE);

	TEST_ASSERT(!r || r == -EPERM || r == -ESTALE,
		    "KVM_PRE_FAULT_MEMORY failed: %d (%s)", -r, strerror(-r));
	if (r)
		noise->nr_refused++;
	else
		noise->nr_done++;
	/* Or else, on one slow CPU, a transfer always finds the vCPU busy. */
	sched_yield();
}

TEST_F(race, pre_faulting)
{
	struct noise noise = { &self->src, &self->dst, pre_fault_noise };

	ping_pong(&noise, EBUSY);
	assert_all_is_well(&self->src, &self->dst);
}

static void src_memslot_noise(struct noise *noise)
{
	vm_set_user_memory_region(noise->src->vm, HVA_SLOT, 0, HVA_GPA, HVA_SIZE, noise->src_mem);
	vm_set_user_memory_region(noise->src->vm, HVA_SLOT, 0, HVA_GPA, 0, NULL);
	noise->nr_done++;
}

/*
 * A deleted memslot makes the root obsolete, under the feet of a vCPU that faults
 * in another memslot.  Without a transfer: it would find that vCPU busy forever.
 */
TEST_F(race, pre_faulting_while_memslots_come_and_go)
{
	struct noise noise = { &self->src, &self->dst, src_memslot_noise };
	struct timespec start;
	u64 nr = 0;

	noise.src_mem = kvm_mmap(HVA_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_pthread_create(&noise.thread, NULL, noise_thread, &noise);
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		TEST_ASSERT_EQ(gmem_pre_fault(&self->src, GMEM_GPA, GMEM_SIZE), 0);
		nr++;
	} while (!time_is_up(start));
	WRITE_ONCE(noise.stop, true);
	kvm_pthread_join(noise.thread, NULL);

	ksft_print_msg("Pre-faulted %lu times, while a memslot was deleted %lu times\n",
		       nr, noise.nr_done);
	assert_all_is_well(&self->src, &self->dst);
}

static void link_noise(struct noise *noise)
{
	struct gmem_vm g = { .vm = vm_create_barebones() };

	g.fd = gmem_link(&g, noise->rounds % 2 ? noise->src->fd : noise->dst->fd);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA, GMEM_SIZE, g.fd, 0);
	gmem_vm_free(&g);
	noise->nr_done++;
}

TEST_F(race, views_that_come_and_go)
{
	struct noise noise = { &self->src, &self->dst, link_noise };

	ping_pong(&noise);
	gmem_assert_faults(&self->src, GMEM_GPA, GMEM_SIZE, GMEM_PATTERN, 0);
	assert_all_is_well(&self->src, &self->dst);
}

static void sigbus_ignored(int signum)
{
}

/* One page after the other goes bad.  They are lost for the rest of the boot. */
static void poison_noise(struct noise *noise)
{
	u64 nr = noise->nr_done + noise->nr_refused;
	u64 offset = QUIET_SIZE + nr * GMEM_PAGE_SIZE;

	if (nr == 16) {
		sched_yield();
		return;
	}

	if (gmem_access_is_sigbus(noise->src_mem + offset / sizeof(u64)))
		return;

	/* EBUSY as there are other users of the page, which is bad nevertheless. */
	if (madvise((void *)noise->src_mem + offset, GMEM_PAGE_SIZE, MADV_HWPOISON) &&
	    errno == EBUSY)
		noise->nr_refused++;
	else
		noise->nr_done++;
}

TEST_F(race, memory_failures)
{
	struct noise noise = { &self->src, &self->dst, poison_noise };
	struct sigaction sa = { .sa_handler = sigbus_ignored };
	int i, r;

	if (madvise(NULL, 0, MADV_HWPOISON) && errno != ENOMEM)
		SKIP(return, "No CONFIG_MEMORY_FAILURE, or not root: %s", strerror(errno));

	sigaction(SIGBUS, &sa, NULL);
	noise.src_mem = gmem_mmap(self->src.fd, GMEM_SIZE);
	ping_pong(&noise);

	gmem_transfer(&self->dst, &self->src, 0);
	gmem_guest_verify(&self->dst, GMEM_GPA, QUIET_SIZE, GMEM_PATTERN);
	EXPECT_NE(noise.nr_done + noise.nr_refused, 0);
	for (i = 0; i < noise.nr_done + noise.nr_refused; i++) {
		r = __gmem_guest(&self->dst, 0, GMEM_OP_READ,
				 GMEM_GPA + QUIET_SIZE + i * GMEM_PAGE_SIZE, 1, 0, 0);
		TEST_ASSERT(r == -EHWPOISON || r == -EFAULT,
			    "Poisoned page %u gave %d to the guest", i, r);
		/* The vCPU is stuck there, read the next one with a new job. */
		vcpu_arch_set_entry_point(self->dst.vcpus[0], gmem_guest_code);
		vcpu_args_set(self->dst.vcpus[0], 1, 0ul);
	}
}

/* A vCPU that runs */

struct counter {
	struct gmem_vm *g;
	u64 *mem;
	u64 last;
	int error;
};

static void *count_thread(void *arg)
{
	struct counter *counter = arg;
	struct kvm_vcpu *vcpu = counter->g->vcpus[0];

	for (;;) {
		if (__vcpu_run(vcpu)) {
			if (errno == EINTR)
				continue;
			counter->error = errno;
			return NULL;
		}
		counter->last = READ_ONCE(*counter->mem);
		sched_yield();
	}
}

/*
 * While the vCPU is in KVM_RUN there is no transfer.  If there is one between
 * two KVM_RUNs, then the guest hasn't counted past what was seen last.
 */
TEST_F(race, vcpu_that_counts_is_stopped_between_two_runs)
{
	struct gmem_vm *src = &self->src, *dst = &self->dst;
	struct counter counter = { .g = src };
	u64 nr_busy = 0, nr_wins = 0;
	struct timespec start;
	struct gmem_result res;
	pthread_t thread;

	/* Map it now.  What is mapped stays mapped, also for the past owner. */
	counter.mem = gmem_mmap(src->fd, GMEM_SIZE);
	counter.last = READ_ONCE(*counter.mem);
	gmem_set_job(src, 0, GMEM_OP_COUNT, GMEM_GPA, 1000, 0, 0);

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		kvm_pthread_create(&thread, NULL, count_thread, &counter);
		for (;;) {
			res = __gmem_transfer(dst, src, 0);
			if (!res.ret)
				break;
			TEST_ASSERT_EQ(res.err, EBUSY);
			nr_busy++;
		}
		kvm_pthread_join(thread, NULL);
		nr_wins++;

		TEST_ASSERT_EQ(counter.error, ESTALE);
		TEST_ASSERT(READ_ONCE(*counter.mem) == counter.last,
			    "The guest counted on to 0x%lx, was last seen at 0x%lx",
			    READ_ONCE(*counter.mem), counter.last);
		gmem_transfer(src, dst, 0);
	} while (!time_is_up(start));

	ksft_print_msg("%lu wins, %lu times EBUSY, count is 0x%lx\n", nr_wins, nr_busy,
		       READ_ONCE(*counter.mem));
	gmem_transfer(dst, src, 0);
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA), READ_ONCE(*counter.mem));
	EXPECT_EQ(gmem_guest_read(dst, GMEM_GPA + GMEM_PAGE_SIZE), GMEM_PATTERN + 1);
}

/* Transfers that race with each other */

struct mover {
	struct gmem_vm *from;
	struct gmem_vm *to;
	struct timespec start;
	u64 nr_moves;
	u64 nr_errnos[256];
};

static void *move_thread(void *arg)
{
	struct mover *mover = arg;
	struct gmem_result res;

	while (!time_is_up(mover->start)) {
		res = __gmem_transfer(mover->to, mover->from, 0);
		if (!res.ret)
			mover->nr_moves++;
		else
			mover->nr_errnos[res.err]++;
	}

	return NULL;
}

static void race_movers(struct mover *movers, int nr)
{
	static const int fine[] = { EBUSY, ESTALE, ENOENT, ENXIO, EIO };
	pthread_t threads[8];
	int i, j, k;

	for (i = 0; i < nr; i++) {
		clock_gettime(CLOCK_MONOTONIC, &movers[i].start);
		kvm_pthread_create(&threads[i], NULL, move_thread, &movers[i]);
	}
	for (i = 0; i < nr; i++)
		kvm_pthread_join(threads[i], NULL);

	for (i = 0; i < nr; i++) {
		ksft_print_msg("Mover %u: %lu transfers\n", i, movers[i].nr_moves);
		for (j = 0; j < ARRAY_SIZE(movers[i].nr_errnos); j++) {
			if (!movers[i].nr_errnos[j])
				continue;
			ksft_print_msg("Mover %u: %lu times %s\n", i,
				       movers[i].nr_errnos[j], strerror(j));
			for (k = 0; k < ARRAY_SIZE(fine) && fine[k] != j; k++)
				;
			TEST_ASSERT(k < ARRAY_SIZE(fine), "Unexpected errno: %d", j);
		}
	}
}

/* Exactly one of the VMs is not parked and can use the memory. */
static void assert_one_owner(struct gmem_vm **vms, int nr)
{
	int i, r, nr_owners = 0;

	for (i = 0; i < nr; i++) {
		int flags = fcntl(vms[i]->vm->fd, F_GETFD);

		TEST_ASSERT(flags >= 0, "VM %u has no fd", i);
		r = fallocate(vms[i]->fd, FALLOC_FL_KEEP_SIZE, 0, GMEM_PAGE_SIZE);
		if (!r) {
			nr_owners++;
			gmem_assert_owner(vms[i]);
		} else {
			TEST_ASSERT_EQ(errno, EPERM);
		}
	}
	TEST_ASSERT(nr_owners == 1, "There are %u owners", nr_owners);
}

TEST_F(race, transfers_forth_and_back)
{
	struct gmem_vm *vms[] = { &self->src, &self->dst };
	struct mover movers[] = {
		{ .from = &self->src, .to = &self->dst },
		{ .from = &self->dst, .to = &self->src },
	};

	race_movers(movers, ARRAY_SIZE(movers));
	EXPECT_NE(movers[0].nr_moves, 0);
	EXPECT_NE(movers[1].nr_moves, 0);
	assert_one_owner(vms, ARRAY_SIZE(vms));
}

TEST_F(race, transfers_among_three)
{
	struct gmem_vm third, *vms[] = { &self->src, &self->dst, &third };
	struct mover movers[] = {
		{ .from = &self->src, .to = &self->dst },
		{ .from = &self->dst, .to = &self->src },
		{ .from = &self->src, .to = &third },
		{ .from = &third, .to = &self->src },
	};

	gmem_dst_create(&third, &self->src, 1);
	race_movers(movers, ARRAY_SIZE(movers));
	EXPECT_NE(movers[0].nr_moves + movers[2].nr_moves, 0);
	assert_one_owner(vms, ARRAY_SIZE(vms));
	gmem_vm_free(&third);
}

TEST_F(race, transfers_of_the_same_direction)
{
	struct gmem_vm *vms[] = { &self->src, &self->dst };
	struct mover movers[] = {
		{ .from = &self->src, .to = &self->dst },
		{ .from = &self->src, .to = &self->dst },
		{ .from = &self->src, .to = &self->dst },
	};

	race_movers(movers, ARRAY_SIZE(movers));
	EXPECT_EQ(movers[0].nr_moves + movers[1].nr_moves + movers[2].nr_moves, 1);
	assert_one_owner(vms, ARRAY_SIZE(vms));
}

int main(int argc, char *argv[])
{
	gmem_test_require();

	return test_harness_run(argc, argv);
}
