# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo, inside the emulated host: one upgrade of one guest under load, told as it happens."""

import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from host import REPORT_SECONDS, Guest, UPGRADECTL, default_machine, qemus, tell, wait_until

BEAT_MS = 5


def version_of(path):
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]


def main(path, tier, *patched):
    old_path, new_path = patched or (list(qemus().values())[0], list(qemus().values())[-1])
    old, new = version_of(old_path), version_of(new_path)
    machine = default_machine(old_path) + (",guest-memfd=on" if patched else "")
    tell(f"\nThe emulated host runs Linux {os.uname().release} with KVM; QEMU {old} and {new} are "
         f"{'built with qemu-patches/' if patched else 'installed'}.\n")

    # A beat goes before everything else in the guest, and costs two emulated machines an exit: one every millisecond
    # would leave the load nothing on a slow computer. Not virtio: QEMU 10.0.13 gives its rings sizes that 11.1 refuses
    # (docs/limits.md).
    firmware = ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"] if patched else []
    with Guest("demo", memory=512, smp=1, load_mem=64, machine=machine, virtio=False, extra=firmware,
               heartbeat_us=BEAT_MS * 1000, cmdline="load.net_pause_us=20000 load.disk_pause_ms=100") as guest:
        tell(f"$ upgradectl run demo -- {old_path} ...\n"
             "  a Linux guest: 1 vCPU, 512 MiB, VGA, a qcow2 disk on AHCI, e1000e on a tap")
        guest.start(old_path)
        guest.mark("before")
        time.sleep(3)
        before = wait_until(lambda: (seen := guest.window("before"))["guest"] and seen, REPORT_SECONDS, "the guest reports")
        work = before["guest"]
        tell(f"  under load: {work['mem']['pages_per_s']} pages/s checked and rewritten, "
             f"{work['disk']['fsyncs']} fsyncs, {work['net']['received'] >> 10} KiB over TCP, "
             f"longest heartbeat gap so far {before['longest_gap']['ms']:.1f} ms\n")

        tell(f"$ upgradectl check demo --vmm {new_path}")
        subprocess.run([UPGRADECTL, "check", "demo", "--vmm", new_path])
        # A minute for each phase, as it is by default, would be short for two QEMUs that start in an emulated host.
        command = [UPGRADECTL, "upgrade", "demo", "--vmm", new_path, "--timeout", "200"]
        tell(f"\n$ {' '.join(command)}")
        guest.mark("upgrade")
        status = subprocess.run(command).returncode
        time.sleep(3)
        seen = guest.window("upgrade")
        guest_now = guest.fresh_report()
        history = subprocess.run([UPGRADECTL, "--json", "history", "demo", "--limit", "1"], capture_output=True,
                                 text=True, check=True)
        report = json.loads(history.stdout)["reports"][0]
        gap = guest.switch_gap(report) if report["outcome"] == "committed" else seen["longest_gap"]
        report.update(vmm_blackout_ms=report["blackout_ms"], blackout_ms=gap["ms"], longest_gap_ms=seen["longest_gap"]["ms"],
                      guest_errors=guest_now["errors"], guest=guest_now, ticks=seen["ticks"], work=seen["work"])
        pathlib.Path(path).write_text(json.dumps(report, indent=2) + "\n")

    tell(f"\nupgraded from QEMU {report['source_version']} to {report['target_version']}: {report['outcome']}, "
         f"tier {report['tier']}")
    if report.get("handover"):
        h = report["handover"]
        tell(f"  {h['matched']} of {h['slots']} memory slots and {h['tables']} page tables handed over in "
             f"{int(h['ioctl_ns']) / 1e6:.2f} ms; {h['zapped']} entries to be faulted in again")
    for phase in report["phases"]:
        tell(f"  {phase['phase']:<10} {phase['duration_ms']:10.1f} ms")
    tell(f"  blackout as the guest's {BEAT_MS} ms heartbeat saw it: {report['blackout_ms']:.1f} ms "
         f"(between the two QEMUs: {report['vmm_blackout_ms']:.1f} ms; its longest gap since the upgrade began: "
         f"{report['longest_gap_ms']:.1f} ms)")
    tell(f"  heartbeats lost {report['ticks']['lost']}, duplicated {report['ticks']['duplicated']}, "
         f"reordered {report['ticks']['reordered']}; "
         f"guest errors {report['guest_errors']} "
         f"(memory {guest_now['mem']['verified']} pages verified, disk {guest_now['disk']['verified']} blocks, "
         f"TCP {guest_now['net']['connects']} connection)")
    tell("  emulated hardware: compare shapes, not milliseconds. Report: build/demo/report.json")
    if report["tier"] != tier:
        tell(f"  but the tier was to be {tier}")
        return 1
    return status or (0 if report["guest_errors"] == 0 else 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
