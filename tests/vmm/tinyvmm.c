/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tinyvmm: the smallest VMM that can be replaced under its guest. It is the
 * example of docs/vmm-guide.md and the subject of the fast tests.
 *
 * The guest is a hundred bytes of 32-bit code. Each vCPU goes round and round
 * through pages of its own: it checks that every page holds what the last round
 * wrote (a sequence number, a pattern, a checksum), writes the next, and tells
 * the VMM once a round how many errors it has found. A write that got lost, or
 * happened twice, is an error for ever.
 *
 * Threads: main() does what libupgraded asks for, one thread per vCPU runs it.
 * `vm.lock` protects `paused` and the vCPUs' `stopped`; everything else is only
 * changed while every vCPU is stopped.
 *
 * If this process dies as a source, the guest is lost, as with any VMM; frozen,
 * or as a target that does not run yet, nothing is lost with it.
 */
#include "fault.h"
#include "kvm_compat.h"
#include "proof.h"
#include "upgraded.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define VERSION	    "1.0"
#define STATE_MAGIC 0x31796e6974ULL
#define CODE_GPA    0x1000
#define PAGES_GPA   0x100000
#define PORT	    0x10
#define KICK	    SIGUSR1
#define UNPARK_MS   2000

/*
 * edi: the first page; esi: how many; ebp: the last round; ebx: errors. There is
 * no stack: esp is a register like the others. A page's first 16 words: round,
 * number, 13 of pattern, checksum; its last word is the round again.
 */
extern const char guest_begin[], guest_end[];
__asm__(".pushsection .rodata\n"
	".code32\n"
	"guest_begin:\n"
	"	inc %ebp\n"
	"	xor %edx, %edx\n"
	"page:	mov %edx, %eax\n"
	"	shl $12, %eax\n"
	"	add %edi, %eax\n"
	/* What the last round wrote? */
	"	xor %esp, %esp\n"
	"	mov $15, %ecx\n"
	"1:	add -4(%eax,%ecx,4), %esp\n"
	"	rol $1, %esp\n"
	"	dec %ecx\n"
	"	jnz 1b\n"
	"	cmp %esp, 60(%eax)\n"
	"	je 2f\n"
	"	inc %ebx\n"
	"2:	lea -1(%ebp), %esp\n"
	"	cmp %esp, (%eax)\n"
	"	je 3f\n"
	"	inc %ebx\n"
	"3:	cmp %esp, 4092(%eax)\n"
	"	je 4f\n"
	"	inc %ebx\n"
	/* This round's. */
	"4:	mov %ebp, (%eax)\n"
	"	mov %ebp, 4092(%eax)\n"
	"	mov %edx, 4(%eax)\n"
	"	imul $0x9e3779b1, %ebp, %esp\n"
	"	add %edx, %esp\n"
	"	mov $13, %ecx\n"
	"5:	add $0x01010101, %esp\n"
	"	mov %esp, 4(%eax,%ecx,4)\n"
	"	dec %ecx\n"
	"	jnz 5b\n"
	"	xor %esp, %esp\n"
	"	mov $15, %ecx\n"
	"6:	add -4(%eax,%ecx,4), %esp\n"
	"	rol $1, %esp\n"
	"	dec %ecx\n"
	"	jnz 6b\n"
	"	mov %esp, 60(%eax)\n"
	"	inc %edx\n"
	"	cmp %esi, %edx\n"
	"	jb page\n"
	"	mov %ebx, %eax\n"
	"	out %eax, $0x10\n"
	"	jmp guest_begin\n"
	"guest_end:\n"
	".code64\n"
	".popsection\n");

struct vm;

struct vcpu {
	struct vm *vm;
	int index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	bool stopped;
	bool unfinished; /* the last exit was I/O, which the next KVM_RUN completes */
	uint64_t epoch;	 /* see proof.c */
	struct timespec thawed;
};

struct vm {
	/* Options. */
	const char *name, *socket, *proof_path, *fault;
	unsigned int n_vcpus, pages, rest_ms;
	size_t memory;
	bool irqchip, memfd;

