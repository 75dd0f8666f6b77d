# SPDX-License-Identifier: GPL-2.0-or-later
"""What the integration tests share: one guest for many of them, an upgrade that is followed event by event, and what
a guest must look like afterwards. Owns the shared guest; stop_shared() ends it."""

import json
import os
import pathlib
import subprocess
import threading
import unittest

from answers import documents
from host import BOOT_SECONDS, Guest, UPGRADECTL, ROLLED_BACK, qemus, tell, upgrade_command, wait_until, wrong_ticks

OLD, NEW = list(qemus().values())[0], list(qemus().values())[-1]
# The emulated host is slow: less memory and a slower beat, which goes before everything in the guest, leave it some time.
LIGHT = {"load_mem": 32, "heartbeat_us": 10000,
         "cmdline": "load.mem_rate=400 load.net_pause_us=40000 load.disk_pause_ms=300"}
MONITOR_PORT = 5555
# Read by the daemon and the workers (daemon/fault_point.c); the tests write it.
FAULTS = pathlib.Path("/run/upgraded-faults/list")
FAULTS_SEEN = FAULTS.with_name("list.seen")

seen = []  # what the running test told, for its failure
_shared = {}


def saw(text):
    seen.append(text)
    tell(f"      {text}")


def sh(*words, check=False, **options):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=check, **options)


def ctl(*words):
    """Returns (exit status, the JSON documents printed)."""
    r = sh(UPGRADECTL, "--json", *words)
    return r.returncode, documents(r.stdout)


def reports(name):
    """Of all upgrades of a VM, the last one first."""
    return ctl("history", name, "--limit", "0")[1][0].get("reports", [])


def unit(name, *properties):
    """{property: value} of a unit."""
    r = sh("systemctl", "show", name, *[f"--property={p}" for p in properties], check=True)
    return dict(line.split("=", 1) for line in r.stdout.splitlines())


