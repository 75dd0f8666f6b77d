# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks, inside the emulated host.

    bare   the blackout of an upgrade by upgraded against that of a bare cpr-transfer script (bare.py), the two in
           turn on one running guest, the same binary, the same devices
    sizes  the blackout of upgraded for a guest of 4 GiB against one of 512 MiB, in turn

The blackout is the longest gap of the guest's 1 ms heartbeat around the upgrade, on the host's clock: for both
the same instrument, and the guest's own view. It is the longest of the whole upgrade, whatever made it; the gap
"between the VMMs" is the source's event STOP to the target's RESUME. Each result keeps every run's figure."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent / "lib")]
from bare import BareVm
from host import Guest, UPGRADECTL, qemus, tell

AFTER = 3  # seconds after an upgrade that still belong to it


def summary(values):
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1],
            "p90": values[min(len(values) - 1, int(len(values) * 0.9))], "runs": len(values)}


def measured(guest, name, upgrade):
    """Runs upgrade() and returns what the guest saw of it."""
    guest.mark(name)
    upgrade()
    time.sleep(AFTER)
    seen = guest.window(name)
    report = guest.fresh_report()
    if report["errors"]:
        raise RuntimeError(f"{name}: {report['errors']} guest errors: {report['first_error']}")
    return {"blackout_ms": seen["longest_gap"]["ms"], "ticks_lost": seen["ticks"]["lost"],
            "work_ratio": (seen["work"] or {}).get("ratio")}


def ours(guest, binary):
    status, report = guest.upgrade(binary)
    if status:
        raise RuntimeError(f"upgrade of {guest.name}: exit status {status}: {report}")
    return report


def adopt(name, qmp):
    subprocess.run([UPGRADECTL, "forget", name], capture_output=True)
    subprocess.run([UPGRADECTL, "adopt", name, "--qmp", str(qmp)], check=True, stdout=subprocess.DEVNULL)


def bench_bare(binary, runs):
    """One guest, upgraded in turn by the script and by upgraded."""
    figures = {"bare": [], "upgraded": []}
    vm = BareVm(Guest("bench"))
    try:
        vm.start(binary)
        for i in range(runs):
            run = measured(vm.guest, f"bare-{i}", lambda: vm.upgrade(binary))
            run["vmm_blackout_ms"] = vm.vmm_blackout_ms
            figures["bare"].append(run)
            vm.qmp.close()
            vm.qmp = None
            adopt("bench", vm.path)
            report = {}
            run = measured(vm.guest, f"upgraded-{i}", lambda: report.update(ours(vm.guest, binary)))
            run["vmm_blackout_ms"] = report["blackout_ms"]
            run["phases"] = {p["phase"]: p["duration_ms"] for p in report["phases"]}
            figures["upgraded"].append(run)
            vm.take_over(report["target"]["pid"])
            tell(f"  {i + 1:2}/{runs}  bare {figures['bare'][-1]['blackout_ms']:8.1f} ms   "
                 f"upgraded {run['blackout_ms']:8.1f} ms  (between the VMMs {vm.vmm_blackout_ms or 0:.1f} and "
                 f"{run['vmm_blackout_ms']:.1f})")
    finally:
        vm.stop()
        subprocess.run([UPGRADECTL, "forget", "bench"], capture_output=True)
    ratios = [u["blackout_ms"] / b["blackout_ms"] for b, u in zip(figures["bare"], figures["upgraded"])]
    vmm = [u["vmm_blackout_ms"] / b["vmm_blackout_ms"] for b, u in zip(figures["bare"], figures["upgraded"])
           if b["vmm_blackout_ms"]]
    return {"runs": figures, "bare": summary([r["blackout_ms"] for r in figures["bare"]]),
            "upgraded": summary([r["blackout_ms"] for r in figures["upgraded"]]),
            "ratio": summary(ratios), "vmm_ratio": summary(vmm) if vmm else None, "target": "median ratio <= 1.0"}


def bench_sizes(binary, runs):
    """Two guests, upgraded in turn by upgraded."""
    figures = {"512": [], "4096": []}
    # Two guests share the emulated host's one processor: at full load neither would get to boot.
    light = {"load_mem": 64, "cmdline": "load.mem_rate=400 load.net_pause_us=40000 load.disk_pause_ms=300"}
    with Guest("small", memory=512, **light) as small, Guest("large", memory=4096, **light) as large:
        small.start(binary, ready=120)
        large.start(binary, ready=180)
        for i in range(runs):
            for guest, key in ((small, "512"), (large, "4096")):
                report = {}
                run = measured(guest, f"size-{i}", lambda: report.update(ours(guest, binary)))
                run["vmm_blackout_ms"] = report["blackout_ms"]
                figures[key].append(run)
            tell(f"  {i + 1:2}/{runs}  512 MiB {figures['512'][-1]['blackout_ms']:8.1f} ms   "
                 f"4 GiB {figures['4096'][-1]['blackout_ms']:8.1f} ms")
    ratios = [b["blackout_ms"] / a["blackout_ms"] for a, b in zip(figures["512"], figures["4096"])]
    vmm = [b["vmm_blackout_ms"] / a["vmm_blackout_ms"] for a, b in zip(figures["512"], figures["4096"])]
    return {"runs": figures, "512": summary([r["blackout_ms"] for r in figures["512"]]),
            "4096": summary([r["blackout_ms"] for r in figures["4096"]]), "ratio": summary(ratios),
            "vmm_ratio": summary(vmm), "target": "median ratio <= 1.1"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--sizes-runs", type=int, default=7)
    options = parser.parse_args()
    version, binary = list(qemus().items())[-1]
    results = {"qemu": version, "guest": "2 vCPUs, VGA, virtio-blk (qcow2), virtio-net (tap, vhost), rng, balloon",
               "emulated_host": True}
    for name, bench, runs in (("bare", bench_bare, options.runs), ("sizes", bench_sizes, options.sizes_runs)):
        if not runs:
            continue
        tell(f"{name}: {bench.__doc__ or ''}")
        results[name] = bench(binary, runs)
        options.output.write_text(json.dumps(results, indent=2) + "\n")
        r = results[name]["ratio"]
        tell(f"  ratio: median {r['median']:.2f}, {r['min']:.2f} to {r['max']:.2f}; target: {results[name]['target']}\n")


if __name__ == "__main__":
    main()
