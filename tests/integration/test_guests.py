# SPDX-License-Identifier: GPL-2.0-or-later
"""What kinds of guest cross in the tier stage2: one test for each line of GUESTS, which says what the guest is and
what must be the same before and after. tests/tiers/run --guests brings the patched QEMUs, the kernel and two nodes."""

import os
import pathlib
import re
import shutil
import socket

from common import LIGHT, Case, ctl, saw
from host import Guest, REFUSED, TOOLS, default_machine, wait_until

OLD, NEW = (os.environ.get("UPGRADED_PATCHED_QEMUS") or ":").split(":")
FIRMWARE = ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"]
CLOUD, OVMF = TOOLS / "cloud", pathlib.Path("/usr/share/OVMF")
READY = 500  # s until the load says so, under emulation
PATIENT = ["--timeout", "240", "--max-blackout", "60000"]


class Kind(Guest):
    """A guest with its RAM in a guest_memfd, and a monitor for us. A word of extra may name {dir}."""

    def __init__(self, extra=(), cmdline="", machine="q35", gmem=",guest-memfd=on", smp=1, **options):
        super().__init__("kind", smp=smp, machine=default_machine(OLD, machine) + gmem,
                         **{**LIGHT, "cmdline": f"{LIGHT['cmdline']} {cmdline}", **options})
        self.extra = [*FIRMWARE, "-monitor", f"unix:{self.dir}/monitor,server=on,wait=off",
                      *(str(word).format(dir=self.dir) for word in extra)]

    def prepare(self):
        super().prepare()
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", self.dir / "vars.fd")

    def hmp(self, command):
        """What the monitor for humans says."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(str(self.dir / "monitor"))
            with s.makefile("rw", newline="") as monitor:
                def answer():
                    text = ""
                    while not text.endswith("(qemu) "):
                        char = monitor.read(1)
                        if not char:
                            raise EOFError(text)
                        text += char
                    return text

                answer()
                monitor.write(command + "\n")
                monitor.flush()
                # It echoes the command as if someone typed it.
                return answer().split("\n", 1)[1].removesuffix("(qemu) ").replace("\r", "").strip()


# What is looked at before and after. An exception is a failure, too.

def balloon(guest):
    """The balloon is inflated when the guest crosses; its pages are holes in the guest_memfd."""
    guest.hmp("balloon 448")
    return wait_until(lambda: (said := guest.hmp("info balloon")) == "balloon: actual=448" and said, 60, "the balloon is inflated")


def vhost(guest):
    links = [os.readlink(fd) for fd in pathlib.Path(f"/proc/{guest.pid()}/fd").iterdir()]
    assert links.count("/dev/vhost-net") == 1, links
    return "vhost-net"


def screen(guest):
    """The picture; the VGA's memory is dirty-logged and so never bound."""
    path = guest.dir / "screen.ppm"
    guest.hmp(f"screendump {path}")
    data = path.read_bytes()
    assert data.startswith(b"P6"), data[:20]
    header = data[:data.index(b"\n255\n")].decode().split()
    lit = sum(1 for byte in data[len(data) % 3::97] if byte)
    assert lit, "a black screen proves nothing"
    return f"{header[1]}x{header[2]}, {lit} bytes lit of every 97th"


def usb(guest):
    """A device that the guest's driver has given an address."""
    said = guest.hmp("info usb")
    found = re.findall(r"Device 0\.([1-9]\d*), .*Product (.*?)(?:, ID.*)?$", said, re.M)
    assert sorted(name for _, name in found) == ["QEMU USB Keyboard", "QEMU USB Tablet"], said
    return str(found)


def policies(guest):
    """The policy of each guest_memfd, and which of the host's nodes have pages that the VMM sees."""
    found = []
    for line in pathlib.Path(f"/proc/{guest.pid()}/numa_maps").read_text().splitlines():
        _, policy, *rest = line.split()
        if any("kvm-gmem" in word for word in rest):
            pages = {node: int(n) for node, n in (word[1:].split("=") for word in rest if re.match(r"N\d+=", word))}
            if policy.startswith("bind:"):
                assert not pages or set(pages) == {policy.removeprefix("bind:")}, line
            found.append(policy)
            saw(f"{policy}: pages by node {pages}")
    assert sorted(found) == ["bind:1", "interleave:0-1"], found
    return str(sorted(found))


def variables(guest):
    """OVMF has written to its flash."""
    at_first, now = (OVMF / "OVMF_VARS_4M.fd").read_bytes(), (guest.dir / "vars.fd").read_bytes()
    assert len(now) == len(at_first) and now != at_first, "the firmware never wrote to its flash"
    tree = guest.hmp("info mtree -f")
    flash = [line.split(" KVM")[0].split("(prio ")[1] for line in tree.splitlines() if "romd" in line and "system.flash" in line]
    assert flash, tree
    return f"{len(set(flash))} flash drives"


def cloud_kernel(guest):
    found = re.search(r"Linux version (\S+-cloud-amd64)", (guest.dir / "console.log").read_text(errors="replace"))
    assert found, guest.console()
    return found[1]


