/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VM of tinyvmm: what a VMM has anyway, whether it can be replaced or not. Called by
 * tinyvmm.c; owns the VM, its memory and the threads of its vCPUs.
 *
 * The guest is a hundred bytes of 32-bit code. Each vCPU goes round and round
 * through pages of its own: it checks that every page holds what the last round
 * wrote (a sequence number, a pattern, a checksum), writes the next, and tells
 * the VMM once a round how many errors it has found. A write that got lost, or
 * happened twice, is an error for ever.
 *
 * Each vCPU has a thread. `vm.lock` protects `paused` and the vCPUs' `stopped`;
 * everything else is only changed while every vCPU is stopped. If this process dies, the
 * guest does, unless it stands still and its state was saved.
 */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define STATE_MAGIC 0x31796e6974ULL
#define CODE_GPA    0x1000
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

void catch_kicks(void)
{
	struct sigaction kick = { .sa_handler = on_kick }, insist = { .sa_handler = on_insist };

	sigaction(KICK, &kick, NULL);
	sigaction(SIGUSR2, &insist, NULL);
}

void say(const struct vm *vm, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "tinyvmm %d, %s: ", (int)getpid(), vm->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int failed(const struct vm *vm, const char *what)
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

void pause_vcpus(struct vm *vm)
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

void resume_vcpus(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->paused = false;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
}

int start_vcpus(struct vm *vm)
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

void end_vcpus(struct vm *vm)
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

int use_ram(struct vm *vm)
{
	vm->ram = mmap(NULL, vm->memory, PROT_READ | PROT_WRITE, MAP_SHARED, vm->ram_fd, 0);
	return vm->ram == MAP_FAILED ? failed(vm, "mmap of the memory") : bind_ram(vm);
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

int make_vm(struct vm *vm)
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

int make_ram(struct vm *vm)
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

int load_guest(struct vm *vm)
{
	int r = 0;

	memcpy(vm->ram + CODE_GPA, guest_begin, (size_t)(guest_end - guest_begin));
	for (unsigned int i = 0; i < vm->n_vcpus && r >= 0; i++)
		r = boot_vcpu(vm, &vm->vcpu[i]);
	return r;
}

/* ---- its state ------------------------------------------------------------------ */

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

int save_state(struct vm *vm, struct state *s)
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

bool state_fits(const struct vm *vm, const struct state *s)
{
	return s->magic == STATE_MAGIC && s->n_vcpus == vm->n_vcpus && s->irqchip == vm->irqchip;
}

int load_state(struct vm *vm, const struct state *s)
{
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
