# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook of package managers: what becomes of VMs whose QEMU was replaced on disk, by the policy in upgraded.conf.
apt's file stands where an operator puts it, and what is run is what apt reads in it."""

import fnmatch
import pathlib
import re
import shlex
import shutil
import tempfile
import time

from common import LIGHT, NEW, Case, alive, ctl, kept, saw, sh, started, unit
from domain import halting_kernel
from host import UPGRADECTL, Guest, wait_until

PROGRAM = pathlib.Path(NEW).resolve().with_name("qemu-packaged")
HOOKS = pathlib.Path("/usr/share/doc/upgraded")
APT = pathlib.Path("/etc/apt/apt.conf.d/90upgraded")
POLICY = pathlib.Path("/etc/upgraded/upgraded.conf.d/50-test.conf")
SERVICE = "upgraded-outdated.service"
NAMES = ["first", "second", "third"]  # in this order they are upgraded
NONE = 10


class Idle:
    """A VM that halts for good."""

    def __init__(self, name):
        self.name, self.kernel = name, pathlib.Path(f"/var/tmp/{name}.bin")

    def start(self, binary, **_):
        self.kernel.write_bytes(halting_kernel())
        sh(UPGRADECTL, "run", self.name, "--", binary, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64",
           "-display", "none", "-nodefaults", "-kernel", self.kernel, check=True)

    def stop(self):
        sh("systemctl", "stop", f"vmm@{self.name}.service")
        sh(UPGRADECTL, "forget", self.name)

    def console(self, _=0):
        return ""


def replace(by=NEW):
    """As a package manager does it."""
    shutil.copy(pathlib.Path(by).resolve(), f"{PROGRAM}.new")
    pathlib.Path(f"{PROGRAM}.new").rename(PROGRAM)


