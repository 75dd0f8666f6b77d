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
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/vmm"), str(ROOT / "tests/lib")]

import matrix  # noqa: E402
import tiny  # noqa: E402
from fds import sockets_of  # noqa: E402
from tiny import alive, fds_of, wait_until, within  # noqa: E402

TIMEOUT_S, BLACKOUT_MS = 1, 1500
REBUILD_S = 5  # what a target from custody gets at least
SILENCE_S = REBUILD_S + 60 + 20 + 10  # worker_silence_us() of one that undoes or finishes; less of others
STOPPED_S = 5  # for how long the daemon is stopped
RECOVERY_S = 5  # beyond the deadlines
INJECT = ROOT / "build/fault/inject.so"
ERRNOS = {"enospc": 28, "eio": 5, "enomem": 12}


class Failed(Exception):
    """A cell that did not come out as it must."""


class Unreached(Exception):
    """The upgrade does not pass this boundary here, or nobody is there to be hit."""


def end_on_sigterm():
    """As on any other way out: what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def cut_connections(pid):
    """Every connected socket of a process, whose other end gets an end of file."""
    for s in sockets_of(pid):
        with contextlib.suppress(OSError):
            s.getpeername()
            if s.type != socket.SOCK_DGRAM:
                s.shutdown(socket.SHUT_RDWR)


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

    def close(self):
        if self.host:
            self.host.__exit__()
        self.host = self.guest = None
        self.dir.cleanup()

    def settle(self):
        """A guest that runs, and what its daemon and its VMM look like at rest."""
        self.points.write_text("")
        self.inject(0, 0)
        if not self.host:
            self.host = tiny.Host(fd_store=True)
            self.guest = None
        if not self.guest:
            self.n += 1
            self.guest = self.host.guest(f"tiny{self.n}")
            self.guest.runs_on()
            self.daemon_fds = fds_of(self.host.daemon.pid)
            self.vmm_fds = None

    def damaged(self):
        self.host.__exit__()
        self.host = None

    def inject(self, pid, error):
        with open(self.control, "r+b") as f:
            f.write(pid.to_bytes(4, "little") + error.to_bytes(4, "little"))

    def reports(self):
        return self.host.reports(self.guest.name)

    # ---- one cell -----------------------------------------------------------------

    def pause_at(self, cell):
        """Whoever comes to the boundary waits there."""
        pathlib.Path(f"{self.points}.seen").unlink(missing_ok=True)
        lines, hold = [], self.host.hold_ms
        if " " in cell.boundary:
            lines.append(f"{cell.boundary} sleep {hold}")
        else:
            self.points.write_text(f"{cell.boundary} sleep {hold}\n")
        if cell.boundary in matrix.UNDOING:
            lines.append("target owned fail")
        if cell.boundary in matrix.REBUILDING:
            lines.append(f"target load sleep {4 * hold}")
        self.guest.order(*lines)

    def is_reached(self, cell):
        if " " in cell.boundary:
            return self.guest.seen().exists() and cell.boundary in self.guest.seen().read_text()
        seen = pathlib.Path(f"{self.points}.seen")
        return seen.exists() and seen.read_text().endswith("\n")

    def begin(self, cell):
        self.known = len(self.reports())
        self.source = self.guest.proof.pid
        self.pause_at(cell)
        attempt = subprocess.Popen([tiny.UPGRADECTL, "--socket", self.host.run / "control.sock", "upgrade", self.guest.name,
                                    "--timeout", str(TIMEOUT_S), "--max-blackout", str(BLACKOUT_MS)],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if cell.boundary in matrix.REBUILDING:
            target = self.guest.await_fault()
            self.guest.order()
            for pid in (self.source, target):
                os.kill(pid, signal.SIGKILL)
        try:
            wait_until(lambda: self.is_reached(cell) or attempt.poll() is not None, 20, "the boundary")
        except TimeoutError:
            pass
        return attempt

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
        """Returns what puts an end to it, and for how long that may take."""
        wait, undo = 2 * TIMEOUT_S + BLACKOUT_MS / 1000, lambda: None
        if cell.victim == "worker" and cell.fault not in ("kill", "reset"):
            wait = SILENCE_S  # it lives, but nothing it does gets anywhere
        if cell.boundary in matrix.REBUILDING:
            wait += REBUILD_S
        if cell.fault == "kill":
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            if cell.victim in ("daemon", "all"):
                self.daemon_again()
        elif cell.fault == "restart":
            self.host.daemon.terminate()
            self.daemon_again()
        elif cell.fault == "stop":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            if cell.victim == "daemon":
                time.sleep(STOPPED_S)
                os.kill(pids[0], signal.SIGCONT)
            else:
                undo = lambda: [os.kill(p, signal.SIGCONT) for p in pids if alive(p)]
        elif cell.fault in ERRNOS:
            self.inject(pids[0], ERRNOS[cell.fault])
            undo = lambda: self.inject(0, 0)
        elif cell.fault in ("emfile", "truncated"):
            before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
            for pid in pids:
                limit_descriptors(pid, 0 if cell.fault == "emfile" else 1)
            undo = lambda: [resource.prlimit(p, resource.RLIMIT_NOFILE, limits) for p, limits in before.items() if alive(p)]
        elif cell.fault == "reset":
            for pid in pids:
                cut_connections(pid)
        return undo, wait

    def lasting(self, cell):
        """Who is short of something may not do anything at all until there is more of it; the worker is replaced."""
        return cell.victim != "worker" and cell.fault in ("enomem", "emfile", "truncated", "enospc", "eio")

    def run(self, cell):
        """(outcome, seconds)"""
        attempt = self.begin(cell)
        try:
            if not self.is_reached(cell):
                raise Unreached("the upgrade does not come by here")
            pids = self.pids(cell.victim, attempt)
            if not pids:
                raise Unreached("there is no such process")
            begin = time.monotonic()
            undo, wait = self.happen(cell, pids)
            try:
                if self.lasting(cell):
                    time.sleep(3 * self.host.hold_ms / 1000)
                else:
                    within(self.is_over, wait + RECOVERY_S, lambda: f"the end\n{self.told()}")
            except TimeoutError as e:
                # Who is stopped may be what everybody waits for: it goes on now, and then it must be over.
                if cell.fault != "stop":
                    raise Failed(str(e)) from e
            finally:
                undo()
            return self.judge(cell, attempt, begin, wait)
        except TimeoutError as e:
            raise Failed(str(e)) from e
        finally:
            self.end(attempt)

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

    def judge(self, cell, attempt, begin, wait):
        within(self.is_over, wait + RECOVERY_S, lambda: f"the end\n{self.told()}")
        reports = self.reports()
        outcome = reports[0]["outcome"] if len(reports) > self.known else None
        gone = matrix.takes_the_guest_along(cell)
        if outcome not in matrix.verdict(cell, gone):
            raise Failed(f"{outcome}: {reports[0].get('error', '') if reports else ''}\n{self.told()}")
        alone = gone and self.guest.proof.pid not in self.guest.vmms()
        if outcome == "lost" or alone:
            self.stands_still(outcome)
            seconds = time.monotonic() - begin
        else:
            self.guest.runs_on(seconds=wait + RECOVERY_S)
            seconds = time.monotonic() - begin
            within(lambda: self.guest.vmms() == [self.guest.proof.pid], RECOVERY_S,
                   lambda: f"one VMM: {self.guest.vmms()}, the guest is in {self.guest.proof.pid}\n{self.told()}")
            if outcome and (self.guest.proof.pid != self.source) != (outcome == "committed"):
                raise Failed(f"{outcome}, but it was in {self.source} and is in {self.guest.proof.pid}\n{self.told()}")
        if self.guest.trouble():
            raise Failed(f"{self.guest.trouble()}\n{self.told()}")
        within(lambda: not self.host.store.settle(), RECOVERY_S,
               lambda: f"the end of custody: {self.host.store.settle()}\n{self.told()}")
        self.count_descriptors(alone or outcome == "lost", outcome)
        if alone or outcome == "lost":
            self.guest.end()
            self.host.ctl("forget", self.guest.name)
            self.host.guests.remove(self.guest)
            self.guest = None
            return f"{outcome}, died with its VMM", seconds
        return outcome, seconds

    def stands_still(self, outcome):
        """Nobody runs it, not even a VMM that was left for somebody to look at."""
        ticks = self.guest.proof.ticks()
        time.sleep(0.2)
        if self.guest.proof.ticks() != ticks:
            raise Failed(f"{outcome}, and it runs in {self.guest.proof.pid}\n{self.told()}")

    def count_descriptors(self, gone, outcome):
        within(lambda: len(fds_of(self.host.daemon.pid)) <= len(self.daemon_fds), RECOVERY_S,
               lambda: f"the daemon's descriptors: {self.daemon_fds} before, now {fds_of(self.host.daemon.pid)}")
        if gone:
            self.daemon_fds = fds_of(self.host.daemon.pid)
            return
        now = len(fds_of(self.guest.proof.pid))
        if outcome == "committed" and self.vmm_fds is None:
            self.vmm_fds = now
        if self.vmm_fds is not None and now > self.vmm_fds:
            raise Failed(f"the VMM's descriptors: {self.vmm_fds} before, now {fds_of(self.guest.proof.pid)}")


def build():
    """tinyvmm, upgraded and inject.so."""
    INJECT.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["make", "-s", "build"], cwd=ROOT, check=True)
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                    "-o", INJECT, ROOT / "tests/fault/inject.c"], check=True)
