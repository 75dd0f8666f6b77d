# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of an unpatched libvirt, upgraded in place; tests/libvirt/run brings a root file system that has libvirt."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

from common import (FAULTS_SEEN, LIGHT, NEW, Attempt, Case, alive, ctl, daemon_pid, fault, kept, reports, saw, sh, started,
                    stop_shared, take_faults, targets, unit)
from domain import Domain, Small, virsh
from host import REFUSED, upgrade_command, wait_until
from test_rollback import not_after_commit, target_gets

NO_SUCH_VM, DENIED, SOME = 5, 7, 9
ROUNDS = int(os.environ.get("UPGRADED_LIBVIRT_ROUNDS", "10"))
DOMAINS = int(os.environ.get("UPGRADED_LIBVIRT_DOMAINS", "20"))
BATCH = int(os.environ.get("UPGRADED_LIBVIRT_BATCH", "8"))
AWAY_ROUNDS = int(os.environ.get("UPGRADED_LIBVIRT_AWAY_ROUNDS", "5"))
# Nobody is killed but at these boundaries, which does not take long.
POINTS = os.environ.get("UPGRADED_LIBVIRT_POINTS", "").split()
TABLE = pathlib.Path("/mnt/share/build/test-results/libvirt-commands.json")


@functools.cache
def daemon():
    """Which of libvirt's daemons has the QEMU driver: libvirtd, or virtqemud where that one is masked."""
    masked = sh("systemctl", "show", "libvirtd.service", "-p", "LoadState", "--value").stdout.strip() == "masked"
    return "virtqemud" if masked else "libvirtd"


def libvirt():
    subprocess.run(["systemctl", "start", "virtlogd.socket", f"{daemon()}.socket"], check=True)


def libvirts_pid():
    """Of the daemon that has the driver, and it is the one that was meant."""
    pid = int(pathlib.Path("/run/libvirt/qemu/driver.pid").read_text())
    program = os.readlink(f"/proc/{pid}/exe")
    if program != f"/usr/sbin/{daemon()}":
        raise AssertionError(f"libvirt's QEMU driver is in {program}, not in {daemon()}")
    return pid


def new_domain(**options):
    return started(Domain("web", **LIGHT, **options), NEW)


def loaded():
    """The domain under load; a test that broke it does not break the next one."""
    libvirt()
    guest = kept("domain", new_domain)
    try:
        if guest.show()["alive"]:
            return guest
    except subprocess.CalledProcessError:
        pass
    stop_shared()
    return kept("domain", new_domain)


def last_upgrade(name):
    """Its number and its report; those of the one that is under way come later."""
    known = reports(name)
    return (known[0]["upgrade_id"], known[0]) if known else (0, None)


def settled(name, before):
    """The report of the upgrade that came after that one."""
    def ended():
        number, report = last_upgrade(name)
        return not ctl("show", name)[1][-1].get("upgrade_id") and number != before and report
    return wait_until(ended, 200, "the upgrade ends, and is in the history")


def set_max_running(case, number):
    """Until the test ends."""
    conf = pathlib.Path("/etc/upgraded/upgraded.conf.d/test.conf")
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(f"[Daemon]\nMaxRunning={number}\n")
    case.addCleanup(sh, "systemctl", "reload", "upgraded.service")
    case.addCleanup(conf.unlink)
    ctl("list")
    sh("systemctl", "reload", "upgraded.service", check=True)


