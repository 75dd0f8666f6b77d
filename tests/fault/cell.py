# SPDX-License-Identifier: GPL-2.0-or-later
"""One cell of the fault matrix: an upgrade that is paused at a boundary, where one thing happens to one process.

Afterwards there is one VMM and it runs the guest, at no time was there a second one that did, the guest has found every
word as it wrote it, nothing is left in custody or behind, and all this within the deadlines + 5 s."""

import contextlib
import os
import pathlib
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/vmm"), str(ROOT / "tests/lib")]

import matrix  # noqa: E402
import tiny  # noqa: E402
from fds import connected_of  # noqa: E402
from tiny import alive, fds_at_rest, fds_of, wait_until, within  # noqa: E402

TIMEOUT_S, BLACKOUT_MS = 1, 1500
SLOW_S = TIMEOUT_S / 2  # to a boundary; without a fault it is a tenth of it
REBUILD_S = 5  # what a target from custody gets at least
DEADLINES_S = 2 * TIMEOUT_S + BLACKOUT_MS / 1000
SILENCE_S = 2 * TIMEOUT_S + 10  # worker_silence_us()
STUCK_S = 15  # of a worker that does not even wait while the guest does
LAST_SILENCE_S = REBUILD_S + 60 + 20 + 10  # of one that undoes or finishes
STOPPED_S = 5  # for how long the daemon is stopped
RECOVERY_S = 5  # beyond the deadlines
PAUSE_MS = 30000  # at a boundary, at most: it ends when all has happened that is to happen there
INJECT = ROOT / "build/fault/inject.so"
CONTROL = struct.Struct("4iq")  # struct control of inject.c: pid, error, hits, watched, heap
INJECTED = {"enospc": 28, "eio": 5, "enomem": 12, "emfile": 24, "truncated": 24}  # the last two are only counted there


class Failed(Exception):
    """A cell that did not come out as it must."""


class Unreached(Exception):
    """The upgrade does not pass this boundary here, or nobody is there to be hit."""


