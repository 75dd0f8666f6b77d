# SPDX-License-Identifier: GPL-2.0-or-later
"""A tinyvmm and an upgraded of its own, in a directory of their own, for tests of the native protocol.

Needs root and /dev/kvm, and nothing of the host's own upgraded. `with Host() as h:` ends every process that it started
and every VMM that an upgrade started, each by its pid. What the guest does is read from the memory that all VMMs of a
guest share with the test (proof.h)."""

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests/lib"))

from answers import documents  # noqa: E402  pylint: disable=wrong-import-position
from waits import wait_until, within  # noqa: E402  pylint: disable=wrong-import-position

BUILD = pathlib.Path(os.environ.get("UPGRADED_BUILD", ROOT / "build/user"))
TINYVMM = BUILD / "tests/vmm/tinyvmm"
UPGRADED = BUILD / "daemon/upgraded"
WORKER = BUILD / "daemon/worker/upgraded-worker"
UPGRADECTL = BUILD / "cli/upgradectl"

COMMITTED, REFUSED, ROLLED_BACK, LOST = 0, 3, 4, 8  # exit statuses of upgradectl
TIERS = {1: "memfd", 2: "gmem", 3: "stage2"}

PR_SET_CHILD_SUBREAPER = 36
KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS, KVM_CAP_GMEM_TRANSFER = 0xAE03, 244, 0x474D


def kvm_offers(capability):
    """What KVM_CHECK_EXTENSION says; None without a usable /dev/kvm."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return fcntl.ioctl(fd, KVM_CHECK_EXTENSION, capability)
    except OSError:
        return None
    finally:
        os.close(fd)


def best_tier():
    """Where UPGRADED_EXPECT_TIER says what the kernel is meant to offer, a kernel that does not is no excuse."""
    if meant := os.environ.get("UPGRADED_EXPECT_TIER"):
        return meant
    if (kvm_offers(KVM_CAP_GUEST_MEMFD_FLAGS) or 0) & 3 != 3:
        return "memfd"
    return "stage2" if kvm_offers(KVM_CAP_GMEM_TRANSFER) else "gmem"


def state_of(pid):
    """The letter of /proc/PID/stat; X when there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"


def alive(pid):
    return state_of(pid) not in "ZX"


