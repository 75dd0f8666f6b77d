/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The driver of VMMs that speak libupgraded (lib/upgraded.h). Both VMMs are
 * connected to the daemon, which lends their connections to this process; the
 * target is the same command line with another binary, and finds in its
 * environment that it is one. Called by upgrade.c in the order of struct driver;
 * owns both connections, copies of the offered fds, the memfd with the state.
 *
 * What if this process dies, step by step:
 *   examine     nothing was touched
 *   prepare     the target sits paused: the next worker kills it
 *   freeze/load the source stands frozen, or is about to be: the next worker
 *               kills the target and thaws the source
 *   hold        as the latter, with a SIGCONT first; what the target owns of the
 *               memory (tier stage2) the kernel gives back when it is dead
 *   run         COMMIT is in the journal: the next worker kills the source, then
 *               runs the target
 *   rebuild     the next worker ends that target and starts another: nobody has run
 *               from the device state yet
 *
 * And if both VMMs die? While the state is being written the guest is lost; from
 * when it is whole until somebody is told to run, it is in custody: the offered
 * memory, the state, and how the target was started. That is rebuild().
 *
 * A source never goes on by itself, and a target never runs by itself, whoever
 * else dies: libupgraded keeps what they are and tells it to whoever asks next.
 */
#include "device_state.h"
#include "fault_point.h"
#include "findings.h"
#include "headroom.h"
#include "hold.h"
#include "link.h"
#include "native_link.h"
#include "procfs.h"
#include "spawn.h"
#include "standstill.h"
#include "upgrade.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#define NOTE	UPGRADED__V1__SEVERITY__SEVERITY_NOTE
#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
#define TIER(x) UPGRADED__V1__TIER__TIER_##x
#define KIND(x) UPGRADED__V1__VMM_FD_KIND__VMM_FD_##x
#define BODY(x) UPGRADED__V1__ENVELOPE__BODY_##x

/* A VMM connects within a moment, or it is not going to. */
#define CONNECT_US (5 * 1000000ULL)
/* How long a source that was told to may take to end by itself. */
#define QUIT_US (500 * 1000ULL)

typedef Upgraded__V1__VmmFd VmmFd;

struct native {
	struct native_link source, target;
	Envelope *offered; /* the source's VmmOffer; its fds are in fds */
	struct scm_fds fds;
	Envelope *accepted;
	char **argv;
	char *binary;
	Upgraded__V1__TargetPlan plan;
	uint64_t memory; /* bytes of the offered memory, as their fds say */
	int target_vm;
	bool owned;	  /* the target was asked to take over the memory */
	Envelope *handed; /* the VmmDone that says what was handed over, or would be */
};

static struct native *native_of(struct upgrade *u)
{
	struct native *n = u->vmm;

	if (n)
		return n;
	n = calloc(1, sizeof(*n));
	if (!n)
		return NULL;
	n->source = (struct native_link)NATIVE_LINK_INIT("the source");
	n->target = (struct native_link)NATIVE_LINK_INIT("the target");
	n->target_vm = -EBADF;
	upgraded__v1__target_plan__init(&n->plan);
	u->vmm = n;
	return n;
}

static const Upgraded__V1__Process *source_process(const struct upgrade *u)
{
	return u->start->vm->process;
}

static int borrow(struct upgrade *u, struct native_link *l, const Upgraded__V1__Process *process,
		  struct error *err)
{
	int sock, r;

	r = link_borrow(&u->wait, process, &sock, err);
	if (r < 0)
		return r;
	native_link_open(l, sock);
	return 0;
}

/*
 * Asks for something whose answer is VmmDone. *ret_at_us (may be NULL): what it
 * says. What it says of the memory is kept for the report.
 */
static int ask_done(struct upgrade *u, struct native_link *l, Envelope *request, int fd,
		    const char *what, uint64_t *ret_at_us, struct error *err)
{
	struct native *n = u->vmm;
	_cleanup_envelope_ Envelope *answer = NULL;
	int r;

	u->wait.what = what;
	r = native_ask(l, &u->wait, request, &fd, fd >= 0, BODY(VMM_DONE), &answer, NULL, err);
	if (r >= 0 && ret_at_us)
		*ret_at_us = answer->vmm_done->at_us;
	if (r >= 0 && answer->vmm_done->handover) {
		u->handover = answer->vmm_done->handover;
		envelope_freep(&n->handed);
		n->handed = TAKE_PTR(answer);
	}
	return r;
}