class Libvirt(Case):
    def guest(self):
        return loaded()

    def upgraded(self, guest):
        source = self.begin(guest)
        status, report = guest.upgrade(NEW)
        target = self.committed(guest, status, report, source)
        self.healthy(guest, f"{report['blackout_ms']:.0f} ms between the two QEMUs")
        return source, target

    def test_a_domain_is_upgraded_and_libvirt_sees_the_same_one(self):
        guest = self.guest()
        before = {word: virsh(word, guest.name) for word in ("domid", "domuuid", "domblklist", "domiflist", "vcpucount")}
        for _ in range(2):
            _, target = self.upgraded(guest)
            self.assertEqual({word: virsh(word, guest.name) for word in before}, before)
            self.assertEqual(guest.state().split()[0], "running")
            self.assertEqual(pathlib.Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text().strip(), str(target))
            self.assertIn("VM status: running", virsh("qemu-monitor-command", guest.name, "--hmp", "info status"))
            self.assertIn(guest.name, sh("machinectl", "list", "--no-pager").stdout)
            saw(f"libvirt's daemon is {daemon()}, process {libvirts_pid()}")

    def test_vcpus_are_in_their_cgroups(self):
        guest = self.guest()
        self.upgraded(guest)
        self.assertEqual(guest.pinning(), {i: ("0", f"vcpu{i}", "0") for i in range(guest.smp)})

    def test_suspend_and_resume_work_afterwards(self):
        guest = self.guest()
        self.upgraded(guest)
        virsh("suspend", guest.name)
        self.assertEqual(guest.state(), "paused (user)")
        virsh("resume", guest.name)
        self.assertEqual(guest.state(), "running (unpaused)")
        self.assertEqual(guest.fresh_report()["errors"], 0)

    def test_a_failed_upgrade_leaves_it_as_it_was(self):
        guest = self.guest()
        for phase in ("prepare", "freeze"):
            source = self.begin(guest)
            with not_after_commit(phase, source):
                attempt = Attempt(guest, NEW, "--max-blackout", "8000", on={phase: target_gets(signal.SIGKILL)})
                self.rolled_back(guest, attempt, source, f"target killed at {phase}")
            self.assertEqual(guest.state().split()[0], "running")
            self.assertIn("VM status: running", virsh("qemu-monitor-command", guest.name, "--hmp", "info status"))

    def test_a_job_of_libvirts_is_in_the_way(self):
        guest = self.guest()
        source = self.begin(guest)
        copy = guest.dir / "copy.qcow2"
        virsh("blockcopy", guest.name, "vda", "--dest", copy, "--format", "qcow2", "--transient-job")
        try:
            status, answer = ctl("check", guest.name)
            found = {f["code"] for f in answer[-1]["findings"] if f["severity"] == "blocker"}
            self.assertEqual(status, REFUSED, answer)
            self.assertIn("libvirt.block-job", found)
            status, report = guest.upgrade(NEW)
            self.assertEqual(status, REFUSED, report)
        finally:
            virsh("blockjob", guest.name, "vda", "--abort")
        self.assertEqual(guest.pid(), source)
        self.healthy(guest, f"refused by {' '.join(sorted(found))}")
        wait_until(lambda: ctl("check", guest.name)[0] == 0, 30, "nothing is in the way any more")

    def test_the_emulator_stays_unless_asked(self):
        guest = self.guest()
        before = guest.emulators()
        self.upgraded(guest)
        self.assertEqual(guest.emulators(), before)
        other = pathlib.Path("/var/tmp/qemu-other")
        other.unlink(missing_ok=True)
        other.symlink_to(NEW)
        status, report = guest.upgrade(other, "--set-emulator")
        self.assertEqual(status, 0, report)
        self.assertEqual(guest.emulators(), (str(other), str(other)))
        status, report = guest.upgrade(before[0], "--set-emulator")
        self.assertEqual((status, guest.emulators()), (0, before), report)
        other.unlink()

    def test_a_wrong_target_is_refused(self):
        guest = self.guest()
        source = self.begin(guest)
        status, report = guest.upgrade("/bin/true")
        self.assertEqual(status, REFUSED, report)
        self.assertEqual(guest.pid(), source)
        self.assertEqual(guest.state().split()[0], "running")
        self.healthy(guest, "a binary that is no QEMU")

    def test_a_domain_that_ends_is_forgotten(self):
        guest = self.guest()
        pid = guest.pid()
        virsh("destroy", guest.name)
        wait_until(lambda: not alive(pid), 20, "the target ends with its domain")
        status, answer = ctl("list")
        self.assertEqual((status, [vm for vm in answer[-1]["vms"] if vm["name"] == guest.name]), (0, []))


