# SPDX-License-Identifier: GPL-2.0-or-later
"""From the oldest installed QEMU to the newest, with emulated devices: a guest with virtio can not cross them."""

from common import BOOT_SECONDS, NEW, OLD, Case, saw, stop_shared
from host import Guest, qemus

PROCESSORS = 1  # emulated twice over, a second one loses the interrupts of these devices now and then
# Each access to a register of these devices is an exit to QEMU: a load that is light with virtio is none here.
LIGHTER = {"load_mem": 8, "heartbeat_us": 20000,
           "cmdline": "load.mem_rate=100 load.net_pause_us=500000 load.disk_pause_ms=1000"}


class AcrossVersions(Case):
    def setUp(self):
        stop_shared()  # the emulated host is slow enough for one guest

    def test_loaded_guest_crosses_to_the_newer_qemu(self):
        with Guest("cross", virtio=False, smp=PROCESSORS, **LIGHTER) as guest:
            guest.start(OLD, ready=2 * BOOT_SECONDS)
            source = self.begin(guest)
            status, report = guest.upgrade(NEW)
            self.committed(guest, status, report, source)
            old, new = list(qemus())[0], list(qemus())[-1]
            self.assertEqual((report["source_version"], report["target_version"]), (old, new))
            self.assertEqual(report["tier"], "memfd")
            self.assertEqual(report["error"], "")
            self.healthy(guest, f"{old} -> {new}: {report['blackout_ms']:.0f} ms between the two QEMUs")
            after = guest.status()["guest"]
            saw(f"verified {after['mem']['verified']} pages, {after['disk']['verified']} blocks, "
                f"{after['net']['received'] >> 10} KiB over one TCP connection")

    test_loaded_guest_crosses_to_the_newer_qemu.seconds = 1500
