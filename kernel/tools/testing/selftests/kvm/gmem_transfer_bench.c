// SPDX-License-Identifier: GPL-2.0-only
/*
 * What handing a guest's memory over costs, by amount of memory and in comparison
 * with the alternatives: handing over the ownership only, and then either having
 * the new VM fault in everything again, or pre-faulting it.
 *
 * Of each size one guest is made, which goes from VM to VM, by each way in turn.
 * One JSON object per measurement goes to stdout, one line each.  As a reference,
 * that has seen the same noise, a guest of 64MiB is handed over just before each
 * measurement.
 *
 * "dense" guests have touched all of their memory, "sparse" ones a page of each
 * 2MiB.  As guest_memfd consists of small pages, the latter have page tables like
 * the former.
 */
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define GMEM_TRANSFER_NO_TESTS
#include "gmem_transfer_util.h"
#include "processor.h"

enum variant {
	TRANSFER,
	PRE_FAULT,
	DEMAND,
	NR_VARIANTS,
};

static const char * const variant_names[] = {
	[TRANSFER] = "transfer",
	[PRE_FAULT] = "no_stage2_pre_fault",
	[DEMAND] = "no_stage2_demand",
};

#define NR_COMPARISONS	20

struct guest {
	struct gmem_vm vm;
	u64 size;
	u64 stride;
	u64 value;
};

/* The end of what a guest on AMD may use, with 40 bits of physical addresses. */
#define MAX_GPA		0xfd00000000ull

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

static long meminfo_kib(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long kib = -1;

	TEST_ASSERT(f, "Cannot read meminfo, errno: %d", errno);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, field, strlen(field)))
			kib = atol(line + strlen(field));
	}
	fclose(f);

	return kib;
}

/* KVM frees what was dropped in the background, and late.  Do not measure that. */
static void settle(void)
{
	long before, now;
	int i;

	usleep(300000);
	now = meminfo_kib("SecPageTables:");
	for (i = 0; i < 1000; i++) {
		usleep(20000);
		before = now;
		now = meminfo_kib("SecPageTables:");
		if (now == before)
			return;
	}
}

static const char *layout_name(u64 stride)
{
	return stride == GMEM_PAGE_SIZE ? "dense" : "sparse";
}

static u64 nr_pages(struct guest *guest)
{
	return guest->size / guest->stride;
}

/* With large pages in the guest's own tables, so that these don't count. */
static struct gmem_vm bench_vm_create(u64 size)
{
	struct gmem_vm g = gmem_vm_create(1);

#ifdef __x86_64__
	if (kvm_cpu_has(X86_FEATURE_GBPAGES))
		virt_map_level(g.vm, GMEM_GPA, GMEM_GPA, align_up(size, SZ_1G), PG_LEVEL_1G);
	else
		virt_map_level(g.vm, GMEM_GPA, GMEM_GPA, size, PG_LEVEL_2M);
#else
	gmem_map(&g, GMEM_GPA, size);
#endif
	return g;
}

static void guest_job(struct guest *guest, enum gmem_op op)
{
	gmem_guest(&guest->vm, 0, op, GMEM_GPA, nr_pages(guest), guest->stride, guest->value);
	TEST_ASSERT(op != GMEM_OP_VERIFY || !gmem_job(&guest->vm, 0)->bad,
		    "%lu of %lu pages are wrong", gmem_job(&guest->vm, 0)->bad, nr_pages(guest));
}

static struct guest guest_create(u64 size, u64 stride)
{
	struct guest guest = {
		.size = size,
		.stride = stride,
		.value = GMEM_PATTERN,
		.vm = bench_vm_create(size),
	};

	guest.vm.fd = vm_create_guest_memfd(guest.vm.vm, size, GMEM_SHARED_FLAGS);
	gmem_bind(&guest.vm, GMEM_SLOT, GMEM_GPA, size, guest.vm.fd, 0);
	guest_job(&guest, GMEM_OP_WRITE);

	return guest;
}

static void pre_fault(struct guest *guest)
{
	u64 gpa;
	int r;

	if (guest->stride == GMEM_PAGE_SIZE) {
		r = gmem_pre_fault(&guest->vm, GMEM_GPA, guest->size);
		TEST_ASSERT(!r, "KVM_PRE_FAULT_MEMORY failed: %d (%s)", -r, strerror(-r));
		return;
	}

	/* Only what is there, i.e. at best. */
	for (gpa = GMEM_GPA; gpa < GMEM_GPA + guest->size; gpa += guest->stride) {
		r = gmem_pre_fault(&guest->vm, gpa, GMEM_PAGE_SIZE);
		TEST_ASSERT(!r, "KVM_PRE_FAULT_MEMORY failed: %d (%s)", -r, strerror(-r));
	}
}

