/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guest RAM that is in guest_memfds, and how it changes hands: the tiers gmem
 * and stage2. Called by the driver of QEMU; the ioctls are QEMU's (qemu-patches/),
 * which is asked by QMP: query-gmem, gmem-transfer, gmem-transfer-reverse. A
 * QEMU that does not know these commands has its RAM in a memfd, and nothing
 * here has anything to do.
 *
 * What if this process dies: before gmem_switch() nothing has changed. After
 * it and before the target's first instruction the source is parked, and KVM
 * gives it its memory back when the target's VM is destroyed, which is what
 * killing the target does. So the next worker needs to know nothing of all
 * this. gmem_reverse() is only quicker: the page tables come back as well.
 */
#include "gmem.h"

#include "cleanup.h"
#include "qmp_query.h"

#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOTE UPGRADED__V1__SEVERITY__SEVERITY_NOTE
#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING
#define TIER(t) UPGRADED__V1__TIER__TIER_##t

/* The name by which the source knows the target's VM for one command. */
#define VM_FDNAME "upgraded-target-vm"

int gmem_read(struct gmem *g, struct qmp *source, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	struct json_object *info = NULL;
	const char *state;
	int r;

	r = qmp_execute(source, "query-gmem", NULL, &info, &ignored);
	if (r == -ENOSYS)
		return 0;
	if (r < 0) {
		error_move(err, &ignored);
		return r;
	}
	state = json_get_string(info, "state") ?: "none";
	/* "user": guest_memfds, but KVM uses them by way of QEMU's mapping. */
	g->source = strcmp(state, "none") != 0;
	g->kernel = !strcmp(state, "owner") && json_get_bool(info, "transfer");
	json_object_put(info);
	return 0;
}

int gmem_probe(struct qmp *probe, bool *ret_knows, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	int r;

	r = qmp_execute(probe, "query-gmem", NULL, NULL, &ignored);
	if (r < 0 && r != -ENOSYS) {
		error_move(err, &ignored);
		return r;
	}
	*ret_knows = r == 0;
	return 0;
}

int gmem_plan(const struct gmem *g, Upgraded__V1__Tier *ret_tier, struct findings *f)
{
	*ret_tier = TIER(MEMFD);
	if (!g->source)
		return findings_add(f, NOTE, "tier.memfd", "guest-memfd",
				    "start the guest with -machine guest-memfd=on, on a QEMU with the "
				    "patches of qemu-patches/ and a kernel with those of kernel/patches",
				    "the guest's RAM is in no guest_memfd: every page is faulted in "
				    "again, and only upgraded keeps the source from running");
	*ret_tier = TIER(GMEM);
	if (!g->target)
		return findings_add(f, WARNING, "tier.target", "guest-memfd",
				    "choose a target with the patches of qemu-patches/",
				    "the target's QEMU cannot take the guest's page tables over: every "
				    "page is faulted in again, and only upgraded keeps the source from "
				    "running");
	if (!g->kernel)
		return findings_add(f, NOTE, "tier.kernel", "KVM_CAP_GMEM_TRANSFER",
				    "boot a kernel with the patches of kernel/patches, and leave "
				    "kvm.tdp_mmu on",
				    "this kernel cannot hand page tables over: every page is faulted in "
				    "again, and only upgraded keeps the source from running");
	if (g->no_stage2)
		return findings_add(f, NOTE, "tier.no-stage2", "--no-stage2", NULL,
				    "the page tables stay behind, as asked for: every page is faulted "
				    "in again; the kernel keeps the source from running nevertheless");
	*ret_tier = TIER(STAGE2);
	return 0;
}

void gmem_clear(struct gmem *g)
{
	if (g->handover)
		upgraded__v1__handover__free_unpacked(g->handover, NULL);
	g->handover = NULL;
}

static int take_slots(Upgraded__V1__Handover *h, struct json_object *slots)
{
	size_t n = json_array_size(slots);

	h->verdicts = calloc(n + 1, sizeof(*h->verdicts));
	if (!h->verdicts)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct json_object *slot = json_object_array_get_idx(slots, i);
		Upgraded__V1__SlotVerdict *v = calloc(1, sizeof(*v));

		if (!v)
			return -ENOMEM;
		upgraded__v1__slot_verdict__init(v);
		h->verdicts[h->n_verdicts++] = v;
		v->slot = (uint32_t)json_get_int(slot, "slot");
		v->gpa = (uint64_t)json_get_int(slot, "gpa");
		v->size = (uint64_t)json_get_int(slot, "size");
		v->verdict = strdup(json_get_string(slot, "verdict") ?: "unknown");
		if (!v->verdict)
			return -ENOMEM;
	}
	return 0;
}

