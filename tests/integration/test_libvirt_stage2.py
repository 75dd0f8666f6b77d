# SPDX-License-Identifier: GPL-2.0-or-later
"""The tier stage2 under an unpatched libvirt: what it knows nothing of comes by <qemu:commandline>. tests/libvirt/run --stage2
brings the kernel and the QEMU for it."""

import os
import pathlib
import shutil
import signal

from common import LIGHT, Attempt, Case, kept, saw, started
from domain import Domain, virsh
from test_libvirt import libvirt
from test_rollback import not_after_commit, target_gets

PATCHED = pathlib.Path("/mnt/share/build/tiers/qemu-10.2")
# libvirt's QEMU has no right to see the share.
SOURCE, TARGET = pathlib.Path("/opt/qemu-patched-a"), pathlib.Path("/opt/qemu-patched-b")
FIRMWARE = ("-L", "/usr/share/seabios", "-L", "/usr/share/qemu")


def start():
    libvirt()
    for program in (SOURCE, TARGET):
        shutil.copy(PATCHED, program)
        os.chmod(program, 0o755)
    return started(Domain("web", machine_words="aux-ram-share=on,guest-memfd=on", graphics=False, arguments=FIRMWARE, **LIGHT), SOURCE)


class Stage2(Case):
    def guest(self):
        return kept("domain", start)

    def charged(self, guest):
        return int((guest.scope() / "memory.current").read_text())

    def test_memory_and_page_tables_of_a_domain_are_handed_over(self):
        guest = self.guest()
        self.assertEqual(guest.show()["driver"], "qemu")
        for program in (TARGET, SOURCE):
            source, scope, before = self.begin(guest), guest.scope(), self.charged(guest)
            status, report = guest.upgrade(program)
            target = self.committed(guest, status, report, source)
            self.assertEqual(report["tier"], "stage2", report["findings"])
            self.assertGreater(report["handover"]["tables"], 0)
            self.assertEqual(report["handover"]["matched"], report["handover"]["slots"])
            gap = self.healthy(guest)
            # Of the same cgroup it was and is: what moved is neither lost nor counted twice.
            after = self.charged(guest)
            self.assertEqual(guest.scope(), scope)
            self.assertLess(abs(after - before), 0.25 * before, f"{before} and {after} bytes")
            self.assertEqual(virsh("domstate", guest.name), "running")
            self.assertEqual(pathlib.Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text().strip(), str(target))
            saw(f"stage2: {report['handover']['tables']} tables of {report['handover']['slots']} slots; the guest stood still for {gap:.0f} ms at "
                f"most; charged to the domain before {before >> 20} MiB, after {after >> 20} MiB")

    def test_a_rollback_gives_them_back(self):
        guest = self.guest()
        source = self.begin(guest)
        with not_after_commit("freeze", source):
            attempt = Attempt(guest, TARGET, "--max-blackout", "8000", on={"freeze": target_gets(signal.SIGKILL)})
            self.rolled_back(guest, attempt, source, "target killed in the tier stage2")
        self.assertEqual(virsh("domstate", guest.name), "running")
