# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault matrix: every boundary of an upgrade x every process that takes part x everything that can happen to it.

Nothing here is listed by hand that the code knows: the boundaries are the fault points of daemon and worker
(daemon/fault_point.h) and the callbacks of tinyvmm. What must come out of a cell follows from how far the upgrade was
when it happened: `STAGES` says that of each boundary, `verdict()` what is right then, and `absent()` who is not there."""

import dataclasses
import re

from tiny import ROOT, best_tier

# Who is hit, by what. "all" is everybody who is there at once.
VICTIMS = ("source", "target", "worker", "daemon", "upgradectl")
FAULTS = {
    "kill": VICTIMS + ("all",),
    "stop": VICTIMS,  # SIGSTOP, until the deadlines are over
    "enospc": ("daemon",),  # what its files say, from then on
    "eio": ("daemon",),
    "enomem": ("source", "target", "worker", "daemon"),  # every allocation fails
    "emfile": ("source", "target", "worker", "daemon"),  # no descriptor can be had
    # Only one more: the rest of an SCM_RIGHTS message is lost. The source is sent one at most.
    "truncated": ("target", "worker", "daemon"),
    "reset": ("source", "target", "worker", "daemon"),  # all its connections break
    "restart": ("daemon",),  # as "systemctl restart" does it
}

# Nothing has been touched yet: an upgrade that does not happen is refused.
UNTOUCHED = ("daemon.intent-due", "daemon.intent", "daemon.worker-started", "worker.ordered", "worker.examined")
# The state of the guest is in the source alone. What is put into custody more than once comes first before there is a target.
BEFORE_WHOLE = UNTOUCHED + ("daemon.custody-fds", "daemon.custody-whole", "daemon.custody-journaled", "worker.put-sent",
                            "worker.put-acknowledged", "worker.target-started", "worker.prepared", "worker.verified",
                            "target accept", "target accepted", "target verify", "source freeze")
# It may be whole in custody or not.
AROUND_WHOLE = ("source frozen", "worker.state-whole")
# It is, and COMMIT is not asked for yet.
HELD = ("worker.frozen", "target load", "target loaded", "worker.loaded", "target own", "target owned", "worker.held")
# That is what it comes to now.
AT_COMMIT = ("worker.commit-asked", "daemon.commit-due")
COMMITTED = ("daemon.commit-journaled", "daemon.commit-told", "worker.committed")
# The target may have run, or runs.
RUNS_IN_TARGET = ("target run", "target running", "target finish", "source quit", "worker.ran", "worker.finished",
                  "worker.done", "daemon.report-received", "daemon.end-due", "daemon.end-journaled",
                  "daemon.custody-cleared")
# Passed only when an upgrade is undone, or when a target is started from custody.
UNDOING = ("worker.undo", "worker.let-go", "worker.undone", "source reclaim", "source thaw")
REBUILDING = ("worker.rebuild-started",)
STAGES = (BEFORE_WHOLE, AROUND_WHOLE, HELD, AT_COMMIT, COMMITTED, RUNS_IN_TARGET, UNDOING, REBUILDING)

# Passed once for each thing that is put into custody; and that many there are.
OFTEN = ("daemon.custody-fds", "daemon.custody-whole", "daemon.custody-journaled", "worker.put-sent", "worker.put-acknowledged")
PASSES = 5 if best_tier() == "stage2" else 4

# Who is not there at a boundary. tests/fault/run fails if that is not so, and if anybody else is not there.
ABSENT = (
    ("target", UNTOUCHED + OFTEN, "it has not been started yet"),
    ("target", ("worker.let-go", "worker.undone", "source thaw"), "an upgrade that is undone has ended it"),
    ("worker", ("daemon.intent-due", "daemon.intent"), "it has not been started yet"),
    ("worker", ("daemon.report-received", "daemon.end-due", "daemon.end-journaled", "daemon.custody-cleared"),
     "it ends when it has reported"),
    ("source", ("target finish", "worker.finished", "worker.done", "daemon.report-received", "daemon.end-due",
                "daemon.end-journaled", "daemon.custody-cleared"), "whoever finishes an upgrade has ended it first"),
    ("source", REBUILDING, "a target is started from custody when it is dead"),
)
# Whoever is hit: no upgrade comes by.
NEVER = {f"{point}#{PASSES + 1}": f"{PASSES} things are put into custody" for point in OFTEN}
if best_tier() != "stage2":
    NEVER.update({"source reclaim": "only in the tier stage2 does the target's VM own the memory",
                  "source quit": "only in the tier stage2 may a source that is parked end by itself"})


@dataclasses.dataclass(frozen=True)
class Cell:
    boundary: str
    fault: str
    victim: str

    @property
    def name(self):
        return f"{self.boundary.replace(' ', '.')}/{self.fault}/{self.victim}"

    @property
    def point(self):
        """Without the number of the pass."""
        return self.boundary.split("#")[0]

    def at(self, *stages):
        return any(self.point in stage for stage in stages)


def boundaries():
    """Those of daemon and worker are words with a dot, those of a VMM "ROLE POINT"."""
    points = re.findall(r'POINT\(\w+, "([\w.-]+)"\)', (ROOT / "daemon/fault_point.h").read_text())
    callbacks = re.findall(r'fault_at\(f->path, "(\w+)", "(\w+)"\)', (ROOT / "tests/vmm/fault.c").read_text())
    found = points + [" ".join(c) for c in callbacks]
    for boundary in found:
        if sum(boundary in stage for stage in STAGES) != 1:
            raise ValueError(f"tests/fault/matrix.py must say of {boundary} in which stage of an upgrade it is passed")
    return found


def cells():
    """Of the further passes of a boundary those alone that somebody dies of."""
    found = [Cell(boundary, fault, victim) for boundary in boundaries() for fault, victims in FAULTS.items() for victim in victims]
    for n in range(2, PASSES + 1):
        found += [Cell(f"{point}#{n}", "kill", victim) for point in OFTEN for victim in ("daemon", "worker")]
    return found + [Cell(f"{point}#{PASSES + 1}", "kill", "daemon") for point in OFTEN]


def absent(cell):
    """Why it cannot happen; None: it must."""
    if cell.boundary in NEVER:
        return NEVER[cell.boundary]
    return next((why for victim, where, why in ABSENT if cell.victim == victim and cell.boundary in where), None)


def verdict(cell, had_the_guest):
    """The outcomes that are right; None: nothing is on record. @had_the_guest: the VMM that was hit was the one that ran
    the guest, or the last that knew what it was doing.

    Such a VMM takes the guest with it, as it would without an upgrade. Nobody else can cost a guest anything."""
    if from_custody(cell):
        fine = {"committed"}
    elif cell.at(UNDOING):
        fine = {"rolled_back"}
    elif cell.at(COMMITTED, RUNS_IN_TARGET, REBUILDING):
        fine = {"committed"}
    elif cell.victim == "upgradectl":  # nobody needs it
        fine = {"committed"}
    elif had_the_guest:
        fine = {"committed"} if cell.at(AROUND_WHOLE) else set()
    elif cell.fault == "kill" and cell.victim in ("source", "all") and cell.at(HELD):
        fine = {"committed"}  # in its target, or in one from custody
    elif cell.boundary == "daemon.commit-due" and cell.fault == "kill" and cell.victim == "daemon":
        fine = {"rolled_back"}  # the record is not written
    elif cell.at(AT_COMMIT) or not is_needed(cell):
        fine = {"committed", "rolled_back"}
    else:
        fine = {"rolled_back"}
    if cell.at(UNTOUCHED) and "rolled_back" in fine:
        fine |= {"refused"}
    if had_the_guest:
        fine |= {"lost"}
    # Nothing was written down yet; or there was no memory to write the report, or no disk.
    if cell.boundary == "daemon.intent-due" or cell.victim == "daemon" and cell.fault in ("enomem", "enospc", "eio"):
        fine |= {None}
    return fine


def is_needed(cell):
    """Before COMMIT is asked for: can an upgrade not commit without what is taken here?"""
    if cell.fault == "kill" or cell.victim == "worker" and cell.fault in ("stop", "reset"):
        return True
    if cell.fault == "stop":
        return cell.victim == "source" and cell.at(BEFORE_WHOLE) or cell.victim == "target" and cell.boundary != "worker.held"
    if cell.fault == "reset":  # before there is a worker, the daemon has nothing that it must not lose
        return cell.victim == "daemon" and cell.boundary not in ("daemon.intent-due", "daemon.intent")
    return cell.fault in ("restart", "enospc", "eio")


def from_custody(cell):
    """Does the source end when its state is whole in custody, and before it was told to go on?"""
    return cell.fault == "kill" and cell.victim in ("source", "all") and cell.boundary == "worker.undo"


def takes_the_guest_along(cell):
    """Is the VMM that is hit here the one that has the guest, and does it die of it?"""
    if cell.fault != "kill" or from_custody(cell):
        return False
    return cell.victim in ("source", "all") and cell.at(BEFORE_WHOLE, AROUND_WHOLE, UNDOING) or \
        cell.victim in ("target", "all") and cell.at(RUNS_IN_TARGET)


def may_outlast(cell):
    """Who is stopped here may be what everybody waits for, past the deadlines: the target once nobody else may run the guest,
    the source that is told to go on."""
    return cell.fault == "stop" and (
        cell.victim == "target" and (cell.at(AT_COMMIT, COMMITTED, RUNS_IN_TARGET) or cell.boundary == "worker.held") or
        cell.victim == "source" and cell.boundary in ("worker.let-go", "source reclaim", "source thaw"))


def hangs_while_the_guest_waits(cell):
    """And its worker has been told to undo or to finish, or the daemon takes it for one that was."""
    return cell.victim == "worker" and cell.fault == "stop" and (
        cell.at(AT_COMMIT, COMMITTED, UNDOING, REBUILDING) or cell.boundary in ("target run", "target running", "worker.ran"))


def silence_may_last(cell):
    """Does whoever works here have the time of one that undoes or finishes?"""
    return cell.at(AT_COMMIT, COMMITTED, RUNS_IN_TARGET, UNDOING, REBUILDING)