class Access(Case):
    """Beside libvirt there is a polkit; a member of the group is denied some, and polkit is asked then."""

    RULE = pathlib.Path("/etc/polkit-1/rules.d/10-upgraded-test.rules")

    def forget(self, name):
        r = sh("runuser", "-u", "op", "--", "upgradectl", "forget", name)
        return r.returncode, r.stderr

    def test_polkit_may_allow_what_the_group_may_not(self):
        sh("useradd", "--groups", "upgraded", "op", check=True)
        self.assertEqual(sh("runuser", "-u", "op", "--", "upgradectl", "list").returncode, 0)
        status, said = self.forget("absent")
        self.assertEqual(status, DENIED, said)
        self.assertIn("polkit does not allow it either", " ".join(said.split()))
        self.RULE.write_text("""polkit.addRule(function(action, subject) {
            if (action.id == "org.upgraded.manage" && subject.user == "op")
                return polkit.Result.YES;
        });\n""")
        # Allowed: now it is the name that is wrong.
        wait_until(lambda: self.forget("absent")[0] == NO_SUCH_VM, 20, "polkit has read the rule")
        run = sh("runuser", "-u", "op", "--", "upgradectl", "run", "x", "--", "/bin/true")
        self.assertEqual(run.returncode, DENIED, run.stderr)
        lines = sh("journalctl", "-o", "json", "--no-pager", "UPGRADED_REQUEST=forget").stdout.splitlines()
        decisions = [json.loads(line)["UPGRADED_DECISION"] for line in lines]
        self.assertEqual((decisions[0], decisions[-1]), ("denied", "granted"))
        saw(f"forget by a member of the group: {' '.join(decisions)}")
        self.RULE.unlink()


class Recorder:
    """The events of one kind of libvirt's, as a client hears them."""

    def __init__(self, *words):
        self.words, self.lines, self.process, self.ending = words, [], None, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        """From one connection to the next."""
        while not self.ending.is_set():
            # What goes into a pipe would stay in a buffer.
            self.process = subprocess.Popen(["stdbuf", "-oL", "virsh", *self.words, "--loop"], stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True)
            for line in self.process.stdout:
                if line.startswith("event ") and " for domain " in line:
                    self.lines.append(line.strip())
            self.process.wait()
            self.ending.wait(1)

    def hears(self, act):
        """By another connection: a restart of libvirt's daemon has cut the one before."""
        known = len(self.lines)
        self.process.terminate()
        wait_until(lambda: act() or len(self.lines) > known, 60, f"virsh {' '.join(self.words)} hears something")

    def events(self, name, since=0):
        """What is said of each with this name."""
        pattern = re.compile(rf"event '?{name}'? .*for domain '?[\w-]+'?:? ?(.*)")
        return [match[1] for line in self.lines[since:] if (match := pattern.fullmatch(line))]

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.process, 10, "virsh is started")
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.process.terminate()
        self.thread.join(10)