/* ---- examine ---------------------------------------------------------- */

static int connect_source(struct upgrade *u, struct native *n, struct error *err)
{
	uint64_t deadline = u->wait.deadline_us, soon = now_us() + CONNECT_US;
	int r;

	u->wait.deadline_us = soon < deadline ? soon : deadline;
	r = borrow(u, &n->source, source_process(u), err);
	u->wait.deadline_us = deadline;
	if (r == -ETIMEDOUT)
		error_hint(err, "its process must be connected to upgraded: see libupgraded(3)");
	return r;
}

static int ask_offer(struct upgrade *u, struct native *n, struct error *err)
{
	Upgraded__V1__VmmOfferRequest request = UPGRADED__V1__VMM_OFFER_REQUEST__INIT;
	Envelope env = ENVELOPE_INIT;
	int r;

	env.body_case = BODY(VMM_OFFER_REQUEST);
	env.vmm_offer_request = &request;
	u->wait.what = "what the source offers";
	r = native_ask(&n->source, &u->wait, &env, NULL, 0, BODY(VMM_OFFER), &n->offered, &n->fds,
		       err);
	if (r < 0)
		return r;
	if (n->offered->vmm_offer->n_fd != n->fds.n)
		return error_set(err, -EPROTO, "the source offers %zu descriptors and sent %zu",
				 n->offered->vmm_offer->n_fd, n->fds.n);
	return 0;
}

/* The source's command line with another binary. */
static int plan_argv(struct upgrade *u, struct native *n, struct error *err)
{
	int r;

	r = proc_read_strv(source_process(u)->pid, "cmdline", &n->argv);
	if (r >= 0)
		r = proc_read_exe(source_process(u)->pid, &n->binary);
	if (r >= 0 && (!n->argv[0] || process_has_ended(u->source_pidfd)))
		r = -ESRCH;
	if (r < 0)
		return error_errno(err, r, "cannot read the source's command line");
	free(n->argv[0]);
	n->argv[0] = strdup(u->start->target_binary);
	return n->argv[0] ? 0 : -ENOMEM;
}

/* As the source sees it. */
static int check_binary(struct upgrade *u)
{
	_cleanup_free_ char *path = NULL;
	struct stat st;

	if (asprintf(&path, "/proc/%d/root%s", source_process(u)->pid, u->start->target_binary) < 0)
		return -ENOMEM;
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111))
		return 0;
	return findings_add(&u->findings, BLOCKER, "target.missing", u->start->target_binary,
			    "name the VMM by --vmm, as the VM's own namespaces see it",
			    "%s is no file that can be executed", u->start->target_binary);
}

/* What the memory is, and how much: from the fds, not from what is said of them. */
static int check_memory(struct upgrade *u, struct native *n, size_t *ret_gmem, size_t *ret_other,
			bool *ret_vm)
{
	const Upgraded__V1__VmmOffer *offer = n->offered->vmm_offer;
	int r = 0;

	for (size_t i = 0; i < offer->n_fd; i++) {
		const VmmFd *fd = offer->fd[i];
		struct stat st = { 0 };

		if (fd->kind == KIND(VM))
			*ret_vm = true;
		if (fd->kind != KIND(MEMFD) && fd->kind != KIND(GMEM))
			continue;
		(*(fd->kind == KIND(GMEM) ? ret_gmem : ret_other))++;
		if (fd->kind == KIND(MEMFD) && fcntl(n->fds.fd[i], F_GET_SEALS) < 0)
			r = r
				    ?: findings_add(
					       &u->findings, BLOCKER, "memory.kind", fd->name,
					       "offer it as what it is",
					       "the source offers %s as a memfd, which it is not",
					       fd->name);
		if (fstat(n->fds.fd[i], &st) == 0)
			n->memory += (uint64_t)st.st_size;
	}
	if (!*ret_gmem && !*ret_other)
		r = r
			    ?: findings_add(&u->findings, BLOCKER, "memory.none",
					    u->start->vm->name,
					    "the VMM must offer its memory: see libupgraded(3)",
					    "the source offers no memory that another process "
					    "could map");
	return r;
}

