/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages as a daemon would send them, for the tests of what reads them: the
 * JSON converter's and, through the fake daemon, upgradectl's. Names and texts
 * are chosen to be awkward: long paths, control characters, other alphabets.
 */
#include "sample.h"

#include "cleanup.h"

#include <stdbool.h>

#define GIB (1024ULL * 1024 * 1024)
/* 2026-11-20 12:00:00 UTC */
#define NOON (1795176000ULL * 1000000)

static Upgraded__V1__Process process[SAMPLE_VMS + 1];
static Upgraded__V1__Vm vm[SAMPLE_VMS];
static Upgraded__V1__CustodyItem custody[2];
static Upgraded__V1__CustodyItem *custody_list[] = { &custody[0], &custody[1] };
static Upgraded__V1__PhaseTime phase_time[7];
static Upgraded__V1__PhaseTime *phases[7];
static Upgraded__V1__Report report[3];
static Upgraded__V1__Finding finding[SAMPLE_FINDINGS];
static Upgraded__V1__Finding *findings[SAMPLE_FINDINGS];
static Upgraded__V1__CheckReport check[2];
static char *planned[] = { "/opt/qemu-11.1/bin/qemu-system-x86_64", "-nodefaults", "-machine",
			   "pc-q35-10.0,memory-backend=ram0", "-S" };

static void make_vm(size_t i, const char *name, const char *version, const char *binary, int pid)
{
	upgraded__v1__process__init(&process[i]);
	process[i].pid = pid;
	process[i].start_time = 98765;
	upgraded__v1__vm__init(&vm[i]);
	vm[i].name = (char *)name;
	vm[i].driver = "qemu";
	vm[i].manager = "none";
	vm[i].process = &process[i];
	vm[i].version = (char *)version;
	vm[i].binary = (char *)binary;
	vm[i].qmp = "/run/upgraded/vm/qmp.sock";
	vm[i].machine = "pc-q35-10.0";
	vm[i].memory = 2 * GIB;
	vm[i].tier = UPGRADED__V1__TIER__TIER_MEMFD;
	vm[i].since_us = NOON - 3600ULL * 1000000;
	vm[i].alive = true;
}

static void make_vms(void)
{
	make_vm(0, "vm1", "10.0.13", "/opt/qemu-10.0/bin/qemu-system-x86_64", 1234);
	vm[0].manager = "systemd";
	vm[0].unit = "vmm@vm1.service";
	vm[0].generation = 3;
	make_vm(1, "a-rather-long-name-of-a-database-server-in-rack-17", "10.0.13",
		"/srv/images/customers/a-customer/releases/2026-11-01/qemu/bin/qemu-system-x86_64",
		23456);
	vm[1].outdated = true;
	vm[1].memory = 96 * GIB + GIB / 2;
	make_vm(2, "busy", "11.1.0", "/usr/bin/qemu-system-x86_64", 34567);
	vm[2].phase = UPGRADED__V1__PHASE__PHASE_LOAD;
	vm[2].upgrade_id = 8;
	vm[2].tier = UPGRADED__V1__TIER__TIER_STAGE2;
	for (size_t i = 0; i < 2; i++)
		upgraded__v1__custody_item__init(&custody[i]);
	custody[0].name = "cpr";
	custody[0].bytes = 4096;
	custody[0].fds = 12;
	custody[1].name = "device-state";
	custody[1].bytes = 1572864;
	custody[1].fds = 1;
	custody[1].pinned = 2 * GIB;
	vm[2].custody = custody_list;
	vm[2].n_custody = ARRAY_SIZE(custody_list);
	/* Not of this alphabet, not printable, and not UTF-8. */
	make_vm(3, "b\xc3\xbcro\033[31m\xff", "9.2.4", "/usr/bin/qemu", 0);
	vm[3].alive = false;
	vm[3].memory = 0;
}

static void make_report(size_t i, Upgraded__V1__Outcome outcome)
{
	Upgraded__V1__Report *r = &report[i];

	upgraded__v1__report__init(r);
	r->upgrade_id = 7 + i;
	r->vm = "vm1";
	r->outcome = outcome;
	r->tier = UPGRADED__V1__TIER__TIER_MEMFD;
	r->source_version = "10.0.13";
	r->target_version = "11.1.0";
	r->source_binary = "/opt/qemu-10.0/bin/qemu-system-x86_64";
	r->target_binary = "/opt/qemu-11.1/bin/qemu-system-x86_64";
	r->source = &process[0];
	r->target = &process[SAMPLE_VMS];
	r->phases = phases;
	r->n_phases = ARRAY_SIZE(phases);
	r->blackout_us = 38214;
	r->state_bytes = 1363148;
	r->fds = 12;
	r->started_at_us = NOON;
	r->total_us = 1812345;
	r->requested_by = 1000;
}

