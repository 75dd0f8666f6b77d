# SPDX-License-Identifier: GPL-2.0-or-later
"""The patched QEMU by itself, without upgraded: hand-overs of a guest under load inside the emulated host.

    testbed/run --share REPO --kernel PATCHED --mem 6144 -- python3 -u /mnt/share/tests/qemu/inside.py A B [PATTERN]...

A and B are patched QEMUs (as seen inside); the guest is started with A, handed to B, and from then on to another B. Every test
is named after what it holds the patches to, prints what it saw, and leaves one guest running for the next. The last
line is "N passed, N failed"; it fails when none passed."""

import array
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib"), str(HERE.parent / "bench")]
from bare import open_tap, unix
from fds import copied
from host import Guest, TOOLS, tell, wait_until

MACHINE = "pc-q35-10.0"


class QmpError(RuntimeError):
    pass


class Qmp:
    """One monitor connection; keeps the events that came by."""

    def __init__(self, path, seconds=60):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
        self.file = self.socket.makefile("r")
        self.events = []
        self.file.readline()
        self("qmp_capabilities")

    def __call__(self, name, fd=None, **arguments):
        line = json.dumps({"execute": name, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        self.socket.sendmsg([line.encode()], control)
        while True:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            elif "return" in answer:
                return answer["return"]

    def close(self):
        self.file.close()
        self.socket.close()


class Vmm:
    """One QEMU process."""

    serial = 0

    def __init__(self, vm, binary, *extra):
        Vmm.serial += 1
        self.log_path = vm.guest.dir / f"qemu-{Vmm.serial}.log"
        self.path = vm.guest.dir / f"qmp-{Vmm.serial}"
        argv = [binary] + vm.guest.arguments()
        argv[argv.index("-netdev") + 1] = f"tap,id=net0,fd={vm.tap},vhost=on"
        argv[argv.index("-machine") + 1] += ",aux-ram-share=on" + vm.machine
        argv += ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-qmp", f"unix:{self.path},server=on,wait=off", *vm.extra, *extra]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(argv, pass_fds=[vm.tap], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.qmp = None

    def connect(self):
        deadline = time.monotonic() + 60
        while not self.qmp:
            try:
                self.qmp = Qmp(self.path, 0.2)
            except (OSError, ValueError):
                time.sleep(0.05)
                if self.process.poll() is not None:
                    raise RuntimeError(f"QEMU ended: {self.log()}") from None
                if time.monotonic() > deadline:
                    raise
        return self

    def log(self):
        return self.log_path.read_text()

    def kill(self):
        if self.qmp:
            self.qmp.close()
        self.process.kill()
        self.process.wait()

    def gmem(self):
        return self.qmp("query-gmem")

    def faults(self, *names):
        """Sums over the vCPUs of KVM's own counters."""
        total = {}
        for vcpu in self.qmp("query-stats", target="vcpu"):
            for stat in vcpu["stats"]:
                if stat["name"] in (names or ("pf_taken", "pf_fixed", "pf_mmio_spte_created")):
                    total[stat["name"]] = total.get(stat["name"], 0) + stat["value"]
        return total


class Vm:
    def __init__(self, binaries, machine=",guest-memfd=on", extra=(), **guest):
        self.binaries, self.machine, self.extra = binaries, machine, list(extra)
        self.guest = Guest(machine=MACHINE, **guest)
        self.guest.prepare()
        self.tap = open_tap(self.guest.tap)
        self.vmm = Vmm(self, binaries[0]).connect()
        self.guest.wait_ready()

    def other(self):
        """The next QEMU: the last one, also after itself. An older one cannot read a newer one's cpr state."""
        return self.binaries[-1]

    def stop(self):
        self.vmm.kill()
        os.close(self.tap)
        self.guest.stop()

    def prepare(self, binary=None):
        """A target that has the memory and has built its machine; the source runs."""
        d = self.guest.dir
        for name in ("cpr.sock", "main.sock"):
            (d / name).unlink(missing_ok=True)
        target = Vmm(self, binary or self.other(), "-S", "-incoming", "defer",
                     "-incoming", json.dumps(unix("cpr", d / "cpr.sock")))
        while not (d / "cpr.sock").exists():
            if target.process.poll() is not None:
                raise RuntimeError(target.log())
            time.sleep(0.001)
        self.vmm.qmp("migrate-set-parameters", mode="cpr-transfer")
        self.vmm.qmp("migrate", channels=[unix("main", d / "main.sock"), unix("cpr", d / "cpr.sock")])
        return target.connect()

    def load(self, target):
        """The source stands, the target has its state and is paused."""
        target.qmp("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        target.qmp("migrate-incoming", channels=[unix("main", self.guest.dir / "main.sock")])
        wait_until(lambda: target.qmp("query-status")["status"] == "paused", 60,
                   f"the target has loaded: {target.log()}")
        wait_until(lambda: self.vmm.qmp("query-status")["status"] == "postmigrate", 60, "the source has sent")

    def adopt(self, target):
        self.vmm = target

    def healthy(self):
        report = self.guest.fresh_report()
        assert report["errors"] == 0, report
        peer = self.guest.status()["errors"]
        assert peer == 0, self.guest.status()
        return report


def expect(condition, *saw):
    if not condition:
        raise AssertionError(" ".join(str(s) for s in saw))


def refused(call, *words):
    try:
        answer = call()
    except QmpError as e:
        expect(all(w in str(e) for w in words), "other words than", words, ":", e)
        return str(e)
    raise AssertionError(f"not refused: {answer}")


def brief(transfer):
    return {k: v for k, v in transfer.items() if k != "slots"} | {
        "slots": " ".join(f"{s['gpa']:#x}+{s['size']:#x}={s['verdict']}" for s in transfer["slots"])}


# What the patches are held to.

def source_owns_its_memory(vm):
    info = vm.vmm.gmem()
    tell(f"    {info}")
    expect(info["state"] == "owner" and info["transfer"] and "tier" not in info, info)
    cmdline = vm.vmm.qmp("query-memdev")
    tell(f"    {[(m['id'] if 'id' in m else '?', m['share']) for m in cmdline]}")


def dry_run_compares_while_the_source_runs(vm):
    target = vm.prepare()
    info = target.gmem()
    expect(info["state"] == "linked" and "tier" not in info, info)
    dry = target.qmp("gmem-transfer", dry_run=True)
    tell(f"    before the state is loaded: {brief(dry)}")
    expect(dry["dry-run"] and "errno" not in dry and dry["tier"] == "stage2", dry)
    expect(dry["nr-slots"] == dry["nr-matched"] > 0, dry)
    refused(lambda: target.qmp("gmem-transfer"), "not loaded")
    expect(vm.vmm.gmem()["state"] == "owner", vm.vmm.gmem())
    target.kill()
    wait_until(lambda: vm.vmm.qmp("query-migrate").get("status") == "failed", 30, "the migration failed")
    expect(vm.vmm.qmp("query-status")["running"], "the source does not run")
    vm.healthy()


def cont_hands_over_tables(vm):
    vm.guest.mark("stage2")
    before = vm.vmm.faults()
    target = vm.prepare()
    vm.load(target)
    ready = target.faults()
    target.qmp("cont")
    source = vm.vmm
    wait_until(lambda: target.qmp("query-status")["running"], 10, "the target runs")
    message = refused(lambda: source.qmp("cont"), "can never run again")
    tell(f"    cont on the source: {message}")
    expect(source.gmem()["state"] == "dead", source.gmem())
    source.kill()
    vm.adopt(target)
    time.sleep(1)
    after = target.faults()
    info = target.gmem()
    tell(f"    {brief(info['last'])}")
    tell(f"    faults: source before {before}, target before cont {ready}, 1 s after {after}")
    tell(f"    log: {target.log().strip()!r}")
    expect(info["state"] == "owner" and info["tier"] == "stage2", info)
    expect(info["last"]["nr-slots"] == info["last"]["nr-matched"], info)
    expect(info["last"]["tables"] > 0, info)
    vm.healthy()
    window = vm.guest.window("stage2")
    tell(f"    longest gap {window['longest_gap']['ms']} ms, work {window['work']}")
    return after


def transfer_then_kill_gives_memory_back(vm):
    target = vm.prepare()
    vm.load(target)
    done = target.qmp("gmem-transfer")
    tell(f"    {brief(done)}")
    expect(done["tier"] == "stage2" and target.gmem()["state"] == "owner", target.gmem())
    expect(vm.vmm.gmem()["state"] == "parked", vm.vmm.gmem())
    tell(f"    cont on the parked source: {refused(lambda: vm.vmm.qmp('cont'), 'handed to another one')}")
    target.kill()
    wait_until(lambda: vm.vmm.gmem()["state"] == "owner", 10, "the source owns again")
    vm.vmm.qmp("cont")
    expect(vm.vmm.qmp("query-status")["running"], "the source does not run")
    vm.vmm.qmp("migrate-set-parameters", mode="normal")
    vm.healthy()


def reverse_gives_memory_back(vm):
    target = vm.prepare()
    vm.load(target)
    target.qmp("gmem-transfer")
    number = target.gmem()["vm-fd"]
    pidfd = os.pidfd_open(target.process.pid)
    fd = copied(pidfd, number)
    vm.vmm.qmp("getfd", fd=fd, fdname="target-vm")
    os.close(fd)
    before = vm.vmm.faults()
    back = vm.vmm.qmp("gmem-transfer-reverse", fdname="target-vm")
    tell(f"    {brief(back)}")
    expect(vm.vmm.gmem()["state"] == "owner" and back["tier"] == "stage2", vm.vmm.gmem())
    expect(target.gmem()["state"] == "parked", target.gmem())
    tell(f"    cont on the target: {refused(lambda: target.qmp('cont'), 'handed to another one')}")
    vm.vmm.qmp("cont")
    time.sleep(1)
    tell(f"    faults of the source: before {before}, 1 s after {vm.vmm.faults()}")
    target.kill()
    os.close(pidfd)
    vm.vmm.qmp("migrate-set-parameters", mode="normal")
    vm.healthy()


def kill_after_load_keeps_the_source(vm):
    target = vm.prepare()
    vm.load(target)
    target.kill()
    vm.vmm.qmp("cont")
    vm.vmm.qmp("migrate-set-parameters", mode="normal")
    vm.healthy()


def without_tables_the_guest_refaults(vm):
    vm.guest.mark("ownership")
    target = vm.prepare()
    vm.load(target)
    done = target.qmp("gmem-transfer", stage2=False)
    target.qmp("cont")
    vm.vmm.kill()
    vm.adopt(target)
    time.sleep(1)
    tell(f"    {brief(done)}")
    tell(f"    faults 1 s after {target.faults()}")
    expect(target.gmem()["tier"] == "ownership", target.gmem())
    vm.healthy()
    window = vm.guest.window("ownership")
    tell(f"    longest gap {window['longest_gap']['ms']} ms, work {window['work']}")


def five_in_a_row(vm):
    for _ in range(5):
        target = vm.prepare()
        vm.load(target)
        target.qmp("cont")
        vm.vmm.kill()
        vm.adopt(target)
        expect(target.gmem()["tier"] == "stage2", target.gmem())
        vm.healthy()
    vms = len(list(pathlib.Path("/sys/kernel/debug/kvm").glob("*-*")))
    tell(f"    {vms} VMs in KVM")
    fds = [os.readlink(f) for f in pathlib.Path(f"/proc/{vm.vmm.process.pid}/fd").iterdir() if f.exists() or f.is_symlink()]
    tell(f"    fds of the last: {sorted(f for f in fds if 'kvm' in f and 'vcpu' not in f)}")


def normal_migration_still_works(vm):
    """A copy of all memory into another QEMU, dirty-logged."""
    d = vm.guest.dir
    (d / "main.sock").unlink(missing_ok=True)
    vm.vmm.qmp("migrate-set-parameters", mode="normal", max_bandwidth=1 << 33, downtime_limit=2000)
    target = Vmm(vm, vm.other(), "-incoming", f"unix:{d}/main.sock")
    target.connect()
    vm.vmm.qmp("migrate", uri=f"unix:{d}/main.sock")

    def done():
        status = vm.vmm.qmp("query-migrate")
        expect(status["status"] not in ("failed", "cancelled"), status)
        return status["status"] == "completed" and status
    status = wait_until(done, 240, "the migration ends")
    tell(f"    {status['total-time']} ms, downtime {status['downtime']} ms, {status['ram']['dirty-sync-count']} syncs")
    wait_until(lambda: target.qmp("query-status")["running"], 20, "the target runs")
    vm.vmm.kill()
    vm.adopt(target)
    expect(target.gmem()["state"] == "owner", target.gmem())
    vm.healthy()


def cancelled_migration_binds_again(vm):
    d = vm.guest.dir
    (d / "main.sock").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(d / "main.sock"))
    listener.listen()
    vm.vmm.qmp("migrate-set-parameters", mode="normal", max_bandwidth=1 << 20)
    vm.vmm.qmp("migrate", uri=f"unix:{d}/main.sock")
    connection, _ = listener.accept()
    time.sleep(1)
    vm.healthy()
    vm.vmm.qmp("migrate_cancel")
    connection.close()
    wait_until(lambda: vm.vmm.qmp("query-migrate")["status"] == "cancelled", 30, "the migration is cancelled")
    vm.healthy()
    cont_hands_over_tables(vm)


TESTS = [source_owns_its_memory, dry_run_compares_while_the_source_runs, cont_hands_over_tables,
         transfer_then_kill_gives_memory_back, reverse_gives_memory_back, kill_after_load_keeps_the_source,
         without_tables_the_guest_refaults, five_in_a_row, normal_migration_still_works,
         cancelled_migration_binds_again]


def main():
    binaries, patterns = sys.argv[1:3], sys.argv[3:]
    local = []
    for i, binary in enumerate(binaries):
        path = f"/var/tmp/qemu-{'ab'[i]}"
        shutil.copy(binary, path)
        os.chmod(path, 0o755)
        local.append(path)
    passed = failed = 0
    vm = None
    for test in TESTS:
        if patterns and not any(p in test.__name__ for p in patterns):
            continue
        try:
            vm = vm or Vm(local, memory=int(os.environ.get("GUEST_MB", 512)), smp=int(os.environ.get("GUEST_SMP", 1)),
                          load_mem=int(os.environ.get("GUEST_LOAD_MB", 128)))
            begin = time.monotonic()
            tell(f"{test.__name__}:")
            test(vm)
            tell(f"  ok, {time.monotonic() - begin:.1f} s")
            passed += 1
        except Exception:
            tell("  FAILED\n" + traceback.format_exc())
            failed += 1
            if vm:
                for log in sorted(vm.guest.dir.glob("qemu-*.log")):
                    tell(f"    {log.name}: {log.read_text().strip()[-1500:]}")
                tell(vm.guest.console())
                vm.stop()
                vm = None
                said = subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()
                tell("\n".join(line for line in said[-200:] if re.search("kvm|BUG|WARN|Call Trace|RIP", line, re.I)))
            else:
                break  # without a guest there is nothing to test
    if vm:
        vm.stop()
    tell(f"{passed} passed, {failed} failed")
    return failed > 0 or not passed


if __name__ == "__main__":
    sys.exit(main())