class Away(Case):
    """How long libvirt's daemon is out of service at an upgrade, beside a plain restart of it in the same run."""

    long = True
    PARTS = {"stops": ("ActiveExit", "InactiveEnter"), "is held by upgraded": ("InactiveEnter", "ExecMainStart"),
             "starts": ("ExecMainStart", "ActiveEnter")}
    # On a machine where everything else takes its turns as well; there would be a reason for more.
    RATIO = 4

    def setUp(self):
        libvirt()
        self.domains = [Small(f"away{i:02}") for i in range(BATCH if "batch" in self.id() else 1)]
        self.quiet = 1
        for domain in self.domains:
            self.addCleanup(domain.stop)
            domain.start(NEW)
        # Small guests need little, but they all want it at once.
        self.words = ["--timeout", "900", "--max-blackout", "60000"] if len(self.domains) > 1 else []

    def last_restart(self):
        """{part: ms}: until the old one had ended, until the new one was executed, until that says that it is ready."""
        stamp = "TimestampMonotonic"
        at = unit(f"{daemon()}.service", *(f"{name}{stamp}" for part in self.PARTS.values() for name in part))
        return {part: (int(at[end + stamp]) - int(at[begin + stamp])) / 1000 for part, (begin, end) in self.PARTS.items()}

    def starts(self):
        """How often systemd has started it."""
        return len(sh("journalctl", "-b", "-o", "cat", "--no-pager", "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf",
                      f"UNIT={daemon()}.service").stdout.splitlines())

    def seen(self):
        """The restart that is over or about to be. Whoever polls for that takes the time that it measures."""
        time.sleep(self.quiet)
        parts = wait_until(lambda: (p := self.last_restart()) and min(p.values()) >= 0 and p, 60, "libvirt's daemon is back")
        for domain in self.domains:
            self.assertEqual(virsh("domstate", domain.name), "running")
            self.assertTrue(alive(domain.pid()))
        return parts

    def plain_restart(self):
        subprocess.run(["systemctl", "restart", f"{daemon()}.service"], check=True)
        parts = self.seen()
        self.quiet = max(self.quiet, 4 * sum(parts.values()) / 1000)
        return parts

    def upgrade(self):
        before = {domain.name: domain.pid() for domain in self.domains}
        running = [subprocess.Popen([*upgrade_command(d.name, NEW), *self.words], stdout=subprocess.PIPE, text=True)
                   for d in self.domains]
        for process in running:
            self.assertEqual(process.wait(), 0, process.stdout.read())
        parts = self.seen()
        for domain in self.domains:
            self.assertNotEqual(domain.pid(), before[domain.name])
        return parts

    def tell(self, **runs):
        """The figures, and how the medians compare."""
        total = {what: [sum(run.values()) for run in r] for what, r in runs.items()}
        for what, r in runs.items():
            parts = ", ".join(f"{part} {statistics.median(run[part] for run in r):.0f}" for part in self.PARTS)
            saw(f"{what.replace('_', ' ')}: away for {statistics.median(total[what]):.0f} ms "
                f"({min(total[what]):.0f} to {max(total[what]):.0f}); medians: {parts}")
        ratio = statistics.median(total["upgrade"]) / statistics.median(total["plain_restart"])
        saw(f"{ratio:.2f} times as long as a plain restart")
        self.assertLess(ratio, self.RATIO)

    def test_how_long_libvirts_daemon_is_away(self):
        plain, upgrade = [], []
        for _ in range(AWAY_ROUNDS):
            plain.append(self.plain_restart())
            upgrade.append(self.upgrade())
        self.tell(plain_restart=plain, upgrade=upgrade)

    def test_one_restart_serves_a_batch(self):
        """None of them is rolled back because another one had libvirt's daemon restarted."""
        set_max_running(self, BATCH)
        plain = [self.plain_restart() for _ in range(3)]
        before = self.starts()
        upgrade = [self.upgrade()]
        saw(f"{BATCH} domains at once, {self.starts() - before} restart")
        self.assertEqual(self.starts() - before, 1)
        self.tell(plain_restart=plain, upgrade=upgrade)

    test_how_long_libvirts_daemon_is_away.seconds = 900
    test_one_restart_serves_a_batch.seconds = 300 + 300 * BATCH