	int kvm, fd;
	int ram_fd; /* memfd, guest_memfd, or a view of one */
	bool gmem;  /* it is one of the latter two */
	bool bound; /* and the memslot is bound to it */
	char *ram;
	int source_vm; /* stage2: whose memory we take over */
	int proof_fd;
	struct proof *proof;
	struct vcpu vcpu[VCPUS_MAX];

	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool paused;
	bool quit;
	struct upgraded *upgraded;
};

/* What moves from one tinyvmm to the next. A real VMM has more, and versions it. */
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_lapic_state lapic;
	uint64_t epoch;
};

struct state {
	uint64_t magic;
	uint64_t n_vcpus;
	uint64_t irqchip;
	struct kvm_irqchip chip[3];
	struct vcpu_state vcpu[VCPUS_MAX];
};

static __thread struct kvm_run *this_run;

/* SIGUSR2: runs the guest whatever anybody says, as a VMM in the wrong hands would. */
static volatile sig_atomic_t insists;

static void on_insist(int sig)
{
	(void)sig;
	insists = 1;
}

/* Ends a KVM_RUN that is under way, or is about to begin. */
static void on_kick(int sig)
{
	(void)sig;
	if (this_run)
		this_run->immediate_exit = 1;
}

__attribute__((format(printf, 2, 3))) static void say(const struct vm *vm, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "tinyvmm %d, %s: ", (int)getpid(), vm->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static int failed(const struct vm *vm, const char *what)
{
	int r = -errno;

	say(vm, "%s: %s", what, strerror(-r));
	return r;
}

/* ---- running the guest ------------------------------------------------------ */

static int64_t ms_since(const struct timespec *then)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - then->tv_sec) * 1000 + (now.tv_nsec - then->tv_nsec) / 1000000;
}

/* Completes the I/O of the last exit, without running the guest. */
static void finish_io(struct vcpu *v)
{
	if (!v->unfinished)
		return;
	v->run->immediate_exit = 1;
	(void)ioctl(v->fd, KVM_RUN, 0);
	v->unfinished = false;
}

/* As pthread_cond_wait(), but no signal is missed for long. */
static void wait_awhile(struct vm *vm)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 20 * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_cond_timedwait(&vm->cond, &vm->lock, &until);
}

/* Waits while the VM is paused. False: end. */
static bool may_run(struct vcpu *v)
{
	struct vm *vm = v->vm;
	bool go_on;

	pthread_mutex_lock(&vm->lock);
	if (vm->paused && !vm->quit)
		finish_io(v);
	while (vm->paused && !vm->quit && !insists) {
		v->stopped = true;
		pthread_cond_broadcast(&vm->cond);
		wait_awhile(vm);
		clock_gettime(CLOCK_MONOTONIC, &v->thawed);
	}
	v->stopped = false;
	v->run->immediate_exit = 0;
	go_on = !vm->quit;
	pthread_mutex_unlock(&vm->lock);
	return go_on;
}

/* Tries to run a guest that is not ours to run. Nothing but the kernel keeps it from it. */
static void run_regardless(struct vcpu *v)
{
	int r = ioctl(v->fd, KVM_RUN, 0) < 0 ? -errno : 0;

	proof_insisted(v->vm->proof, v->index, r);
	usleep(1000);
}

/* KVM_RUN has come back with @r. False: the guest cannot go on. */
static bool look_at_exit(struct vcpu *v, int r)
{
	struct vm *vm = v->vm;

	if (r == -EINTR || r == -EAGAIN)
		return true;
	/* Parked: until the target of an upgrade that was undone is gone for good. */
	if (r == -ESTALE && ms_since(&v->thawed) < UNPARK_MS) {
		usleep(100);
		return true;
	}
	if (r < 0) {
		say(vm, "vCPU %d: KVM_RUN: %s", v->index, strerror(-r));
		return false;
	}
	if (v->run->exit_reason != KVM_EXIT_IO || v->run->io.port != PORT) {
		say(vm, "vCPU %d: exit %u", v->index, v->run->exit_reason);
		return false;
	}
	v->unfinished = true;
	proof_tick(vm->proof, v->index, *(uint32_t *)((char *)v->run + v->run->io.data_offset));
	return true;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	bool fine = true;

	this_run = v->run;
	while (fine && may_run(v)) {
		int r;

		if (insists) {
			run_regardless(v);
			continue;
		}
		proof_enter(v->vm->proof, v->index, &v->epoch);
		r = ioctl(v->fd, KVM_RUN, 0) < 0 ? -errno : 0;
		proof_leave(v->vm->proof, v->index);
		if (r == 0)
			v->unfinished = false;
		fine = look_at_exit(v, r);
		/* KICK ends it. */
		if (v->vm->rest_ms)
			usleep(v->vm->rest_ms * 1000);
	}
	pthread_mutex_lock(&v->vm->lock);
	v->stopped = true;
	if (!fine)
		v->vm->quit = true;
	pthread_cond_broadcast(&v->vm->cond);
	pthread_mutex_unlock(&v->vm->lock);
	/* main() polls; it must see that a vCPU ended. */
	if (!fine)
		kill(getpid(), SIGTERM);
	return NULL;
}

