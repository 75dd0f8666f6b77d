# SPDX-License-Identifier: GPL-2.0-or-later
"""A fixed sample of the fault matrix on QEMU: a loaded guest, real systemd; tests/fault/qemu runs it in a tier.

Each cell is a test: an upgrade waits at a boundary, and one of the processes is killed there. What is right is what the
matrix says for tinyvmm (tests/fault/matrix.py). That never two VMMs ran the guest shows in its heartbeats: numbers would
come twice or go back (wrong_ticks() in tests/lib/host.py), and its memory would not be as it wrote it."""

import collections
import json
import os
import pathlib
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "fault"), str(HERE.parent / "vmm")]
import matrix  # noqa: E402

from common import (FAULTS_SEEN, LIGHT, NEW, Attempt, Case, alive, ctl, daemon_pid, fault, kept, processes,  # noqa: E402
                    reports, saw, started, stop_shared, take_faults, targets)
from host import Guest, wait_until, within  # noqa: E402
from test_custody import stored  # noqa: E402
from test_tiers import QEMUS, make  # noqa: E402

STAGE2 = bool(QEMUS[0])
HOLD_MS = 3000
LIMITS = ["--max-blackout", "20000", "--timeout", "60"]
RECOVERED_SECONDS = 65  # after the kill: the longest deadline of LIMITS, and five
MATRIX = HERE.parent.parent / "build/fault/matrix.json"
VICTIMS = ("source", "target", "worker", "daemon")
BOUNDARIES = ("daemon.intent", "daemon.worker-started", "daemon.custody-fds", "daemon.custody-journaled", "daemon.commit-due",
              "daemon.commit-journaled", "daemon.commit-told", "daemon.report-received", "daemon.end-due",
              "daemon.end-journaled", "worker.examined", "worker.target-started", "worker.prepared", "worker.verified",
              "worker.state-whole", "worker.frozen", "worker.loaded", "worker.held", "worker.committed", "worker.ran",
              "worker.finished")
# Who is not there: nobody was started yet, the source has been ended, the worker is done.
WITHOUT_SOURCE = ("worker.finished", "daemon.report-received", "daemon.end-due", "daemon.end-journaled")
WITHOUT_WORKER = ("daemon.intent", "daemon.report-received", "daemon.end-due", "daemon.end-journaled")
WITHOUT_TARGET = ("daemon.intent", "daemon.worker-started", "daemon.custody-fds", "daemon.custody-journaled", "worker.examined")


def start():
    if STAGE2:
        return started(make("faults"), QEMUS[0])
    return started(Guest("faults", smp=1, **LIGHT), NEW)


def note(cell, result, **more):
    """Adds the cell to the table of tests/fault/run, beside those of tinyvmm."""
    table = json.loads(MATRIX.read_text()) if MATRIX.exists() else {}
    tier = table.setdefault("qemu", {}).setdefault("stage2" if STAGE2 else "memfd", {"rows": []})
    tier["rows"] = [row for row in tier["rows"] if row["name"] != cell.name]
    tier["rows"].append({"name": cell.name, "boundary": cell.boundary, "fault": cell.fault, "victim": cell.victim, "result": result, **more})
    tier["cells"], tier["failed"] = len(tier["rows"]), sum(row["result"] != "ok" for row in tier["rows"])
    tier["outcomes"] = collections.Counter(str(row["outcome"]) for row in tier["rows"] if row["result"] == "ok")
    MATRIX.parent.mkdir(parents=True, exist_ok=True)
    MATRIX.write_text(json.dumps(table, indent=1) + "\n")


class Faults(Case):
    ready = False

    def setUp(self):
        if not Faults.ready:
            take_faults()
            Faults.ready = True
        fault()

    def guest(self):
        guest = kept("faults", start)
        try:
            if guest.show()["alive"] and not guest.fresh_report()["errors"]:
                return guest
        except Exception:  # pylint: disable=broad-except
            pass
        stop_shared()
        return kept("faults", start)

    def pids(self, victim, attempt, source):
        return {"source": [source], "target": list(targets() - attempt.before), "worker": processes("upgraded-worker"),
                "daemon": [daemon_pid()]}[victim]

    def killed_at(self, cell):
        """Returns what the upgrade came to; None: it never began."""
        guest = self.guest()
        source, known = self.begin(guest), len(reports(guest.name))
        fault(f"{cell.boundary} sleep {HOLD_MS}")
        attempt = Attempt(guest, QEMUS[1] if STAGE2 else NEW, *LIMITS)
        wait_until(lambda: FAULTS_SEEN.exists() or attempt.process.poll() is not None, 120, f"{cell.boundary} is passed")
        self.assertTrue(FAULTS_SEEN.exists(), attempt.report)
        pids = self.pids(cell.victim, attempt, source)
        self.assertTrue(pids, f"there is no {cell.victim} at {cell.boundary}")
        self.killed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

        def over():
            status, documents = ctl("show", guest.name)
            return status == 0 and not documents[-1].get("upgrade_id") and not processes("upgraded-worker")
        within(over, RECOVERED_SECONDS, "the end")
        self.seconds = round(time.monotonic() - self.killed, 2)
        attempt.wait()
        after = reports(guest.name)
        return guest, source, after[0] if len(after) > known else {}

    def run_cell(self, cell):
        guest, source, report = self.killed_at(cell)
        outcome, gone = report.get("outcome"), matrix.takes_the_guest_along(cell)
        self.assertIn(outcome, matrix.verdict(cell, gone), report)
        wait_until(lambda: stored() == 0, 20, "custody is empty")
        lost = outcome == "lost" or gone and not alive(guest.pid())
        self.assertEqual(targets() - (set() if lost else {guest.pid()}), set(), "a VMM was left behind")
        if lost:
            saw(f"{outcome}, died with its VMM")
            stop_shared()
            return outcome, None
        self.assertTrue(alive(guest.pid()), report)
        if outcome:
            self.assertEqual(guest.pid() != source, outcome == "committed", report)
        if STAGE2:
            # One that was undone before it had a plan has no tier.
            self.assertIn(report.get("tier", "stage2"), ("stage2",) if outcome == "committed" else ("stage2", "unspecified"), report)
        return outcome, self.healthy(guest, str(outcome))


def add(cell):
    def test(self):
        try:
            outcome, gap_ms = self.run_cell(cell)
        except BaseException as e:
            note(cell, "FAILED", why=str(e))
            stop_shared()  # the next cell gets a guest of which all is known
            raise
        note(cell, "ok", outcome=outcome, seconds=self.seconds, guest_stood_still_ms=gap_ms)
    setattr(Faults, "test_" + cell.name.replace(".", "_").replace("/", "_").replace("-", "_"), test)


ABSENT = {"source": WITHOUT_SOURCE, "target": WITHOUT_TARGET, "worker": WITHOUT_WORKER, "daemon": ()}
for at in BOUNDARIES:
    for who in VICTIMS:
        if at not in ABSENT[who]:
            add(matrix.Cell(at, "kill", who))
