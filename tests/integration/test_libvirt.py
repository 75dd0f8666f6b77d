# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of an unpatched libvirt, upgraded in place; tests/libvirt/run brings a root file system that has libvirt."""

import pathlib
import subprocess

from common import NEW, Case, alive, kept, sh
from domain import Domain, virsh
from host import REFUSED, wait_until


def libvirt():
    subprocess.run(["systemctl", "start", "virtlogd.socket", "libvirtd.socket"], check=True)


class Libvirt(Case):
    def guest(self):
        libvirt()
        return kept("domain", lambda: Domain("web").start(NEW))

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

    def test_vcpus_are_in_their_cgroups(self):
        guest = self.guest()
        _, target = self.upgraded(guest)
        found = {}
        for task in pathlib.Path(f"/proc/{target}/task").iterdir():
            comm = (task / "comm").read_text().strip()
            if comm.startswith("CPU "):
                found[comm] = (task / "cgroup").read_text().strip().rsplit("/", 1)[1]
        self.assertEqual(found, {f"CPU {i}/KVM": f"vcpu{i}" for i in range(guest.smp)})

    def test_suspend_and_resume_work_afterwards(self):
        guest = self.guest()
        self.upgraded(guest)
        virsh("suspend", guest.name)
        self.assertEqual(guest.state(), "paused (user)")
        virsh("resume", guest.name)
        self.assertEqual(guest.state(), "running (unpaused)")
        self.assertEqual(guest.fresh_report(30)["errors"], 0)

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
        self.assertNotIn(guest.name, sh("upgradectl", "list").stdout)