static void make_reports(void)
{
	static const uint64_t took[] = { 1612000, 98000, 8214, 21000, 4000, 5000, 64131 };
	uint64_t start = 0;

	upgraded__v1__process__init(&process[SAMPLE_VMS]);
	process[SAMPLE_VMS].pid = 1250;
	process[SAMPLE_VMS].start_time = 99999;
	for (size_t i = 0; i < ARRAY_SIZE(phases); i++) {
		upgraded__v1__phase_time__init(&phase_time[i]);
		phase_time[i].phase = (Upgraded__V1__Phase)(UPGRADED__V1__PHASE__PHASE_PREPARE + i);
		phase_time[i].start_us = start;
		phase_time[i].duration_us = took[i];
		start += took[i];
		phases[i] = &phase_time[i];
	}
	make_report(0, UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED);
	make_report(1, UPGRADED__V1__OUTCOME__OUTCOME_ROLLED_BACK);
	report[1].n_phases = 4;
	report[1].failed_phase = UPGRADED__V1__PHASE__PHASE_LOAD;
	report[1].error = "the target refused the state: Missing section footer for "
			  "0000:00:02.0/virtio-net, the device is configured differently there";
	make_report(2, UPGRADED__V1__OUTCOME__OUTCOME_LOST);
	report[2].failed_phase = UPGRADED__V1__PHASE__PHASE_RUN;
	report[2].error = "the target was killed by signal 9 after the commit";
	report[2].blackout_us = 0;
}

static void make_finding(size_t i, Upgraded__V1__Severity severity, const char *code,
			 const char *subject, const char *text, const char *remedy)
{
	upgraded__v1__finding__init(&finding[i]);
	finding[i].severity = severity;
	finding[i].code = (char *)code;
	finding[i].subject = (char *)subject;
	finding[i].text = (char *)text;
	finding[i].remedy = (char *)remedy;
	findings[i] = &finding[i];
}

static void make_checks(void)
{
	/* In an order that must not be the order of the output. */
	make_finding(0, UPGRADED__V1__SEVERITY__SEVERITY_NOTE, "argv.pidfile",
		     "-pidfile /run/vm1.pid", "it is rewritten with the pid of the new process",
		     "");
	make_finding(1, UPGRADED__V1__SEVERITY__SEVERITY_WARNING, "argv.vnc", "-vnc :1",
		     "viewers are disconnected and must connect again", "tell the users, or wait");
	make_finding(2, UPGRADED__V1__SEVERITY__SEVERITY_NOTE, "argv.netdev",
		     "-netdev tap,id=n0,fd=23", "the descriptor is handed over", "");
	make_finding(
		3, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, "memory.private", "-m 2G",
		"the guest's memory is private to the process: no other process can map it, so "
		"it would have to be copied",
		"restart the VM once with -object memory-backend-memfd,id=ram0,size=2G,share=on "
		"-machine memory-backend=ram0");
	make_finding(4, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER, "target.machine-type",
		     "pc-q35-10.0", "the target does not know the machine type",
		     "choose a target that is not older than the source");
	for (size_t i = 0; i < 2; i++) {
		upgraded__v1__check_report__init(&check[i]);
		check[i].vm = &vm[0];
		check[i].target_binary = "/opt/qemu-11.1/bin/qemu-system-x86_64";
		check[i].target_version = "11.1.0";
		check[i].tier = UPGRADED__V1__TIER__TIER_MEMFD;
		check[i].findings = findings;
		check[i].n_findings = i ? SAMPLE_FINDINGS : 3;
		check[i].argv = planned;
		check[i].n_argv = ARRAY_SIZE(planned);
	}
}

void sample_make(struct sample *ret)
{
	make_vms();
	make_reports();
	make_checks();
	for (size_t i = 0; i < SAMPLE_VMS; i++)
		ret->vm[i] = &vm[i];
	ret->committed = &report[0];
	ret->rolled_back = &report[1];
	ret->lost = &report[2];
	ret->ready = &check[0];
	ret->blocked = &check[1];
}
