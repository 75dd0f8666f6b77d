# SPDX-License-Identifier: GPL-2.0-or-later
"""From the oldest installed QEMU to the newest, with emulated devices: a guest with virtio can not cross them."""

from common import LIGHT, NEW, OLD, Case, saw, started, stop_shared
from host import Guest, qemus

PROCESSORS = 1  # emulated twice over, a second one loses the interrupts of these devices now and then


class AcrossVersions(Case):
    def setUp(self):
        stop_shared()  # the emulated host is slow enough for one guest

    def test_loaded_guest_crosses_to_the_newer_qemu(self):
        with Guest("cross", virtio=False, smp=PROCESSORS, **LIGHT) as guest:
            started(guest, OLD)
            source = self.begin(guest)
            before = guest.fresh_report()
            status, report = guest.upgrade(NEW)
            self.committed(guest, status, report, source)
            old, new = list(qemus())[0], list(qemus())[-1]
            self.assertEqual((report["source_version"], report["target_version"]), (old, new))
            self.assertEqual(report["tier"], "memfd")
            self.assertEqual(report["error"], "")
            self.healthy(guest, f"{old} -> {new}: {report['blackout_ms']:.0f} ms between the two QEMUs")
            after = guest.fresh_report(30)
            for part, counter in (("mem", "verified"), ("disk", "fsyncs"), ("net", "received"), ("clock", "samples")):
                self.assertGreater(after[part][counter], before[part][counter], f"{part} stands still")
            saw(f"verified {after['mem']['verified']} pages, {after['disk']['verified']} blocks, "
                f"{after['net']['received'] >> 10} KiB over one TCP connection")