def cloud_initrd():
    path = pathlib.Path("/var/tmp/cloud.img")
    load = (TOOLS / "load.img").read_bytes()
    # An archive that is not compressed begins at a multiple of four.
    path.write_bytes(load + bytes(-len(load) % 4) + (CLOUD / "modules.img").read_bytes())
    return path


UEFI = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
        "-drive", "if=pflash,unit=1,format=raw,file={dir}/vars.fd"]
NODES = ["-object", "memory-backend-memfd,id=ram0,size=256M,share=on,guest-memfd=on,host-nodes=1,policy=bind",
         "-object", "memory-backend-memfd,id=ram1,size=256M,share=on,guest-memfd=on,host-nodes=0-1,policy=interleave",
         "-numa", "node,nodeid=0,cpus=0,memdev=ram0", "-numa", "node,nodeid=1,cpus=1,memdev=ram1"]
LOUD = "loglevel=6"  # the kernel says its name

# name: options of Kind, and what is looked at. Those of emulated devices alone cross between versions in test_tiers.py.
GUESTS = {
    "virtio_vhost_vga_1_vcpu_512_mib": {"see": (vhost, balloon, screen)},
    "4_vcpus_virtio_scsi": {"smp": 4, "disk": "virtio-scsi"},
    "8_gib": {"memory": 8192},
    "i440fx_xhci": {"machine": "pc", "extra": ["-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd"],
                    "see": (usb,)},
    "two_numa_nodes_with_policies": {"smp": 2, "gmem": "", "extra": NODES, "see": (policies,)},
    "ovmf": {"extra": UEFI, "see": (variables,)},
    "debian_cloud_kernel": {"kernel": CLOUD / "vmlinuz", "initrd": cloud_initrd, "cmdline": LOUD, "see": (cloud_kernel,)},
    "debian_cloud_kernel_virtio_scsi_ovmf": {"kernel": CLOUD / "vmlinuz", "initrd": cloud_initrd, "cmdline": LOUD,
                                             "disk": "virtio-scsi", "extra": UEFI, "see": (cloud_kernel, variables)},
}

# What does not cross, from which QEMU to which, and what is said. docs/limits.md lists both.
BLOCKED = {
    "nvme": {"disk": "nvme", "qemus": (NEW, NEW), "code": "source.blocked", "text": "non-migratable device: .*/nvme"},
    "virtio_started_in_10_0_13": {"qemus": (OLD, NEW), "code": "target.virtio-ring", "text": "ring of 1024 entries"},
}


class Guests(Case):
    def setUp(self):
        if not NEW:
            self.skipTest("needs two patched QEMUs, see tests/tiers/run")

    def crosses(self, see=(), **options):
        if callable(options.get("initrd")):
            options["initrd"] = options["initrd"]()
        with Kind(**options) as guest:
            guest.start(NEW, ready=READY)
            seen = [look(guest) for look in see]
            source = self.begin(guest)
            status, report = guest.upgrade(NEW, *PATIENT)
            target = self.committed(guest, status, report, source)
            self.assertTrue(os.path.samefile(f"/proc/{target}/exe", NEW))
            self.assertEqual(report["tier"], "stage2", report["findings"])
            h = report["handover"]
            self.assertEqual((h["matched"], h["ownership"]), (h["slots"], True), h)
            self.assertGreater(int(h["tables"]), 10)
            self.assertEqual([look(guest) for look in see], seen)
            self.healthy(guest, f"{report['source_version']} -> {report['target_version']}, tier {report['tier']}: {h['matched']} "
                                f"of {h['slots']} slots, {h['tables']} tables, blackout {report['blackout_ms']:.0f} ms")
            if seen:
                saw(f"as before: {'; '.join(seen)}")

    def refused(self, qemus, code, text, **options):
        """check and upgrade name the one blocker, and the guest goes on."""
        with Kind(**options) as guest:
            guest.start(qemus[0], ready=READY)
            source = self.begin(guest)
            checked, answer = ctl("check", guest.name, "--vmm", qemus[1])
            status, report = guest.upgrade(qemus[1], *PATIENT)
            self.assertEqual((checked, status, report["outcome"]), (REFUSED, REFUSED, "refused"), report)
            self.assertEqual(guest.pid(), source)
            for findings in (answer[-1]["findings"], report["findings"]):
                said = [f for f in findings if f["severity"] == "blocker"]
                self.assertEqual([f["code"] for f in said], [code], said)
                self.assertRegex(said[0]["text"], text)
            self.healthy(guest, said[0]["text"])


def add(name, how, options):
    def test(self):
        getattr(self, how)(**options)

    test.seconds = 3 * READY + 300  # a guest that does not boot is started three times
    setattr(Guests, f"test_{name}", test)


for guest_name, guest_options in GUESTS.items():
    add(f"{guest_name}_crosses", "crosses", guest_options)
for guest_name, guest_options in BLOCKED.items():
    add(f"{guest_name}_is_a_blocker_that_check_names", "refused", guest_options)