def end_on_sigterm():
    """As on any other way out: what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def cut_connections(pid):
    """Every connected socket of a process, whose other end gets an end of file. Returns how many."""
    n = 0
    for s in connected_of(pid):
        with contextlib.suppress(OSError):
            if s.type != socket.SOCK_DGRAM:
                s.shutdown(socket.SHUT_RDWR)
                n += 1
    return n


def limit_descriptors(pid, more):
    """@more: how many can still be had. The kernel compares numbers: the lowest free ones are counted."""
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    number = 0
    while number in used or (more := more - 1) >= 0:
        number += 1
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, hard))


class Bench:
    """One daemon and one guest at a time, for one cell after the other."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="upgraded-matrix-")
        self.points = pathlib.Path(self.dir.name) / "points"
        self.control = pathlib.Path(self.dir.name) / "inject"
        self.control.write_bytes(bytes(4096))
        os.environ.update(UPGRADED_FAULTS=str(self.points), UPGRADED_INJECT=str(self.control), LD_PRELOAD=str(INJECT))
        self.host, self.n, self.guest = None, 0, None
        self.vmm_fds = {}  # by whether an upgrade has started it

    def close(self):
        if self.host:
            self.host.__exit__()
        self.host = self.guest = None
        self.dir.cleanup()

    def settle(self):
        """A guest that runs, and what its daemon and its VMM look like at rest."""
        self.proceed()
        self.inject(0, 0)
        if not self.host:
            self.host = tiny.Host(fd_store=True)
            self.guest = None
        if not self.guest:
            self.n += 1
            self.guest = self.host.guest(f"tiny{self.n}")
            self.guest.runs_on()
            self.measure_vmm()
            self.daemon_fds = fds_at_rest(self.host.daemon.pid)
            self.heap = None

    def measure_vmm(self):
        """Once: what no fault has touched."""
        if self.vmm_fds:
            return
        started = fds_at_rest(self.guest.proof.pid)
        if self.host.upgrade(self.guest)[0] != tiny.COMMITTED:
            raise Failed(f"an upgrade that nothing happens to is not committed\n{self.told()}")
        self.vmm_fds = {False: started, True: fds_at_rest(self.guest.proof.pid)}

    def damaged(self):
        host, self.host = self.host, None
        if host:
            host.__exit__()

    def inject(self, pid, error):
        """An error of 0 ends it; the hits stay until the next one."""
        with open(self.control, "r+b") as f:
            f.write(struct.pack("=2i", pid, error))
            if error:
                f.write(bytes(4))

    def counters(self):
        """(hits, heap)"""
        fields = CONTROL.unpack(self.control.read_bytes()[:CONTROL.size])
        return fields[2], fields[4]

    def heap_growth(self, daemon):
        """Bytes that the daemon has allocated since the cell before, when it has nothing to do: unlike its RSS they come back to
        the byte. None of one that has not done the same upgrade from its beginning before, and of another guest."""
        pid, was = self.host.daemon.pid, self.heap
        self.heap = self.heap_at_rest(pid) if self.guest and pid == daemon else None
        return self.heap - was if None not in (was, self.heap) else None

    def heap_at_rest(self, pid):
        with open(self.control, "r+b") as f:
            f.seek(12)
            f.write(struct.pack("=i", pid))
        self.host.ctl("list")
        heap, since = None, 0
        while heap is None or time.monotonic() < since + 0.1:
            if (now := self.counters()[1]) != heap:
                heap, since = now, time.monotonic()
            time.sleep(0.02)
        return heap

    def reports(self):
        return self.host.reports(self.guest.name)

    # ---- one cell -----------------------------------------------------------------

    def tried(self, cell):
        """As run(), on a guest at rest. An upgrade that a slow machine has undone before the boundary is tried again, and
        one that it has left too little of the phase's time."""
        for left in (2, 1, 0):
            try:
                self.settle()
                return self.run(cell, patient=left == 0)
            except Unreached as e:
                self.damaged()
                if matrix.absent(cell):
                    raise
                if not left:
                    raise Failed(f"not reached: {e}") from e

    def pause_at(self, cell):
        """Whoever comes to the boundary waits there. An upgrade that is being undone passes some of them as well."""
        self.seen().unlink(missing_ok=True)
        lines = [f"{cell.boundary} sleep {PAUSE_MS}"]
        points = [] if cell.at(matrix.UNDOING, matrix.REBUILDING) else ["worker.undo sleep 0"]
        if " " not in cell.boundary:
            points, lines = points + lines, []
        if cell.at(matrix.UNDOING):
            lines.append("target owned fail")
        if cell.at(matrix.REBUILDING):
            lines.append(f"target load sleep {PAUSE_MS}")
        self.points.write_text("".join(point + "\n" for point in points))
        self.guest.order(*lines)

    def proceed(self):
        """Whoever waits at the boundary goes on, and nobody looks for faults any more: that takes memory and a descriptor."""
        self.points.unlink(missing_ok=True)
        if self.guest:
            self.guest.fault.unlink(missing_ok=True)

    def seen(self):
        return pathlib.Path(f"{self.points}.seen")

    def passed(self):
        """The fault points and the callbacks that were passed."""
        points = self.seen().read_text().splitlines() if self.seen().exists() else []
        callbacks = self.guest.seen().read_text().splitlines() if self.guest.seen().exists() else []
        return {line.split()[0] for line in points} | {" ".join(line.split()[1:3]) for line in callbacks}

    def begin(self, cell):
        self.known = len(self.reports())
        self.source = self.guest.proof.pid
        self.pause_at(cell)
        attempt = subprocess.Popen([tiny.UPGRADECTL, "--socket", self.host.run / "control.sock", "upgrade", self.guest.name,
                                    "--timeout", str(TIMEOUT_S), "--max-blackout", str(BLACKOUT_MS)],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if cell.at(matrix.REBUILDING):
            target = self.guest.await_fault()
            self.guest.order()
            for pid in (self.source, target):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: cell.boundary in self.passed() or attempt.poll() is not None, 20, "the boundary")
        return attempt

    def reached(self, cell, attempt):
        """Who is to be hit."""
        passed = self.passed()
        if cell.boundary not in passed:
            raise Unreached("the upgrade does not come by here")
        if "worker.undo" in passed and not cell.at(matrix.UNDOING, matrix.REBUILDING):
            raise Unreached("the upgrade is undone already")
        if matrix.absent(cell):  # perhaps it is just ending
            with contextlib.suppress(TimeoutError):
                within(lambda: not self.pids(cell.victim, attempt), 1, "nobody there")
        pids = self.pids(cell.victim, attempt)
        if not pids:
            raise Unreached("there is no such process")
        if matrix.absent(cell):
            raise Failed(f"it is there, although {matrix.absent(cell)}")
        return pids

    def pids(self, victim, attempt):
        vmms = self.guest.vmms()
        found = {"source": [p for p in vmms if p == self.source], "target": [p for p in vmms if p != self.source],
                 "worker": self.host.workers(), "upgradectl": [attempt.pid] if attempt.poll() is None else [],
                 "daemon": [self.host.daemon.pid]}
        if victim == "all":  # the worker first, the daemon last: either would let the source go on if it missed the other
            return [p for who in ("worker", "source", "target", "upgradectl", "daemon") for p in found[who]]
        return found[victim]

    def daemon_again(self):
        self.host.daemon.wait()
        self.host.start()

    def is_over(self):
        if self.host.daemon.poll() is not None:  # Restart=on-failure
            self.host.start()
        if self.host.workers():
            return False
        status, documents = self.host.ctl("show", self.guest.name)
        return status == 0 and not documents[0].get("upgrade_id")

    def happen(self, cell, pids):
        """Returns what puts an end to it."""
        undo, self.hits = lambda: None, len(pids)
        if cell.fault == "kill":
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        elif cell.fault == "restart":
            self.host.daemon.terminate()
            if not cell.boundary.startswith("daemon."):  # where it waits itself
                self.host.daemon.wait(RECOVERY_S)
        elif cell.fault == "stop":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            undo = lambda: [os.kill(p, signal.SIGCONT) for p in pids if alive(p)]
        elif cell.fault in INJECTED:
            before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
            self.inject(pids[0], INJECTED[cell.fault])
            for pid in pids if cell.fault in ("emfile", "truncated") else ():
                limit_descriptors(pid, 0 if cell.fault == "emfile" else 1)
            undo = lambda: self.relieve(before)
        elif cell.fault == "reset":
            self.hits = sum(cut_connections(pid) for pid in pids)
        self.proceed()
        if cell.fault == "restart" or cell.fault == "kill" and cell.victim in ("daemon", "all"):
            self.daemon_again()
        return undo

    def relieve(self, limits):
        self.inject(0, 0)
        self.hits = self.counters()[0]
        for pid, limit in limits.items():
            if alive(pid):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

    @staticmethod
    def may_take(cell):
        """Seconds: the deadlines that are to end it."""
        if cell.victim == "worker" and cell.fault not in ("kill", "reset"):  # it lives, but nothing it does gets anywhere
            if matrix.hangs_while_the_guest_waits(cell):
                return STUCK_S
            return LAST_SILENCE_S if matrix.silence_may_last(cell) else SILENCE_S
        return DEADLINES_S + (REBUILD_S if cell.at(matrix.REBUILDING) else 0)

    def lasts(self, cell):
        """For how long who is hit may do nothing at all; it must be over a while after that. A worker is replaced."""
        if cell.victim == "worker":
            return 0
        if cell.fault in INJECTED:
            return 3 * self.host.hold_ms / 1000
        return STOPPED_S if cell.fault == "stop" and cell.victim == "daemon" else 0

    def left(self):
        return round(self.deadline - time.monotonic(), 2)

    def run(self, cell, patient):
        """The row of the cell, without its name."""
        daemon, begin = self.host.daemon.pid, time.monotonic()
        attempt, undo = self.begin(cell), lambda: None
        try:
            pids = self.reached(cell, attempt)
            if not patient and not cell.at(matrix.UNDOING, matrix.REBUILDING) and time.monotonic() > begin + SLOW_S:
                raise Unreached("it took too long to come by here")
            begin = time.monotonic()
            try:
                undo = self.happen(cell, pids)
            except ProcessLookupError:
                raise Unreached("who was there has ended") from None
            released = False
            if self.lasts(cell):
                time.sleep(self.lasts(cell))
                undo()
                begin = time.monotonic()
            self.deadline = begin + self.may_take(cell) + RECOVERY_S
            try:
                within(self.is_over, self.left(), lambda: f"the end\n{self.told()}")
            except TimeoutError:
                if not matrix.may_outlast(cell):
                    raise
                undo()
                released, begin = True, time.monotonic()
                self.deadline = begin + self.may_take(cell) + RECOVERY_S
            undo()
            row = {"released": released, **self.judge(cell, begin)}
        except TimeoutError as e:
            raise Failed(str(e)) from e
        finally:
            undo()
            self.proceed()
            self.end(attempt)
        row["daemon_heap"] = self.heap_growth(daemon)
        return row

    def end(self, attempt):
        try:
            attempt.wait(RECOVERY_S)
        except subprocess.TimeoutExpired as e:
            attempt.kill()
            attempt.wait()
            if not sys.exc_info()[0]:
                raise Failed("upgradectl does not end") from e

    def told(self):
        return f"{self.host.words()}\n{self.guest.words()}"

    def judge(self, cell, begin):
        within(self.is_over, self.left(), lambda: f"the end\n{self.told()}")
        reports = self.reports()
        outcome = reports[0]["outcome"] if len(reports) > self.known else None
        gone = matrix.takes_the_guest_along(cell)
        # What nobody was hit by cannot be told from another reason to go back.
        right = matrix.verdict(cell, gone) if self.hits else {"committed", "rolled_back", "refused"}
        if outcome not in right:
            raise Failed(f"{outcome}: {reports[0].get('error', '') if reports else ''}\n{self.told()}")
        died = outcome == "lost" or gone and self.guest.proof.pid not in self.guest.vmms()
        if died:
            self.stands_still(outcome)
        else:
            self.guest.runs_on(seconds=self.left())
        seconds = round(time.monotonic() - begin, 2)
        in_target = self.guest.proof.pid != self.source
        if outcome is None and not died and ("committed" if in_target else "rolled_back") not in right:
            raise Failed(f"not on record, and it runs in the {'target' if in_target else 'source'}\n{self.told()}")
        where = ", died with its VMM" if died else ", in the target" if not outcome and in_target else ""
        row = {"outcome": f"{outcome}{where}" if outcome or where else None, "seconds": seconds,
               "hits": self.hits, "guest_errors": self.guest.proof.errors()}
        if row["seconds"] > self.may_take(cell) + RECOVERY_S:
            raise Failed(f"it took {row['seconds']} s\n{self.told()}")
        if not died:
            within(lambda: self.guest.vmms() == [self.guest.proof.pid], RECOVERY_S,
                   lambda: f"one VMM: {self.guest.vmms()}, the guest is in {self.guest.proof.pid}\n{self.told()}")
            if outcome and in_target != (outcome == "committed"):
                raise Failed(f"{outcome}, but it was in {self.source} and is in {self.guest.proof.pid}\n{self.told()}")
        if self.guest.trouble():
            raise Failed(f"{self.guest.trouble()}\n{self.told()}")
        within(lambda: not self.host.store.settle(), RECOVERY_S,
               lambda: f"the end of custody: {self.host.store.settle()}\n{self.told()}")
        row.update(daemon_fds=self.count_descriptors("the daemon", self.host.daemon.pid, self.daemon_fds), vmm_fds=0)
        if died:
            # One that is left for somebody to look at is no leak.
            row["processes"] = len(self.host.workers())
            self.guest.end()
            self.host.ctl("forget", self.guest.name)
            self.host.guests.remove(self.guest)
            self.guest = None
        else:
            row["vmm_fds"] = self.count_descriptors("the VMM", self.guest.proof.pid, self.vmm_fds[self.guest.proof.runs > 1])
            row["processes"] = len(self.host.workers()) + len(self.guest.vmms()) - 1
        return row

    def stands_still(self, outcome):
        """Nobody runs it, not even a VMM that was left for somebody to look at."""
        ticks = self.guest.proof.ticks()
        time.sleep(0.2)
        if self.guest.proof.ticks() != ticks:
            raise Failed(f"{outcome}, and it runs in {self.guest.proof.pid}\n{self.told()}")

    def count_descriptors(self, who, pid, before):
        """How many more there are than at rest."""
        within(lambda: len(fds_of(pid)) <= len(before), RECOVERY_S,
               lambda: f"the descriptors of {who}: {before} before, now {fds_of(pid)}\n{self.told()}")
        return max(0, len(fds_of(pid)) - len(before))


def build():
    """tinyvmm, upgraded and inject.so."""
    INJECT.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["make", "-s", "build"], cwd=ROOT, check=True)
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                    "-o", INJECT, ROOT / "tests/fault/inject.c"], check=True)