def fds_of(pid):
    """What its descriptors are, sorted, without numbers."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0])
        except OSError:
            pass
    return sorted(found)


def fds_at_rest(pid):
    """As above, when nothing has changed for a while: of a command that has ended, the daemon closes its end a moment later."""
    found, since = fds_of(pid), time.monotonic()
    while time.monotonic() < since + 0.5:
        time.sleep(0.05)
        if (now := fds_of(pid)) != found:
            found, since = now, time.monotonic()
    return found


class Proof:
    """What the VMMs of one guest wrote down together: proof.h."""

    HEAD, VCPU, SIZE = struct.Struct("8Q"), struct.Struct("8Q"), 64 * 9
    NAMES = ("magic", "n_vcpus", "violations", "pid", "tier", "runs", "tables", "kvm_gmem")

    def __init__(self, path):
        with open(path, "w+b") as f:
            f.truncate(self.SIZE)
            self.map = mmap.mmap(f.fileno(), self.SIZE)

    def __getattr__(self, name):
        if name in Proof.NAMES:
            return self.HEAD.unpack_from(self.map)[Proof.NAMES.index(name)]
        raise AttributeError(name)

    def vcpus(self):
        """[{"owner", "epoch", "ticks", "errors", "last_ns", "gap_ns", "refused"}]"""
        names = ("owner", "epoch", "ticks", "errors", "last_ns", "gap_ns", "refused")
        return [dict(zip(names, self.VCPU.unpack_from(self.map, 64 + 64 * i))) for i in range(self.n_vcpus)]

    def ticks(self):
        return [v["ticks"] for v in self.vcpus()]

    def errors(self):
        return sum(v["errors"] for v in self.vcpus())

    def longest_gap_ms(self):
        return max(v["gap_ns"] for v in self.vcpus()) / 1e6


class Guest:
    """One guest, in whichever tinyvmm it runs now."""

    def __init__(self, host, name, *options, program=None):
        self.host, self.name, self.options, self.program = host, name, options, program or TINYVMM
        self.dir = host.dir / name
        self.dir.mkdir()
        self.proof = Proof(self.dir / "proof")
        self.fault = self.dir / "fault"
        self.log, self.process = open(self.dir / "log", "wb"), None
        host.guests.append(self)  # who ends it, also if it does not come up
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.program, "--name", self.name, "--socket", self.host.run / "vmm.sock", "--proof", self.dir / "proof",
             "--fault", self.fault, *self.options], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        wait_until(lambda: self.registered() or self.process.poll() is not None, 20, f"{self.name} registers")
        if self.process.poll() is not None:
            raise RuntimeError(f"tinyvmm ended with {self.process.returncode}: {self.words()}")

    def registered(self):
        return any(vm["name"] == self.name and vm.get("alive") for vm in self.host.ctl("list")[1][0].get("vms", []))

    def show(self):
        return self.host.ctl("show", self.name)[1][0]

    def pid(self):
        return self.show()["process"]["pid"]

    def words(self):
        return (self.dir / "log").read_text()[-2000:]

    def vmms(self):
        """Every living VMM of this guest, and the target that is about to be one."""
        mark, found = str(self.dir / "proof").encode(), []
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    proc = pathlib.Path("/proc") / pid
                    about = (proc / "comm").read_text().strip() == "upgraded-target" and (proc / "fd/2").samefile(self.log.name)
                    if (about or mark in (proc / "cmdline").read_bytes()) and alive(pid):
                        found.append(int(pid))
                except OSError:
                    pass
        return found

    def order(self, *lines):
        """Mishaps to come: fault.c."""
        self.seen().unlink(missing_ok=True)
        self.fault.write_text("".join(line + "\n" for line in lines))

    def seen(self):
        return self.dir / "fault.seen"

    def await_fault(self, seconds=20):
        """Waits until an ordered mishap begins; returns the pid that it happens to."""
        wait_until(lambda: self.seen().exists() and self.seen().read_text().endswith("\n"), seconds,
                   lambda: f"the mishap\n{self.host.words()}\n{self.words()}")
        return int(self.seen().read_text().split()[0])

    def runs_on(self, more=3, seconds=60):
        """Waits until every vCPU has gone through its memory some times more."""
        before = self.proof.ticks()
        within(lambda: all(now >= was + more for now, was in zip(self.proof.ticks(), before)), seconds,
               f"{self.name} goes on from {before}: {self.proof.vcpus()} {self.words()}")

    def trouble(self):
        """What must never be; empty if all is well."""
        found = []
        if self.proof.violations:
            found.append(f"{self.proof.violations} times there was more than one runner")
        if self.proof.errors():
            found.append(f"the guest found {self.proof.errors()} wrong words")
        return found

    def end(self):
        for pid in self.vmms():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.kill()
            self.process.wait()
        self.log.close()


class FdStore(threading.Thread):
    """What systemd does with FDSTORE=1: keeps descriptors by name, and passes them to the next daemon."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.fds, self.sockets, self.error = path, {}, {}, None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.start()

    def run(self):
        try:
            self.serve()
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def serve(self):
        while True:
            data, fds, _, _ = socket.recv_fds(self.socket, 4096, 253)
            for fd in fds:
                os.set_inheritable(fd, False)
            if data == b"END":
                return
            said = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            name = said.get("FDNAME")
            if said.get("FDSTOREREMOVE"):
                os.close(self.fds.pop(name))
            elif said.get("FDSTORE"):
                assert said["FDPOLL"] == "0" and len(fds) == 1 and name not in self.fds, said
                self.fds[name] = fds.pop()
            for fd in fds:
                os.close(fd)

    def settle(self):
        """Returns the names, once everything that was sent is read: twice nothing is left, so what was read is kept."""
        sizes = []

        def is_read():
            self.check()
            sizes.append(self.queued())
            return sizes[-2:] == [0, 0]

        wait_until(is_read, 20, "what was sent to the fd store is read")
        return sorted(self.fds)

    def check(self):
        if self.error:
            raise RuntimeError("the fd store has failed") from self.error

    def queued(self):
        """Bytes that nobody has read yet."""
        number = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.FIONREAD, number)
        return number[0]

    def pass_on(self):
        """In the child, between fork and exec: as systemd passes them."""
        os.environ["NOTIFY_SOCKET"] = str(self.path)
        passed = {**self.sockets, **self.fds}
        # Nothing else: what these tests have inherited themselves would be counted as the daemon's.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2:
                with contextlib.suppress(OSError):  # of the listing itself
                    os.set_inheritable(fd, False)
        if not passed:
            return
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500) for fd in passed.values()]
        for i, fd in enumerate(high):
            os.dup2(fd, 3 + i, inheritable=True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=":".join(passed))

    def listen(self, directory):
        """Makes the daemon's sockets, as its socket units would."""
        for name in ("control", "vmm"):
            path = directory / f"{name}.sock"
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
                s.bind(str(path))
                s.listen(16)
                self.sockets[name] = s.detach()

    def listen_no_more(self):
        for fd in self.sockets.values():
            os.close(fd)
        self.sockets.clear()

    def end(self):
        if self.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.sendto(b"END", str(self.path))
        self.join()
        self.socket.close()
        self.listen_no_more()
        for fd in self.fds.values():
            os.close(fd)
        self.check()


