/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libupgraded: for a VMM that wants to be replaced under its running guest.
 *
 * A VMM makes one struct upgraded for its VM, offers the descriptors that the
 * next VMM needs, connects to the daemon, and from then on answers what it is
 * asked, by the functions in struct upgraded_ops. The same program is started
 * again as the target, finds that it is one (upgraded_is_target()), and is
 * asked other things. docs/vmm-guide.md tells it by an example.
 *
 * Results   Functions return 0, or a negative errno, or something positive only
 *           where it says so. Results leave by parameters named ret_*, written
 *           on success only.
 * Fds       "Takes" means that the library owns the descriptor from then on,
 *           "borrows" that it stays the caller's. Every descriptor that the
 *           library makes is close-on-exec.
 * Threads   A struct upgraded is used by one thread at a time; the callbacks
 *           run in the thread that called upgraded_dispatch() or
 *           upgraded_wait(). Several threads need a lock of their own around
 *           every call. The library starts no threads, blocks no signals, has
 *           no global state and never writes to stdout or stderr.
 * fork()    A child must not use the parent's struct upgraded.
 *
 * Nothing here waits without a time limit, but upgraded_wait() and
 * upgraded_connect() with -1. When the daemon dies, the library connects again
 * by itself; a frozen source stays frozen meanwhile and a target waits: neither
 * goes on or back on its own.
 */
#ifndef UPGRADED_H
#define UPGRADED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header's interface; grows when something is added. */
#define UPGRADED_API_VERSION 1

#define UPGRADED_DEFAULT_SOCKET "/run/upgraded/vmm.sock"

/* How many descriptors a VM can offer, and how long their names can be. */
#define UPGRADED_FDS_MAX     250
#define UPGRADED_FD_NAME_MAX 64

struct upgraded;

/* What a descriptor is. */
enum upgraded_kind {
	UPGRADED_MEMFD = 1,  /* guest memory: a memfd */
	UPGRADED_GMEM = 2,   /* guest memory: a guest_memfd that can be mapped */
	UPGRADED_VM = 3,     /* KVM's descriptor of the VM; one at most */
	UPGRADED_DEVICE = 4, /* anything else: a disk, a tap, a socket, a counter */
};

/* How memory gets to the new VM; each is better than the ones before it. */
enum upgraded_tier {
	UPGRADED_TIER_MEMFD = 1,  /* mapped again, faulted in again */
	UPGRADED_TIER_GMEM = 2,	  /* the same, of a guest_memfd: plain memslots over its mapping */
	UPGRADED_TIER_STAGE2 = 3, /* KVM_GMEM_LINK and KVM_GMEM_TRANSFER: not even faulted in */
};

/* Where the VM stands. */
enum upgraded_state {
	UPGRADED_RUNNING = 1,  /* no upgrade, or a source whose guest runs */
	UPGRADED_FROZEN = 2,   /* a source that has saved its state */
	UPGRADED_EMPTY = 3,    /* a target that has got nothing yet */
	UPGRADED_ACCEPTED = 4, /* a target that has memory */
	UPGRADED_LOADED = 5,   /* a target that has loaded the state */
	UPGRADED_OWNER = 6,    /* a target that owns the memory */
};

/* What a callback returns that will answer later, by upgraded_complete(). */
#define UPGRADED_LATER 1

/*
 * What the VMM does when it is asked. Each returns 0, a negative errno, which
 * undoes the upgrade (upgraded_explain() says why), or UPGRADED_LATER. While
 * the guest stands still (from freeze to run) every millisecond counts.
 *
 * Functions that are NULL do nothing and succeed, but freeze, thaw, accept,
 * load and run, which must be there.
 */
struct upgraded_ops {
	size_t size; /* sizeof(struct upgraded_ops), so that it can grow */

	/* ---- in the source ---- */

