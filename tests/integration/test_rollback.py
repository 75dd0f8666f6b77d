# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever goes wrong before the commit, the guest goes on in the source. While a target is hit, the worker waits at a
fault point, or in SWITCH for a source that cannot be stopped: so the report must name the phase."""

import contextlib
import ctypes
import errno
import os
import signal
import stat
import subprocess
import threading

from common import NEW, Attempt, Case, fault, processes, shared
from host import UPGRADECTL, wait_until

PTRACE_CONT, PTRACE_SEIZE, PTRACE_O_TRACECLONE = 7, 0x4206, 8
WALL, WNOTHREAD = 0x40000000, 0x20000000
# What a phase may take, for faults that only a deadline ends: PREPARE takes 4 s here, and 55 on a busy machine.
PATIENCE = ["--timeout", "90"]
SHORT = ["--max-blackout", "3000"]
LONG = ["--max-blackout", "8000"]


class Unstoppable(threading.Thread):
    """Keeps the SIGSTOP from a process, so that it can not be held: the upgrade waits in SWITCH for it. Any of its threads
    may be the one that gets the signal: all are traced, those to come as well."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.end, self.ready, self.swallowed = pid, threading.Event(), threading.Event(), 0

    @staticmethod
    def ptrace(request, tid, data=0):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        libc.ptrace.restype = ctypes.c_long
        if libc.ptrace(request, tid, None, data) < 0 and ctypes.get_errno() != errno.ESRCH:  # it may be dying
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")

    def run(self):
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            self.ptrace(PTRACE_SEIZE, int(tid), PTRACE_O_TRACECLONE)
        self.ready.set()
        while not self.end.wait(0.001):
            try:
                tid, status = os.waitpid(-1, os.WNOHANG | WALL | WNOTHREAD)
            except ChildProcessError:
                return  # it has ended
            if tid and os.WIFSTOPPED(status):
                number = os.WSTOPSIG(status)
                self.swallowed += number == signal.SIGSTOP and not status >> 16
                self.ptrace(PTRACE_CONT, tid, 0 if number == signal.SIGSTOP or status >> 16 else number)

    def __enter__(self):
        self.start()
        self.ready.wait(10)
        return self

    def __exit__(self, *_):
        # A tracer that ends lets its process go.
        self.end.set()
        self.join(10)


def target_gets(number):
    return lambda attempt: os.kill(attempt.target(), number)


def not_after_commit(phase, source):
    """On a busy machine the signal to a target that is to be hit in FREEZE may come a second late: not after COMMIT."""
    return Unstoppable(source) if phase == "freeze" else contextlib.nullcontext()