static void pause_vcpus(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->paused = true;
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpu[i].started)
			pthread_kill(vm->vcpu[i].thread, KICK);
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		while (vm->vcpu[i].started && !vm->vcpu[i].stopped)
			pthread_cond_wait(&vm->cond, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

static void resume_vcpus(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->paused = false;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
}

static int start_vcpus(struct vm *vm)
{
	vm->proof->pid = (uint64_t)getpid();
	vm->proof->runs++;
	vm->proof->n_vcpus = vm->n_vcpus;
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *v = &vm->vcpu[i];

		if (v->started)
			continue;
		clock_gettime(CLOCK_MONOTONIC, &v->thawed);
		if (pthread_create(&v->thread, NULL, vcpu_main, v))
			return -EAGAIN;
		v->started = true;
	}
	return 0;
}

static void end_vcpus(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->quit = true;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		if (!vm->vcpu[i].started)
			continue;
		pthread_kill(vm->vcpu[i].thread, KICK);
		pthread_join(vm->vcpu[i].thread, NULL);
	}
}

/* ---- making the VM ----------------------------------------------------------- */

static int bind_ram(struct vm *vm)
{
	struct kvm_userspace_memory_region2 bound = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.memory_size = vm->memory,
		.userspace_addr = (uintptr_t)vm->ram,
		.guest_memfd = (uint32_t)vm->ram_fd,
	};
	struct kvm_userspace_memory_region plain = {
		.memory_size = vm->memory,
		.userspace_addr = (uintptr_t)vm->ram,
	};

	if (vm->bound)
		return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &bound) < 0
			       ? failed(vm, "KVM_SET_USER_MEMORY_REGION2")
			       : 0;
	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &plain) < 0
		       ? failed(vm, "KVM_SET_USER_MEMORY_REGION")
		       : 0;
}

static int map_ram(struct vm *vm)
{
	vm->ram = mmap(NULL, vm->memory, PROT_READ | PROT_WRITE, MAP_SHARED, vm->ram_fd, 0);
	return vm->ram == MAP_FAILED ? failed(vm, "mmap of the memory") : 0;
}

static int make_vcpu(struct vm *vm, int index)
{
	struct vcpu *v = &vm->vcpu[index];
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	v->vm = vm;
	v->index = index;
	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0)
		return failed(vm, "KVM_CREATE_VCPU");
	v->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	return v->run == MAP_FAILED ? failed(vm, "mmap of a vCPU") : 0;
}

/* Without its memory. */
static int make_vm(struct vm *vm)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return failed(vm, "/dev/kvm");
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		return failed(vm, "KVM_CREATE_VM");
	if (vm->irqchip && ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return failed(vm, "KVM_CREATE_IRQCHIP");
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		int r = make_vcpu(vm, (int)i);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Memory of its own: a guest_memfd where there is one that can be mapped. */
static int make_ram(struct vm *vm)
{
	struct kvm_create_guest_memfd create = {
		.size = vm->memory,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int flags = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS);

	if (!vm->memfd && flags > 0 && ((unsigned int)flags & create.flags) == create.flags) {
		vm->ram_fd = ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &create);
		if (vm->ram_fd < 0)
			return failed(vm, "KVM_CREATE_GUEST_MEMFD");
		vm->gmem = vm->bound = true;
		return 0;
	}
	vm->ram_fd = memfd_create("tinyvmm-ram", MFD_CLOEXEC);
	if (vm->ram_fd < 0 || ftruncate(vm->ram_fd, (off_t)vm->memory) < 0)
		return failed(vm, "memfd_create");
	return 0;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){ .limit = ~0U,
				     .selector = selector,
				     .type = type,
				     .present = 1,
				     .db = 1,
				     .s = 1,
				     .g = 1 };
}

