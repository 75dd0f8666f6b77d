/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tinyvmm: the smallest VMM that can be replaced under its guest. It is the example of
 * docs/vmm-guide.md and the subject of the fast tests. Here is what being replaced takes;
 * the VM itself is machine.c's. proof.c and fault.c are for the tests: what the guest did,
 * and mishaps at the callbacks.
 *
 * main() does what libupgraded asks for, while one thread per vCPU runs the guest.
 *
 * If this process dies as a source, the guest is lost, as with any VMM; frozen,
 * or as a target that does not run yet, nothing is lost with it.
 */
#include "fault.h"
#include "machine.h"
#include "options.h"
#include "upgraded.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define VERSION "1.0"

/* ---- a VM of its own ---- */

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
		r = use_ram(vm);
	if (r >= 0)
		r = load_guest(vm);
	if (r < 0)
		return r;
	vm->proof->magic = PROOF_MAGIC;
	vm->proof->kvm_gmem = vm->gmem;
	r = offer_all(vm);
	return r < 0 ? r : start_vcpus(vm);
}

/* ---- the source's part of an upgrade ------------------------------------------- */

static int on_freeze(struct upgraded *u, int state_fd, void *userdata)
{
	struct vm *vm = userdata;
	struct state *s;
	ssize_t n;
	int r;

	pause_vcpus(vm);
	if (vm->quit) {
		upgraded_explain(u, "a vCPU has ended");
		return -ECANCELED;
	}
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	r = save_state(vm, s);
	if (r >= 0) {
		n = write(state_fd, s, sizeof(*s));
		r = n == sizeof(*s) ? 0 : -EIO;
	}
	free(s);
	return r;
}

static int on_reclaim(struct upgraded *u, int target_vm, void *userdata)
{
	struct vm *vm = userdata;
	int r = upgraded_gmem_transfer(vm->fd, target_vm, 0, NULL);

	say(vm, "takes its memory back: %s", r < 0 ? strerror(-r) : "done");
	return r;
}

static int on_thaw(struct upgraded *u, void *userdata)
{
	resume_vcpus(userdata);
	return 0;
}

static int on_quit(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;

	say(vm, "the guest runs elsewhere");
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
	r = use_ram(vm);
	return r < 0 ? r : upgraded_set_tier(u, tier, why);
}

static int on_accept(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	int r;

	r = make_vm(vm);
	if (r >= 0)
		r = take_ram(vm, u);
	if (r >= 0)
		r = upgraded_take(u, "proof", UPGRADED_DEVICE, &vm->proof_fd);
	if (r < 0)
		return r;
	vm->proof = proof_map(vm->proof_fd);
	return vm->proof ? offer_all(vm) : -EIO;
}

static int on_verify(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	struct upgraded_gmem_result result = { 0 };
	int r;

	if (!vm->bound)
		return 0;
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

static int on_load(struct upgraded *u, int state_fd, void *userdata)
{
	struct vm *vm = userdata;
	struct state *s;
	ssize_t n;
	int r = -EINVAL;

	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	n = read(state_fd, s, sizeof(*s));
	if (n != sizeof(*s))
		upgraded_explain(u, "the state is cut off after %zd bytes", n);
	else if (!state_fits(vm, s))
		upgraded_explain(u, "this is not the state of a VM like this one");
	else
		r = load_state(vm, s);
	free(s);
	return r;
}

static int on_own(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;
	struct upgraded_gmem_result result = { 0 };
	int r;

	if (!vm->bound)
		return 0;
	r = upgraded_gmem_transfer(vm->fd, vm->source_vm, 0, &result);
	if (r < 0)
		return r;
	vm->proof->tables = result.tables;
	upgraded_set_result(u, &result);
	return 0;
}

static int on_run(struct upgraded *u, void *userdata)
{
	struct vm *vm = userdata;

	vm->proof->tier = !vm->gmem   ? UPGRADED_TIER_MEMFD
			  : vm->bound ? UPGRADED_TIER_STAGE2
				      : UPGRADED_TIER_GMEM;
	if (vm->source_vm >= 0)
		close(vm->source_vm);
	vm->source_vm = -1;
	return start_vcpus(vm);
}

static int on_finish(struct upgraded *u, void *userdata)
{
	/* No socket or file bears the source's name. */
	return 0;
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

/* Blocks the signals that end the VMM, for every thread, and returns an fd for them. */
static int take_signals(void)
{
	sigset_t set;

	catch_kicks();
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
		if (r < 0) {
			say(vm, "%s", upgraded_error(vm->upgraded));
			if (upgraded_state(vm->upgraded) != UPGRADED_RUNNING)
				return r;
			p[0].fd = -1;
		}
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
	struct faulty faulty = { .ops = &ops, .userdata = &vm };
	int signals, r;

	parse_options(&vm, argc, argv);
	faulty.path = vm.fault;
	signals = take_signals();
	/* But for the tests: upgraded_new(vm.name, &ops, &vm, &vm.upgraded). */
	r = upgraded_new(vm.name, &faulty_ops, &faulty, &vm.upgraded);
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
