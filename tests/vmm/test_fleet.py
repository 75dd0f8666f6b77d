#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""upgradectl upgrade of several VMs, for real: tinyvmms whose program is replaced on disk.

    tests/vmm/test_fleet.py [-v] [NAME...]           as root; UPGRADED_BUILD names another build directory"""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import tiny
from case import Case
from test_native import setUpModule  # noqa: F401  pylint: disable=unused-import
from tiny import Host, wait_until

DONE, REFUSED, NO_SUCH_VM, SOME, NONE = 0, 3, 5, 9, 10


class Of(unittest.TestCase):
    """@vms of them, all of one program."""

    vms = 6

    def setUp(self):
        # A copy of the program has its library no longer beside it.
        os.environ["LD_LIBRARY_PATH"] = str(tiny.BUILD / "lib")
        self.host = Host()
        self.addCleanup(self.host.__exit__)
        self.program = self.host.dir / "vmm"
        self.replace()
        width = len(str(self.vms - 1))  # they go in the order of their names
        self.guests = [self.host.guest(f"vm{i:0{width}}", "--memory", "4", "--rest", "100", program=self.program) for i in range(self.vms)]

    def replace(self):
        """As a package manager does it."""
        new = self.host.dir / "vmm.new"
        shutil.copy(tiny.TINYVMM, new)
        new.rename(self.program)

    def upgrade(self, *words):
        """(exit status, {name: result}, why it stopped)"""
        status, documents = self.host.ctl("upgrade", *words)
        self.assertTrue(documents and "fleet" in documents[-1], (status, documents))
        fleet = documents[-1]["fleet"]
        return status, {vm["vm"]: vm["result"] for vm in fleet["vms"]}, fleet["stopped"]

    def generations(self):
        return [guest.show().get("generation", 0) for guest in self.guests]

    def check_guests(self):
        for guest in self.guests:
            guest.runs_on(more=2)
            self.assertEqual(guest.trouble(), [], guest.words())

    def all(self, result):
        return {guest.name: result for guest in self.guests}


class Fleet(Of):
    def test_outdated_ones_are_upgraded_once(self):
        self.assertEqual(self.upgrade("--all-outdated")[:2], (DONE, {}))
        self.replace()
        self.assertEqual(self.upgrade("--all-outdated", "--max-parallel", "3"), (DONE, self.all("committed"), ""))
        self.assertEqual(self.upgrade("--all-outdated")[:2], (DONE, {}))
        self.assertEqual(self.upgrade("--all")[:2], (DONE, self.all("up_to_date")))
        self.assertEqual(self.generations(), [1] * self.vms)
        self.check_guests()

    def test_no_more_than_asked_for_at_once(self):
        self.replace()
        self.assertEqual(self.upgrade("--all", "--max-parallel", "3")[0], DONE)
        spans = []
        for guest in self.guests:
            report, = self.host.reports(guest.name)
            spans.append((report["started_at_us"], report["started_at_us"] + report["total_us"]))
        at_once = max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
        self.assertLessEqual(at_once, 3)
        self.assertGreater(at_once, 1)

    def test_one_at_a_time_unless_asked(self):
        self.replace()
        self.assertEqual(self.upgrade("--all")[0], DONE)
        spans = sorted((r["started_at_us"], r["started_at_us"] + r["total_us"])
                       for guest in self.guests for r in self.host.reports(guest.name))
        for (_, end), (begin, _) in zip(spans, spans[1:]):
            self.assertLessEqual(end, begin)

    def test_a_failure_is_one_of_several(self):
        self.replace()
        self.guests[2].order("target load fail")
        status, results, stopped = self.upgrade("--all-outdated", "--max-parallel", "2")
        self.assertEqual((status, results, stopped), (SOME, {**self.all("committed"), "vm2": "rolled_back"}, ""))
        self.guests[2].order()
        self.assertEqual(self.upgrade("--all-outdated")[:2], (DONE, {"vm2": "committed"}))
        self.check_guests()

    def test_a_canary_that_fails_saves_the_others(self):
        self.replace()
        self.guests[1].order("target load fail")
        status, results, stopped = self.upgrade("--all-outdated", "--max-parallel", "6", "--canary", "2")
        self.assertEqual((status, results), (SOME, {**self.all("not_begun"), "vm0": "committed", "vm1": "rolled_back"}))
        self.assertEqual(stopped, "vm1, which went first, failed")
        self.guests[1].order()
        # The same command goes on with what is left.
        status, results, _ = self.upgrade("--all-outdated", "--max-parallel", "6", "--canary", "2")
        self.assertEqual((status, results), (DONE, {g.name: "committed" for g in self.guests[1:]}))
        self.assertEqual(self.generations(), [1] * self.vms)
        self.check_guests()

    def test_it_stops_after_so_many_failures(self):
        self.replace()
        for guest in self.guests[:4]:
            guest.order("target load fail")
        status, results, stopped = self.upgrade("--all-outdated", "--stop-after", "2")
        self.assertEqual((status, results), (NONE, {**self.all("not_begun"), "vm0": "rolled_back", "vm1": "rolled_back"}))
        self.assertEqual(stopped, "2 failed")

    def test_names_and_patterns_choose(self):
        self.replace()
        self.assertEqual(self.upgrade("vm[01]", "vm5")[:2], (DONE, {n: "committed" for n in ("vm0", "vm1", "vm5")}))
        status, documents = self.host.ctl("upgrade", "vm2", "nobody")
        self.assertEqual((status, documents[-1]["error"]["text"]), (NO_SUCH_VM, "no VM is called nobody"))
        self.assertEqual(self.generations(), [1, 1, 0, 0, 0, 1])

    def test_a_dry_run_changes_nothing(self):
        self.replace()
        pids = [guest.pid() for guest in self.guests]
        self.assertEqual(self.upgrade("--all-outdated", "--dry-run")[:2], (DONE, self.all("ready")))
        status, results, _ = self.upgrade("--all", "--dry-run", "--vmm", "/etc/passwd")
        self.assertEqual((status, results), (NONE, self.all("refused")))
        self.assertEqual(([guest.pid() for guest in self.guests], self.generations()), (pids, [0] * self.vms))

    def begin(self, *words):
        process = subprocess.Popen([tiny.UPGRADECTL, "--socket", self.host.run / "control.sock", "upgrade", *words],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.__exit__, None, None, None)
        self.addCleanup(process.kill)
        return process

    def test_an_interrupt_lets_what_has_begun_end(self):
        self.replace()
        self.guests[0].order("target load sleep 2000")
        process = self.begin("--all-outdated")
        self.guests[0].await_fault()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, SOME, said)
        self.assertIn("Nobody else begins; waiting for 1.", said)
        self.assertIn("1 of 6 upgraded, 5 not begun", said)
        self.assertEqual(self.generations(), [1, 0, 0, 0, 0, 0])
        self.guests[0].order()
        self.assertEqual(self.upgrade("--all-outdated")[0], DONE)
        self.assertEqual(self.generations(), [1] * self.vms)

    def test_a_second_interrupt_leaves_it_to_the_daemon(self):
        self.replace()
        self.guests[0].order("target load sleep 3000")
        process = self.begin("--all-outdated")
        self.guests[0].await_fault()
        process.send_signal(signal.SIGINT)
        self.assertTrue(any("Nobody else begins" in line for line in iter(process.stdout.readline, "")), "it ends at once")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        wait_until(lambda: self.generations()[0] == 1, 60, "the daemon ends it")

    def test_a_closed_window_is_waited_for(self):
        self.replace()
        hour = int(subprocess.run(["date", "+%H"], capture_output=True, text=True, check=True).stdout)
        process = self.begin("--all-outdated", "--window", f"{(hour + 5) % 24:02}:00-{(hour + 6) % 24:02}:00")
        self.assertIn("The window is closed for", process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=10)
        self.assertEqual(process.returncode, NONE, said)
        self.assertIn("0 of 6 upgraded, 6 not begun", said)
        self.assertEqual(self.generations(), [0] * self.vms)

    def test_who_is_outdated_is_asked_when_the_window_opens(self):
        self.replace()
        opens = time.time() + 30
        process = self.begin("--all-outdated", "--window",
                             "-".join(time.strftime("%H:%M", time.localtime(opens + later)) for later in (60, 7200)))
        self.assertIn("The window is closed for", process.stdout.readline())
        self.assertEqual(self.upgrade("vm3", "vm4")[:2], (DONE, {"vm3": "committed", "vm4": "committed"}))
        said, _ = process.communicate(timeout=150)
        self.assertEqual(process.returncode, DONE, said)
        self.assertIn("4 of 4 upgraded", said)
        self.assertEqual(self.generations(), [1] * self.vms)

    def test_a_daemon_that_goes_away_ends_it(self):
        self.replace()
        self.guests[0].order("target load sleep 1000")
        process = self.begin("--all-outdated")
        self.guests[0].await_fault()
        self.host.daemon.kill()
        self.host.daemon.wait()
        said, _ = process.communicate(timeout=30)
        self.assertEqual(process.returncode, NONE, said)
        self.assertIn("stopped: the daemon is away", said)
        self.guests[0].order()
        self.host.start()
        wait_until(lambda: not self.guests[0].show().get("upgrade_id"), 60, "the next daemon ends the upgrade")
        self.assertEqual(self.upgrade("--all-outdated")[0], DONE)
        self.check_guests()


class Hundred(Of):
    vms = 100

    def test_a_canary_stops_it_and_the_same_command_finishes(self):
        self.replace()
        command = ("--all-outdated", "--max-parallel", "8", "--canary", "3", "--stop-after", "2")
        self.guests[1].order("target load fail")
        status, results, stopped = self.upgrade(*command)
        canaries = {"vm00": "committed", "vm01": "rolled_back", "vm02": "committed"}
        self.assertEqual((status, results), (SOME, {**self.all("not_begun"), **canaries}))
        self.assertEqual(stopped, "vm01, which went first, failed")
        # Two more behind the canaries fail: who has begun by then is brought to an end, nobody else begins.
        self.guests[1].order()
        for guest in self.guests[40:42]:
            guest.order("target load fail")
        status, results, stopped = self.upgrade(*command)
        self.assertEqual((status, stopped), (SOME, "2 failed"))
        self.assertEqual({name for name, result in results.items() if result == "rolled_back"}, {"vm40", "vm41"})
        left = [name for name, result in results.items() if result == "not_begun"]
        self.assertGreater(len(left), 40)
        for guest in self.guests[40:42]:
            guest.order()
        status, results, stopped = self.upgrade(*command)
        self.assertEqual((status, stopped), (DONE, ""))
        self.assertEqual(results, {name: "committed" for name in sorted(["vm40", "vm41", *left])})
        self.assertEqual(self.upgrade("--all-outdated")[:2], (DONE, {}))
        self.assertEqual(self.generations(), [1] * self.vms)
        self.check_guests()


class Configuration(Case):
    """What the daemon makes of upgraded.conf."""

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.file = self.root / "etc/upgraded/upgraded.conf"
        self.file.parent.mkdir(parents=True)
        self.daemon_options = ("--config-root", self.root)
        super().setUp()

    def reload(self, text):
        self.file.write_text(text)
        self.host.daemon.send_signal(signal.SIGHUP)

    def test_a_wrong_line_keeps_upgrades_from_beginning(self):
        self.reload("[Upgrade]\nMaxBlackOut=1\n")
        wait_until(lambda: "no upgrade begins" in self.host.words(), 10, "the daemon reads it")
        status, documents = self.host.ctl("upgrade", "tiny")
        error = documents[-1]["error"]
        self.assertEqual((status, error["text"]),
                         (1, f"the configuration is wrong: {self.file}:2: there is no key MaxBlackOut"))
        self.assertIn("systemctl reload", error["hint"])
        self.reload("")
        wait_until(lambda: self.host.upgrade(self.guest)[0] == 0, 20, "it is right again")
        self.check_guest()

    def test_what_an_upgrade_does_not_say_is_configured(self):
        pid = self.guest.pid()
        self.reload("[Upgrade]\nMaxBlackoutMSec=500\n")
        self.guest.order("target load sleep 2000")
        status, report = self.host.upgrade(self.guest)
        self.expect(4, status, report)
        self.check_guest(pid)
        self.guest.order()
        self.guest.order("target load sleep 1000")
        self.upgrade("--max-blackout", "5000")


if __name__ == "__main__":
    unittest.main()