	/*
	 * Stop every vCPU and whatever else writes to guest memory, finish what
	 * is half done (a KVM_RUN with immediate_exit completes I/O), and write
	 * the state to @state, an empty memfd. Borrows @state; with
	 * UPGRADED_LATER, until upgraded_complete(). If this fails, the library
	 * calls thaw.
	 */
	int (*freeze)(struct upgraded *u, int state, void *userdata);
	/*
	 * Tier stage2, the target has taken the memory but did not run: take it
	 * back from its VM @target_vm (upgraded_gmem_transfer()). Borrows it.
	 * If this fails, the kernel gives it back when the target has ended.
	 */
	int (*reclaim)(struct upgraded *u, int target_vm, void *userdata);
	/* Go on as if nothing had been: the upgrade was undone. */
	int (*thaw)(struct upgraded *u, void *userdata);
	/*
	 * The guest runs in the target. End soon, and leave sockets, pid files
	 * and devices alone: they are the target's. Not every source gets to
	 * hear it: where only its death keeps it from running, it is killed.
	 */
	int (*quit)(struct upgraded *u, void *userdata);

	/* ---- in the target ---- */

	/*
	 * Take what the source offered (upgraded_take()), map the memory, make
	 * the VM, bind or link its memory, and say which tier it came to
	 * (upgraded_set_tier()). Offer the own descriptors (upgraded_offer()),
	 * the VM's above all. The guest still runs in the source: write to no
	 * memory.
	 */
	int (*accept)(struct upgraded *u, void *userdata);
	/* Could this VM take over the memory? Dry run; the guest runs still. */
	int (*verify)(struct upgraded *u, void *userdata);
	/* Load the state from @state, read-only, from its beginning. Borrows it. */
	int (*load)(struct upgraded *u, int state, void *userdata);
	/* The source stands for good: take over the memory. It can be undone yet. */
	int (*own)(struct upgraded *u, void *userdata);
	/* There is no way back: run the guest. */
	int (*run)(struct upgraded *u, void *userdata);
	/* The source is dead: give sockets and files its names. */
	int (*finish)(struct upgraded *u, void *userdata);
};

/*
 * Makes the VM @name (1 to 64 of a-z A-Z 0-9 . _ : - and no dot first) of this
 * process. A process has one VM. @ops is copied; @userdata is passed on.
 * -EINVAL: a bad name, or a function that must be there is not; -ENOMEM, -EMFILE.
 */
int upgraded_new(const char *name, const struct upgraded_ops *ops, void *userdata,
		 struct upgraded **ret_upgraded);

/* Closes the connection, and all that was not taken. NULL: nothing. */
void upgraded_free(struct upgraded *u);

/*
 * Says what the VMM is (@version, for people), what the guest sees (@machine:
 * a target whose @machine is another one is refused) and how large its memory
 * is, in bytes. Before upgraded_connect(), and in a target in accept again.
 */
int upgraded_describe(struct upgraded *u, const char *version, const char *machine,
		      uint64_t memory);

/*
 * Offers @fd to the next VMM, under a @name that is unique here. Borrows it: it
 * must stay open until upgraded_withdraw() or upgraded_free().
 * -EEXIST: the name is taken; -E2BIG: too many; -EINVAL: a bad name or kind.
 */
int upgraded_offer(struct upgraded *u, const char *name, enum upgraded_kind kind, int fd);
/* -ENOENT: nothing of that name is offered. */
int upgraded_withdraw(struct upgraded *u, const char *name);

/*
 * Connects to the daemon and registers the VM, on @path (NULL: the environment's
 * UPGRADED_VMM_SOCKET, or UPGRADED_DEFAULT_SOCKET). Waits for it @timeout_ms at
 * most, -1: without a limit; 0: does not wait, and goes on trying in
 * upgraded_dispatch().
 * -ETIMEDOUT: not yet, it goes on trying; -EEXIST: another process is the VM of
 * that name; -EACCES: this user may not; -ESRCH: a target whose upgrade is over,
 * which should end; -EPROTONOSUPPORT: the daemon is too old. After
 * all but -ETIMEDOUT nothing is tried any more until the next call.
 */
int upgraded_connect(struct upgraded *u, const char *path, int timeout_ms);

/* Is the daemon there? */
bool upgraded_connected(const struct upgraded *u);

/*
 * For poll(): readable when upgraded_dispatch() has something to do. The same
 * one as long as @u lives; borrowed from it: neither read it nor close it.
 */