static int boot_vcpu(struct vm *vm, struct vcpu *v)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_regs regs = {
		.rip = CODE_GPA,
		.rflags = 2,
		.rdi = PAGES_GPA + (uint64_t)v->index * vm->pages * 4096,
		.rsi = vm->pages,
	};
	struct kvm_sregs sregs;

	if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
		return failed(vm, "KVM_GET_SREGS");
	sregs.cs = flat(8, 11);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(16, 3);
	sregs.cr0 |= 1;
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &regs) < 0)
		return failed(vm, "setting up a vCPU");
	if (vm->irqchip && ioctl(v->fd, KVM_SET_MP_STATE, &runnable) < 0)
		return failed(vm, "KVM_SET_MP_STATE");
	return 0;
}

static int offer_all(struct vm *vm)
{
	int r;

	r = upgraded_offer(vm->upgraded, "ram", vm->gmem ? UPGRADED_GMEM : UPGRADED_MEMFD,
			   vm->ram_fd);
	if (r >= 0)
		r = upgraded_offer(vm->upgraded, "proof", UPGRADED_DEVICE, vm->proof_fd);
	/* Only what is bound to memslots can be handed over by the kernel. */
	if (r >= 0 && vm->bound)
		r = upgraded_offer(vm->upgraded, "vm", UPGRADED_VM, vm->fd);
	if (r >= 0)
		r = upgraded_describe(vm->upgraded, VERSION, vm->irqchip ? "tiny-irqchip" : "tiny",
				      vm->memory);
	if (r < 0)
		say(vm, "cannot offer the VM: %s", strerror(-r));
	return r;
}

static int boot(struct vm *vm)
{
	int r;

	vm->proof_fd = vm->proof_path ? open(vm->proof_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)
				      : memfd_create("tinyvmm-proof", MFD_CLOEXEC);
	if (vm->proof_fd < 0 || !(vm->proof = proof_map(vm->proof_fd)))
		return failed(vm, "the memory of the proof");
	r = make_vm(vm);
	if (r >= 0)
		r = make_ram(vm);
	if (r >= 0)
		r = map_ram(vm);
	if (r >= 0)
		r = bind_ram(vm);
	if (r < 0)
		return r;
	memcpy(vm->ram + CODE_GPA, guest_begin, (size_t)(guest_end - guest_begin));
	for (unsigned int i = 0; i < vm->n_vcpus && r >= 0; i++)
		r = boot_vcpu(vm, &vm->vcpu[i]);
	if (r < 0)
		return r;
	vm->proof->magic = PROOF_MAGIC;
	vm->proof->kvm_gmem = vm->gmem;
	r = offer_all(vm);
	return r < 0 ? r : start_vcpus(vm);
}

/* ---- the source's part of an upgrade ------------------------------------------- */

static int save_vcpu(struct vm *vm, struct vcpu *v, struct vcpu_state *s)
{
	s->epoch = v->epoch;
	if (ioctl(v->fd, KVM_GET_REGS, &s->regs) < 0 ||
	    ioctl(v->fd, KVM_GET_SREGS, &s->sregs) < 0 ||
	    ioctl(v->fd, KVM_GET_VCPU_EVENTS, &s->events) < 0)
		return failed(vm, "reading a vCPU");
	if (vm->irqchip && (ioctl(v->fd, KVM_GET_MP_STATE, &s->mp) < 0 ||
			    ioctl(v->fd, KVM_GET_LAPIC, &s->lapic) < 0))
		return failed(vm, "reading a vCPU's interrupt controller");
	return 0;
}

