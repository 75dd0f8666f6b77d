# SPDX-License-Identifier: GPL-2.0-or-later
"""The tiers gmem and stage2, with two different patched QEMUs (tests/tiers/run brings them). The same tests run in a kernel
with our extension and in one without: UPGRADED_EXPECT_TIER says which it is meant to be."""

import fcntl
import json
import os
import pathlib
import random
import select
import signal
import socket
import statistics
import struct

from common import (LIGHT, NEW, OLD, Attempt, Case, alive, ctl, daemon_pid, fault, kept, processes, saw, started, status_of,
                    stop_shared, take_faults)
from fds import sockets_of
from host import Guest, default_machine, wait_until

QEMUS = os.environ.get("UPGRADED_PATCHED_QEMUS", "").split(":")
KVM_CHECK_EXTENSION, KVM_CAP_GMEM_TRANSFER = 0xAE03, 0x474D
FIRMWARE = ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"]
ROUNDS = int(os.environ.get("UPGRADED_TIER_ROUNDS", "6"))
FEWEST = 6  # rounds that show whether something grows
SEED = int(os.environ.get("UPGRADED_TIER_SEED", "1"))


def kernel_can():
    with open("/dev/kvm", "rb") as kvm:
        return fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_GMEM_TRANSFER) > 0


def tables_received(pid):
    """Page tables that KVM has moved into the VM of this process."""
    counter, = pathlib.Path("/sys/kernel/debug/kvm").glob(f"{pid}-*/gmem_tables_received")
    return int(counter.read_text())


def what_is_held(vmm):
    """What would grow if an upgrade left something behind."""
    meminfo = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    kib = {name: int(value.split()[0]) for name, value in meminfo.items()}
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    return {"kvms": len([d for d in os.listdir("/sys/kernel/debug/kvm") if "-" in d]),
            "daemon_fds": len(os.listdir(f"/proc/{daemon_pid()}/fd")), "vmm_fds": len(os.listdir(f"/proc/{vmm}/fd")),
            "slab_KiB": kib["SUnreclaim"], "tables_KiB": kib["PageTables"] + kib.get("SecPageTables", 0)}


def abort_when_held(attempt):
    """The target owns the memory and has its page tables; the worker has not asked for COMMIT."""
    attempt.held_at("worker.held")
    ctl("abort", attempt.name)