def daemon_pid():
    return int(unit("upgraded.service", "MainPID")["MainPID"])


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def status_of(pid):
    """{field: value} of /proc/PID/status."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def processes(comm):
    found = []
    for d in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (d / "comm").read_text().strip() == comm[:15] and alive(d.name):
                found.append(int(d.name))
        except OSError:
            pass
    return found


def targets():
    """Pids of the VMMs that upgrades started: one of each VM upgraded, and the targets of upgrades under way."""
    found = set(processes("upgraded-target"))  # about to be executed
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if b"-incoming" in words and b"target-cpr" in b" ".join(words) and alive(pid):
                found.add(int(pid))
    return found


def take_faults():
    """The daemon is started anew, and has faults when FAULTS says so."""
    drop_in = pathlib.Path("/run/systemd/system/upgraded.service.d/faults.conf")
    for path in (drop_in, FAULTS):
        path.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Service]\nEnvironment=UPGRADED_FAULTS={FAULTS}\n")
    sh("systemctl", "daemon-reload", check=True)
    sh("systemctl", "stop", "upgraded.service", check=True)


def fault(line=""):
    """Daemon and workers have this one from now on. Without one, whoever sleeps at a fault point goes on."""
    FAULTS_SEEN.unlink(missing_ok=True)
    if line:
        FAULTS.write_text(line + "\n")
    else:
        FAULTS.unlink(missing_ok=True)


def circumstances():
    """The end of the logs, for a test that failed."""
    log = sh("journalctl", "-b", "--no-pager", "-n", "30", "-o", "short-monotonic", "-u", "upgraded.service",
             "-u", "vmm@*.service").stdout
    consoles = "".join(f"console of {g.name}:\n{g.console(6)}\n" for g in _shared.values())
    return f"log:\n{log}{consoles}"


def started(guest, binary):
    guest.start(binary, ready=BOOT_SECONDS)
    return guest


def shared(smp=2):
    """A guest with virtio devices in the newest QEMU. A test that broke it does not break the next one: it is
    started anew when it is not what it should be. Two vCPUs share the emulated host's one processor, and wait for
    each other: what does not need them is quicker with one."""
    guest = _shared.get("web")
    if guest:
        try:
            if guest.smp == smp and guest.show()["alive"] and not guest.fresh_report()["errors"]:
                return guest
        except Exception as e:  # pylint: disable=broad-except
            tell(f"      the shared guest is broken: {str(e)[:300]}")
        tell(f"      starting the shared guest anew, {smp} vCPUs")
        _shared.pop("web").stop()
    guest = Guest("web", smp=smp, **LIGHT)
    guest.extra += ["-pidfile", f"{guest.dir}/pid", "-monitor", f"tcp:127.0.0.1:{MONITOR_PORT},server=on,wait=off",
                    "-monitor", f"unix:{guest.dir}/monitor,server=on,wait=off"]
    _shared["web"] = guest
    return started(guest, NEW)


def kept(name, start):
    """A guest that several tests use: the one that is there, or what start() returns; stop_shared() ends it."""
    if name not in _shared:
        _shared[name] = start()
    return _shared[name]


def stop_shared():
    for guest in list(_shared.values()):
        guest.stop()
    _shared.clear()


class Attempt:
    """One `upgradectl --json upgrade`, read as it goes. on={"load": f} calls f(attempt) the moment the event that the
    phase was entered is there, in the reading thread."""

    def __init__(self, guest, binary, *options, on=None):
        self.name, self.timers = guest.name, []
        self.events, self.report, self.trouble, self.on = [], None, [], dict(on or {})
        self.entered = {}  # when, in seconds
        self.before = targets()
        self.process = subprocess.Popen([*upgrade_command(guest.name, binary), *options],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            if "outcome" in message or "error" in message and "phase" not in message:
                self.report = message
                continue
            self.entered.setdefault(message["phase"], int(message["at_us"]) / 1e6)
            self.events.append(message["phase"])
            self.act(self.on.pop(message["phase"], lambda attempt: None))

    def act(self, what):
        """What goes wrong in another thread is a trouble of the test's."""
        try:
            what(self)
        except Exception as e:  # pylint: disable=broad-except
            self.trouble.append(f"after {self.events[-1]}: {e!r}")

    def later(self, seconds, what):
        """Calls what(attempt), and wait() waits for that as well."""
        self.timers.append(threading.Timer(seconds, self.act, [what]))
        self.timers[-1].start()

    def held_at(self, point):
        """Waits until somebody sleeps at the fault point; returns the target's pid."""
        wait_until(lambda: FAULTS_SEEN.exists() and point in FAULTS_SEEN.read_text() or self.process.poll() is not None,
                   150, f"{point} is passed")
        if self.process.poll() is not None:
            raise RuntimeError(f"the upgrade ended before {point}: {self.report}")
        target, = targets() - self.before
        return target

    def target(self, seconds=200):
        """The target's pid, as soon as there is one."""
        return wait_until(lambda: targets() - self.before, seconds, "a target is started").pop()

    def wait(self, seconds=300):
        """Returns (exit status, report)."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
            self.reader.join(10)
            for timer in self.timers:
                timer.join(10)
        return self.process.returncode, self.report or {"stderr": self.process.stderr.read()}


class Case(unittest.TestCase):
    """Assertions on upgrades and guests. The mark that a test sets begins its window in the guest's watcher."""

    maxDiff = None

    def healthy(self, guest, what=None):
        """The guest goes on, all of it, and never noticed more than a pause. Returns the test's longest pause."""
        report = guest.progress()
        wrong = {kind: n for kind, n in report["by_kind"].items() if n}
        self.assertEqual((report["errors"], wrong), (0, {}), f"the guest says: {report['first_error']}")
        self.assertEqual(report["state"], "READY", report)
        self.assertEqual(report["net"]["connects"], 1, "the TCP stream was broken")
        window = guest.window(self.id().split(".")[-1])
        self.assertEqual(wrong_ticks(window["ticks"]), {}, "heartbeats")
        gap = window["longest_gap"]["ms"]
        if what:
            saw(f"{what}; the guest stood still for {gap:.0f} ms at most, 0 errors")
        return gap

    def with_faults(self, *lines):
        """Daemon and workers have these until the test ends."""
        take_faults()
        self.addCleanup(fault)
        fault("\n".join(lines))

    def begin(self, guest):
        guest.mark(self.id().split(".")[-1])
        return guest.pid()

    def committed(self, guest, status, report, source):
        """Returns the target's pid."""
        self.assertEqual((status, report.get("outcome")), (0, "committed"), json.dumps(report))
        target = guest.pid()
        self.assertNotEqual(target, source)
        self.assertEqual(report["target"]["pid"], target, report)
        self.assertTrue(alive(target), "the target is not there")
        self.assertFalse(alive(source), "the source is still there")
        return target

    def rolled_back(self, guest, attempt, source, what):
        """Returns the report."""
        status, report = attempt.wait()
        self.assertEqual(attempt.trouble, [])
        self.assertEqual((status, report.get("outcome")), (ROLLED_BACK, "rolled_back"), json.dumps(report))
        self.assertEqual(guest.pid(), source, "another process than the source has the guest")
        self.assertTrue(alive(source))
        self.assertEqual(targets() - attempt.before, set(), "the target was left behind")
        self.assertTrue(report["error"], "no word about why")
        state = status_of(source)["State"]
        self.assertIn(state[0], "RSD", f"the source's process is {state}")
        self.healthy(guest, f"{what}: rolled back in {report['failed_phase']}: {report['error']}")
        return report