static int save(struct vm *vm, struct state *s)
{
	s->magic = STATE_MAGIC;
	s->n_vcpus = vm->n_vcpus;
	s->irqchip = vm->irqchip;
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		int r = save_vcpu(vm, &vm->vcpu[i], &s->vcpu[i]);

		if (r < 0)
			return r;
	}
	if (!vm->irqchip)
		return 0;
	for (unsigned int i = 0; i < 3; i++) {
		s->chip[i].chip_id = i;
		if (ioctl(vm->fd, KVM_GET_IRQCHIP, &s->chip[i]) < 0)
			return failed(vm, "KVM_GET_IRQCHIP");
	}
	return 0;
}

static int on_freeze(struct upgraded *u, int state_fd, void *userdata)
{
	struct vm *vm = userdata;
	struct state *s;
	ssize_t n;
	int r;

	r = fault_at(vm->fault, "source", "freeze");
	if (r < 0)
		return r;
	pause_vcpus(vm);
	if (vm->quit) {
		upgraded_explain(u, "a vCPU has ended");
		return -ECANCELED;
	}
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	r = save(vm, s);
	if (r >= 0) {
		n = write(state_fd, s, sizeof(*s));
		r = n == sizeof(*s) ? 0 : -EIO;
	}
	free(s);
	return r < 0 ? r : fault_at(vm->fault, "source", "frozen");
}

static int on_reclaim(struct upgraded *u, int target_vm, void *userdata)
{
	struct vm *vm = userdata;
	int r = fault_at(vm->fault, "source", "reclaim");

	if (r >= 0)
		r = upgraded_gmem_transfer(vm->fd, target_vm, 0, NULL);
	say(vm, "takes its memory back: %s", r < 0 ? strerror(-r) : "done");
	return r;
}

static int on_thaw(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	int r = fault_at(vm->fault, "source", "thaw");

	if (r < 0)
		return r;
	resume_vcpus(vm);
	return 0;
}

static int on_quit(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;

	say(vm, "the guest runs elsewhere");
	(void)fault_at(vm->fault, "source", "quit");
	vm->quit = true;
	return 0;
}

/* ---- the target's part ---------------------------------------------------------- */

/* The memory stays bound to memslots, of our own VM now: tier stage2. */
static int link_ram(struct vm *vm, int gmem)
{
	int r, view;

	r = upgraded_take(vm->upgraded, "vm", UPGRADED_VM, &vm->source_vm);
	if (r < 0)
		return r;
	r = upgraded_gmem_link(vm->fd, gmem, &view);
	if (r < 0)
		return r;
	vm->ram_fd = view;
	vm->bound = true;
	return 0;
}

static int take_ram(struct vm *vm, struct upgraded *u)
{
	const char *why = NULL;
	enum upgraded_tier tier;
	int fd, r;

	vm->gmem = upgraded_take(u, "ram", UPGRADED_GMEM, &fd) == 0;
	if (!vm->gmem) {
		r = upgraded_take(u, "ram", UPGRADED_MEMFD, &fd);
		if (r < 0)
			return r;
	}
	vm->ram_fd = fd;
	tier = vm->gmem ? UPGRADED_TIER_GMEM : UPGRADED_TIER_MEMFD;
	if (vm->gmem && upgraded_tier(u) == UPGRADED_TIER_STAGE2) {
		r = link_ram(vm, fd);
		if (r == 0) {
			tier = UPGRADED_TIER_STAGE2;
			close(fd);
		} else {
			why = strerror(-r);
		}
	}
	r = map_ram(vm);
	if (r >= 0)
		r = bind_ram(vm);
	return r < 0 ? r : upgraded_set_tier(u, tier, why);
}

static int on_accept(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	int r;

	r = fault_at(vm->fault, "target", "accept");
	if (r >= 0)
		r = make_vm(vm);
	if (r >= 0)
		r = take_ram(vm, u);
	if (r >= 0)
		r = upgraded_take(u, "proof", UPGRADED_DEVICE, &vm->proof_fd);
	if (r < 0)
		return r;
	vm->proof = proof_map(vm->proof_fd);
	if (!vm->proof)
		return -EIO;
	r = offer_all(vm);
	return r < 0 ? r : fault_at(vm->fault, "target", "accepted");
}