/* Read, compare and write all of the guest's pages. */
static u64 walk(struct guest *guest, u64 *nr_faults)
{
	u64 start, ns, faults = gmem_nr_faults(&guest->vm);

	start = now_ns();
	guest_job(guest, GMEM_OP_VERIFY);
	guest_job(guest, GMEM_OP_WRITE);
	ns = now_ns() - start;

	*nr_faults = gmem_nr_faults(&guest->vm) - faults;
	return ns;
}

/* The time of the reference's transfer. */
static u64 hand_over_reference(struct guest *ref)
{
	struct gmem_vm new = bench_vm_create(ref->size);
	u64 start, ns;

	new.fd = gmem_link(&new, ref->vm.fd);
	gmem_bind(&new, GMEM_SLOT, GMEM_GPA, ref->size, new.fd, 0);

	start = now_ns();
	gmem_transfer(&new, &ref->vm, KVM_GMEM_TRANSFER_REQUIRE_ALL);
	ns = now_ns() - start;

	gmem_vm_free(&ref->vm);
	ref->vm = new;
	/* Without this, the next one would be a reverse. */
	guest_job(ref, GMEM_OP_VERIFY);

	return ns;
}

static void hand_over(struct guest *guest, enum variant variant, int round, u64 reference_ns)
{
	u32 flags = variant == TRANSFER ? 0 : KVM_GMEM_TRANSFER_NO_STAGE2;
	u64 ioctl_ns, pre_fault_ns = 0, walk_ns, walk2_ns, faults, faults2, start;
	struct gmem_vm new = bench_vm_create(guest->size);
	struct gmem_result res;

	new.fd = gmem_link(&new, guest->vm.fd);
	gmem_bind(&new, GMEM_SLOT, GMEM_GPA, guest->size, new.fd, 0);

	start = now_ns();
	res = gmem_transfer(&new, &guest->vm, flags | KVM_GMEM_TRANSFER_REQUIRE_ALL);
	ioctl_ns = now_ns() - start;

	gmem_vm_free(&guest->vm);
	guest->vm = new;

	if (variant == PRE_FAULT) {
		start = now_ns();
		pre_fault(guest);
		pre_fault_ns = now_ns() - start;
	}

	gmem_warm_up(&guest->vm);
	walk_ns = walk(guest, &faults);
	walk2_ns = walk(guest, &faults2);

	printf("{\"what\":\"sample\",\"variant\":\"%s\",\"layout\":\"%s\",\"size\":%lu,",
	       variant_names[variant], layout_name(guest->stride), guest->size);
	printf("\"pages\":%lu,\"round\":%d,\"ioctl_ns\":%lu,\"pre_fault_ns\":%lu,",
	       nr_pages(guest), round, ioctl_ns, pre_fault_ns);
	printf("\"walk_ns\":%lu,\"walk2_ns\":%lu,\"faults\":%lu,\"faults2\":%lu,",
	       walk_ns, walk2_ns, faults, faults2);
	printf("\"tables\":%llu,\"zapped\":%llu,\"reference_ns\":%lu}\n",
	       res.args.tables, res.args.zapped, reference_ns);
	fflush(stdout);
}

/* What a guest takes, when two VMs have page tables for it for a while. */
static u64 needed_kib(u64 size, u64 stride)
{
	u64 data = size / stride * GMEM_PAGE_SIZE;
	/* A table, and what KVM and the kernel keep of it. */
	u64 tables = size / SZ_2M * (GMEM_PAGE_SIZE + 512);

	return (data + data / 32 + 2 * tables) / 1024 + 256 * 1024;
}

/*
 * Forth and back in turn with the reference, which nobody has to run for: many
 * measurements of one transfer for the price of none.
 */
static void compare(struct guest *ref, struct guest *guest, int round)
{
	struct guest *guests[2] = { ref, guest };
	struct gmem_vm others[2], *from, *to;
	u64 start, ns[2];
	int i, j, k;

	for (i = 0; i < 2; i++) {
		others[i] = bench_vm_create(guests[i]->size);
		others[i].fd = gmem_link(&others[i], guests[i]->vm.fd);
		gmem_bind(&others[i], GMEM_SLOT, GMEM_GPA, guests[i]->size, others[i].fd, 0);
		gmem_warm_up(&guests[i]->vm);
	}

	for (j = 0; j < NR_COMPARISONS; j++) {
		for (k = 0; k < 2; k++) {
			/* Whoever is first has the colder caches. */
			i = k ^ (j / 2 % 2);
			from = j % 2 ? &others[i] : &guests[i]->vm;
			to = j % 2 ? &guests[i]->vm : &others[i];

			start = now_ns();
			gmem_transfer(to, from, 0);
			ns[i] = now_ns() - start;
		}
		printf("{\"what\":\"flat\",\"layout\":\"%s\",\"size\":%lu,\"round\":%d,",
		       layout_name(guest->stride), guest->size, round);
		printf("\"ioctl_ns\":%lu,\"reference_ns\":%lu}\n", ns[1], ns[0]);
	}
	fflush(stdout);

	/* An even number, i.e. they are back. */
	for (i = 0; i < 2; i++)
		gmem_vm_free(&others[i]);
}