class Commands(Case):
    """What virsh says of a domain that has what domains have, before an upgrade and after it."""

    long = True
    # All others must work. {command: (libvirt's words, why)}
    FAIL = {"qemu-agent-command": ("agent is not connected", "no agent runs in the guest"),
            "domtime": ("agent is not connected", "it is the agent's answer"),
            "migrate": ("same host|[Uu]nsafe", "its disk is this host's, and so is where it would go")}

    def ask(self, guest):
        """{command: [status, words]}"""
        def said(*words):
            r = sh("virsh", "-q", *words)
            return [r.returncode, (r.stdout + r.stderr).strip()]

        extra = guest.dir / "extra.raw"
        extra.touch()
        os.truncate(extra, 8 << 20)
        n, table = guest.name, {}
        for words in (["domstate", n], ["dominfo", n], ["vcpucount", n], ["vcpupin", n], ["emulatorpin", n], ["domblklist", n],
                      ["domiflist", n], ["domdisplay", n], ["dumpxml", n], ["dumpxml", n, "--inactive"], ["domjobinfo", n],
                      ["qemu-monitor-command", n, '{"execute":"query-status"}'], ["qemu-agent-command", n, '{"execute":"guest-ping"}'],
                      ["suspend", n], ["domstate", n, "--reason"], ["resume", n], ["domstate", n, "--reason"],
                      ["setmem", n, "300M", "--live"], ["setmem", n, f"{guest.memory}M", "--live"],
                      ["setvcpus", n, str(guest.smp), "--live"],
                      ["attach-disk", n, str(extra), "sdb", "--targetbus", "usb", "--subdriver", "raw"],
                      ["domblklist", n], ["detach-disk", n, "sdb"], ["domblklist", n], ["schedinfo", n], ["domtime", n],
                      ["migrate", n, "qemu:///system", "--live"], ["shutdown", n, "--mode", "acpi"],
                      ["reboot", n, "--mode", "acpi"], ["domstats", n], ["vcpuinfo", n]):
            key, again = " ".join(words), 1
            while key in table:
                again += 1
                key = f"{' '.join(words)} #{again}"
            table[key] = said(*words)
        guest.echo("typed")
        table["console"] = [0, "what is typed comes back"]
        images = guest.images()
        self.assertEqual({len(files) for files in images.values()}, {1, 2}, images)  # the CD, and a disk on its backing file
        table["images"] = [0, json.dumps(images)]
        # Of what counts up, what is there.
        for key, sign in ((f"domstats {n}", "="), (f"vcpuinfo {n}", ":")):
            table[key][1] = "\n".join(sorted(line.strip().split(sign)[0] for line in table[key][1].splitlines()))
        for answer in table.values():
            lines = [line for line in answer[1].splitlines() if not line.startswith("CPU time")]
            answer[1] = re.sub(r'("id":"libvirt-|/dev/pts/)\d+', r"\1N", "\n".join(lines))
        for key, (status, text) in table.items():
            words, why = self.FAIL.get(key.split()[0], (None, "it works"))
            self.assertEqual(status != 0, words is not None, f"{key} ({why}): {text}")
            if words:
                self.assertRegex(text, words, f"{key} ({why})")
        return table

    def heard(self, guest, libvirts, qemus):
        """What ask() says, while clients hear that it pauses the domain once and presses its power button twice."""
        host, port = virsh("domdisplay", guest.name).removeprefix("vnc://").split(":")

        def look_at_display():
            socket.create_connection((host, 5900 + int(port)), 10).close()
            time.sleep(0.3)
        for recorder in (libvirts, qemus):
            recorder.hears(look_at_display)
        since, pressed = len(libvirts.lines), len(qemus.lines)
        table = self.ask(guest)
        wait_until(lambda: len(libvirts.events("lifecycle", since)) >= 2 and len(qemus.events("POWERDOWN", pressed)) >= 2,
                   20, lambda: f"events: {libvirts.lines[since:]} {qemus.lines[pressed:]}")
        self.assertEqual(libvirts.events("lifecycle", since), ["Suspended Paused", "Resumed Unpaused"])
        self.assertEqual(len(qemus.events("POWERDOWN", pressed)), 2)
        return table

    def test_ten_upgrades_change_nothing_that_virsh_says(self):
        libvirt()
        stop_shared()
        self.addCleanup(stop_shared)
        guest = kept("domain", lambda: new_domain(smp=2))
        pins = {i: ("0", f"vcpu{i}", "0") for i in range(2)}
        self.assertEqual(guest.pinning(), pins)
        # The first time it is virsh qemu-monitor-command that taints the domain, as an upgrade does.
        self.ask(guest)
        gaps = []
        with Recorder("event", "--all") as libvirts, Recorder("qemu-monitor-event") as qemus:
            before = self.heard(guest, libvirts, qemus)
            for n in range(ROUNDS):
                source = self.begin(guest)
                if n % 2:
                    with not_after_commit("freeze", source):
                        attempt = Attempt(guest, NEW, "--max-blackout", "8000", on={"freeze": target_gets(signal.SIGKILL)})
                        self.rolled_back(guest, attempt, source, f"round {n}")
                    source = self.begin(guest)
                status, report = guest.upgrade(NEW)
                self.committed(guest, status, report, source)
                gaps.append(self.healthy(guest))
                after = self.heard(guest, libvirts, qemus)
                TABLE.write_text(json.dumps([{"command": c, "before": before[c], "after": after[c]} for c in before], indent=1))
                self.assertEqual(after, before, f"round {n}")
                self.assertEqual(guest.pinning(), pins)
                self.assertIn(guest.name, sh("machinectl", "list", "--no-pager").stdout)
        ends = ("Stopped", "Crashed", "Shutdown", "Undefined")
        self.assertEqual([event for event in libvirts.events("lifecycle") if event.startswith(ends)], [])
        works = sum(status == 0 for status, _ in before.values())
        saw(f"{ROUNDS} upgrades, {ROUNDS // 2} rollbacks, {len(before)} commands as before ({works} of them work); the guest "
            f"stood still for {max(gaps):.0f} ms at most; {len(libvirts.lines)} events, none of an end")

    test_ten_upgrades_change_nothing_that_virsh_says.seconds = 300 + 300 * ROUNDS