static int on_verify(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	struct upgraded_gmem_result result = { 0 };
	int r;

	r = fault_at(vm->fault, "target", "verify");
	if (r < 0 || !vm->bound)
		return r;
	r = upgraded_gmem_transfer(vm->fd, vm->source_vm, UPGRADED_GMEM_DRY_RUN, &result);
	if (r < 0)
		upgraded_explain(u,
				 "KVM would not hand the memory over: %s (%u of %u memslots are "
				 "the same, at 0x%llx: %s)",
				 strerror(-r), result.matched, result.slots,
				 (unsigned long long)result.gpa,
				 upgraded_gmem_verdict(result.verdict));
	else
		upgraded_set_result(u, &result);
	return r;
}

static int load_vcpu(struct vm *vm, struct vcpu *v, const struct vcpu_state *s)
{
	v->epoch = s->epoch;
	if (ioctl(v->fd, KVM_SET_SREGS, &s->sregs) < 0 ||
	    ioctl(v->fd, KVM_SET_REGS, &s->regs) < 0 ||
	    ioctl(v->fd, KVM_SET_VCPU_EVENTS, &s->events) < 0)
		return failed(vm, "setting a vCPU");
	if (vm->irqchip && (ioctl(v->fd, KVM_SET_LAPIC, &s->lapic) < 0 ||
			    ioctl(v->fd, KVM_SET_MP_STATE, &s->mp) < 0))
		return failed(vm, "setting a vCPU's interrupt controller");
	return 0;
}

