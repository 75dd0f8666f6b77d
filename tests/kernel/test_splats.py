#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter of the kernel's log finds every kind of report, and nothing in a healthy log; TAP is read as it is meant."""

import unittest

import run
import splats

# One of each kind, shortened: the lines by which the kernel begins and goes on.
SAMPLES = {
    "warning": """------------[ cut here ]------------
WARNING: arch/x86/kvm/mmu/tdp_mmu.c:44 at kvm_mmu_uninit_tdp_mmu+0x6b/0x80 [kvm], CPU#0: gmem_transfer/97
Modules linked in: kvm_amd kvm
CPU: 0 UID: 0 PID: 97 Comm: gmem_transfer Not tainted 7.3.4-upgraded #1 PREEMPT
Call Trace:
 <TASK>
 kvm_arch_destroy_vm+0x1c0/0x220 [kvm]
---[ end trace 0000000000000000 ]---""",
    "kernel_bug": """kernel BUG at virt/kvm/gmem_transfer.c:120!
Oops: invalid opcode: 0000 [#1] SMP KASAN NOPTI""",
    "kasan": """==================================================================
BUG: KASAN: slab-use-after-free in kvm_gmem_release+0x1f/0x300 [kvm]
Read of size 8 at addr ffff888104a3c010 by task gmem_transfer/101
Call Trace:""",
    "gpf": "Oops: general protection fault, probably for non-canonical address 0xdffffc0000000003: 0000 [#1] SMP KASAN NOPTI",
    "null_pointer": "BUG: kernel NULL pointer dereference, address: 0000000000000018",
    "page_fault": "BUG: unable to handle page fault for address: ffffc90000a3d000",
    "circular": """======================================================
WARNING: possible circular locking dependency detected
7.3.4-upgraded #1 Not tainted
------------------------------------------------------
gmem_transfer/88 is trying to acquire lock:""",
    "recursive": """============================================
WARNING: possible recursive locking detected""",
    "irq_inversion": """========================================================
WARNING: possible irq lock inversion dependency detected""",
    "inconsistent": """================================
WARNING: inconsistent lock state""",
    "left_locked": """================================================
WARNING: lock held when returning to user space!""",
    "unlock_balance": """=====================================
WARNING: bad unlock balance detected!""",
    "lockdep_full": """BUG: MAX_LOCKDEP_CHAINS too low!
turning off the locking correctness validator.""",
    "rcu_usage": """=============================
WARNING: suspicious RCU usage
7.3.4-upgraded #1 Not tainted
-----------------------------
./include/linux/kvm_host.h:1094 suspicious rcu_dereference_check() usage!""",
    "sleeping": "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
    "atomic": "BUG: scheduling while atomic: gmem_transfer/77/0x00000002",
    "rcu_stall": """rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: 	0-....: (2600 ticks this GP) idle=1a2c/1/0x4000000000000000""",
    "rcu_stall_elsewhere": "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "hung_task": "INFO: task gmem_transfer:93 blocked for more than 120 seconds.",
    "soft_lockup": "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [gmem_transfer:93]",
    "workqueue": "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!",
    "ubsan": "UBSAN: array-index-out-of-bounds in arch/x86/kvm/mmu/tdp_mmu.c:300:12",
    "list": """list_add corruption. next->prev should be prev (ffff88810), but was ffff88820. (next=ffff88830).
------------[ cut here ]------------""",
    "refcount": "refcount_t: underflow; use-after-free.",
    "slub": "BUG kmalloc-64 (Not tainted): Right Redzone overwritten",
    "slab_left": "BUG kvm_mmu_page_header (Tainted: G        W          ): Objects remaining on __kmem_cache_shutdown()",
    "page_state": "BUG: Bad page state in process gmem_transfer  pfn:10a3f",
    "rss": "BUG: Bad rss-counter state mm:00000000a1b2c3d4 type:MM_FILEPAGES val:3 Comm:gmem_transfer Pid:93",
    "page_map": "BUG: Bad page map in process gmem_transfer  pte:80000001 pmd:10234067",
    "kmemleak": "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "panic": "Kernel panic - not syncing: Fatal exception",
    "unheard_of": """something new and terrible
Call Trace:
 <TASK>""",
}

