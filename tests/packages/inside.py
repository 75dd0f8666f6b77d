# SPDX-License-Identifier: GPL-2.0-or-later
"""See tests/packages/run. One test after the other: each begins where the one before has ended."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import unittest

SHARE = pathlib.Path("/mnt/share")
QEMU = pathlib.Path("/usr/bin/qemu-system-x86_64")
VERSION = sys.argv.pop(1)
HOME = pathlib.Path("/root/try")
# Read by the daemon and the workers: daemon/fault_point.c.
FAULTS = pathlib.Path("/run/upgraded-faults/list")
DROP_IN = pathlib.Path("/run/systemd/system/upgraded.service.d/faults.conf")
HELD = 60  # s


def sh(command, check=True, timeout=600):
    r = subprocess.run(["bash", "-e", "-c", command], cwd=HOME, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check and r.returncode:
        raise AssertionError(f"{command}: status {r.returncode}\n{r.stdout}")
    return r if not check else r.stdout


def blocks(page):
    """What a reader types: the indented lines, each command by itself; a here-document is one."""
    out, within = [], None
    for line in page.read_text().splitlines():
        text = line.removeprefix("    ")
        if within:
            out[-1] += "\n" + text
            within = None if text == within else within
        elif line.startswith("    "):
            out.append(text)
            m = re.search(r"<<'(\w+)'", text)
            within = m and m.group(1)
    return out


def vms():
    return {vm["name"]: vm for vm in json.loads(sh("upgradectl list --json"))["vms"]}


def until(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s: {what}")
        time.sleep(0.2)


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        HOME.mkdir(exist_ok=True)
        for package in (SHARE / "build/deb").glob("*.deb"):
            shutil.copy(package, HOME)
        # What such a host has: a QEMU and libvirt.
        QEMU.symlink_to("/opt/qemu-11.1/bin/qemu-system-x86_64")
        sh("systemctl start virtlogd.socket libvirtd.socket")

    def test_1_nothing_of_it_is_there(self):
        self.assertIsNone(shutil.which("upgradectl"))
        self.assertNotEqual(sh("systemctl cat upgraded.service", check=False).returncode, 0)

    def test_2_the_quick_start_works_as_it_stands(self):
        begin = time.monotonic()
        for command in blocks(SHARE / "docs/quick-start.md"):
            at = time.monotonic()
            said = sh(command)
            print(f"  {time.monotonic() - at:5.1f} s  {command.splitlines()[0]}", flush=True)
            if command.startswith("upgradectl upgrade"):
                self.assertIn("committed", said)
            if command.startswith("virsh domstate"):
                self.assertIn("running", said)
        took = time.monotonic() - begin
        print(f"  the quick start: {took:.0f} s of emulated hardware")
        self.assertLess(took, 600)
        self.assertIn("committed", (HOME / "report.html").read_text())

    def test_3_what_a_package_brings_is_there(self):
        self.assertEqual(sh("getent group upgraded").split(":")[0], "upgraded")
        self.assertEqual(sh("stat -c '%U %G %a' /run/upgraded/control.sock").split(), ["root", "upgraded", "660"])
        self.assertEqual(sh("systemctl is-enabled upgraded.socket upgraded-vmm.socket").split(), ["enabled", "enabled"])
        self.assertIn("disabled", sh("systemctl is-enabled upgraded-metrics.timer || true"))
        brought = sh("dpkg --listfiles upgraded").splitlines()  # this Debian may leave manuals out
        for page in ("man1/upgradectl.1", "man5/upgraded.conf.5", "man7/upgraded-protocol.7", "man8/upgraded.8"):
            self.assertIn(f"/usr/share/man/{page}.gz", brought)
        self.assertIn("Mode", sh("upgradectl config"))
        sh("systemctl daemon-reload; systemd-analyze verify --man=no upgraded.service upgraded.socket upgraded-vmm.socket upgraded-outdated.service "
           "upgraded-metrics.service upgraded-metrics.timer")

    def test_4_metrics_are_written(self):
        folder = pathlib.Path("/var/lib/prometheus/node-exporter")
        folder.mkdir(parents=True, exist_ok=True)
        sh("systemctl start upgraded-metrics.service")
        text = (folder / "upgraded.prom").read_text()
        self.assertRegex(text, r'upgraded_upgrades_total\{outcome="committed",tier="memfd"\} 1\n')
        self.assertRegex(text, r"upgraded_blackout_seconds_count 1\n")

    def hold_upgrades(self):
        """The next upgrade stands still for a while, before the guest does."""
        for path in (FAULTS, DROP_IN):
            path.parent.mkdir(parents=True, exist_ok=True)
        FAULTS.write_text(f"worker.verified sleep {HELD}000\n")
        DROP_IN.write_text(f"[Service]\nEnvironment=UPGRADED_FAULTS={FAULTS}\n")
        self.addCleanup(sh, f"rm -f {FAULTS} {DROP_IN}; systemctl daemon-reload; systemctl try-restart upgraded.service")
        sh("systemctl daemon-reload; systemctl stop upgraded.service")

    def test_5_the_package_is_replaced_in_the_middle_of_an_upgrade(self):
        sh("virsh define web1.xml; virsh start web1")
        self.hold_upgrades()
        source = vms()["web1"]["process"]["pid"]
        daemon = sh("systemctl show -P MainPID upgraded.service").strip()
        upgrade = subprocess.Popen(["upgradectl", "upgrade", "web1", "--json"], stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        until("it is under way", FAULTS.with_name("list.seen").exists, 120)
        held = time.monotonic()
        number = vms()["web1"]["upgrade_id"]
        refused = sh("dpkg --remove upgraded", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("an upgrade of a VM is under way", refused.stdout)
        sh(f"dpkg --install upgraded_{VERSION}+next_amd64.deb")
        self.assertEqual(vms()["web1"]["upgrade_id"], number)
        self.assertNotEqual(sh("systemctl show -P MainPID upgraded.service").strip(), daemon)
        self.assertLess(time.monotonic() - held, HELD, "the package was replaced too late to prove anything")
        upgrade.communicate(timeout=300)
        until("it has ended", lambda: not vms()["web1"].get("upgrade_id"), 300)
        last = json.loads(sh("upgradectl report web1 --json"))
        print(f"  {last['outcome']}: {last['error'] or 'nothing in the way'}")
        # The worker undoes what it did without its daemon, and the next daemon makes sure.
        self.assertEqual((last["upgrade_id"], last["outcome"]), (number, "rolled_back"))
        self.assertEqual(vms()["web1"]["process"]["pid"], source)
        until("libvirt has it running", lambda: sh("virsh -q domstate web1", check=False).stdout.strip() == "running")
        self.assertIn("committed", sh("upgradectl upgrade web1"))

    def test_6_removed_it_leaves_the_guests_alone(self):
        pid = vms()["web1"]["process"]["pid"]
        sh("apt-get remove -y upgraded")
        self.assertTrue(os.path.exists(f"/proc/{pid}"))
        self.assertEqual(sh("virsh -q domstate web1").strip(), "running")
        self.assertFalse(os.path.exists("/run/upgraded/control.sock"))
        self.assertTrue(os.path.exists("/etc/upgraded/upgraded.conf"))
        sh("systemctl restart libvirtd.service")  # which nobody is to be asked about any more
        self.assertEqual(sh("virsh -q domstate web1").strip(), "running")

    def test_7_purged_it_leaves_nothing(self):
        sh("dpkg --purge upgraded libupgraded0")
        for path in ("/etc/upgraded", "/var/lib/upgraded", "/run/upgraded", "/usr/libexec/upgraded", "/usr/sbin/upgraded"):
            self.assertFalse(os.path.exists(path), path)
        sh("virsh destroy web1; virsh undefine web1")

    def test_8_and_installed_again_it_works(self):
        sh(f"apt-get install -y ./libupgraded0_{VERSION}_amd64.deb ./upgraded_{VERSION}_amd64.deb")
        self.assertEqual(sh("upgradectl list --json | tr -d ' \\n'"), '{"vms":[]}')


unittest.main(verbosity=2, failfast=True)