static int load(struct vm *vm, struct upgraded *u, const struct state *s)
{
	if (s->magic != STATE_MAGIC || s->n_vcpus != vm->n_vcpus || s->irqchip != vm->irqchip) {
		upgraded_explain(u, "this is not the state of a VM like this one");
		return -EINVAL;
	}
	for (unsigned int i = 0; vm->irqchip && i < 3; i++)
		if (ioctl(vm->fd, KVM_SET_IRQCHIP, &s->chip[i]) < 0)
			return failed(vm, "KVM_SET_IRQCHIP");
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		int r = load_vcpu(vm, &vm->vcpu[i], &s->vcpu[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

static int on_load(struct upgraded *u, int state_fd, void *userdata)
{
	struct vm *vm = userdata;
	struct state *s;
	ssize_t n;
	int r;

	r = fault_at(vm->fault, "target", "load");
	if (r < 0)
		return r;
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	n = read(state_fd, s, sizeof(*s));
	if (n == sizeof(*s)) {
		r = load(vm, u, s);
	} else {
		upgraded_explain(u, "the state is cut off after %zd bytes", n);
		r = -EINVAL;
	}
	free(s);
	return r < 0 ? r : fault_at(vm->fault, "target", "loaded");
}

static int on_own(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	struct upgraded_gmem_result result = { 0 };
	int r;

	r = fault_at(vm->fault, "target", "own");
	if (r < 0)
		return r;
	if (vm->bound) {
		r = upgraded_gmem_transfer(vm->fd, vm->source_vm, 0, &result);
		if (r < 0)
			return r;
		vm->proof->tables = result.tables;
		upgraded_set_result(u, &result);
	}
	return fault_at(vm->fault, "target", "owned");
}

static int on_run(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	int r = fault_at(vm->fault, "target", "run");

	if (r < 0)
		return r;
	vm->proof->tier = !vm->gmem   ? UPGRADED_TIER_MEMFD
			  : vm->bound ? UPGRADED_TIER_STAGE2
				      : UPGRADED_TIER_GMEM;
	if (vm->source_vm >= 0)
		close(vm->source_vm);
	vm->source_vm = -1;
	r = start_vcpus(vm);
	return r < 0 ? r : fault_at(vm->fault, "target", "running");
}

static int on_finish(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;

	return fault_at(vm->fault, "target", "finish");
}

static const struct upgraded_ops ops = {
	.size = sizeof(ops),
	.freeze = on_freeze,
	.reclaim = on_reclaim,
	.thaw = on_thaw,
	.quit = on_quit,
	.accept = on_accept,
	.verify = on_verify,
	.load = on_load,
	.own = on_own,
	.run = on_run,
	.finish = on_finish,
};

/* ---- main ------------------------------------------------------------------------ */

static void usage(void)
{
	fputs("tinyvmm --name NAME [OPTION...]\n"
	      "  --socket PATH   of the daemon's vmm.sock\n"
	      "  --proof PATH    the file that tells what the guest does (proof.h)\n"
	      "  --memory MIB    guest memory (16)\n"
	      "  --vcpus N       1 to 8 (1)\n"
	      "  --pages N       pages that each vCPU writes (8)\n"
	      "  --rest MS       for how long each vCPU rests after a round (0)\n"
	      "  --irqchip       with KVM's interrupt controllers\n"
	      "  --memfd         memory in a memfd even where there is a guest_memfd\n"
	      "  --fault PATH    the file that orders mishaps (fault.c)\n",
	      stderr);
	exit(2);
}

static void parse(struct vm *vm, int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, 'n' },
		{ "socket", required_argument, NULL, 's' },
		{ "proof", required_argument, NULL, 'p' },
		{ "memory", required_argument, NULL, 'm' },
		{ "vcpus", required_argument, NULL, 'c' },
		{ "pages", required_argument, NULL, 'g' },
		{ "rest", required_argument, NULL, 'r' },
		{ "irqchip", no_argument, NULL, 'i' },
		{ "memfd", no_argument, NULL, 'd' },
		{ "fault", required_argument, NULL, 'f' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case 'n':
			vm->name = optarg;
			break;
		case 's':
			vm->socket = optarg;
			break;
		case 'p':
			vm->proof_path = optarg;
			break;
		case 'm':
			vm->memory = strtoul(optarg, NULL, 10) << 20;
			break;
		case 'c':
			vm->n_vcpus = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'g':
			vm->pages = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'r':
			vm->rest_ms = (unsigned int)strtoul(optarg, NULL, 10);
			break;
		case 'i':
			vm->irqchip = true;
			break;
		case 'd':
			vm->memfd = true;
			break;
		case 'f':
			vm->fault = optarg;
			break;
		default:
			usage();
		}
	if (!vm->name || optind != argc || !vm->n_vcpus || vm->n_vcpus > VCPUS_MAX || !vm->pages ||
	    PAGES_GPA + (size_t)vm->n_vcpus * vm->pages * 4096 > vm->memory)
		usage();
}

/* Blocks the signals that end the VMM, for every thread, and returns an fd for them. */
static int take_signals(void)
{
	struct sigaction kick = { .sa_handler = on_kick }, insist = { .sa_handler = on_insist };
	sigset_t set;

	sigaction(KICK, &kick, NULL);
	sigaction(SIGUSR2, &insist, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Until somebody ends it, or the guest cannot go on. */
static int serve(struct vm *vm, int signals)
{
	for (;;) {
		struct pollfd p[] = {
			{ .fd = upgraded_fd(vm->upgraded), .events = POLLIN },
			{ .fd = signals, .events = POLLIN },
		};
		int r;

		do
			r = upgraded_dispatch(vm->upgraded);
		while (r > 0 && !vm->quit);
		/* Nobody knows this VMM any more: only a guest that runs is worth going on. */
		if (r < 0 && upgraded_state(vm->upgraded) != UPGRADED_RUNNING) {
			say(vm, "%s", upgraded_error(vm->upgraded));
			return r;
		}
		if (r < 0)
			p[0].fd = -1;
		if (vm->quit || (poll(p, 2, -1) > 0 && p[1].revents))
			return 0;
	}
}

int main(int argc, char **argv)
{
	struct vm vm = {
		.n_vcpus = 1,
		.pages = 8,
		.memory = 16 << 20,
		.kvm = -1,
		.fd = -1,
		.ram_fd = -1,
		.source_vm = -1,
		.proof_fd = -1,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
	};
	int signals, r;

	parse(&vm, argc, argv);
	signals = take_signals();
	r = upgraded_new(vm.name, &ops, &vm, &vm.upgraded);
	if (r < 0) {
		say(&vm, "libupgraded: %s", strerror(-r));
		return EXIT_FAILURE;
	}
	/* A target gets everything by on_accept(). */
	if (!upgraded_is_target(vm.upgraded))
		r = boot(&vm);
	if (r >= 0)
		r = upgraded_connect(vm.upgraded, vm.socket, 0);
	if (r >= 0)
		r = serve(&vm, signals);
	end_vcpus(&vm);
	upgraded_free(vm.upgraded);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