class Kills(Case):
    """Somebody is killed while the worker stands at a boundary: the domain goes on, and libvirt sees what is there."""

    long = not POINTS
    CELLS = [(point, "target") for point in ("target-started", "verified", "frozen", "held", "committed")]
    # The state is in custody: the source is not needed any more, and libvirt does not see it go.
    CELLS += [(point, "source") for point in ("state-whole", "frozen", "held", "committed", "ran")]
    CELLS += [(point, who) for point in ("examined", "target-started", "verified", "frozen", "held", "committed", "ran")
              for who in ("libvirt", "upgraded")]
    CELLS += [("finished", "upgraded")]
    # libvirt's daemon is between its end and its start; upgraded dies right there.
    CELLS += [(point, "upgraded") for point in ("daemon.end-due", "daemon.end-journaled")]
    # As of any VMM that dies under its guest.
    ENDS = [("verified", "source"), ("ran", "target")]

    def kill(self, who, attempt, source):
        if who == "libvirt":
            pid = libvirts_pid()
        elif who == "upgraded":
            pid = daemon_pid()
        elif who == "source":
            pid = source
        else:
            new = targets() - attempt.before
            pid, = new
        os.kill(pid, signal.SIGKILL)

    def vmms(self, name):
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit() and alive(pid):
                try:
                    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if any(word.startswith(f"guest={name},".encode()) for word in words):
                    found.append(int(pid))
        return found

    def hit(self, guest, point, who):
        source, (before, _) = self.begin(guest), last_upgrade(guest.name)
        fault(f"{point} kill" if point.startswith("daemon.") else f"worker.{point} sleep 60000")
        attempt = Attempt(guest, NEW, "--max-blackout", "20000")
        wait_until(lambda: FAULTS_SEEN.exists() or attempt.report, 120, f"the worker comes to {point}")
        self.assertTrue(FAULTS_SEEN.exists(), attempt.report)
        if not point.startswith("daemon."):
            self.kill(who, attempt, source)
            fault()
        attempt.wait(200)
        fault()
        return source, settled(guest.name, before)

    def ended(self, guest, point, who):
        _, report = self.hit(guest, point, who)
        wait_until(lambda: sh("virsh", "-q", "domstate", guest.name).stdout.strip() == "shut off", 90, "libvirt says that it ended")
        wait_until(lambda: not self.vmms(guest.name), 20, lambda: f"no VMM is left: {self.vmms(guest.name)}")
        saw(f"{point:<20} {who:<8} {report['outcome']:<11} its VMM has died, and libvirt says so")

    def cell(self, guest, point, who):
        source, report = self.hit(guest, point, who)
        wait_until(lambda: sh("virsh", "-q", "domstate", guest.name).stdout.strip() == "running", 90, "libvirt says that it runs")
        pid, = wait_until(lambda: len(found := self.vmms(guest.name)) == 1 and found, 20, lambda: f"one VMM: {self.vmms(guest.name)}")
        self.assertEqual(int(pathlib.Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text()), pid)
        self.assertEqual(guest.pid(), pid)
        self.assertEqual(pid == source, report["outcome"] != "committed", report)
        self.assertIn("VM status: running", virsh("qemu-monitor-command", guest.name, "--hmp", "info status"))
        gap = self.healthy(guest)
        saw(f"{point:<20} {who:<8} {report['outcome']:<11} {gap:5.0f} ms")

    def test_whoever_is_killed_the_domain_goes_on(self):
        libvirt()
        take_faults()
        failed = []
        for point, who in self.CELLS + self.ENDS:
            if POINTS and point not in POINTS:
                continue
            try:
                (self.ended if (point, who) in self.ENDS else self.cell)(loaded(), point, who)
            except Exception as e:  # pylint: disable=broad-except
                failed.append(f"{point} {who}: {e}")
                saw(f"{point:<20} {who:<8} FAILED: {str(e)[:600]}")
                fault()
        self.assertEqual(failed, [])

    test_whoever_is_killed_the_domain_goes_on.seconds = 5400


