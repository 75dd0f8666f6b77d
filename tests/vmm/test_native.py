#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""VMMs that speak libupgraded, upgraded for real: tinyvmm on this machine's /dev/kvm, with an upgraded of its own.

    tests/vmm/test_native.py [-v] [NAME...]          as root; UPGRADED_BUILD names another build directory

After every test there was exactly one runner at any time, and no guest has found a wrong word in its memory."""

import hashlib
import json
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from case import Case
from tiny import (COMMITTED, LOST, REFUSED, ROLLED_BACK, ROOT, TINYVMM, UPGRADECTL, Host, alive, best_tier, fds_at_rest, fds_of,
                  kvm_offers, wait_until)
from fds import connected_of  # found by way of tiny

UPGRADES = 20


def setUpModule():
    if os.geteuid():
        raise unittest.SkipTest("needs root")
    if kvm_offers(0) is None:
        raise unittest.SkipTest("this machine has no usable /dev/kvm")
    print(f"memory tier of this machine: {best_tier()}", file=sys.stderr)


class Native(Case):
    def kill_daemon(self):
        self.host.daemon.kill()
        self.host.daemon.wait()


class Series(Native):
    def test_twenty_upgrades_lose_nothing_and_leak_nothing(self):
        worst, tables = 0, []
        for i in range(UPGRADES):
            report = self.upgrade()
            self.assertEqual(report["tier"], best_tier(), self.told())
            worst = max(worst, report["blackout_us"])
            tables.append(self.guest.proof.tables)
            if i == 1:
                vmm, daemon = fds_at_rest(self.guest.proof.pid), fds_at_rest(self.host.daemon.pid)
        digest = hashlib.sha256(TINYVMM.read_bytes()).hexdigest()
        self.assertEqual((report["source_sha256"], report["target_sha256"]), (digest, digest))
        self.assertEqual(self.guest.show()["binary_sha256"], digest)
        self.assertEqual(fds_at_rest(self.guest.proof.pid), vmm)
        self.assertEqual(fds_at_rest(self.host.daemon.pid), daemon)
        self.assertEqual(self.guest.proof.runs, UPGRADES + 1)
        self.assertEqual(self.guest.show()["generation"], UPGRADES)
        print(f"\n  {UPGRADES} upgrades, tier {best_tier()}: worst blackout {worst / 1000:.1f} ms, longest gap between "
              f"two rounds {self.guest.proof.longest_gap_ms():.1f} ms, page tables handed over {tables[-1]}", file=sys.stderr)

    def test_check_changes_nothing_and_says_the_tier(self):
        pid, fds = self.guest.proof.pid, fds_at_rest(self.guest.proof.pid)
        for _ in range(3):
            status, documents = self.host.ctl("check", "tiny")
            self.assertEqual(status, 0, documents)
            self.assertEqual(documents[0]["tier"], best_tier())
            notes = [f["text"] for f in documents[0]["findings"] if f["code"] == "memory.tier"]
            self.assertEqual(len(notes), 1, documents)
        self.assertEqual(fds_at_rest(pid), fds)
        self.check_guest(pid)

    def test_an_upgrade_over_its_budget_is_rolled_back(self):
        pid = self.guest.proof.pid
        self.guest.order("target load sleep 2000")
        status, report = self.host.upgrade(self.guest, "--max-blackout", "500")
        self.expect(ROLLED_BACK, status, report)
        self.check_guest(pid)
        self.guest.order()
        self.upgrade()


class ManyVcpus(Native):
    options = ("--vcpus", "4", "--memory", "32")

    def test_four_vcpus_go_on_together(self):
        for _ in range(3):
            self.upgrade()


class Irqchip(Native):
    options = ("--irqchip", "--vcpus", "2")

    def test_interrupt_controllers_are_carried(self):
        for _ in range(3):
            self.upgrade()


class Memfd(Native):
    options = ("--memfd",)

    def test_a_memfd_is_mapped_again(self):
        for _ in range(3):
            self.assertEqual(self.upgrade()["tier"], "memfd")


    def test_the_guest_notices_a_write_that_is_lost(self):
        """The test of the test: a page of the guest becomes what it was some rounds ago."""
        pid = self.guest.proof.pid
        with open(f"/proc/{pid}/maps") as maps:
            ram = next(int(line.split("-")[0], 16) for line in maps if "tinyvmm-ram" in line)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            page = os.pread(memory.fileno(), 4096, ram + 0x100000)
            self.guest.runs_on()
            self.assertEqual(self.guest.proof.errors(), 0)
            os.pwrite(memory.fileno(), page, ram + 0x100000)
        wait_until(self.guest.proof.errors, 10, "the guest notices")


class TwiceAfterCommit(Native):
    options = ("--memfd",)
    fd_store = True

    def made_to_go_on(self, first):
        """As a worker would do that is broken, or in somebody else's hands."""
        source = self.guest.proof.pid
        # Longer than anything here takes: when the target runs, a worker ends the source.
        self.guest.order("target run sleep 60000")
        attempt = self.host.begin(self.guest)
        target = self.guest.await_fault()
        first()
        self.assertTrue(alive(source))
        os.kill(source, signal.SIGCONT)
        # Before the target has slept enough, so before anybody else would have ended it; killed first, told then.
        wait_until(lambda: not alive(source), 30, "it is killed")
        wait_until(lambda: "made to go on after COMMIT" in self.host.words(), 10, f"the daemon tells{self.told()}")
        self.guest.fault.unlink()  # it has slept enough
        return attempt, target

    def test_a_source_that_is_made_to_go_on_is_killed(self):
        attempt, target = self.made_to_go_on(lambda: None)
        status, report = attempt.join()
        self.expect(COMMITTED, status, report)
        self.check_guest(target)

    def test_no_commit_while_the_source_goes_on(self):
        source = self.guest.proof.pid
        self.guest.order(f"target owned sleep {2 * self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        self.guest.await_fault()
        os.kill(source, signal.SIGCONT)
        status, report = attempt.join()
        self.expect(ROLLED_BACK, status, report)
        self.assertIn("does not stand still", report["error"])
        self.check_guest(source)

    def restart(self):
        self.kill_daemon()
        self.host.start()

    def test_the_next_daemon_watches_as_well(self):
        _, target = self.made_to_go_on(self.restart)
        self.assertEqual(self.settled(), "committed")
        self.check_guest(target)


if best_tier() == "stage2":
    class TwiceInTheKernel(Native):
        """A worker, or a VMM, that runs the guest in the source as well. The kernel extension does not let it."""
        options = ("--vcpus", "2")

        def insist_at(self, point):
            source = self.guest.proof.pid
            self.guest.order(f"target {point} sleep {2 * self.host.hold_ms}")
            attempt = self.host.begin(self.guest)
            self.guest.await_fault()
            os.kill(source, signal.SIGUSR2)
            os.kill(source, signal.SIGCONT)
            wait_until(lambda: all(v["refused"] > 10 for v in self.guest.proof.vcpus()), 10, f"both vCPUs are refused{self.told()}")
            status, report = attempt.join()
            self.expect(COMMITTED, status, report)
            self.assertEqual(report["tier"], "stage2")
            self.check_guest()
            self.assertNotEqual(self.guest.proof.pid, source)

        def test_a_source_that_runs_before_the_commit_is_refused(self):
            self.insist_at("owned")

        def test_a_source_that_runs_with_the_target_is_refused(self):
            self.insist_at("running")


class Mishaps(Native):
    """Every VMM fails, dies or hangs at every point of an upgrade."""

    def rolled_back(self, *order, options=()):
        pid = self.guest.proof.pid
        self.guest.order(*order)
        status, report = self.host.upgrade(self.guest, *options)
        self.expect(ROLLED_BACK, status, report)
        self.check_guest(pid)
        return report

    def test_a_target_that_is_killed_before_commit_is_rolled_back(self):
        for point in ("accept", "accepted", "verify", "load", "loaded", "own", "owned"):
            self.where = f"{point}"
            report = self.rolled_back(f"target {point} kill")
            self.assertIn("target", report["error"])
        self.guest.order()
        self.upgrade()

    def test_a_callback_that_fails_is_rolled_back(self):
        for who, point in (("target", "accept"), ("target", "verify"), ("source", "freeze"), ("source", "frozen"),
                           ("target", "load"), ("target", "own"), ("target", "owned")):
            self.where = f"{who} {point}"
            self.rolled_back(f"{who} {point} fail")
        self.guest.order()
        self.upgrade()

    def test_a_target_that_hangs_is_rolled_back_in_time(self):
        for point in ("load", "own"):
            self.where = f"{point}"
            begin = time.monotonic()
            self.rolled_back(f"target {point} stop", options=("--max-blackout", "400"))
            self.assertLess(time.monotonic() - begin, 10)

    def test_a_target_that_is_killed_at_its_first_instruction_is_lost_and_says_so(self):
        self.guest.order("target run kill")
        status, report = self.host.upgrade(self.guest)
        self.expect(LOST, status, report)
        ticks = self.guest.proof.ticks()
        time.sleep(0.5)
        self.assertEqual(self.guest.proof.ticks(), ticks, "nobody runs it")
        self.assertEqual(self.guest.proof.violations, 0)

    def test_a_source_that_is_killed_is_lost_unless_its_state_is_saved(self):
        self.guest.order("source freeze kill")
        status, report = self.host.upgrade(self.guest)
        self.expect(LOST, status, report)
        self.assertEqual(self.guest.proof.violations, 0)

    def test_a_source_that_dies_after_its_state_was_saved_is_not_missed(self):
        source = self.guest.proof.pid
        self.guest.order(f"target load sleep {self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        target = self.guest.await_fault()
        os.kill(source, signal.SIGKILL)
        status, report = attempt.join()
        self.expect(COMMITTED, status, report)
        self.check_guest(target)

    def test_abort_rolls_back(self):
        pid = self.guest.proof.pid
        self.guest.order(f"target verify sleep {5 * self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        self.guest.await_fault()
        self.assertEqual(self.host.ctl("abort", "tiny")[0], 0)
        status, report = attempt.join()
        self.expect(ROLLED_BACK, status, report)
        self.check_guest(pid)


class WorkerDies(Native):
    """Another worker undoes or finishes, whatever the first one was doing."""

    def killed_at(self, order):
        self.guest.order(f"{order} {self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        self.guest.await_fault()
        for pid in self.host.workers():
            os.kill(pid, signal.SIGKILL)
        return attempt.join()

    def test_before_commit_another_one_undoes(self):
        for order in ("target accept sleep", "target verify sleep", "source freeze sleep",
                      "source frozen sleep", "target load sleep", "target loaded sleep",
                      "target own sleep", "target owned sleep"):
            self.where = f"{order}"
            pid = self.guest.proof.pid
            status, report = self.killed_at(order)
            self.expect(ROLLED_BACK, status, report)
            self.check_guest(pid)
            # A worker that did not see it begin says how long the guest stood still, too.
            # Who is asked to freeze may do so, with nobody left to see it.
            if order != "source freeze sleep":
                ran = order in ("target accept sleep", "target verify sleep")
                self.assertEqual(report["blackout_us"] == 0, ran, report)
        self.guest.order()
        self.upgrade()

    def test_after_commit_another_one_finishes(self):
        for order in ("target run sleep", "target running sleep", "target finish sleep"):
            self.where = f"{order}"
            before = self.guest.proof.pid
            status, report = self.killed_at(order)
            self.expect(COMMITTED, status, report)
            self.check_guest()
            self.assertNotEqual(self.guest.proof.pid, before)
        self.assertGreater(report["blackout_us"], 0)
        self.guest.order()
        self.upgrade()


class DaemonDies(Native):
    def test_an_idle_daemon_is_missed_by_nobody(self):
        for _ in range(3):
            pid = self.guest.proof.pid
            self.kill_daemon()
            self.guest.runs_on()
            self.host.start()
            self.check_guest(pid)
            self.upgrade()

    def test_one_that_takes_long_to_start_is_waited_for(self):
        os.kill(self.host.daemon.pid, signal.SIGSTOP)
        try:
            asked = subprocess.Popen([UPGRADECTL, "--socket", self.host.run / "control.sock", "list"],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            with self.assertRaises(subprocess.TimeoutExpired, msg="an answer without a daemon"):
                asked.wait(7)
        finally:
            os.kill(self.host.daemon.pid, signal.SIGCONT)
        self.assertEqual((asked.communicate(timeout=20)[1], asked.returncode), ("", 0))

    def test_before_commit_the_upgrade_is_undone(self):
        for order in ("target verify sleep", "source frozen sleep", "target load sleep",
                      "target owned sleep"):
            self.where = f"{order}"
            pid = self.guest.proof.pid
            self.guest.order(f"{order} {self.host.hold_ms}")
            self.host.begin(self.guest)
            self.guest.await_fault()
            self.kill_daemon()
            self.host.start()
            self.settled()
            self.check_guest(pid)
        self.guest.order()
        self.upgrade()

    def test_daemon_and_worker_at_once_are_undone_or_finished(self):
        for order, commits in (("target load sleep", False), ("target owned sleep", False),
                               ("target run sleep", True)):
            self.where = f"{order}"
            pid = self.guest.proof.pid
            self.guest.order(f"{order} {self.host.hold_ms}")
            self.host.begin(self.guest)
            self.guest.await_fault()
            workers = self.host.workers()
            self.kill_daemon()
            for worker in workers:
                if alive(worker):
                    os.kill(worker, signal.SIGKILL)
            self.host.start()
            self.settled()
            self.check_guest(None if commits else pid)
            self.assertEqual(self.guest.proof.pid != pid, commits, self.told())
        self.guest.order()
        self.upgrade()


class DaemonDiesUnderSystemd(DaemonDies):
    """As above, and custody outlives it."""
    fd_store = True

    def tearDown(self):
        self.assertEqual(self.host.store.settle(), [], "custody is empty when nothing is under way")


class BothDie(Native):
    """Source and target are killed between the freeze and the first instruction: the guest is in custody."""
    fd_store = True
    # In this order: what is known of the target's death, and by whom, differs.
    points = ("target load sleep", "target loaded sleep", "target own sleep", "target owned sleep")

    def both_die(self, order, worker=False, daemon=False):
        """Returns the attempt, or with the daemon None."""
        source = self.guest.proof.pid
        self.guest.order(f"{order} {4 * self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        target = self.guest.await_fault()
        workers = self.host.workers() if worker else []
        self.guest.order()
        # The worker first, and the daemon last: either would let the source go on when it misses the other.
        for pid in (*workers, source, target):
            os.kill(pid, signal.SIGKILL)
        if daemon:
            self.kill_daemon()
            self.host.start()
        return None if daemon else attempt

    def goes_on(self, before):
        self.check_guest()
        self.assertNotEqual(self.guest.proof.pid, before)
        self.assertEqual(self.host.store.settle(), [], self.told())

    def each(self, **who):
        for i, order in enumerate(self.points):
            self.where = order
            before = self.guest.proof.pid
            generation = self.guest.show()["generation"] if i else 0
            attempt = self.both_die(order, **who)
            if attempt:
                status, report = attempt.join()
                self.expect(COMMITTED, status, report)
                self.assertIn("rebuild", [f["code"] for f in report["findings"]])
                self.assertGreater(report["blackout_us"], 0)
            else:
                self.assertEqual(self.settled(), "committed", self.told())
            self.goes_on(before)
            self.assertEqual(self.guest.show()["generation"], generation + 1)
        self.upgrade()

    def test_a_target_is_started_from_custody(self):
        self.each()

    def test_and_when_the_worker_dies_with_them(self):
        self.each(worker=True)

    def test_and_when_the_daemon_dies_with_them(self):
        self.each(daemon=True)

    def test_and_when_all_of_them_die(self):
        self.each(worker=True, daemon=True)

    def test_a_rebuild_may_die_too(self):
        """Worker, daemon and target of the rebuild, then what follows finishes it."""
        for who in ("worker", "daemon", "target", "all"):
            self.where = who
            source = self.guest.proof.pid
            self.guest.order(f"target load sleep {4 * self.host.hold_ms}")
            attempt = self.host.begin(self.guest)
            target = self.guest.await_fault()
            self.guest.order(f"target loaded sleep {4 * self.host.hold_ms}")
            for pid in (source, target):
                os.kill(pid, signal.SIGKILL)
            second = self.guest.await_fault()
            workers = self.host.workers()
            self.guest.order()
            if who in ("worker", "all"):
                os.kill(workers[0], signal.SIGKILL)
            if who in ("target", "all"):
                os.kill(second, signal.SIGKILL)
            if who in ("daemon", "all"):
                self.kill_daemon()
            if who in ("daemon", "all"):
                self.host.start()
                self.assertEqual(self.settled(), "committed", self.told())
            else:
                status, report = attempt.join()
                self.expect(COMMITTED, status, report)
            self.goes_on(source)

    def test_a_rebuild_outlives_more_daemons_than_targets(self):
        source = self.guest.proof.pid
        self.guest.order(f"target load sleep {4 * self.host.hold_ms}")
        self.host.begin(self.guest)
        target = self.guest.await_fault()
        for _ in range(4):
            # The next target waits in the same place.
            self.guest.order(f"target load sleep {4 * self.host.hold_ms}")
            for pid in (*self.host.workers(), source, target):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self.kill_daemon()
            self.host.start()
            target = self.guest.await_fault()
        self.guest.order()
        self.assertEqual(self.settled(), "committed", self.told())
        self.goes_on(source)

    def test_a_state_that_kills_every_target_ends_as_lost(self):
        source = self.guest.proof.pid
        self.guest.order(f"target load sleep {self.host.hold_ms}", "target loaded kill")
        attempt = self.host.begin(self.guest)
        self.guest.await_fault()
        os.kill(source, signal.SIGKILL)
        status, report = attempt.join()
        self.expect(LOST, status, report)
        self.assertEqual(self.guest.vmms(), [])
        self.assertEqual(self.host.store.settle(), [])

    def test_what_may_have_run_is_not_run_again(self):
        self.both_die("target run sleep")
        wait_until(lambda: not self.guest.show().get("upgrade_id"), 30, "it ends")
        self.assertEqual(self.host.reports("tiny")[0]["outcome"], "lost", self.told())
        ticks = self.guest.proof.ticks()
        time.sleep(0.5)
        self.assertEqual(self.guest.proof.ticks(), ticks, "nobody runs it")
        self.assertEqual(self.guest.trouble(), [])

    def test_a_source_that_went_on_and_died_is_not_brought_back(self):
        """After a rollback the state that was captured is the past."""
        source = self.guest.proof.pid
        self.guest.order(f"target load sleep {2 * self.host.hold_ms}", f"source thaw sleep {2 * self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        target = self.guest.await_fault()
        os.kill(target, signal.SIGKILL)
        wait_until(lambda: "source thaw" in self.guest.seen().read_text(), 10, "it is told to go on")
        os.kill(source, signal.SIGKILL)
        status, report = attempt.join()
        self.expect(LOST, status, report)
        self.assertEqual(self.guest.vmms(), [])

    def test_show_lists_what_is_held(self):
        self.guest.order(f"target load sleep {6 * self.host.hold_ms}")
        attempt = self.host.begin(self.guest)
        self.guest.await_fault()
        shown = self.guest.show()
        names = {name.split(".")[1] for name in self.host.store.settle()}
        held = {item["name"]: item for item in shown["custody"]}
        self.assertEqual(set(held) - {"target-vm"}, {"start", "offer", "device-state", "target"})
        self.assertEqual(sum(int(item.get("pinned", 0)) for item in held.values()), int(shown["memory"]))
        self.assertGreater(int(held["device-state"]["bytes"]), 0)
        self.assertEqual(names, set(held) - {"target-vm"})
        self.expect(COMMITTED, *attempt.join())
        self.assertNotIn("custody", {k: v for k, v in self.guest.show().items() if v})
        self.assertEqual(self.host.store.settle(), [])


class EveryPoint(Native):
    """The daemon or a worker is killed at every point that has a name (daemon/fault_point.h)."""
    fd_store = True

    def setUp(self):
        where = tempfile.mkdtemp(prefix="upgraded-points-")
        self.addCleanup(shutil.rmtree, where)
        self.points = pathlib.Path(where) / "points"
        os.environ["UPGRADED_FAULTS"] = str(self.points)
        self.addCleanup(os.environ.pop, "UPGRADED_FAULTS")
        super().setUp()

    @staticmethod
    def names():
        text = (ROOT / "daemon/fault_point.h").read_text()
        return re.findall(r'POINT\(\w+, "([\w.-]+)"\)', text)

    def passed(self):
        seen = pathlib.Path(f"{self.points}.seen")
        return seen.read_text().split()[::2] if seen.exists() else []

    def killed_at(self, point, order="", both=False):
        """One upgrade in which whoever comes to @point is killed. Returns the outcome; None: it never began."""
        self.where = point
        known = len(self.host.reports("tiny"))
        pathlib.Path(f"{self.points}.seen").unlink(missing_ok=True)
        self.points.write_text(f"{point} kill\n")
        source = self.guest.proof.pid
        self.guest.order(*([order] if order else []))
        attempt = self.host.begin(self.guest)
        if both:
            target = self.guest.await_fault()
            self.guest.order()
            for pid in (source, target):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: point in self.passed(), 20, lambda: f"{point} is passed{self.told()}")
        if point.startswith("daemon."):
            self.host.daemon.wait()
            self.host.start()
        wait_until(lambda: not self.host.workers() and not self.guest.show().get("upgrade_id"), 60,
                   lambda: f"the end{self.told()}")
        attempt.join()
        self.points.unlink()
        self.guest.order()
        reports = self.host.reports("tiny")
        outcome = reports[0]["outcome"] if len(reports) > known else None
        self.check_guest(source if outcome in (None, "rolled_back") else None)
        self.assertEqual(self.guest.proof.pid != source, outcome == "committed", f"{outcome}{self.told()}")
        self.assertEqual(self.host.store.settle(), [], self.told())
        return outcome

    def all_at(self, points, **circumstances):
        outcomes = {point: self.killed_at(point, **circumstances) for point in points}
        print("\n  " + ", ".join(f"{p}: {o}" for p, o in outcomes.items()), file=sys.stderr)
        self.assertNotIn("lost", outcomes.values())
        self.points.write_text("")
        self.upgrade()
        return outcomes

    def test_of_an_upgrade(self):
        never = ("worker.undo", "worker.let-go", "worker.undone", "worker.rebuild-started")
        points = [p for p in self.names() if p not in never]
        outcomes = self.all_at(points)
        self.assertEqual(outcomes["daemon.commit-due"], "rolled_back")
        for point in ("daemon.commit-journaled", "worker.committed", "worker.ran"):
            self.assertEqual(outcomes[point], "committed", point)

    def test_of_a_rollback(self):
        self.all_at(("worker.undo", "worker.let-go", "worker.undone", "worker.done", "daemon.report-received",
                     "daemon.end-due", "daemon.end-journaled", "daemon.custody-cleared"), order="target loaded fail")

    def test_of_a_rebuild(self):
        points = ("worker.rebuild-started", "worker.commit-asked", "worker.committed", "worker.ran", "worker.finished",
                  "daemon.commit-due", "daemon.commit-journaled", "daemon.commit-told", "daemon.report-received",
                  "daemon.end-due", "daemon.end-journaled", "daemon.custody-cleared")
        outcomes = self.all_at(points, order=f"target load sleep {4 * self.host.hold_ms}", both=True)
        self.assertEqual(set(outcomes.values()), {"committed"})


class RuntimeDirectory(Native):
    """The journal cannot be written: nothing begins, and what was begun is ended."""
    fd_store = True

    def over(self, *mount):
        """What this mounts over the runtime directory is gone when the test is."""
        if subprocess.run(["mount", *mount, self.host.run], check=False).returncode:
            self.skipTest("nothing can be mounted here")
        self.addCleanup(subprocess.run, ["umount", "-l", self.host.run], check=False, stderr=subprocess.DEVNULL)

    def refused(self, why):
        pid = self.guest.proof.pid
        status, report = self.host.upgrade(self.guest)
        self.assertIn(why, json.dumps(report))
        self.assertNotEqual(status, COMMITTED)
        self.check_guest(pid)

    def test_a_full_one_refuses_upgrades_until_there_is_room(self):
        self.kill_daemon()
        self.over("-t", "tmpfs", "-o", "size=128k", "none")
        self.host.start()
        wait_until(self.guest.registered, 20, "it registers again")
        self.upgrade()
        filler = self.host.run / "filler"
        with open(filler, "wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        self.refused("No space left on device")
        filler.unlink()
        self.upgrade()
        self.assertEqual(self.host.store.settle(), [])

    def test_a_read_only_one_is_recovered_from_and_begins_nothing(self):
        pid = self.guest.proof.pid
        self.guest.order(f"target load sleep {self.host.hold_ms}")
        self.host.begin(self.guest)
        self.guest.await_fault()
        for worker in self.host.workers():
            os.kill(worker, signal.SIGKILL)
        self.kill_daemon()
        self.host.store.listen(self.host.run)
        self.over("--bind", self.host.run)
        self.over("-o", "remount,bind,ro")
        self.host.start()
        self.settled()
        self.check_guest(pid)
        self.refused("read-only file system")
        self.kill_daemon()
        self.host.store.listen_no_more()
        subprocess.run(["umount", self.host.run], check=True)
        # What was ended already is ended once more, and then it is written down.
        self.host.start()
        self.settled()
        self.check_guest(pid)
        self.guest.order()
        self.upgrade()
        self.assertEqual(self.host.store.settle(), [])


class Room(Native):
    def test_a_source_short_of_descriptors_is_refused_until_it_has_more(self):
        pid = self.guest.proof.pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(fds_of(pid)) + 3, hard))
        status, report = self.host.upgrade(self.guest)
        self.expect(REFUSED, status, report)
        self.check_guest(pid)
        remedies = [f["remedy"] for f in report["findings"] if f["code"] == "source.descriptors"]
        self.assertEqual(len(remedies), 1, report)
        subprocess.run(shlex.split(remedies[0].split(" (")[0]), check=True)
        self.upgrade()


class Names(Native):
    def test_a_target_that_no_worker_started_is_sent_away(self):
        """As one would be whose worker died before it could say which process it had started."""
        source = self.guest.proof.pid
        os.kill(source, signal.SIGSTOP)
        attempt = self.host.begin(self.guest)
        wait_until(lambda: self.guest.show().get("upgrade_id"), 10, "the upgrade begins")
        stray, said = self.another(UPGRADED_TARGET="1")
        wait_until(lambda: any(connected_of(stray.pid)), 10, "it connects")
        os.kill(source, signal.SIGCONT)
        status, report = attempt.join()
        self.expect(COMMITTED, status, report)
        self.assertNotEqual(stray.wait(timeout=10), 0)
        self.assertIn("upgrade 1 of tiny is over", said())
        self.check_guest()

    def test_a_name_is_not_given_twice(self):
        pid = self.guest.pid()
        impostor, said = self.another()
        wait_until(lambda: f"tiny is process {pid}, driver native" in said(), 10, lambda: f"it is told whose name that is: {said()}")
        self.assertIsNone(impostor.poll(), "its guest runs on, and nobody knows it")
        self.check_guest(pid)

    def another(self, **environment):
        """A VMM of the same name, and what it has said so far."""
        log = self.host.dir / "another.log"
        with log.open("wb") as f:
            process = subprocess.Popen([TINYVMM, "--name", "tiny", "--socket", self.host.run / "vmm.sock"],
                                       env={**os.environ, **environment}, stderr=f)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, log.read_text

    def test_a_target_that_never_connects_is_rolled_back(self):
        pid = self.guest.proof.pid
        status, report = self.host.upgrade(self.guest, "--vmm", "/bin/cat", "--timeout", "2")
        self.expect(ROLLED_BACK, status, report)
        self.check_guest(pid)

    def test_a_vmm_that_registers_itself_is_forgotten_when_it_is_gone(self):
        self.assertNotEqual(self.host.ctl("forget", "tiny")[0], 0)
        self.upgrade()
        self.guest.process.wait()
        os.kill(self.guest.proof.pid, signal.SIGTERM)
        wait_until(lambda: not self.guest.show()["alive"], 10, "it ends")
        self.assertEqual(self.host.ctl("forget", "tiny")[0], 0)

    def test_a_binary_that_is_none_is_refused(self):
        status, report = self.host.upgrade(self.guest, "--vmm", "/etc/passwd")
        self.expect(REFUSED, status, report)
        self.check_guest()

    def test_a_vmm_that_is_not_connected_is_refused(self):
        pid = self.guest.proof.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            status, report = self.host.upgrade(self.guest, "--timeout", "2")
        finally:
            os.kill(pid, signal.SIGCONT)
        self.expect(REFUSED, status, report)
        self.check_guest(pid)


if __name__ == "__main__":
    unittest.main()