static bool kernel_transfers(void)
{
	_cleanup_close_ int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return kvm >= 0 && ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_GMEM_TRANSFER) > 0;
}

static int choose_tier(struct upgrade *u, size_t gmem, size_t other, bool vm)
{
	const char *why;

	u->tier = gmem ? TIER(GMEM) : TIER(MEMFD);
	if (!gmem)
		why = "the memory is no guest_memfd";
	else if (other)
		why = "some of the memory is no guest_memfd";
	else if (!vm)
		why = "the VMM does not offer its KVM VM";
	else if (!kernel_transfers())
		why = "this kernel has no KVM_CAP_GMEM_TRANSFER";
	else if (u->start->no_stage2)
		why = "--no-stage2 was asked for";
	else
		why = NULL;
	if (!why) {
		u->tier = TIER(STAGE2);
		return findings_add(&u->findings, NOTE, "memory.tier", "stage2", NULL,
				    "the kernel hands the memory and its page tables over");
	}
	return findings_add(&u->findings, NOTE, "memory.tier", gmem ? "gmem" : "memfd", NULL,
			    "the memory is mapped again, not handed over by the kernel: %s", why);
}

static int examine(struct upgrade *u, struct error *err)
{
	struct native *n = native_of(u);
	size_t gmem = 0, other = 0;
	bool vm = false;
	int r;

	if (!n)
		return -ENOMEM;
	r = plan_argv(u, n, err);
	if (r < 0)
		return r;
	r = connect_source(u, n, err);
	if (r < 0)
		return r;
	r = ask_offer(u, n, err);
	if (r < 0)
		return r;
	r = check_binary(u);
	if (r >= 0)
		r = check_memory(u, n, &gmem, &other, &vm);
	if (r >= 0)
		r = headroom_check("", source_process(u)->pid, &u->findings);
	if (r >= 0)
		r = choose_tier(u, gmem, other, vm);
	if (r >= 0 && n->offered->vmm_offer->state != UPGRADED__V1__VMM_STATE__VMM_RUNNING)
		r = findings_add(&u->findings, BLOCKER, "source.state", u->start->vm->name,
				 "look at what became of the last upgrade: upgradectl history",
				 "the source does not run: it was stopped by an upgrade");
	if (r < 0)
		return error_errno(err, r, "cannot examine the source");
	n->plan.tier = u->tier;
	u->plan = &n->plan;
	return 0;
}

/* ---- prepare ---------------------------------------------------------- */

static int put_state(struct upgrade *u, struct error *err)
{
	Upgraded__V1__CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;
	int r;

	r = device_state_make(&u->state);
	if (r < 0)
		return error_errno(err, r, "no memory for the device state");
	msg.name = (char *)DEVICE_STATE;
	return link_put(&u->wait, &msg, &u->state, 1, err);
}

static int put_offer(struct upgrade *u, struct native *n, struct error *err)
{
	Upgraded__V1__CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;
	const Upgraded__V1__VmmOffer *offer = n->offered->vmm_offer;
	_cleanup_free_ uint8_t *packed = NULL;

	packed = malloc(upgraded__v1__vmm_offer__get_packed_size(offer) + 1);
	if (!packed)
		return -ENOMEM;
	msg.name = (char *)"offer";
	msg.payload.len = upgraded__v1__vmm_offer__pack(offer, packed);
	msg.payload.data = packed;
	return link_put(&u->wait, &msg, n->fds.fd, n->fds.n, err);
}

static int start_target(struct upgrade *u, struct native *n, struct error *err)
{
	char variable[64];
	struct spawn spawn = {
		.source = source_process(u)->pid,
		.source_pidfd = u->source_pidfd,
		.argv = n->argv,
		.stdio = { -EBADF, -EBADF, -EBADF },
		.setenv = variable,
	};

	snprintf(variable, sizeof(variable), "UPGRADED_TARGET=%" PRIu64, u->start->upgrade_id);
	return hold_start(u, &spawn, NULL, err);
}

