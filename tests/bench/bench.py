# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks, inside the emulated host.

    bare         the blackout of an upgrade by upgraded against that of a bare cpr-transfer script (bare.py), the two
                 in turn on one running guest, the same binary, the same devices
    sizes        the blackout of upgraded for a guest of 4 GiB against one of 512 MiB, in turn
    tiers        stage2, gmem and memfd against the bare script, in turn: the first two on one guest between patched
                 QEMUs, the others on one between the distribution's newest. Blackout, brownout, stage-2 faults
    tier-sizes   stage2 for a guest of 8 GiB, most of it in use, against one of 512 MiB, in turn

The blackout is the gap of the guest's 1 ms heartbeat that the switch made, on the host's clock: for all the same
instrument, and the guest's own view. The gap "between the VMMs" is the source's event STOP to the target's RESUME. The
brownout is the work that the guest did in the second after the gap, as a share of the second before; the stage-2
faults are those that KVM resolved for the new VM until one second after the switch. A run of which one of these is not known
counts for the others, and is counted as unknown. An emulated guest also stumbles
now and then with nobody near it: the longest gap from the beginning of the upgrade to its end, whoever made it, is
kept as longest_ms, and so is every run's figure.

Of several guests all but the measured one are stopped, so that each has the emulated processor for itself."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent / "lib")]
from bare import BareVm
from host import BOOT_SECONDS, Guest, UPGRADECTL, default_machine, qemus, tell, upgrade_command

LATE = 20  # s, for the guest's last report of the second after a switch
AFTER = 3  # seconds after an upgrade that still belong to it
KVMS = pathlib.Path("/sys/kernel/debug/kvm")  # a directory for each VM
# Guests that share the emulated host's one processor while they boot: at full load, with a beat every millisecond that
# goes before everything else in the guest, none would get there.
LIGHT = {"load_mem": 64, "heartbeat_us": 4000, "cmdline": "load.mem_rate=400 load.net_pause_us=40000 load.disk_pause_ms=300"}


def summary(values):
    """Of those that are known; None if none is."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return {"median": statistics.median(known), "median_between": median_between(known), "min": known[0],
            "max": known[-1], "p90": known[min(len(known) - 1, int(len(known) * 0.9))], "runs": len(known),
            "unknown": len(values) - len(known)}


def median_between(ordered):
    """Where the median is of what these are a sample of: [from, to, how sure], 95 % at least; None of fewer than six.

    Each value is above that median or below it as a coin falls, whatever their distribution is. So the binomial
    distribution says how likely it is that all but a few are on the same side."""
    runs, outside, cut = len(ordered), 0, 0
    while outside + math.comb(runs, cut) <= 0.025 * 2 ** runs:
        outside += math.comb(runs, cut)
        cut += 1
    return [ordered[cut - 1], ordered[-cut], 1 - 2 * outside / 2 ** runs] if cut else None


def judged(ratios, targets):
    """{"ratio": ("<=", 1.0)}: is it met, and if not, by how much of it was it missed?"""
    out = {}
    for what, (sign, wanted) in targets.items():
        value = ratios[what] and ratios[what]["median"]
        met = value is not None and (value <= wanted if sign == "<=" else value >= wanted)
        out[what] = {"wanted": f"{sign} {wanted}", "value": value, "met": met,
                     "missed_by": None if met or value is None else abs(value - wanted) / wanted}
    return out


def work_rate(guest, seconds=2):
    """Pages per second of the guest's memory writer, with nothing going on."""
    slices, end = {}, time.monotonic() + seconds
    while not slices or time.monotonic() < end:
        seen = guest.fresh_report()["slices"]
        slices.update(enumerate(seen["pages"], seen["first"]))
    return sum(slices.values()) / len(slices) / (seen["ms"] / 1000)


def work_after(guest, begin, end):
    """The gap in this time. What the guest did in the second after it arrives a while later."""
    give_up = time.monotonic() + LATE
    while True:
        gap = guest.gap_between(begin, end)
        complete = gap["work"] and gap["work"]["complete"]
        if complete or time.monotonic() > give_up:
            return gap, gap["work"]["after_pages_per_s"] if complete else None
        time.sleep(0.5)


def measured(guest, name, upgrade):
    """Runs upgrade(), which returns from when to when there was no runner, in ms since 1970; what the guest saw of it."""
    # Not the second before the switch: there the target is started, which the guest shares a processor with.
    usual = work_rate(guest)
    guest.mark(name)
    begin, end = upgrade()
    time.sleep(AFTER)
    seen = guest.window(name)
    report = guest.fresh_report()
    if report["errors"]:
        raise RuntimeError(f"{name}: {report['errors']} guest errors: {report['first_error']}")
    gap, after = work_after(guest, begin, end)
    return {"blackout_ms": gap["ms"], "longest_ms": seen["longest_gap"]["ms"], "ticks_lost": seen["ticks"]["lost"],
            "pages_per_s": {"before": usual, "after": after}, "work_ratio": after / usual if after is not None and usual else None}