class Waits(Case):
    long = True

    def test_a_check_does_not_fall_into_the_restart_of_libvirt(self):
        guest, other = loaded(), Small("other")
        self.addCleanup(other.stop)
        other.start(NEW)
        source, answers = self.begin(guest), []
        attempt = Attempt(guest, NEW, "--max-blackout", "20000")
        while attempt.process.poll() is None:
            answers.append(ctl("check", other.name, "--vmm", NEW))
        status, report = attempt.wait()
        self.committed(guest, status, report, source)
        answers.append(ctl("check", other.name, "--vmm", NEW))
        self.assertEqual([answer for answer in answers if answer[0]], [])
        self.healthy(guest, f"{len(answers)} checks of another domain meanwhile")

    def test_a_target_that_hangs_when_it_runs_is_waited_for(self):
        """libvirt would not find it, take the domain for ended, and end it."""
        guest, other = loaded(), Small("other")
        self.addCleanup(other.stop)
        other.start(NEW)
        take_faults()
        source, libvirt_was = self.begin(guest), libvirts_pid()
        fault("worker.ran sleep 60000")
        attempt = Attempt(guest, NEW, "--max-blackout", "20000")
        target = attempt.held_at("worker.ran")
        os.kill(target, signal.SIGSTOP)
        fault()
        try:
            wait_until(lambda: f"the target (process {target}) does not answer" in
                       sh("journalctl", "-b", "-o", "cat", "--no-pager", "-u", "upgraded.service").stdout, 200, "upgraded gives up for now")
            # Another one that needs the restart waits for no others but a minute, and for this one as long as it takes.
            second = Attempt(other, NEW, "--max-blackout", "20000")
            wait_until(lambda: "done" in second.events or second.report, 200, "the other one's target runs")
            time.sleep(70)
            self.assertEqual((libvirts_pid(), second.report, attempt.report), (libvirt_was, None, None))
            # As the source was seen last, when it stood still.
            self.assertEqual(guest.state().split()[0], "paused")
            self.assertTrue(guest.show()["upgrade_id"])
        finally:
            os.kill(target, signal.SIGCONT)
        status, report = second.wait(200)
        self.assertEqual((status, report["outcome"]), (0, "committed"), report)
        status, report = attempt.wait(200)
        self.committed(guest, status, report, source)
        self.assertEqual((guest.state().split()[0], guest.pid()), ("running", target))
        self.assertIn("VM status: running", virsh("qemu-monitor-command", guest.name, "--hmp", "info status"))
        self.healthy(guest, "libvirt sees it")