static void bench_size(struct guest *ref, u64 size, u64 stride, int rounds)
{
	long available = meminfo_kib("MemAvailable:");
	u64 needed = needed_kib(size, stride);
	struct guest guest;
	int round, i;

	if (available < needed) {
		fprintf(stderr, "SKIPPED: %lu MiB %s take %lu MiB of memory, there are %ld MiB\n",
			size / SZ_1M, layout_name(stride),
			needed / 1024, available / 1024);
		printf("{\"what\":\"skipped\",\"layout\":\"%s\",\"size\":%lu,",
		       layout_name(stride), size);
		printf("\"needed_kib\":%lu,\"available_kib\":%ld}\n", needed, available);
		fflush(stdout);
		return;
	}

	guest = guest_create(size, stride);
	for (round = 0; round < rounds; round++) {
		settle();
		compare(ref, &guest, round);

		for (i = 0; i < NR_VARIANTS; i++) {
			u64 reference_ns;

			settle();
			reference_ns = hand_over_reference(ref);
			hand_over(&guest, (round + i) % NR_VARIANTS, round, reference_ns);
		}
	}
	gmem_vm_free(&guest.vm);
	settle();
}

/* The tail: forth and back, without and with noise */

#define NOISE_GPA	SZ_1G
#define NOISE_SIZE	SZ_2M
#define NOISE_SLOT	(GMEM_SLOT + 1)
#define NR_NOISES	3

struct noise {
	struct gmem_vm *vms[2];
	void *mem[2];
	pthread_t threads[NR_NOISES];
	bool stop;
};

/* MMU notifiers of anonymous memory, which is mapped again each time. */
static void *notifier_noise(void *arg)
{
	struct noise *noise = arg;
	int i;

	for (i = 0; !READ_ONCE(noise->stop); i = !i) {
		memset(noise->mem[i], 1, NOISE_SIZE / 2);
		kvm_madvise(noise->mem[i], NOISE_SIZE / 2, MADV_DONTNEED);
	}

	return NULL;
}

/* Only one of the VMs may, whichever that is. */
static void *punch_noise(void *arg)
{
	struct noise *noise = arg;
	int i;

	for (i = 0; !READ_ONCE(noise->stop); i = !i) {
		fallocate(noise->vms[i]->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  0, 16 * GMEM_PAGE_SIZE);
		fallocate(noise->vms[i]->fd, FALLOC_FL_KEEP_SIZE, 0, 16 * GMEM_PAGE_SIZE);
	}

	return NULL;
}

static void *memslot_noise(void *arg)
{
	struct noise *noise = arg;
	int i;

	for (i = 0; !READ_ONCE(noise->stop); i = !i) {
		__vm_set_user_memory_region(noise->vms[i]->vm, NOISE_SLOT + 1, 0,
					    NOISE_GPA + NOISE_SIZE, GMEM_PAGE_SIZE,
					    noise->mem[i] + NOISE_SIZE / 2);
		__vm_set_user_memory_region(noise->vms[i]->vm, NOISE_SLOT + 1, 0,
					    NOISE_GPA + NOISE_SIZE, 0, NULL);
	}

	return NULL;
}

static void bench_tail(struct guest *guest, int transfers, bool noisy)
{
	static const pthread_fn_t fns[NR_NOISES] = {
		notifier_noise,
		punch_noise,
		memslot_noise,
	};
	struct gmem_vm other = bench_vm_create(guest->size);
	struct noise noise = { .vms = { &guest->vm, &other } };
	int i;

	other.fd = gmem_link(&other, guest->vm.fd);
	gmem_bind(&other, GMEM_SLOT, GMEM_GPA, guest->size, other.fd, 0);
	for (i = 0; i < 2; i++) {
		noise.mem[i] = kvm_mmap(NOISE_SIZE, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1);
		vm_set_user_memory_region(noise.vms[i]->vm, NOISE_SLOT, 0, NOISE_GPA,
					  NOISE_SIZE, noise.mem[i]);
	}
	for (i = 0; noisy && i < NR_NOISES; i++)
		kvm_pthread_create(&noise.threads[i], NULL, fns[i], &noise);

	for (i = 0; i < transfers; i++) {
		u64 start = now_ns(), ns;

		gmem_transfer(noise.vms[!(i % 2)], noise.vms[i % 2], 0);
		ns = now_ns() - start;
		printf("{\"what\":\"tail\",\"noisy\":%s,\"size\":%lu,",
		       noisy ? "true" : "false", guest->size);
		printf("\"index\":%d,\"ioctl_ns\":%lu}\n", i, ns);
	}
	fflush(stdout);

	WRITE_ONCE(noise.stop, true);
	for (i = 0; noisy && i < NR_NOISES; i++)
		kvm_pthread_join(noise.threads[i], NULL);

	/* An even number, i.e. it is back. */
	TEST_ASSERT(transfers % 2 == 0, "Tail of %d transfers", transfers);
	for (i = 0; i < 2; i++) {
		vm_set_user_memory_region(noise.vms[i]->vm, NOISE_SLOT, 0, NOISE_GPA, 0, NULL);
		kvm_munmap(noise.mem[i], NOISE_SIZE);
	}
	gmem_vm_free(&other);

	/* Map what the noise had unmapped, and write what was in the holes. */
	guest_job(guest, GMEM_OP_WRITE);
	guest_job(guest, GMEM_OP_VERIFY);
}