def worker_commands(vmm, command):
    """What the VMM answers when a worker in the wrong hands gives it a command, on the connection that it has."""
    worker, = processes("upgraded-worker")
    for s in sockets_of(worker):
        peer, = struct.unpack("i8x", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer == vmm and s.getpeername():
            s.sendall(json.dumps({"execute": command}).encode() + b"\n")
            return answer(s)
    raise AssertionError(f"worker {worker} is not connected to {vmm}")


def answer(s):
    """Reads no byte more: what follows is for the worker."""
    while True:
        line = b""
        while not line.endswith(b"\n"):
            select.select([s], [], [], 30)  # the worker has made it non-blocking, and is to keep it so
            line += s.recv(1)
        if "event" not in (document := json.loads(line)):
            return document


def kill_target(attempt):
    os.kill(attempt.target(), signal.SIGKILL)


def hang_target(attempt):
    """For as long as anybody waits for it."""
    os.kill(attempt.held_at("worker.frozen"), signal.SIGSTOP)


# What happens: a line for the fault points, and after which phase was entered whom it hits. All of it is a rollback.
MISHAPS = {
    "target killed in prepare": ("worker.prepared sleep 8000", "prepare", kill_target),
    "target killed in check": ("worker.verified sleep 8000", "check", kill_target),
    "target hung while the guest stands still": ("worker.frozen sleep 4000", "freeze", hang_target),
    "worker killed in freeze": ("worker.frozen kill", "freeze", lambda a: None),
    "worker killed in load": ("worker.loaded kill", "freeze", lambda a: None),
    "worker killed in switch": ("worker.held kill", "freeze", lambda a: None),
    "aborted in switch": ("worker.held sleep 4000", "freeze", abort_when_held),
}


def make(name, gmem=True, **options):
    """A guest that both QEMUs can run, its RAM in a guest_memfd of its machine's."""
    machine = default_machine(QEMUS[0])
    if gmem:
        machine += ",guest-memfd=on"
    return Guest(name, virtio=False, smp=1, machine=machine, extra=FIRMWARE, **{**LIGHT, **options})


class Tiers(Case):
    def setUp(self):
        if not QEMUS[0]:
            self.skipTest("needs two patched QEMUs, see tests/tiers/run")
        self.assertEqual(self.expected() == "stage2", kernel_can(), "what the kernel is meant to offer, and does")

    def guest(self):
        return kept("tiers", lambda: started(make("tiers"), QEMUS[0]))

    def expected(self):
        return os.environ.get("UPGRADED_EXPECT_TIER") or ("stage2" if kernel_can() else "gmem")

    def test_a_guest_crosses_two_patched_qemus_or_falls_back(self):
        guest = self.guest()
        source = self.begin(guest)
        status, report = guest.upgrade(QEMUS[1])
        self.committed(guest, status, report, source)
        if QEMUS[0] != QEMUS[1]:
            self.assertNotEqual(report["source_version"], report["target_version"])
        self.assertEqual(report["tier"], self.expected())
        self.healthy(guest, f"{report['source_version']} -> {report['target_version']}, tier {report['tier']}: "
                            f"{report['blackout_ms']:.0f} ms between the two QEMUs")
        if kernel_can():
            h = report["handover"]
            saw(f"{h['matched']} of {h['slots']} slots, {h['tables']} tables, {h['zapped']} entries dropped, "
                f"{int(h['ioctl_ns']) / 1e6:.2f} ms in the kernel")
            self.assertEqual(h["matched"], h["slots"])
            self.assertGreater(int(h["tables"]), 10)
            self.assertTrue(h["ownership"])

    def test_check_says_the_tier_and_why_it_falls_back(self):
        guest = self.guest()
        _, said = ctl("check", guest.name, "--vmm", QEMUS[1])
        self.assertEqual(said[0]["tier"], self.expected(), said)
        codes = [f["code"] for f in said[0]["findings"]]
        self.assertEqual("tier.kernel" in codes, not kernel_can(), codes)
        saw(f"tier {said[0]['tier']}: {[f['text'] for f in said[0]['findings'] if f['code'].startswith('tier.')]}")

    def test_no_stage2_leaves_the_page_tables_behind(self):
        guest = self.guest()
        source = self.begin(guest)
        status, report = guest.upgrade(QEMUS[1], "--no-stage2")
        self.committed(guest, status, report, source)
        self.assertEqual(report["tier"], "gmem")
        if kernel_can():
            self.assertTrue(report["handover"]["ownership"])
            self.assertEqual(int(report["handover"]["tables"]), 0)
        self.healthy(guest, f"without the page tables: {report['blackout_ms']:.0f} ms")

    def test_daemon_killed_between_the_transfer_and_the_commit(self):
        """The target owns the memory, and nobody has decided. Without a COMMIT record it is the source's again."""
        guest = self.guest()
        self.with_faults("daemon.commit-due sleep 10000")
        source = self.begin(guest)
        attempt = Attempt(guest, QEMUS[1])
        target = attempt.held_at("daemon.commit-due")
        if kernel_can():
            self.assertGreater(tables_received(target), 10)
        os.kill(daemon_pid(), signal.SIGKILL)
        wait_until(lambda: not alive(target), 90, "the next daemon's worker ends the target")
        wait_until(lambda: status_of(source)["State"][0] in "RS", 30, "the source goes on")
        wait_until(lambda: guest.show()["phase"] == "idle", 60, "the upgrade is over")
        self.assertEqual(guest.pid(), source)
        self.assertNotEqual(attempt.wait()[0], 0)
        self.healthy(guest, "daemon killed with COMMIT unanswered: rolled back")

    def both_run(self, guest, point):
        """A worker in the wrong hands lets the source go on. What becomes of that."""
        source = self.begin(guest)
        fault(f"{point} sleep 4000")
        self.addCleanup(fault)
        attempt = Attempt(guest, QEMUS[1], "--max-blackout", "20000")
        attempt.held_at(point)
        os.kill(source, signal.SIGCONT)
        said = worker_commands(source, "cont")
        self.assertIn("error", said)
        saw(f"{point}: the source says: {said['error']['desc']}")
        status, report = attempt.wait()
        self.committed(guest, status, report, source)
        self.healthy(guest, f"{point}, and the source told to go on: {report['blackout_ms']:.0f} ms")

    def test_a_worker_that_runs_both_harms_nothing(self):
        if not kernel_can():
            self.skipTest("the kernel does not stop it: custody and TwiceAfterCommit test what does")
        guest = self.guest()
        take_faults()
        for point in ("worker.held", "worker.committed", "worker.ran"):
            self.both_run(guest, point)

    def test_upgrades_and_rollbacks_in_turn(self):
        """Every second attempt loses its target at a random moment: killed while the guest runs, hung while it stands
        still (one that is killed after the commit would take the guest with it, as it should)."""
        guest = self.guest()
        self.assertGreaterEqual(ROUNDS, FEWEST, "too few rounds to show that nothing grows")
        dice = random.Random(SEED)
        tables, held, phases = [], [], []
        take_faults()
        self.addCleanup(fault)
        for i in range(ROUNDS):
            source = guest.pid()
            guest.mark(self.id().rsplit(".", maxsplit=1)[-1])
            if i % 2:
                kind, after = dice.choice(tuple(MISHAPS)), dice.uniform(0, 0.3)
                line, phase, mishap = MISHAPS[kind]
                fault(line)
                attempt = Attempt(guest, QEMUS[1], "--max-blackout", "12000",
                                  on={phase: lambda a, f=mishap, s=after: a.later(s, f)})
                report = self.rolled_back(guest, attempt, source, f"round {i + 1}: {kind}, {after * 1000:.0f} ms later")
                fault()
                if kind == "aborted in switch" and kernel_can():
                    self.assertGreater(int(report["handover"]["tables"]), 10, "the page tables did not come back")
                phases.append(f"{kind}: {report['failed_phase']}")
            else:
                status, report = guest.upgrade(QEMUS[1])
                self.committed(guest, status, report, source)
                self.assertEqual(report["tier"], self.expected())
                self.healthy(guest, f"round {i + 1}: {report['blackout_ms']:.0f} ms")
                tables.append(int(report["handover"]["tables"]) if kernel_can() else 0)
            held.append(what_is_held(guest.pid()))
        saw(f"seed {SEED}; page tables handed over: {tables}; rolled back: {phases}")
        self.nothing_grows(held)

    def nothing_grows(self, held):
        for what in held[0]:
            figures = [h[what] for h in held]
            saw(f"{what}: {figures}")
        third = len(held) // 3
        for what, allowed in (("kvms", 0), ("daemon_fds", 0), ("vmm_fds", 0), ("slab_KiB", 3000), ("tables_KiB", 400)):
            # The first rounds fill caches.
            early = statistics.median(h[what] for h in held[third:2 * third])
            late = statistics.median(h[what] for h in held[-third:])
            self.assertLessEqual(late - early, allowed, f"{what} grew from {early} to {late}")

    test_upgrades_and_rollbacks_in_turn.seconds = 300 + 150 * ROUNDS

    def crosses_as_memfd(self, old, new):
        stop_shared()  # the emulated host is slow enough for one guest
        with make("plain", gmem=False) as guest:
            started(guest, old)
            source = self.begin(guest)
            status, report = guest.upgrade(new)
            self.committed(guest, status, report, source)
            self.assertEqual(report["tier"], "memfd")
            self.assertIn("tier.memfd", [f["code"] for f in report["findings"]])
            self.healthy(guest, f"memfd RAM, {report['source_version']} -> {report['target_version']}")

    def test_guest_with_memfd_ram_is_tier_memfd(self):
        self.crosses_as_memfd(*QEMUS)

    def test_stock_qemus_are_tier_memfd_whatever_the_kernel_can(self):
        self.crosses_as_memfd(OLD, NEW)

    def test_target_without_the_patches_takes_guest_memfds_for_memfds(self):
        """What it costs is said; the guest crosses nevertheless."""
        machine = f"{default_machine(QEMUS[0])},memory-backend=ram0"
        extra = [*FIRMWARE, "-object", f"memory-backend-memfd,id=ram0,size={512 << 20},share=on,guest-memfd=on"]
        with Guest("stock", virtio=False, smp=1, machine=machine, extra=extra, **LIGHT) as guest:
            started(guest, QEMUS[0])
            source = self.begin(guest)
            status, report = guest.upgrade(NEW)
            self.committed(guest, status, report, source)
            self.assertEqual(report["tier"], "gmem")
            self.assertIn("tier.target", [f["code"] for f in report["findings"]])
            self.healthy(guest, f"patched {report['source_version']} -> stock {report['target_version']}")