class Fleet(Case):
    long = True
    RUNNING = 2  # of the daemon's; the command would begin more

    def programs(self):
        """What all of them run but one, and what that one runs."""
        folder = pathlib.Path(NEW).resolve().parent
        return folder / "fleet-qemu", folder / "fleet-qemu-bad"

    def replace(self, good, bad):
        """As a package manager does it. One target has another device where its source has the balloon: that shows when
        it is compared with the source, or loads the state."""
        shutil.copy(NEW, f"{good}.new")
        other = "${args[@]/virtio-balloon-pci/virtio-rng-pci}"
        pathlib.Path(f"{bad}.new").write_text(f'#!/bin/bash\nargs=("$@")\nexec {NEW} "{other}"\n')
        os.chmod(f"{bad}.new", 0o755)
        for program in (good, bad):
            os.rename(f"{program}.new", program)

    def at_once(self, domains):
        """How many upgrades ran at one time, at most."""
        spans = [(r["started_at_us"], r["started_at_us"] + r["total_us"]) for d in domains for r in reports(d.name)]
        return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)

    def test_twenty_domains_in_one_go(self):
        stop_shared()
        libvirt()
        set_max_running(self, self.RUNNING)
        good, bad = self.programs()
        for program in (good, bad):
            shutil.copy(NEW, program)
            self.addCleanup(program.unlink)
        # The last one has memory of its own, and cannot be upgraded; one that is paused is upgraded, and stays paused.
        domains = [Small(f"small{i:02}", private=i == DOMAINS - 1) for i in range(DOMAINS)]
        failing, paused, refused = domains[1], domains[2], domains[-1]
        expected = {d.name: "committed" for d in domains} | {failing.name: "rolled_back", refused.name: "refused"}
        try:
            for domain in domains:
                domain.start(bad if domain is failing else good)
            before = {d.name: (d.pid(), d.cgroup()) for d in domains}
            self.replace(good, bad)
            virsh("suspend", paused.name)
            status, answer = ctl("upgrade", "--all-outdated", "small*", "--max-parallel", self.RUNNING + 1, "--timeout", "300")
            fleet = answer[-1]["fleet"]
            self.assertEqual({vm["vm"]: vm["result"] for vm in fleet["vms"]}, expected, json.dumps(fleet))
            self.assertEqual(status, SOME)
            report = reports(failing.name)[0]
            self.assertEqual(report["outcome"], "rolled_back", report)
            self.assertIn(report["failed_phase"], ("check", "freeze", "load"), report)
            for d in domains:
                self.assertEqual(virsh("domstate", d.name), "paused" if d is paused else "running")
                self.assertEqual(d.cgroup(), before[d.name][1])
                self.assertEqual(d.pid() == before[d.name][0], expected[d.name] != "committed")
            at_once = self.at_once(domains)
            self.assertEqual(at_once, self.RUNNING)
            saw(f"{len(domains)} domains: {fleet['counts']}, {at_once} at a time; {failing.name}: {report['error']}")
        finally:
            for domain in domains:
                domain.stop()

    test_twenty_domains_in_one_go.seconds = 300 + 150 * DOMAINS