def package():
    """A Debian package of the program."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        tree = pathlib.Path(folder, "tree")
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text("Package: qemu-packaged\nVersion: 1\nArchitecture: all\n"
                                             "Maintainer: testbed <root@localhost>\nDescription: a copy of QEMU\n")
        program = tree / PROGRAM.relative_to("/")
        program.parent.mkdir(parents=True)
        shutil.copy(pathlib.Path(NEW).resolve(), program)
        file = pathlib.Path("/var/tmp/qemu-packaged.deb")
        sh("dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, file, check=True)
    return file


def hook():
    """What apt has the shell run when dpkg has ended."""
    lines = sh("apt-config", "dump", "--format", "%v%n", "DPkg::Post-Invoke", check=True).stdout.splitlines()
    command, = [line for line in lines if "upgraded" in line]
    return sh("/bin/sh", "-c", command)


def outdated():
    status, answer = ctl("list", "--outdated")
    if status:
        raise AssertionError(answer)
    return sorted(vm["name"] for vm in answer[-1]["vms"])


def pids():
    return [ctl("show", name)[1][-1]["process"]["pid"] for name in NAMES]


def journal():
    return sh("journalctl", "-b", "-o", "cat", "--no-pager", "-u", SERVICE, check=True).stdout.splitlines()


class Outdated(Case):
    def setUp(self):
        """Three VMs of one program, which is another file by now."""
        if not PROGRAM.exists():
            replace()
        for name in NAMES[:2]:
            kept(name, lambda name=name: started(Idle(name), PROGRAM))
        self.guest = kept(NAMES[2], lambda: started(Guest(NAMES[2], smp=1, **LIGHT), PROGRAM))
        shutil.copy(HOOKS / "apt-hook", APT)
        self.addCleanup(self.undo)
        replace()
        self.assertEqual(outdated(), NAMES)
        self.before, self.known = pids(), len(journal())

    def undo(self):
        for file in (POLICY, APT):
            file.unlink(missing_ok=True)
        sh("systemctl", "reload", "upgraded.service")
        sh("systemctl", "stop", SERVICE)
        sh("systemctl", "reset-failed", SERVICE)

    def policy(self, *lines):
        POLICY.parent.mkdir(parents=True, exist_ok=True)
        POLICY.write_text("\n".join(["[Upgrade]", "PhaseTimeoutSec=150", "[Outdated]", *lines, ""]))
        sh("systemctl", "reload", "upgraded.service", check=True)

    def words(self):
        """Of the service since the test began."""
        return [line.strip() for line in journal()[self.known:]]

    def ended(self):
        """The service has been started and is over: {property: value}, and its words."""
        wait_until(lambda: any(re.match(r"\d of \d upgraded", line) for line in self.words()), 300, self.words)
        wait_until(lambda: unit(SERVICE, "ActiveState")["ActiveState"] != "activating", 20, "the service ends")
        return unit(SERVICE, "Result", "ExecMainStatus"), "\n".join(self.words())

    def told(self, said):
        """The hook has named all three; returns what it said then."""
        begin = "3 VMs run a binary that was replaced: "
        self.assertIn(begin, said)
        names, rest = said.split(begin)[1].split("\n", 1)
        self.assertEqual(sorted(names.split(", ")), NAMES)
        return rest

    def nothing_happened(self):
        self.assertEqual((outdated(), pids()), (NAMES, self.before))

    def test_off_is_the_default_and_does_nothing(self):
        said = hook()
        self.assertEqual((said.returncode, said.stdout + said.stderr), (0, ""))
        self.assertEqual(self.words(), [])
        mode, = [key for key in ctl("config")[1][-1]["config"] if key["key"] == "Mode"]
        self.assertEqual((mode["value"], mode["from"]), ("off", ""))
        # Nor by hand.
        sh("systemctl", "start", SERVICE, check=True)
        self.assertNotRegex("\n".join(self.words()), r"\d of \d upgraded")
        self.nothing_happened()

    def test_ask_says_who_and_how(self):
        self.policy("Mode=ask", "MaxParallel=2", "Canary=0", "StopAfter=3")
        said, command = hook(), "upgradectl upgrade --all-outdated --max-parallel 2 --stop-after 3"
        self.assertEqual((said.returncode, said.stderr), (0, ""))
        self.assertEqual(self.told(said.stdout), f"  upgrade them with: {command}\n")
        self.assertEqual(self.words(), [])
        tried = sh("/bin/sh", "-c", f"{command} --dry-run")
        self.assertEqual(tried.returncode, 0, tried.stdout + tried.stderr)
        self.assertIn("3 of 3 can be upgraded", tried.stdout)
        self.nothing_happened()

    def test_dnf_does_not_read_it_as_orders(self):
        """What an action prints is what libdnf5 does next; only the error output is the user's."""
        self.policy("Mode=ask")
        lines = (HOOKS / "dnf-hook").read_text().splitlines()
        action, = [line for line in lines if not line.startswith("#")]
        callback, names, direction, _, command = action.split(":", 4)
        self.assertEqual((callback, direction), ("post_transaction", "in"))
        self.assertTrue(fnmatch.fnmatch("qemu-system-x86-core", names))
        said = sh(*shlex.split(command))
        self.assertEqual((said.returncode, said.stdout), (0, ""))
        self.assertIn("  upgrade them with: upgradectl upgrade --all-outdated ", self.told(said.stderr))

    def test_auto_waits_for_its_window(self):
        hour = time.localtime().tm_hour
        self.policy("Mode=auto", f"Window={(hour + 5) % 24:02}:00-{(hour + 6) % 24:02}:00")
        for _ in range(2):  # another package meanwhile
            said = hook()
            self.assertEqual((said.returncode, said.stderr), (0, ""))
            self.assertEqual(self.told(said.stdout), f"  they are upgraded by {SERVICE}, as upgraded.conf says\n")
        wait_until(lambda: any("The window is closed for" in line for line in self.words()), 60, self.words)
        self.assertEqual(unit(SERVICE, "ActiveState")["ActiveState"], "activating")
        self.nothing_happened()
        sh("systemctl", "stop", SERVICE, check=True)
        self.assertIn("0 of 3 upgraded, 3 not begun", self.ended()[1])
        self.nothing_happened()

    def stops(self, *lines):
        """A target that is no QEMU, and this policy; what was said of all three."""
        self.policy("Mode=auto", *lines)
        self.known = len(journal())
        self.assertEqual(hook().returncode, 0)
        state, words = self.ended()
        self.assertEqual(state, {"Result": "exit-code", "ExecMainStatus": str(NONE)}, words)
        self.nothing_happened()
        return words

    def test_auto_stops_at_failures(self):
        self.begin(self.guest)
        replace(by="/bin/true")
        words = self.stops("Canary=0", "StopAfter=2")
        self.assertIn("0 of 3 upgraded, 2 refused, 1 not begun\nstopped: 2 failed", words)
        words = self.stops("Canary=1", "StopAfter=0")
        self.assertIn("0 of 3 upgraded, 1 refused, 2 not begun\nstopped: first, which went first, failed", words)
        self.healthy(self.guest, "a target that is no QEMU")

    def test_auto_upgrades_when_apt_has_installed_another(self):
        self.policy("Mode=auto")
        self.begin(self.guest)
        said = sh("apt-get", "install", "--yes", package())
        self.assertEqual(said.returncode, 0, said.stdout + said.stderr)
        self.assertIn(f"  they are upgraded by {SERVICE}, as upgraded.conf says\n", self.told(said.stdout))
        state, words = self.ended()
        self.assertEqual(state, {"Result": "success", "ExecMainStatus": "0"}, words)
        self.assertIn("3 of 3 upgraded", words)
        self.assertEqual((outdated(), [pid for pid in self.before if alive(pid)]), ([], []))
        for pid in pids():
            self.assertEqual(pathlib.Path(f"/proc/{pid}/exe").resolve(), PROGRAM)
        self.healthy(self.guest, "upgraded by the hook")
        self.assertEqual((said := hook()).stdout + said.stderr, "")
        saw(f"{SERVICE}: {state}")

    test_auto_upgrades_when_apt_has_installed_another.seconds = 1200