/*
 * With it another worker, too, can give the memory back with its page tables. Not
 * for systemd's fd store: there it would keep the VM of a target that is dead the
 * owner of the memory.
 */
static int put_target_vm(struct upgrade *u, struct native *n, struct error *err)
{
	Upgraded__V1__CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;

	if (n->target_vm < 0 || n->accepted->vmm_accepted->tier != TIER(STAGE2))
		return 0;
	msg.name = (char *)"target-vm";
	msg.here_only = true;
	return link_put(&u->wait, &msg, &n->target_vm, 1, err);
}

static int hand_over(struct upgrade *u, struct native *n, struct error *err)
{
	Upgraded__V1__VmmAccept accept = UPGRADED__V1__VMM_ACCEPT__INIT;
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	Envelope env = ENVELOPE_INIT;
	int r;

	accept.offer = n->offered->vmm_offer;
	accept.tier = u->tier;
	env.body_case = BODY(VMM_ACCEPT);
	env.vmm_accept = &accept;
	u->wait.what = "the target to map the memory";
	r = native_ask(&n->target, &u->wait, &env, n->fds.fd, n->fds.n, BODY(VMM_ACCEPTED),
		       &n->accepted, &fds, err);
	if (r < 0)
		return r;
	if (fds.n > 1)
		return error_set(err, -EPROTO,
				 "the target sent %zu descriptors where its VM was due", fds.n);
	n->target_vm = scm_fds_take(&fds, 0);
	r = put_target_vm(u, n, err);
	if (r < 0)
		return r;
	u->fds = (uint32_t)n->fds.n;
	/* The target and custody have them. */
	scm_fds_close(&n->fds);
	return 0;
}

static int prepare(struct upgrade *u, struct error *err)
{
	struct native *n = u->vmm;
	int r;

	r = put_state(u, err);
	if (r < 0)
		return r;
	r = put_offer(u, n, err);
	if (r < 0)
		return r;
	r = start_target(u, n, err);
	if (r < 0)
		return r;
	r = borrow(u, &n->target, &u->target, err);
	if (r < 0)
		return r;
	return hand_over(u, n, err);
}

/* ---- verify ----------------------------------------------------------- */

static int compare(struct upgrade *u, struct native *n)
{
	const Upgraded__V1__VmmAccepted *a = n->accepted->vmm_accepted;
	const Upgraded__V1__VmmOffer *o = n->offered->vmm_offer;
	int r = 0;

	if (strcmp(a->machine, o->machine) != 0)
		r = findings_add(&u->findings, BLOCKER, "target.machine-type", a->machine,
				 "name a VMM that has the same machine",
				 "the guest's machine is \"%s\" and would become \"%s\"",
				 o->machine, a->machine);
	if (r >= 0 && a->memory != o->memory)
		r = findings_add(&u->findings, BLOCKER, "target.memory", u->start->vm->name,
				 "name a VMM that gives the guest the same memory",
				 "the guest has %" PRIu64
				 " bytes of memory and would have %" PRIu64,
				 o->memory, a->memory);
	if (r >= 0 && a->tier < u->tier)
		r = findings_add(&u->findings, NOTE, "memory.tier",
				 a->tier == TIER(GMEM) ? "gmem" : "memfd", NULL,
				 "the target uses a lower tier: %s",
				 a->why[0] ? a->why : "it does not say why");
	return r;
}

static int verify(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmVerify verify = UPGRADED__V1__VMM_VERIFY__INIT;
	_cleanup_error_ struct error why = ERROR_INIT;
	struct native *n = u->vmm;
	const Upgraded__V1__VmmAccepted *a = n->accepted->vmm_accepted;
	Envelope env = ENVELOPE_INIT;
	int r;

	if (a->tier < TIER(MEMFD) || a->tier > u->tier)
		return error_set(err, -EPROTO, "the target chose tier %d where %d is the highest",
				 a->tier, u->tier);
	r = compare(u, n);
	if (r < 0)
		return error_errno(err, r, "cannot compare the target");
	u->tier = a->tier;
	free(u->target_version);
	u->target_version = strdup(a->version);
	if (!u->target_version)
		return -ENOMEM;

	env.body_case = BODY(VMM_VERIFY);
	env.vmm_verify = &verify;
	r = ask_done(u, &n->target, &env, -EBADF, "the target to compare its memory", NULL, &why);
	if (r != -EREMOTEIO) {
		error_move(err, &why);
		return r;
	}
	return findings_add(&u->findings, BLOCKER, "target.verify", u->start->vm->name,
			    "name a VMM that can take this guest over", "%s",
			    why.text ?: "out of memory");
}

