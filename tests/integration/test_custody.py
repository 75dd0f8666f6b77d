# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in custody outlives whoever dies. The upgrade is held open in SWITCH: the device state is whole, the target has
loaded it, and nobody was told to run."""

import os
import signal

from common import (FAULTS_SEEN, NEW, Attempt, Case, alive, ctl, daemon_pid, fault, processes, reports, saw, sh, shared, status_of,
                    unit)
from host import status_by_qmp, wait_until, within
from test_foreign import Bare
from test_rollback import Unstoppable

HELD_OPEN = ["--max-blackout", "60000", "--timeout", "200"]


def stored():
    return int(unit("upgraded.service", "NFileDescriptorStore")["NFileDescriptorStore"])


def wait_stored(number):
    wait_until(lambda: stored() == number, 20, f"{number} descriptors in the store")


def settled(name):
    """The report of the upgrade that was under way."""
    def ended():
        vm = ctl("show", name)[1][-1]
        known = reports(name)
        return None if vm.get("upgrade_id") or not known else known[0]
    return wait_until(ended, 200, "the upgrade ends")


class Custody(Case):
    def held_open(self, guest, source, then):
        """Calls then(attempt) in SWITCH, which does not end before; returns the attempt."""
        with Unstoppable(source):
            attempt = Attempt(guest, NEW, *HELD_OPEN)
            attempt.acted, attempt.on["switch"] = False, then
            wait_until(lambda: attempt.acted or attempt.trouble or attempt.report, 300,
                       "SWITCH is entered, and what is to be done there is done")
        self.assertEqual((attempt.trouble, attempt.acted), ([], True), attempt.report)
        return attempt

    def begin_with(self, guest, act):
        source = self.begin(guest)

        def then(attempt):
            act(attempt, source)
            attempt.acted = True
        return source, self.held_open(guest, source, then)

    def rebuilt(self, report):
        self.assertEqual(report.get("outcome"), "committed", f"{report.get('error')} {report}")
        self.assertIn("rebuild", [f["code"] for f in report["findings"]], report)

    def brought_back(self, guest, source, report, what):
        self.rebuilt(report)
        self.assertNotIn(guest.pid(), (0, source))
        self.assertTrue(alive(guest.pid()))
        wait_stored(0)
        self.healthy(guest, what)

    def test_what_is_held_is_shown_and_stored_and_gone_afterwards(self):
        guest, seen = shared(1), {}
        wait_stored(0)

        def look(attempt, source):
            seen.update(vm=guest.show(), stored=stored(), names=sh("systemd-analyze", "fdstore", "upgraded.service").stdout)
            ctl("abort", guest.name)
        source, attempt = self.begin_with(guest, look)
        held = {item["name"]: item for item in seen["vm"]["custody"]}
        self.assertEqual(set(held), {"start", "device-state", "target", "cpr"})
        self.assertGreaterEqual(sum(int(i["pinned"]) for i in held.values()), int(seen["vm"]["memory"]))
        self.assertGreaterEqual(seen["stored"], sum(int(i["fds"]) for i in held.values()) // 2 + len(held))
        for name in held:
            self.assertIn(f".{name}.whole.", seen["names"])
        self.rolled_back(guest, attempt, source, "aborted while custody was looked at")
        wait_stored(0)
        saw(f"{seen['stored']} descriptors in the store: " +
            ", ".join(f"{n} {i['fds']} fds, pins {int(i['pinned']) >> 20} MiB" for n, i in held.items()))

    def test_restart_of_the_daemon_in_the_middle_is_a_rollback(self):
        guest = shared(1)

        def restart(attempt, source):
            sh("systemctl", "restart", "upgraded.service", check=True)
        source, attempt = self.begin_with(guest, restart)
        report = settled(guest.name)
        attempt.process.kill()
        self.assertEqual((report["outcome"], guest.pid()), ("rolled_back", source), report)
        wait_stored(0)
        self.healthy(guest, "systemctl restart upgraded in SWITCH")

    def kill(self, attempt, source, daemon=False):
        # At once: between one death and the next the worker would tell the other one to run.
        workers = processes("upgraded-worker")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for pid in [attempt.target(), source] + [daemon_pid()] * daemon:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)

    def test_both_vmms_killed_the_guest_goes_on_in_its_unit(self):
        guest = shared(1)
        source, attempt = self.begin_with(guest, self.kill)
        _, report = attempt.wait()
        self.brought_back(guest, source, report, "both VMMs killed in SWITCH")
        after = unit("vmm@web.service", "ActiveState", "MainPID", "NRestarts")
        self.assertEqual((after["ActiveState"], after["MainPID"]), ("active", str(guest.pid())))
        saw(f"vmm@web.service was started anew {after['NRestarts']} times, the guest was not")

    def test_both_vmms_and_the_daemon_killed_the_guest_goes_on(self):
        guest = shared(1)
        source, attempt = self.begin_with(guest, lambda attempt, source: self.kill(attempt, source, daemon=True))
        report = settled(guest.name)
        attempt.process.kill()
        self.brought_back(guest, source, report, "both VMMs and the daemon killed in SWITCH")
        self.assertEqual(unit("vmm@web.service", "MainPID")["MainPID"], str(guest.pid()))

    def test_upgrade_works_after_all_of_it(self):
        guest = shared(1)
        source = self.begin(guest)
        status, report = guest.upgrade(NEW)
        self.committed(guest, status, report, source)
        self.healthy(guest, f"generation {guest.show()['generation']}")

    def killed_in_switch(self, vm, source, daemon=False):
        """Its firmware is all that runs in it: cheap enough for a busy machine."""
        with Unstoppable(source):
            attempt = Attempt(vm, NEW, *HELD_OPEN, on={"switch": lambda a: self.kill(a, source, daemon=daemon)})
            _, report = attempt.wait(400)
        self.assertEqual(attempt.trouble, [])
        return settled(vm.name) if daemon else report

    def killed_after_commit(self, vm, source):
        """The unit's main process is the target by now, which is told to run right after this."""
        self.with_faults("worker.committed sleep 60000")
        attempt = Attempt(vm, NEW, *HELD_OPEN)
        wait_until(lambda: FAULTS_SEEN.exists() or attempt.report, 300, "COMMIT is in the journal")
        self.kill(attempt, source)
        fault()
        return attempt.wait(400)[1]

    def bare_is_brought_back(self, vm, source, killed, **who):
        report = killed(vm, source, **who)
        self.rebuilt(report)
        pid = ctl("show", vm.name)[1][-1]["process"]["pid"]
        self.assertTrue(alive(pid))
        self.assertNotEqual(pid, source)
        self.assertEqual(status_by_qmp(vm.dir / "mine", 60), "running")
        wait_stored(0)
        saw(f"process {source} and its target were killed, {pid} goes on")
        return pid

    def test_adopted_vmm_is_brought_back_where_it_was(self):
        with Bare("bare", NEW) as vm:
            self.assertEqual(vm.adopt()[0], 0)
            self.bare_is_brought_back(vm, vm.process.pid, self.killed_in_switch)

    def test_a_source_that_is_made_to_go_on_after_commit_is_killed(self):
        """By a worker in the wrong hands: it is to stand still until the target has run."""
        guest = shared(1)
        self.with_faults("worker.committed sleep 8000")
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, *HELD_OPEN)
        target = attempt.held_at("worker.committed")
        self.assertEqual(status_of(source)["State"][0], "T")
        os.kill(source, signal.SIGCONT)
        within(lambda: not alive(source), 6, "it is killed")  # while the worker, which ends it in the end, sleeps
        status, report = attempt.wait()
        self.assertEqual((self.committed(guest, status, report, source), report["tier"]), (target, "memfd"))
        self.assertIn(f"process {source} was made to go on after COMMIT, killed",
                      sh("journalctl", "-b", "-o", "cat", "-u", "upgraded.service").stdout)
        self.healthy(guest, "the source was told to go on after COMMIT")

    def finished_by_another(self, *faults):
        self.with_faults(*faults)
        with Bare("bare", NEW) as vm:
            self.assertEqual(vm.adopt()[0], 0)
            status, report = Attempt(vm, NEW).wait(200)
            self.assertEqual((status, report.get("outcome")), (0, "committed"), report.get("error"))
            self.assertEqual(status_by_qmp(vm.dir / "mine", 60), "running")
            self.assertFalse(alive(vm.process.pid))
        saw(f"{FAULTS_SEEN.read_text().split()[::2]} were passed, the guest goes on")

    def test_worker_killed_after_commit_is_followed_by_one_that_finishes(self):
        """The source is gone for good by the time at which the target is told to run."""
        self.finished_by_another("worker.committed kill", "worker.let-go sleep 2000")

    def test_worker_killed_when_all_was_done_is_followed_by_one_that_finds_it_so(self):
        """The target's monitor is at its final address by then."""
        self.finished_by_another("worker.finished kill")

    def test_vmm_of_a_unit_is_brought_back_into_its_unit(self):
        self.unit_is_brought_back(self.killed_in_switch)

    def test_vmm_of_a_unit_is_brought_back_after_commit(self):
        self.unit_is_brought_back(self.killed_after_commit)

    def test_vmm_of_a_unit_is_brought_back_by_the_next_daemon(self):
        first = daemon_pid()
        self.unit_is_brought_back(self.killed_in_switch, daemon=True)
        self.assertNotEqual(daemon_pid(), first)

    def unit_is_brought_back(self, killed, **who):
        vm = Bare("inunit", NEW)
        argv = [a for i, a in enumerate(vm.argv) if f"{vm.dir}/qmp" not in a and
                not (a == "-qmp" and f"{vm.dir}/qmp" in vm.argv[i + 1])]
        try:
            self.assertEqual(ctl("run", vm.name, "--", *argv)[0], 0)
            pid = self.bare_is_brought_back(vm, ctl("show", vm.name)[1][-1]["process"]["pid"], killed, **who)
            after = unit("vmm@inunit.service", "ActiveState", "MainPID", "NRestarts")
            self.assertEqual((after["ActiveState"], after["MainPID"]), ("active", str(pid)))
            saw(f"its unit was started anew {after['NRestarts']} times, the guest was not")
            self.assertIn("vmm@inunit.service", open(f"/proc/{pid}/cgroup", encoding="ascii").read())
        finally:
            sh("systemctl", "stop", "vmm@inunit.service")
            ctl("forget", vm.name)