class Host:
    """An upgraded in the foreground, in a directory of its own. fd_store: with what systemd would be to it."""

    def __init__(self, *options, fd_store=False):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="upgraded-native-"))
        self.store = FdStore(self.dir / "notify") if fd_store else None
        self.run, self.options = self.dir / "run", options
        self.guests, self.daemon = [], None
        self.log = open(self.dir / "log", "ab")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:  # in reverse order, and whatever becomes of the others
            stack.callback(shutil.rmtree, self.dir)
            if self.store:
                stack.callback(self.store.end)
            stack.callback(self.log.close)
            for guest in self.guests:
                stack.callback(guest.end)
            # Who starts VMMs ends before them.
            stack.callback(self.end_workers)
            if self.daemon:
                stack.callback(self.end_daemon)

    def end_daemon(self):
        """Even if a test has stopped it."""
        if self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.send_signal(signal.SIGCONT)
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
            raise

    def end_workers(self):
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.workers(), 10, "the workers end")

    def start(self):
        if self.store:
            self.store.settle()
        self.daemon = subprocess.Popen([UPGRADED, "--runtime-dir", self.run, "--state-dir", self.dir / "state",
                                        "--worker", WORKER, *self.options], stdin=subprocess.DEVNULL,
                                       stdout=self.log, stderr=self.log, close_fds=False,
                                       preexec_fn=self.store.pass_on if self.store else None)
        wait_until(lambda: self.ctl("list")[0] == 0, 30, "upgraded listens")
        begin = time.monotonic()
        self.workers()
        self.ctl("list")
        # How long a mishap is held open, so that this process comes to do something meanwhile.
        self.hold_ms = int(min(max(300, 10000 * (time.monotonic() - begin)), 4000))

    def words(self):
        return (self.dir / "log").read_text()[-4000:]

    def guest(self, name, *options, program=None):
        return Guest(self, name, *options, program=program)

    def ctl(self, *words):
        """(exit status, [JSON documents])"""
        r = subprocess.run([UPGRADECTL, "--json", "--socket", self.run / "control.sock", *map(str, words)],
                           capture_output=True, text=True, timeout=150, check=False)
        return r.returncode, documents(r.stdout)

    def reports(self, name):
        """Of all upgrades of a VM, the last one first."""
        return self.ctl("history", name, "--limit", "0")[1][0].get("reports", [])

    def upgrade(self, guest, *options):
        """(exit status, report)"""
        status, answers = self.ctl("upgrade", guest.name, *options)
        return status, answers[-1] if answers else {}

    def begin(self, guest, *options):
        """An upgrade in a thread; .join() gives what upgrade() gives."""
        attempt = Attempt(lambda: self.upgrade(guest, *options))
        attempt.start()
        return attempt

    def workers(self):
        """The workers of this daemon, and of those before it."""
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    comm = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
                    if comm == "upgraded-worker" and alive(pid) and self.is_ours(pid):
                        found.append(int(pid))
                except OSError:
                    pass
        return found

    def is_ours(self, pid):
        """Its log is ours."""
        return os.path.samefile(f"/proc/{pid}/fd/2", self.dir / "log")


class Attempt(threading.Thread):
    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.result = work, None

    def run(self):
        self.result = self.work()

    def join(self, timeout=150):
        super().join(timeout)
        if self.result is None:
            raise TimeoutError("the upgrade does not end")
        return self.result