/* ---- freeze, load, hold ------------------------------------------------ */

static int freeze(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmFreeze request = UPGRADED__V1__VMM_FREEZE__INIT;
	struct native *n = u->vmm;
	Envelope env = ENVELOPE_INIT;
	struct stat st;
	int r;

	request.upgrade_id = u->start->upgrade_id;
	env.body_case = BODY(VMM_FREEZE);
	env.vmm_freeze = &request;
	r = ask_done(u, &n->source, &env, u->state, "the source to freeze", &u->stopped_at_us, err);
	if (r < 0)
		return r;
	r = device_state_complete(u->state);
	if (r < 0)
		return error_errno(err, r, "the device state");
	fault_point(FAULT_STATE_WHOLE);
	/* It stops while the target loads; hold() checks. A dead source is as good. */
	r = hold_stop(u->source_pidfd, err);
	if (r < 0)
		return r;
	u->wait.source = -EBADF;
	if (fstat(u->state, &st) < 0)
		return error_errno(err, -errno, "the device state");
	u->state_bytes = (uint64_t)st.st_size;
	return 0;
}

static int load(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmLoad request = UPGRADED__V1__VMM_LOAD__INIT;
	_cleanup_close_ int state = -EBADF;
	struct native *n = u->vmm;
	Envelope env = ENVELOPE_INIT;
	char path[32];

	/* Opened anew: read-only, and with a file position of its own. */
	snprintf(path, sizeof(path), "fd/%d", u->state);
	state = proc_open(PROC_SELF, path, O_RDONLY);
	if (state < 0)
		return error_errno(err, state, "the device state");
	request.state_bytes = u->state_bytes;
	env.body_case = BODY(VMM_LOAD);
	env.vmm_load = &request;
	return ask_done(u, &n->target, &env, state, "the target to load the state", NULL, err);
}

static int hold(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmOwn request = UPGRADED__V1__VMM_OWN__INIT;
	struct native *n = u->vmm;
	Envelope env = ENVELOPE_INIT;
	int r;

	/* The pid of a source that has ended may be somebody else's. */
	r = process_has_ended(u->source_pidfd) ? 0
					       : hold_wait(&u->wait, source_process(u)->pid, err);
	if (r < 0)
		return r;
	n->owned = true;
	env.body_case = BODY(VMM_OWN);
	env.vmm_own = &request;
	r = ask_done(u, &n->target, &env, -EBADF, "the target to take over the memory", NULL, err);
	u->parked = r >= 0 && u->tier == TIER(STAGE2);
	return r;
}

/* ---- run, finish ------------------------------------------------------- */

static int run(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmRun request = UPGRADED__V1__VMM_RUN__INIT;
	struct native *n = native_of(u);
	Envelope env = ENVELOPE_INIT;
	int r;

	if (!n)
		return -ENOMEM;
	/* A second worker finds the source held, or not: it must not run, ever. */
	if (!u->plan) {
		u->plan = u->start->plan;
		u->wait.target = u->target_pidfd;
		r = hold_end(&u->wait, u->source_pidfd, "the source", err);
		if (r < 0)
			return r;
	}
	env.body_case = BODY(VMM_RUN);
	env.vmm_run = &request;
	for (;;) {
		_cleanup_error_ struct error lost = ERROR_INIT;

		if (n->target.sock < 0) {
			r = borrow(u, &n->target, &u->target, err);
			if (r < 0)
				return r;
		}
		r = hold_let_run(u, err);
		if (r < 0)
			return r;
		r = ask_done(u, &n->target, &env, -EBADF, "the target to run the guest",
			     &u->running_at_us, &lost);
		/* It connects again, and to ask twice does no harm. */
		if (r != -ECONNRESET || u->wait.orphaned) {
			error_move(err, &lost);
			return r;
		}
		native_link_close(&n->target);
	}
}