/* Keeps what QEMU said as g->handover, *tier what it came to. */
static int take_handover(struct gmem *g, struct json_object *said, Upgraded__V1__Tier *tier)
{
	Upgraded__V1__Handover *h = calloc(1, sizeof(*h));
	const char *name = json_get_string(said, "tier") ?: "gmem";
	const char *error = json_get_string(said, "error");

	if (!h)
		return -ENOMEM;
	upgraded__v1__handover__init(h);
	gmem_clear(g);
	g->handover = h;
	h->slots = (uint32_t)json_get_int(said, "nr-slots");
	h->matched = (uint32_t)json_get_int(said, "nr-matched");
	h->tables = (uint64_t)json_get_int(said, "tables");
	h->zapped = (uint64_t)json_get_int(said, "zapped");
	h->ioctl_ns = (uint64_t)json_get_int(said, "ioctl-ns");
	h->dry_run = json_get_bool(said, "dry-run");
	h->ownership = !strcmp(name, "ownership") || !strcmp(name, "stage2");
	h->error = strdup(error ?: "");
	*tier = !strcmp(name, "stage2") ? TIER(STAGE2) : TIER(GMEM);
	return h->error ? take_slots(h, json_get_array(said, "slots")) : -ENOMEM;
}

static int transfer(struct gmem *g, struct qmp *target, bool dry_run, Upgraded__V1__Tier *tier,
		    struct error *err)
{
	struct json_object *args = json_object_new_object(), *said = NULL;
	int r;

	json_object_object_add(args, "dry-run", json_object_new_boolean(dry_run));
	json_object_object_add(args, "stage2", json_object_new_boolean(!g->no_stage2));
	r = qmp_execute(target, "gmem-transfer", args, &said, err);
	if (r < 0)
		return r;
	r = take_handover(g, said, tier);
	json_object_put(said);
	return r;
}

/* What of the guest's memory stays behind, slot by slot. */
static int explain_slots(const Upgraded__V1__Handover *h, struct findings *f)
{
	int r = 0;

	for (size_t i = 0; i < h->n_verdicts && r >= 0; i++) {
		const Upgraded__V1__SlotVerdict *v = h->verdicts[i];
		_cleanup_free_ char *subject = NULL;

		if (!strcmp(v->verdict, "match"))
			continue;
		if (asprintf(&subject, "memory slot %u", v->slot & 0xffff) < 0) {
			subject = NULL;
			return -ENOMEM;
		}
		r = findings_add(f, WARNING, "tier.slot", subject,
				 "start the guest with the same memory layout in both QEMUs",
				 "%" PRIu64 " MiB at 0x%" PRIx64 " are not handed over, but faulted in "
				 "again: %s", v->size >> 20, v->gpa, v->verdict);
	}
	return r;
}

int gmem_verify(struct gmem *g, struct qmp *target, Upgraded__V1__Tier *tier, struct findings *f,
		struct error *err)
{
	int r;

	if (*tier != TIER(STAGE2))
		return 0;
	r = transfer(g, target, true, tier, err);
	if (r < 0)
		return r;
	if (*tier != TIER(STAGE2))
		return findings_add(f, WARNING, "tier.dry-run", "KVM_GMEM_TRANSFER", NULL,
				    "page tables cannot be handed over: %s",
				    *g->handover->error ? g->handover->error : "QEMU does not say why");
	return explain_slots(g->handover, f);
}

int gmem_switch(struct gmem *g, struct qmp *target, Upgraded__V1__Tier *tier, struct findings *f,
		struct error *err)
{
	bool owner_only = g->no_stage2 && g->kernel && g->target;
	int r;

	if (*tier != TIER(STAGE2) && !owner_only)
		return 0;
	r = transfer(g, target, false, tier, err);
	if (r < 0)
		return r;
	g->enforced = g->handover->ownership;
	if (*tier != TIER(STAGE2) && !(owner_only && g->enforced))
		return findings_add(f, WARNING, "tier.transfer", "KVM_GMEM_TRANSFER", NULL,
				    "page tables were not handed over: %s",
				    *g->handover->error ? g->handover->error : "QEMU does not say why");
	return 0;
}

/* A copy of the VM's fd of the process behind @pidfd. */
static int borrow_vm(struct qmp *target, int pidfd, int *ret_fd, struct error *err)
{
	struct json_object *info = NULL, *number;
	int r, fd;

	r = qmp_execute(target, "query-gmem", NULL, &info, err);
	if (r < 0)
		return r;
	if (!json_object_object_get_ex(info, "vm-fd", &number))
		r = error_set(err, -EBADMSG, "the target does not say where its VM is");
	fd = r < 0 ? -EBADF : json_object_get_int(number);
	json_object_put(info);
	if (r < 0)
		return r;
	r = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (r < 0)
		return error_errno(err, -errno, "cannot take the target's VM");
	*ret_fd = r;
	return 0;
}

int gmem_reverse(struct gmem *g, struct qmp *source, struct qmp *target, int target_pidfd,
		 struct error *err)
{
	_cleanup_close_ int vm = -EBADF;
	struct json_object *args, *said = NULL;
	Upgraded__V1__Tier tier;
	int r;

	r = borrow_vm(target, target_pidfd, &vm, err);
	if (r < 0)
		return r;
	r = qmp_pass_fd(source, VM_FDNAME, vm, err);
	if (r < 0)
		return r;
	args = json_object_new_object();
	json_object_object_add(args, "fdname", json_object_new_string(VM_FDNAME));
	r = qmp_execute(source, "gmem-transfer-reverse", args, &said, err);
	if (r < 0)
		return r;
	g->enforced = false;
	r = take_handover(g, said, &tier);
	json_object_put(said);
	return r;
}