static void help(const char *name)
{
	printf("usage: %s [-n ROUNDS] [-t TRANSFERS] [-d SIZE]... [-s SIZE]...\n\n"
	       " -n: how often to measure each of the ways, default: 5\n"
	       " -t: how many transfers to measure for the tail, default: 400\n"
	       " -d: a dense guest, default: 64M, 256M, 1G and 4G\n"
	       " -s: a sparse guest, default: 16G, 64G, 256G and 1T\n", name);
	exit(KSFT_FAIL);
}

static u64 size_arg(const char *arg)
{
	char *end;
	u64 size = strtoull(arg, &end, 0);

	switch (*end) {
	case 'T':
		size *= 1024;
		fallthrough;
	case 'G':
		size *= 1024;
		fallthrough;
	case 'M':
		size *= SZ_1M;
		break;
	default:
		TEST_FAIL("A size is a number with M, G or T, not '%s'", arg);
	}

	TEST_ASSERT(size && !(size % SZ_2M), "Bad size '%s'", arg);
	return size;
}

/* The guest's address space is what ends it. */
static u64 possible_size(struct kvm_vm *vm, u64 size)
{
	u64 end = min_t(u64, vm->max_gfn << vm->page_shift, MAX_GPA);

	if (vm->pa_bits > 40)
		end = vm->max_gfn << vm->page_shift;
	if (GMEM_GPA + size <= end)
		return size;

	end = align_down(end, SZ_1G) - GMEM_GPA;
	fprintf(stderr, "NOTE: %lu MiB exceed the address space, taking %lu MiB\n",
		size / SZ_1M, end / SZ_1M);
	return end;
}

int main(int argc, char *argv[])
{
	u64 dense[16] = { SZ_64M, SZ_256M, SZ_1G, SZ_4G };
	u64 sparse[16] = { 16ull * SZ_1G, 64ull * SZ_1G, 256ull * SZ_1G, 1024ull * SZ_1G };
	int nr_dense = 4, nr_sparse = 4, rounds = 5, transfers = 400;
	bool default_sizes = true;
	struct guest ref;
	int i, opt;

	while ((opt = getopt(argc, argv, "n:t:d:s:h")) != -1) {
		if ((opt == 'd' || opt == 's') && default_sizes) {
			default_sizes = false;
			nr_dense = 0;
			nr_sparse = 0;
		}

		switch (opt) {
		case 'n':
			rounds = atoi_positive("Rounds", optarg);
			break;
		case 't':
			transfers = atoi_non_negative("Transfers", optarg) & ~1;
			break;
		case 'd':
			TEST_ASSERT(nr_dense < ARRAY_SIZE(dense), "Too many sizes");
			dense[nr_dense++] = size_arg(optarg);
			break;
		case 's':
			TEST_ASSERT(nr_sparse < ARRAY_SIZE(sparse), "Too many sizes");
			sparse[nr_sparse++] = size_arg(optarg);
			break;
		default:
			help(argv[0]);
		}
	}

	gmem_test_require();

	/* The first ones of a boot are slower, for reasons of their own. */
	ref = guest_create(SZ_64M, GMEM_PAGE_SIZE);
	for (i = 0; i < 5; i++)
		hand_over_reference(&ref);

	for (i = 0; i < nr_dense; i++)
		bench_size(&ref, dense[i], GMEM_PAGE_SIZE, rounds);
	for (i = 0; i < nr_sparse; i++)
		bench_size(&ref, possible_size(ref.vm.vm, sparse[i]), SZ_2M, rounds);

	bench_tail(&ref, transfers, false);
	bench_tail(&ref, transfers, true);
	gmem_vm_free(&ref.vm);

	return 0;
}