/* The kernel keeps the source from running: it may end in good order. */
static void let_source_end(struct upgrade *u, struct native *n)
{
	Upgraded__V1__VmmQuit quit = UPGRADED__V1__VMM_QUIT__INIT;
	_cleanup_error_ struct error ignored = ERROR_INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(VMM_QUIT);
	env.vmm_quit = &quit;
	if (native_tell(&n->source, &env, NULL, 0, &ignored) < 0 ||
	    pidfd_send_signal(u->source_pidfd, SIGCONT, NULL, 0) < 0)
		return;
	(void)process_ends_within(u->source_pidfd, QUIT_US / 1000);
}

static int finish(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmFinish request = UPGRADED__V1__VMM_FINISH__INIT;
	struct native *n = u->vmm;
	Envelope env = ENVELOPE_INIT;
	int r;

	if (u->tier == TIER(STAGE2) && n->source.sock >= 0)
		let_source_end(u, n);
	r = hold_end(&u->wait, u->source_pidfd, "the source", err);
	if (r < 0)
		return r;
	env.body_case = BODY(VMM_FINISH);
	env.vmm_finish = &request;
	return ask_done(u, &n->target, &env, -EBADF, "the target to take the source's names", NULL,
			err);
}

/* ---- undo --------------------------------------------------------------- */

/*
 * The target owns the memory: the source takes it back while both are there. If
 * it cannot, the kernel gives it back when the target is dead.
 */
static void reclaim(struct upgrade *u, struct native *n)
{
	Upgraded__V1__VmmReclaim request = UPGRADED__V1__VMM_RECLAIM__INIT;
	_cleanup_error_ struct error why = ERROR_INIT;
	uint64_t deadline = u->wait.deadline_us;
	Envelope env = ENVELOPE_INIT;

	if (pidfd_send_signal(u->source_pidfd, SIGCONT, NULL, 0) < 0)
		return;
	env.body_case = BODY(VMM_RECLAIM);
	env.vmm_reclaim = &request;
	u->wait.deadline_us = now_us() + CONNECT_US;
	if (ask_done(u, &n->source, &env, n->target_vm, "the source to take its memory back", NULL,
		     &why) < 0)
		findings_add(&u->findings, NOTE, "memory.reclaim", u->start->vm->name, NULL,
			     "the kernel gave the memory back when the target had ended: %s",
			     why.text ?: "out of memory");
	u->wait.deadline_us = deadline;
}

static int undo(struct upgrade *u, struct error *err)
{
	Upgraded__V1__VmmThaw request = UPGRADED__V1__VMM_THAW__INIT;
	_cleanup_error_ struct error ignored = ERROR_INIT;
	struct native *n = native_of(u);
	Envelope env = ENVELOPE_INIT;
	int r;

	if (!n)
		return -ENOMEM;
	u->wait.source = u->source_pidfd;
	u->wait.target = -EBADF;
	if (!u->plan && u->start->plan)
		u->tier = u->start->plan->tier;
	/* Another worker's: whether the target got the memory is not known. */
	if (n->target_vm < 0 && inherited_fd(&u->inherited, "target-vm", &n->target_vm) >= 0)
		n->owned = true;
	inherited_clear(&u->inherited);
	if (n->owned && u->tier == TIER(STAGE2) && n->target_vm >= 0 &&
	    !process_has_ended(u->target_pidfd))
		reclaim(u, n);
	/* The last reference to the target's VM must be its own. */
	if (n->target_vm >= 0)
		(void)link_drop(&u->wait, "target-vm", &ignored);
	closep(&n->target_vm);
	native_link_close(&n->target);
	r = hold_end(&u->wait, u->target_pidfd, "the target", err);
	if (r < 0)
		return r;
	if (pidfd_send_signal(u->source_pidfd, SIGCONT, NULL, 0) < 0)
		return error_errno(err, -errno, "the source cannot go on");

	env.body_case = BODY(VMM_THAW);
	env.vmm_thaw = &request;
	for (;;) {
		_cleanup_error_ struct error lost = ERROR_INIT;
		uint64_t at_us;

		if (n->source.sock < 0) {
			r = borrow(u, &n->source, source_process(u), err);
			if (r < 0)
				return r;
		}
		/* Until it is told so, it does not run. */
		r = hold_let_go(u, err);
		if (r < 0)
			return r;
		r = ask_done(u, &n->source, &env, -EBADF, "the source to go on", &at_us, &lost);
		if (r >= 0 && u->stopped_at_us)
			u->running_at_us = at_us;
		if (r != -ECONNRESET || u->wait.orphaned) {
			error_move(err, &lost);
			return r;
		}
		native_link_close(&n->source);
	}
}