class FirstSecond:
    """Of the VM that is made meanwhile: how many stage-2 faults KVM has resolved one second after it took the guest over."""

    def __init__(self):
        self.before, self.faults = set(KVMS.glob("*-*")), None

    def count(self, ran_ms):
        """@ran_ms: since when it runs the guest, in ms since 1970."""
        time.sleep(max(0, ran_ms / 1000 + 1 - time.time()))
        vm, = set(KVMS.glob("*-*")) - self.before
        self.faults = int((vm / "pf_fixed").read_text())


def ours(guest, binary, first_second, *options):
    """upgradectl is read as it goes: the first second is over before the upgrade has ended."""
    command = [*upgrade_command(guest.name, binary), *options]
    message = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            message = json.loads(line)
            if message.get("phase") == "done":
                first_second.count(int(message["at_us"]) / 1000)
    if process.returncode:
        raise RuntimeError(f"upgrade of {guest.name}: exit status {process.returncode}: {message}")
    return message


def adopt(name, qmp):
    subprocess.run([UPGRADECTL, "forget", name], capture_output=True)
    subprocess.run([UPGRADECTL, "adopt", name, "--qmp", str(qmp)], check=True, stdout=subprocess.DEVNULL)


def told(i, runs, figures):
    """One line of a round: what the guest saw (between the two VMMs), and the stage-2 faults."""
    tell(f"  {i + 1:2}/{runs}  " + "   ".join(
        f"{what} {r[-1]['blackout_ms']:.0f} ({r[-1]['vmm_blackout_ms'] or 0:.0f}) ms {r[-1]['faults']} faults"
        for what, r in figures.items()))


def result(figures, ratios, targets):
    columns = {what: {key: summary([r[key] for r in runs]) for key in ("blackout_ms", "vmm_blackout_ms", "faults")}
               for what, runs in figures.items()}
    return {"runs": figures, "columns": columns, "ratios": ratios, "targets": judged(ratios, targets)}


def shown(what, ratio, target):
    """A line for people."""
    line = "not measured"
    if ratio:
        least, most, sure = ratio["median_between"] or (ratio["min"], ratio["max"], None)
        line = f"median {ratio['median']:.2f} ({f'{sure:.1%} sure' if sure else 'too few to be sure'}: {least:.2f} to {most:.2f})"
        line += f", all {ratio['runs']} from {ratio['min']:.2f} to {ratio['max']:.2f}"
        line += f", {ratio['unknown']} unknown" * bool(ratio["unknown"])
    if target:
        missed = "" if target["missed_by"] is None else f" by {target['missed_by']:.1%}"
        line += f"; {'met' if target['met'] else 'MISSED'}{missed}: {target['wanted']}"
    return f"  {what:<18} {line}"


@contextlib.contextmanager
def stopped(pids):
    """The processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        go_on(pids)


def go_on(pids):
    """The silence so far is over before anything is measured. A VMM that was replaced meanwhile is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    time.sleep(2)


def by_script(vm, name, binary):
    """One upgrade by the bare script."""
    first_second = FirstSecond()

    def upgrade():
        begin, end = vm.upgrade(binary)
        first_second.count(end)
        return begin, end

    run = measured(vm.guest, name, upgrade)
    begin, end = vm.no_runner
    run["vmm_blackout_ms"] = end - begin
    run["faults"] = first_second.faults
    return run


def by_us(guest, name, binary, *options):
    """One upgrade by upgraded."""
    report, first_second = {}, FirstSecond()

    def upgrade():
        report.update(ours(guest, binary, first_second, *options))
        return guest.no_runner(report)

    run = measured(guest, name, upgrade)
    run["vmm_blackout_ms"] = report["blackout_ms"]
    run["faults"] = first_second.faults
    run["tier"] = report["tier"]
    run["handover"] = report.get("handover")
    run["phases"] = {p["phase"]: p["duration_ms"] for p in report["phases"]}
    run["target_pid"] = report["target"]["pid"]
    return run


def lend(vm, name, binary):
    """A guest of the script's is upgraded by upgraded and given back."""
    vm.qmp.close()
    vm.qmp = None
    adopt(vm.guest.name, vm.path)
    run = by_us(vm.guest, name, binary)
    vm.take_over(run["target_pid"])
    return run


def compare(figures, what, base, key="blackout_ms"):
    """The ratios of two columns, run by run."""
    return summary([a[key] / b[key] if a[key] and b[key] else None for a, b in zip(figures[what], figures[base])])


def bench_bare(options):
    """One guest, upgraded in turn by the script and by upgraded."""
    binary = options.binary
    figures = {"bare": [], "upgraded": []}
    vm = BareVm(Guest("bench"))
    try:
        vm.start(binary)
        for i in range(options.runs):
            figures["bare"].append(by_script(vm, f"bare-{i}", binary))
            figures["upgraded"].append(lend(vm, f"upgraded-{i}", binary))
            told(i, options.runs, figures)
    finally:
        vm.stop()
        subprocess.run([UPGRADECTL, "forget", "bench"], capture_output=True)
    return result(figures, {"ratio": compare(figures, "upgraded", "bare"),
                            "vmm_ratio": compare(figures, "upgraded", "bare", "vmm_blackout_ms")},
                  {"ratio": ("<=", 1.0)})