HEALTHY = """\
Linux version 7.3.4-upgraded-small (upgraded@testbed) (gcc (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld 2.40) #1 SMP PREEMPT
Command line: console=ttyS0 quiet panic=-1 oops=panic rcupdate.rcu_expedited=1 testbed.share testbed.kernel-only
rcu: Preemptible hierarchical RCU implementation.
rcu: 	RCU debug extended QS entry/exit.
rcu: RCU calculated value of scheduler-enlistment delay is 10 jiffies.
rcu: srcu_init: Setting srcu_struct sizes based on contention.
Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
... MAX_LOCKDEP_SUBCLASSES:  8
kmemleak: Kernel memory leak detector initialized (mem pool available: 29816)
KernelAddressSanitizer initialized (generic)
kvm_amd: Nested Virtualization enabled
kvm_amd: Nested Paging enabled
Memory failure: 0x10a3f: recovery action for dirty LRU page: Recovered
Injecting memory failure for pfn 0x10a3f at process virtual address 0x7f3c10000000
kvm: SMP vm created on host with unstable TSC; guest TSC will not be reliable
upgraded-test: begin gmem_transfer_test
upgraded-test: end
"""


class Splats(unittest.TestCase):
    def test_every_kind_of_report_is_found(self):
        found = {name: len(splats.splats(HEALTHY.splitlines() + text.splitlines())) for name, text in SAMPLES.items()}
        self.assertEqual(dict.fromkeys(SAMPLES, 1), found)

    def test_a_healthy_log_has_none(self):
        self.assertEqual([], splats.splats(HEALTHY.splitlines()))

    def test_a_report_names_what_ran(self):
        lines = ["upgraded-test: begin one", "upgraded-test: begin two"] + SAMPLES["kasan"].splitlines() + ["upgraded-test: begin three"]
        (name, text), = splats.splats(lines)
        self.assertEqual("two", name)
        self.assertIn("Read of size 8", text)
        self.assertNotIn("begin three", text)

    def test_two_reports_are_two(self):
        lines = SAMPLES["kasan"].splitlines() + ["quiet"] * 40 + SAMPLES["sleeping"].splitlines()
        self.assertEqual(2, len(splats.splats(lines)))

    def test_kmsg_is_unpacked(self):
        text = "6,340,5140900,-;upgraded-test: begin one\n SUBSYSTEM=x\n4,341,5140990,-;WARNING: possible recursive locking detected\n"
        self.assertEqual("one", splats.splats(splats.lines_of_kmsg(text))[0][0])

    def test_leaks_are_counted(self):
        one = "unreferenced object 0xffff888104a3c000 (size 64):\n  comm \"t\", pid 9, jiffies 4294\n  backtrace (crc 1):\n    kmalloc\n"
        self.assertEqual(2, len(splats.leaks(one + one)))
        self.assertEqual([], splats.leaks(""))

    def test_lockdep_that_switched_itself_off_is_noticed(self):
        self.assertTrue(splats.lock_checking_is_on(" max locking depth:    14\n debug_locks:                             1\n"))
        self.assertFalse(splats.lock_checking_is_on(" debug_locks:                             0\n"))
        self.assertFalse(splats.lock_checking_is_on(""))


class Tap(unittest.TestCase):
    def test_every_line_is_a_test(self):
        text = """TAP version 13
1..6
# Starting 6 tests
ok 1 global.moves_the_memory
not ok 2 global.comes back
ok 3 # SKIP no nested virtualization
ok 4 global.l2 # SKIP no SMM
ok 5 - with a dash
# not ok 9 only a comment
ok 6 - with a dash
# Totals: pass:3 fail:1 xfail:0 xpass:0 skip:2 error:0
"""
        self.assertEqual([("global.moves_the_memory", "passed", ""), ("global.comes_back", "failed", ""),
                          ("no_nested_virtualization", "skipped", "no nested virtualization"),
                          ("global.l2", "skipped", "no SMM"), ("with_a_dash", "passed", ""), ("with_a_dash_2", "passed", "")],
                         run.tap(text))

    def test_no_tap_is_no_test(self):
        self.assertEqual([], run.tap("Random seed: 0x1\nok then\nnot ok\n1..0 # SKIP - no /dev/kvm\n"))


if __name__ == "__main__":
    unittest.main()
