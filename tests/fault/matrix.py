# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault matrix: every boundary of an upgrade x every process that takes part x everything that can happen to it.

Nothing here is listed by hand that the code knows: the boundaries are the fault points of daemon and worker
(daemon/fault_point.h) and the callbacks of tinyvmm. What must come out of a cell follows from two questions: was the
state of the guest whole in custody when it happened, and had the target been told that it may run? `verdict()` is the
whole of that."""

import dataclasses
import re

from tiny import ROOT

# Who is hit, by what. "all" is everybody who is there at once.
VICTIMS = ("source", "target", "worker", "daemon", "upgradectl")
FAULTS = {
    "kill": VICTIMS + ("all",),
    "stop": VICTIMS,  # SIGSTOP, until the deadlines are over
    "enospc": ("daemon",),  # what its files say, from then on
    "eio": ("daemon",),
    "enomem": ("source", "target", "worker", "daemon"),  # every allocation fails
    "emfile": ("source", "target", "worker", "daemon"),  # no descriptor can be had
    "truncated": ("source", "target", "worker", "daemon"),  # only one more: the rest of an SCM_RIGHTS message is lost
    "reset": ("source", "target", "worker", "daemon"),  # all its connections break
    "restart": ("daemon",),  # as "systemctl restart" does it
}

# Passed only when an upgrade is undone, or when a target is started from custody.
UNDOING = ("worker.undo", "worker.let-go", "worker.undone", "source reclaim", "source thaw")
REBUILDING = ("worker.rebuild-started",)

# The state of the guest may be whole in custody or not.
AROUND_WHOLE = ("source frozen", "worker.state-whole", "daemon.custody-fds", "daemon.custody-whole",
                "daemon.custody-journaled", "worker.put-sent", "worker.put-acknowledged")
BEFORE_WHOLE = ("daemon.intent-due", "daemon.intent", "daemon.worker-started", "worker.ordered", "worker.examined",
                "worker.target-started", "worker.prepared", "worker.verified", "target accept", "target accepted",
                "target verify", "source freeze")
# The target may have run, or runs.
RUNS_IN_TARGET = ("target run", "target running", "target finish", "source quit", "worker.ran", "worker.finished",
                  "worker.done", "daemon.report-received", "daemon.end-due", "daemon.end-journaled",
                  "daemon.custody-cleared")
# Nothing has been touched yet: an upgrade that does not happen is refused.
UNTOUCHED = ("daemon.intent-due", "daemon.intent", "daemon.worker-started", "worker.ordered", "worker.examined")


@dataclasses.dataclass(frozen=True)
class Cell:
    boundary: str
    fault: str
    victim: str

    @property
    def name(self):
        return f"{self.boundary.replace(' ', '.')}/{self.fault}/{self.victim}"


def boundaries():
    """Those of daemon and worker are words with a dot, those of a VMM "ROLE POINT"."""
    points = re.findall(r'POINT\(\w+, "([\w.-]+)"\)', (ROOT / "daemon/fault_point.h").read_text())
    callbacks = re.findall(r'fault_at\(f->path, "(\w+)", "(\w+)"\)', (ROOT / "tests/vmm/fault.c").read_text())
    return points + [" ".join(c) for c in callbacks]


def cells():
    return [Cell(boundary, fault, victim) for boundary in boundaries() for fault, victims in FAULTS.items() for victim in victims]


def verdict(cell, had_the_guest):
    """The outcomes that are right; None: nothing is on record. @had_the_guest: the VMM that was hit was the one that ran
    the guest, or the last that knew what it was doing.

    Such a VMM takes the guest with it, as it would without an upgrade. Nobody else can cost a guest anything."""
    fine = {"committed", "rolled_back"}
    if cell.boundary in UNTOUCHED or cell.boundary in BEFORE_WHOLE and cell.victim == "daemon":
        fine |= {None, "refused"}
    if cell.fault == "enomem" and cell.victim == "daemon":
        fine |= {None}  # it had no memory to write the report
    return fine | {"lost", None} if had_the_guest else fine


def takes_the_guest_along(cell):
    """Is the VMM that is hit here the one that has the guest, and does it die of it?"""
    if cell.fault != "kill":
        return False
    return cell.victim in ("source", "all") and cell.boundary in BEFORE_WHOLE + AROUND_WHOLE + UNDOING or \
        cell.victim in ("target", "all") and cell.boundary in RUNS_IN_TARGET