def bench_sizes(options):
    """Two guests, upgraded in turn by upgraded."""
    figures = {"512": [], "4096": []}
    with Guest("small", memory=512, **LIGHT) as small, Guest("large", memory=4096, **LIGHT) as large:
        small.start(options.binary, ready=2 * BOOT_SECONDS)
        with stopped([small.pid()]):
            large.start(options.binary, ready=2 * BOOT_SECONDS)
        for i in range(options.runs):
            for guest, other, key in ((small, large, "512"), (large, small, "4096")):
                with stopped([other.pid()]):
                    figures[key].append(by_us(guest, f"size-{i}", options.binary))
            told(i, options.runs, figures)
    return result(figures, {"ratio": compare(figures, "4096", "512"),
                            "vmm_ratio": compare(figures, "4096", "512", "vmm_blackout_ms")}, {"ratio": ("<=", 1.1)})


def gmem_guest(options, name, **more):
    machine = f"{default_machine(options.patched)},guest-memfd=on"
    return Guest(name, machine=machine, extra=["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"], **more)


def bench_tiers(options):
    """Two guests: one upgraded in turn with and without its page tables, one by upgraded and by the script."""
    figures = {"stage2": [], "gmem": [], "memfd": [], "bare": []}
    vm = BareVm(Guest("plain"))
    try:
        vm.start(options.binary)
        with stopped([vm.pid]), gmem_guest(options, "gmem") as guest:
            guest.start(options.patched, ready=2 * BOOT_SECONDS)
            for i in range(options.runs):
                figures["stage2"].append(by_us(guest, f"stage2-{i}", options.patched))
                figures["gmem"].append(by_us(guest, f"gmem-{i}", options.patched, "--no-stage2"))
                with stopped([guest.pid()]):
                    go_on([vm.pid])
                    figures["bare"].append(by_script(vm, f"bare-{i}", options.binary))
                    figures["memfd"].append(lend(vm, f"memfd-{i}", options.binary))
                    os.kill(vm.pid, signal.SIGSTOP)
                told(i, options.runs, figures)
            go_on([vm.pid])
    finally:
        vm.stop()
        subprocess.run([UPGRADECTL, "forget", "plain"], capture_output=True)
    wrong = [r["tier"] for tier in ("stage2", "gmem", "memfd") for r in figures[tier] if r["tier"] != tier]
    if wrong:
        raise RuntimeError(f"upgrades had other tiers than they should: {wrong}")
    ratios = {f"{tier}_to_bare": compare(figures, tier, "bare") for tier in ("stage2", "gmem", "memfd")}
    ratios["stage2_to_memfd"] = compare(figures, "stage2", "memfd")
    work = {f"{tier}_work": summary([r["work_ratio"] for r in runs]) for tier, runs in figures.items()}
    faults = {f"{tier}_faults": summary([r["faults"] for r in runs]) for tier, runs in figures.items()}
    return result(figures, {**ratios, **work, **faults}, {"stage2_to_bare": ("<=", 0.7), "stage2_work": (">=", 0.95)})


def bench_tier_sizes(options):
    """Two guests of the tier stage2, the larger with 6 GiB in use."""
    figures = {"512": [], "8192": []}
    with gmem_guest(options, "small", memory=512, **LIGHT) as small:
        small.start(options.patched, ready=2 * BOOT_SECONDS)
        with stopped([small.pid()]), gmem_guest(options, "large", memory=8192, **{**LIGHT, "load_mem": 6144}) as large:
            large.start(options.patched, ready=2 * BOOT_SECONDS)
            go_on([small.pid()])
            for i in range(options.runs):
                for guest, other, key in ((small, large, "512"), (large, small, "8192")):
                    with stopped([other.pid()]):
                        figures[key].append(by_us(guest, f"size-{i}", options.patched))
                told(i, options.runs, figures)
    return result(figures, {"ratio": compare(figures, "8192", "512"),
                            "vmm_ratio": compare(figures, "8192", "512", "vmm_blackout_ms")}, {"ratio": ("<=", 1.1)})


BENCHES = {"bare": bench_bare, "sizes": bench_sizes, "tiers": bench_tiers, "tier-sizes": bench_tier_sizes}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("bench", choices=BENCHES, nargs="+")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--patched", help="a QEMU with the patches of qemu-patches/")
    options = parser.parse_args()
    version, options.binary = list(qemus().items())[-1]
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results.update(qemu=version, guest="2 vCPUs, VGA, virtio-blk (qcow2), virtio-net (tap, vhost), rng, balloon",
                   emulated_host=True)
    for name in options.bench:
        bench = BENCHES[name]
        tell(f"{name}: {bench.__doc__}")
        results[name] = bench(options)
        options.output.write_text(json.dumps(results, indent=2) + "\n")
        for what, ratio in results[name]["ratios"].items():
            tell(shown(what, ratio, results[name]["targets"].get(what)))
        tell("")


if __name__ == "__main__":
    main()