class Rollback(Case):
    def target_hit(self, number, guest, source, attempt, phase):
        """The target of this attempt gets the signal in the phase, or in one of these."""
        what = {signal.SIGKILL: "killed", signal.SIGSTOP: "hung"}[number]
        report = self.rolled_back(guest, attempt, source, f"target {what} at {phase}")
        self.assertIn(report["failed_phase"], phase.split())
        if number == signal.SIGKILL:
            # One sentence for one failure, wherever it shows.
            self.assertIn("the target was killed by SIGKILL while upgraded waited for", report["error"])

    def hit_at(self, point, phase, number, *options):
        """The target gets the signal while the worker sleeps at the last point before what the phase waits for."""
        guest = shared(2 if number == signal.SIGKILL else 1)
        self.with_faults(f"{point} sleep 60000")
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, *options)
        os.kill(attempt.held_at(point), number)
        fault()
        self.target_hit(number, guest, source, attempt, phase)

    def hit_in_prepare(self, number, *options):
        """The target gets the signal as soon as it is a QEMU, which takes seconds to build its machine."""
        guest = shared(2 if number == signal.SIGKILL else 1)
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, *options)
        target = attempt.target()
        wait_until(lambda: target not in processes("upgraded-target"), 60, "the target is executed")
        os.kill(target, number)
        self.target_hit(number, guest, source, attempt, "prepare")

    def hit_in_switch(self, number, *options):
        guest = shared(1)
        source = self.begin(guest)
        with Unstoppable(source) as tracer:
            attempt = Attempt(guest, NEW, *options, on={"switch": target_gets(number)})
            self.target_hit(number, guest, source, attempt, "switch")
            self.assertGreater(tracer.swallowed, 0)

    def test_target_killed_in_prepare(self):
        self.hit_in_prepare(signal.SIGKILL)

    def test_target_killed_in_check(self):
        self.hit_at("worker.prepared", "check", signal.SIGKILL)

    def test_target_killed_in_freeze(self):
        self.hit_at("worker.verified", "freeze", signal.SIGKILL)

    def test_target_killed_in_load(self):
        self.hit_at("worker.frozen", "load", signal.SIGKILL, *LONG)

    def test_target_killed_in_switch(self):
        self.hit_in_switch(signal.SIGKILL, *LONG)

    def test_target_hung_in_prepare(self):
        self.hit_in_prepare(signal.SIGSTOP, *PATIENCE)

    def test_target_hung_in_check(self):
        self.hit_at("worker.prepared", "check", signal.SIGSTOP, *PATIENCE)

    def test_target_hung_in_freeze(self):
        # The channel may hold all of the state: then it shows when the target is to say that it has loaded it.
        self.hit_at("worker.verified", "freeze load", signal.SIGSTOP, *SHORT)

    def test_target_hung_in_load(self):
        self.hit_at("worker.frozen", "load", signal.SIGSTOP, *LONG)

    def test_target_hung_in_switch(self):
        self.hit_in_switch(signal.SIGSTOP, *LONG)

    def fake(self, guest, before, after):
        """A QEMU that changes one argument of its command line."""
        path = guest.dir / "fake-qemu"
        path.write_text(f'#!/bin/bash\nargs=("$@")\nexec {NEW} "${{args[@]/{before}/{after}}}"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return str(path)

    def test_target_that_cannot_load_the_state(self):
        guest = shared(1)
        source = self.begin(guest)
        # The guest's driver uses a feature that this target's device lacks: only loading the state shows it.
        fake = self.fake(guest, "virtio-rng-pci", "virtio-rng-pci,event_idx=off")
        report = self.rolled_back(guest, Attempt(guest, fake), source, "target without a feature in use")
        # It reads the state while the source still writes it.
        self.assertIn(report["failed_phase"], ("freeze", "load"))

    def test_target_without_a_device(self):
        guest = shared(1)
        source = self.begin(guest)
        fake = self.fake(guest, "virtio-rng-pci", "virtio-mouse-pci")
        report = self.rolled_back(guest, Attempt(guest, fake), source, "target with another device")
        self.assertIn(report["failed_phase"], ("check", "load"))

    def test_target_with_other_memory(self):
        guest = shared(1)
        source = self.begin(guest)
        fake = self.fake(guest, f"size={guest.memory}M", f"size={guest.memory * 2}M")
        report = self.rolled_back(guest, Attempt(guest, fake), source, "target with twice the memory")
        self.assertIn(report["failed_phase"], ("prepare", "check"))

    def kill_worker(self, attempt):
        workers = processes("upgraded-worker")
        if len(workers) != 1:
            raise RuntimeError(f"workers: {workers}")
        os.kill(workers[0], signal.SIGKILL)

    def test_worker_killed_in_prepare(self):
        guest = shared(1)
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, on={"prepare": lambda a: (a.target(), self.kill_worker(a))})
        self.rolled_back(guest, attempt, source, "worker killed at prepare")

    def test_worker_killed_in_freeze(self):
        guest = shared(1)
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, on={"freeze": self.kill_worker})
        self.rolled_back(guest, attempt, source, "worker killed at freeze")

    def test_worker_killed_in_switch(self):
        guest = shared(1)
        source = self.begin(guest)
        with Unstoppable(source):
            attempt = Attempt(guest, NEW, "--max-blackout", "8000", on={"switch": self.kill_worker})
            self.rolled_back(guest, attempt, source, "worker killed at switch")

    def test_abort_in_prepare(self):
        guest = shared(1)
        source = self.begin(guest)
        attempt = Attempt(guest, NEW, on={"prepare": lambda a: (
            a.target(), subprocess.run([UPGRADECTL, "--json", "abort", guest.name], check=True, capture_output=True))})
        report = self.rolled_back(guest, attempt, source, "aborted in prepare")
        self.assertEqual(report["failed_phase"], "prepare")

    def test_blackout_over_budget(self):
        guest = shared(1)
        source = self.begin(guest)
        report = self.rolled_back(guest, Attempt(guest, NEW, "--max-blackout", "1"), source, "a budget of 1 ms")
        self.assertIn(report["failed_phase"], ("freeze", "load", "switch"))

    def test_upgrade_works_after_all_rollbacks(self):
        guest = shared(1)
        source = self.begin(guest)
        status, report = guest.upgrade(NEW)
        self.committed(guest, status, report, source)
        self.healthy(guest, f"generation {guest.show()['generation']}")