int upgraded_fd(const struct upgraded *u);

/*
 * Does one thing that there is to do, without waiting for another: a message,
 * and with it at most one callback. 1: did something; 0: there was nothing. Negative as
 * upgraded_connect(), when the daemon refuses this VM. A daemon that is gone is
 * no error.
 */
int upgraded_dispatch(struct upgraded *u);

/* As upgraded_dispatch(), and waits for something to do. -1: for ever. 0: time is up. */
int upgraded_wait(struct upgraded *u, int timeout_ms);

/* Answers for the callback that returned UPGRADED_LATER. -EALREADY: there is none. */
int upgraded_complete(struct upgraded *u, int result);

/* Says why the callback that runs is about to fail. Its text goes into the report. */
void upgraded_explain(struct upgraded *u, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Was this process started to be the target of an upgrade (UPGRADED_TARGET)? */
bool upgraded_is_target(const struct upgraded *u);

enum upgraded_state upgraded_state(const struct upgraded *u);

/* The last error as a sentence, borrowed until the next call; "" if there was none. */
const char *upgraded_error(const struct upgraded *u);

/* ---- in accept, until run has returned ---- */

/*
 * The @i-th descriptor that the source offered. The name is borrowed; either
 * result may be NULL. -ENOENT: there are no more.
 */
int upgraded_received(const struct upgraded *u, size_t i, const char **ret_name,
		      enum upgraded_kind *ret_kind);

/*
 * Hands over the descriptor of that name, which is the caller's from then on.
 * What nobody takes is closed after run. -ENOENT: not offered, or taken
 * already; -EMEDIUMTYPE: it is of another kind.
 */
int upgraded_take(struct upgraded *u, const char *name, enum upgraded_kind kind, int *ret_fd);

/* The highest tier that the host and the source allow. */
enum upgraded_tier upgraded_tier(const struct upgraded *u);

/* The one that this VMM uses, and if it is a lower one, @why (else NULL). */
int upgraded_set_tier(struct upgraded *u, enum upgraded_tier tier, const char *why);

/* ---- the kernel extension: KVM_GMEM_LINK, KVM_GMEM_TRANSFER ---- */

/* Does the kernel have it? Asks @kvm, /dev/kvm or a VM. Borrows it. */
bool upgraded_gmem_supported(int kvm);

/*
 * Gives the VM @vm a view of its own of the guest_memfd @gmem of another VM, to
 * be bound to memslots. Borrows both; *ret_view is the caller's. Errors are
 * the kernel's (Documentation/virt/kvm/api.rst).
 */
int upgraded_gmem_link(int vm, int gmem, int *ret_view);

#define UPGRADED_GMEM_DRY_RUN (1U << 0) /* only compare */

struct upgraded_gmem_result {
	uint32_t slots;	  /* memslots with a guest_memfd */
	uint32_t matched; /* of them the same in both VMs */
	uint64_t tables;  /* page-table pages that were handed over */
	uint64_t zapped;  /* leaf entries that were dropped */
	uint64_t gpa;	  /* of the first memslot that is not the same */
	uint32_t verdict; /* on it, KVM_GMEM_SLOT_*; 0: all are */
	uint32_t reserved;
};

/*
 * Makes @vm the owner of all guest_memfd memory of the VM @source_vm, or of none
 * of it (KVM_GMEM_TRANSFER_REQUIRE_ALL), with its page tables. Must be called
 * in the process that made @vm. Borrows both. Tries again, for up to half a
 * second, when the kernel says that something is in use. *ret_result (may be
 * NULL) is written on success and with -ENXIO (not all are the same) or -ENOENT.
 */
int upgraded_gmem_transfer(int vm, int source_vm, uint32_t flags,
			   struct upgraded_gmem_result *ret_result);

/*
 * In verify and own: what the transfer would do, or did; for the report. @result is
 * copied.
 */
void upgraded_set_result(struct upgraded *u, const struct upgraded_gmem_result *result);

/* What a verdict means, for people. */
const char *upgraded_gmem_verdict(uint32_t verdict);

/* The library's version, "0.1.0". */
const char *upgraded_version(void);

#ifdef __cplusplus
}
#endif

#endif