/* ---- rebuild ------------------------------------------------------------ */

/* What the source offered, from custody, as if it had answered just now. */
static int take_offer(struct upgrade *u, struct native *n, struct error *err)
{
	const struct inherited_item *item = inherited_find(&u->inherited, "offer");
	const ProtobufCBinaryData *payload = item ? &item->held->put->payload : NULL;
	Envelope *env;

	if (!item || item->n_fds > SCM_RIGHTS_MAX)
		return error_set(err, -ENOENT, "the source's memory is not in custody");
	env = malloc(sizeof(*env));
	if (!env)
		return -ENOMEM;
	upgraded__v1__envelope__init(env);
	n->offered = env;
	env->vmm_offer = upgraded__v1__vmm_offer__unpack(NULL, payload->len, payload->data);
	if (!env->vmm_offer || env->vmm_offer->n_fd != item->n_fds)
		return error_set(err, -EBADMSG, "what custody has of the source is no offer");
	env->body_case = BODY(VMM_OFFER);
	for (size_t i = 0; i < item->n_fds; i++) {
		n->fds.fd[i] = fcntl(item->fds[i], F_DUPFD_CLOEXEC, 3);
		if (n->fds.fd[i] < 0)
			return error_errno(err, -errno, "cannot take memory from custody");
		n->fds.n++;
	}
	return 0;
}

static int rebuild(struct upgrade *u, struct error *err)
{
	struct native *n = native_of(u);
	struct stat st;
	int r;

	if (!n)
		return -ENOMEM;
	if (u->state < 0 || fstat(u->state, &st) < 0)
		return error_set(err, -ENOENT, "the device state is not in custody");
	u->state_bytes = (uint64_t)st.st_size;
	r = take_offer(u, n, err);
	if (r >= 0)
		r = hold_start_again(u, err);
	if (r >= 0)
		r = borrow(u, &n->target, &u->target, err);
	return r < 0 ? r : hand_over(u, n, err);
}

/* ---- the rest ------------------------------------------------------------ */

static void describe(struct upgrade *u, bool target, Upgraded__V1__Vm *vm)
{
	struct native *n = u->vmm;

	if (n && n->offered) {
		vm->version = n->offered->vmm_offer->version;
		vm->machine = n->offered->vmm_offer->machine;
		vm->memory = n->offered->vmm_offer->memory ?: n->memory;
	}
	if (n && n->binary)
		vm->binary = n->binary;
	if (!target)
		return;
	vm->process = &u->target;
	vm->binary = u->start->target_binary;
	vm->version = u->target_version ?: (char *)"";
	vm->outdated = false;
}

static char **planned_argv(struct upgrade *u)
{
	struct native *n = u->vmm;

	return n ? n->argv : NULL;
}

static void native_free(struct upgrade *u)
{
	struct native *n = u->vmm;

	if (!n)
		return;
	native_link_close(&n->source);
	native_link_close(&n->target);
	envelope_freep(&n->offered);
	envelope_freep(&n->accepted);
	u->handover = NULL;
	envelope_freep(&n->handed);
	scm_fds_close(&n->fds);
	strv_freep(&n->argv);
	free(n->binary);
	closep(&n->target_vm);
	free(n);
	u->vmm = NULL;
}

const struct driver driver_native = {
	.name = "native",
	.examine = examine,
	.prepare = prepare,
	.verify = verify,
	.freeze = freeze,
	.load = load,
	.hold = hold,
	.run = run,
	.finish = finish,
	.undo = undo,
	.rebuild = rebuild,
	.explain = hold_explain,
	.describe = describe,
	.planned_argv = planned_argv,
	.free = native_free,
};
