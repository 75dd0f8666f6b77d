# SPDX-License-Identifier: GPL-2.0-or-later
"""The patched QEMU by itself, without upgraded: hand-overs of a guest under load inside the emulated host.

    testbed/run --share REPO --kernel PATCHED --mem 6144 -- python3 -u /mnt/share/tests/qemu/inside.py A B [PATTERN]...

A and B are patched QEMUs (as seen inside); the guest is started with A, handed to B, and from then on to another B. Every test
is named after what it holds the patches to, prints what it saw, and leaves one guest running for the next. The last
line is "N passed, N failed"; it fails when none passed."""

import array
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
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

    def __init__(self, vm, binary, *extra, accel="kvm"):
        Vmm.serial += 1
        self.log_path = vm.guest.dir / f"qemu-{Vmm.serial}.log"
        self.path = vm.guest.dir / f"qmp-{Vmm.serial}"
        argv = [binary] + vm.guest.arguments()
        argv[argv.index("-accel") + 1] = accel
        argv[argv.index("-netdev") + 1] = f"tap,id=net0,fd={vm.tap},vhost=on"
        argv[argv.index("-machine") + 1] += ",aux-ram-share=on" + vm.machine
        argv += ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-qmp", f"unix:{self.path},server=on,wait=off", *vm.extra, *extra]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(argv, pass_fds=[vm.tap], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.qmp = None
        vm.vmms.append(self)

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

    def status(self):
        return self.qmp("query-status")["status"]

    def fds(self, kind):
        links = [os.readlink(f) for f in pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir() if f.is_symlink()]
        return [link for link in links if kind in link]

    def faults(self, *names):
        """Sums over the vCPUs of KVM's own counters."""
        total = {}
        for vcpu in self.qmp("query-stats", target="vcpu"):
            for stat in vcpu["stats"]:
                if stat["name"] in (names or ("pf_taken", "pf_fixed", "pf_mmio_spte_created")):
                    total[stat["name"]] = total.get(stat["name"], 0) + stat["value"]
        return total


class Vm:
    def __init__(self, binaries, machine=",guest-memfd=on", extra=(), asleep=False, **guest):
        self.binaries, self.machine, self.extra, self.vmms, self.relayed = binaries, machine, list(extra), [], None
        self.guest = Guest(machine=MACHINE, **guest)
        self.guest.prepare()
        self.tap = open_tap(self.guest.tap)
        try:
            self.vmm = Vmm(self, binaries[0], *["-S"] * asleep).connect()
            if not asleep:
                self.guest.wait_ready()
        except BaseException:
            self.stop()
            raise

    def other(self):
        """The next QEMU: the last one, also after itself. An older one cannot read a newer one's cpr state."""
        return self.binaries[-1]

    def stop(self):
        for vmm in self.vmms:
            vmm.kill()
        os.close(self.tap)
        self.guest.stop()

    def prepare(self, *extra, start=("-S",), accel="kvm", relay=None):
        """A target that has the memory and has built its machine; the source runs. relay(source's, target's) carries what
        cpr sends from one socket to the other."""
        d = self.guest.dir
        for name in ("cpr.sock", "main.sock"):
            (d / name).unlink(missing_ok=True)
        target = Vmm(self, self.other(), *start, "-incoming", "defer",
                     "-incoming", json.dumps(unix("cpr", d / "cpr.sock")), *extra, accel=accel)
        while not (d / "cpr.sock").exists():
            if target.process.poll() is not None:
                raise RuntimeError(target.log())
            time.sleep(0.001)
        self.vmm.qmp("migrate-set-parameters", mode="cpr-transfer")
        with contextlib.ExitStack() as stack:
            channels = [unix("main", d / "main.sock"), unix("cpr", d / "cpr.sock")]
            if relay:
                listener = stack.enter_context(listening(d / "relay.sock"))
                channels[1] = unix("cpr", d / "relay.sock")
            self.vmm.qmp("migrate", channels=channels)
            if relay:
                self.relayed = listener.accept()[0]
                to_target = stack.enter_context(socket.socket(socket.AF_UNIX))
                to_target.connect(str(d / "cpr.sock"))
                relay(self.relayed, to_target)
        return target.connect()

    def load(self, target):
        """The source stands, the target has its state and is paused."""
        target.qmp("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        target.qmp("migrate-incoming", channels=[unix("main", self.guest.dir / "main.sock")])
        if self.relayed:
            self.relayed.close()  # the source waits for that
        wait_until(lambda: target.status() in ("paused", "prelaunch"), 60,
                   lambda: f"the target has loaded: {target.log()}")
        wait_until(lambda: self.vmm.status() == "postmigrate", 60, "the source has sent")

    def adopt(self, target):
        self.vmm = target

    def healthy(self):
        report = self.guest.fresh_report()
        assert report["errors"] == 0, report
        peer = self.guest.status()["errors"]
        assert peer == 0, self.guest.status()
        return report


def listening(path):
    path.unlink(missing_ok=True)
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(path))
    s.listen()
    return s


def with_another_eventfd(from_source, to_target):
    """The target gets all that the source sends, but an eventfd that nobody writes to for the source's."""
    swapped, data = 0, True
    while data:
        data, fds, _, _ = socket.recv_fds(from_source, 1 << 16, 64)
        for i, fd in enumerate(fds):
            if "eventfd" in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(fd)
                fds[i] = os.eventfd(0)
                swapped += 1
        if data:
            socket.send_fds(to_target, [data], fds)
        for fd in fds:
            os.close(fd)
    expect(swapped == 1, swapped, "eventfds were sent")


@contextlib.contextmanager
def another(binaries, **parameters):
    """A VM of a test's own; asleep=True: its vCPUs never ran."""
    own = Vm(binaries, **{"name": "own", "memory": 128, "smp": 1, "load_mem": 16} | parameters)
    try:
        yield own
    except Exception as e:
        raise RuntimeError("; ".join(f"{vmm.log_path.name}: {vmm.log().strip()[-800:]}" for vmm in own.vmms)) from e
    finally:
        own.stop()


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
    listener = listening(d / "main.sock")
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


def a_source_that_runs_keeps_its_memory(binaries):
    """Whoever continued it: the target neither runs beside it, nor takes the memory away from it, nor fits it any more."""
    with another(binaries, memory=256) as own:
        target, source = own.prepare(), own.vmm
        own.load(target)
        source.qmp("cont")
        for status in ("running", "paused"):
            tell(f"    {status}: {refused(lambda: target.qmp('cont'), 'was resumed')}")
            refused(lambda: target.qmp("gmem-transfer"), "was resumed")
            expect((target.gmem()["state"], target.status()) == ("linked", "paused"), target.gmem(), target.status())
            expect((source.gmem()["state"], source.status()) == ("owner", status), source.gmem(), source.status())
            source.qmp("stop")
        source.qmp("cont")
        target.kill()
        own.healthy()

        target = own.prepare()
        own.load(target)
        target.qmp("cont")
        expect(target.gmem()["tier"] == "stage2", target.gmem())
        source.kill()
        own.adopt(target)
        own.healthy()


def a_vcpu_that_comes_too_late_is_paused(binaries):
    """The source is resumed in the very moment in which its memory is taken: after the target has looked."""
    with another(binaries, memory=256) as own:
        target, source = own.prepare(relay=with_another_eventfd), own.vmm
        own.load(target)
        source.qmp("cont")
        source.process.send_signal(signal.SIGSTOP)  # its vCPU is between two KVM_RUN
        tasks = pathlib.Path(f"/proc/{source.process.pid}/task")
        wait_until(lambda: all((task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for task in tasks.iterdir()), 10,
                   "the source has stopped")
        expect(target.qmp("gmem-transfer")["tier"] == "stage2", target.gmem())
        source.process.send_signal(signal.SIGCONT)
        wait_until(lambda: source.status() != "running", 10, "KVM stops the source")
        expect((source.gmem()["state"], source.status()) == ("parked", "paused"), source.gmem(), source.status())
        target.kill()
        wait_until(lambda: source.gmem()["state"] == "owner", 10, "the source owns again")
        source.qmp("cont")
        own.healthy()


def a_target_that_starts_by_itself_stays_paused(binaries):
    """The source is continued before the target has the last byte, and nobody says cont to the target."""
    with another(binaries, memory=256) as own:
        d, source = own.guest.dir, own.vmm
        target = own.prepare(start=())
        with listening(d / "main.sock") as listener, socket.socket(socket.AF_UNIX) as late:
            target.qmp("migrate-incoming", channels=[unix("main", d / "late.sock")])
            with listener.accept()[0] as connection:
                stream = b"".join(iter(lambda: connection.recv(1 << 20), b""))
            wait_until(lambda: source.status() == "postmigrate", 60, "the source has sent")
            late.connect(str(d / "late.sock"))
            # Devices look at memory when they are loaded: all but the last byte is for them, which the answer proves.
            late.sendall(stream[:-1])
            wait_until(lambda: array.array("i", fcntl.ioctl(late, termios.TIOCOUTQ, bytes(4)))[0] == 0, 60, "all is read")
            expect(target.status() == "inmigrate", target.status())
            source.qmp("cont")
            late.sendall(stream[-1:])
        wait_until(lambda: target.status() != "inmigrate", 60, "the target has loaded")
        expect(target.status() == "paused", target.status())
        tell(f"    {target.log().strip()}")  # perhaps it is refused the images already
        refused(lambda: target.qmp("cont"), "was resumed")
        target.kill()
        expect(source.status() == "running", source.status())
        own.healthy()


def nothing_starts_a_parked_source(vm):
    """vm_start() has other callers than cont, here the debugger's."""
    target = vm.prepare()
    vm.load(target)
    target.qmp("gmem-transfer")
    path = vm.guest.dir / "gdb.sock"
    vm.vmm.qmp("human-monitor-command", command_line=f"gdbserver unix:{path},server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.connect(str(path))
        gdb.sendall(b"+$c#63")
        wait_until(lambda: "handed to another one" in vm.vmm.log() or vm.vmm.status() != "postmigrate", 30,
                   "the debugger's command arrives")
        expect((vm.vmm.status(), vm.vmm.gmem()["state"]) == ("postmigrate", "parked"), vm.vmm.status(), vm.vmm.gmem())
    vm.vmm.qmp("human-monitor-command", command_line="gdbserver none")
    target.kill()
    wait_until(lambda: vm.vmm.gmem()["state"] == "owner", 10, "the source owns again")
    vm.vmm.qmp("cont")
    vm.vmm.qmp("migrate-set-parameters", mode="normal")
    vm.healthy()


def what_is_linked_is_not_migrated_on(binaries):
    with another(binaries, asleep=True) as own:
        target = own.prepare()
        own.load(target)
        tell(f"    {target.qmp('query-migrate')}")
        for mode in "cpr-transfer", "normal":
            target.qmp("migrate-set-parameters", mode=mode)
            channels = [unix("main", own.guest.dir / "on.sock"), unix("cpr", own.guest.dir / "on-cpr.sock")]
            refused(lambda: target.qmp("migrate", channels=channels[:1 + (mode != "normal")]), "not handed over")
        target.qmp("gmem-transfer")
        expect("blocked-reasons" not in target.qmp("query-migrate"), target.qmp("query-migrate"))


def without_page_tables_it_is_ownership(binaries):
    """A VM that never ran has none. Its target did not run either when it becomes a source."""
    with another(binaries, asleep=True) as own:
        target = own.prepare()
        own.load(target)
        done = target.qmp("gmem-transfer")
        tell(f"    {brief(done)}")
        expect((done["tier"], done["tables"]) == ("ownership", 0) and "no page tables" in done["error"], done)
        expect(target.gmem()["state"] == "owner", target.gmem())
        own.vmm.kill()
        own.adopt(target)
        target = own.prepare()
        own.load(target)
        done = target.qmp("gmem-transfer")
        tell(f"    {brief(done)}")
        expect((done["tier"], target.gmem()["state"]) == ("gmem", "user"), done, target.gmem())


def the_state_is_that_of_what_is_bound(binaries):
    """Memory that was not handed over is used through its mapping; what is added later is bound nevertheless."""
    layout = "-machine", "max-ram-below-4g=64M"
    dimm = "-object", "memory-backend-memfd,id=d0,size=128M", "-device", "pc-dimm,id=dimm0,memdev=d0"
    with another(binaries, asleep=True, extra=["-m", "slots=2,maxmem=1G"]) as own:
        target = own.prepare(*layout)
        own.load(target)
        done = target.qmp("gmem-transfer")
        tell(f"    {brief(done)}")
        expect((done["tier"], target.gmem()["state"]) == ("gmem", "user"), done, target.gmem())
        own.vmm.kill()
        own.adopt(target)
        own.vmm.qmp("object-add", qom_type="memory-backend-memfd", id="d0", size=128 << 20)
        own.vmm.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="d0")
        expect(own.vmm.gmem()["state"] == "owner", own.vmm.gmem())

        target = own.prepare(*layout, *dimm)
        own.load(target)
        done = target.qmp("gmem-transfer")
        tell(f"    {brief(done)}")
        expect((done["nr-matched"], target.gmem()["state"]) == (1, "owner"), done, target.gmem())
        expect(own.vmm.gmem()["state"] == "parked", own.vmm.gmem())
        refused(lambda: own.vmm.qmp("cont"), "handed to another one")


def the_first_guest_memfd_comes_with_the_machine(binaries):
    with another(binaries, asleep=True, machine="") as own:
        backend = {"qom_type": "memory-backend-memfd", "id": "d0", "size": 1 << 20, "guest_memfd": True}
        refused(lambda: own.vmm.qmp("object-add", **backend), "when the machine is created")
        expect(own.vmm.gmem()["state"] == "none", own.vmm.gmem())


def slots_end_where_chipsets_switch(binaries):
    """In a QEMU that got its memory, bound or not. Without the TDP MMU (tests/qemu/run --no-tdp-mmu) it is not."""
    with another(binaries, asleep=True) as own:
        target = own.prepare("-trace", "kvm_set_user_memory")
        own.load(target)
        target.qmp("cont")
        time.sleep(5)  # the firmware makes RAM of all that can be RAM, for a while
        slots = [(int(a, 16), int(a, 16) + int(n, 16))
                 for a, n in re.findall(r"gpa=(0x\w+) size=(0x\w+)", target.log())]
        tell(f"    {target.gmem()['state']}, {len(slots)} slots")
        expect(len(slots) > 10, slots)
        for edge in 640 << 10, 1 << 20:
            expect(not [s for s in slots if s[0] < edge < s[1]], f"across {edge:#x}:", slots)


def without_guest_memfd_no_other_vm_stays(binaries):
    with another(binaries, asleep=True) as own:
        target = own.prepare("-machine", "guest-memfd=off", "-object", "memory-backend-memfd,id=pc.ram,size=128M",
                             "-machine", "memory-backend=pc.ram")
        own.load(target)
        target.qmp("cont")
        expect(target.fds("kvm").count("anon_inode:kvm-vm") == 1, target.fds("kvm"))


def a_backend_that_fails_leaves_nothing(binaries):
    with another(binaries, asleep=True) as own:
        before = own.vmm.fds("kvm-gmem")
        refused(lambda: own.vmm.qmp("object-add", qom_type="memory-backend-memfd", id="d0", size=1 << 50), "")
        expect(len(before) == 1 and own.vmm.fds("kvm-gmem") == before, own.vmm.fds("kvm-gmem"))
        own.vmm.qmp("object-add", qom_type="memory-backend-memfd", id="d0", size=1 << 20)
        expect("tier" not in own.vmm.gmem() and not own.vmm.log(), own.vmm.gmem(), own.vmm.log())


def memory_that_is_too_small_is_refused(binaries):
    with another(binaries, asleep=True) as own:
        try:
            own.prepare("-m", "256")
        except RuntimeError as e:
            expect("is smaller than 268435456 bytes" in str(e), e)
        else:
            raise AssertionError("the target takes it")


def no_postcopy_into_a_guest_memfd(binaries):
    with another(binaries, asleep=True) as own:
        target = Vmm(own, own.other(), "-incoming", "defer").connect()
        for vmm, capability in (target, "postcopy-ram"), (own.vmm, "background-snapshot"):
            wish = [{"capability": capability, "state": True}]
            said = refused(lambda: vmm.qmp("migrate-set-capabilities", capabilities=wish), "")
            tell(f"    {capability}: {said}")


def memory_that_was_not_handed_over_can_be_discarded(vm):
    """KVM hands nothing over with a dirty ring. The last test, as the next QEMU cannot be better off."""
    target = vm.prepare(accel="kvm,dirty-ring-size=4096")
    vm.load(target)
    target.qmp("cont")
    vm.vmm.kill()
    vm.adopt(target)
    tell(f"    {brief(target.gmem()['last'])}")
    expect((target.gmem()["state"], target.gmem()["tier"]) == ("user", "gmem"), target.gmem())
    vm.healthy()
    size = target.qmp("query-balloon")["actual"]
    target.qmp("balloon", value=size - (64 << 20))
    wait_until(lambda: target.qmp("query-balloon")["actual"] < size - (60 << 20), 60, "the balloon has grown")
    target.qmp("balloon", value=size)
    wait_until(lambda: target.qmp("query-balloon")["actual"] == size, 60, "the balloon has shrunk")
    expect("fallocate" not in target.log(), target.log()[-1000:])
    vm.healthy()


TESTS = [source_owns_its_memory, dry_run_compares_while_the_source_runs, cont_hands_over_tables,
         transfer_then_kill_gives_memory_back, reverse_gives_memory_back, kill_after_load_keeps_the_source,
         without_tables_the_guest_refaults, five_in_a_row, normal_migration_still_works,
         cancelled_migration_binds_again, nothing_starts_a_parked_source,
         memory_that_was_not_handed_over_can_be_discarded]

# These have VMs of their own.
OWN = [a_source_that_runs_keeps_its_memory, a_vcpu_that_comes_too_late_is_paused,
       a_target_that_starts_by_itself_stays_paused, what_is_linked_is_not_migrated_on,
       without_page_tables_it_is_ownership, the_state_is_that_of_what_is_bound,
       the_first_guest_memfd_comes_with_the_machine, slots_end_where_chipsets_switch,
       without_guest_memfd_no_other_vm_stays, a_backend_that_fails_leaves_nothing,
       memory_that_is_too_small_is_refused, no_postcopy_into_a_guest_memfd]


def main():
    binaries, patterns = sys.argv[1:3], sys.argv[3:]
    local = []
    for i, binary in enumerate(binaries):
        path = f"/var/tmp/qemu-{'ab'[i]}"
        shutil.copy(binary, path)
        os.chmod(path, 0o755)
        local.append(path)
    sizes = {name: int(os.environ.get(variable, default)) for name, variable, default in (
        ("memory", "GUEST_MB", 512), ("smp", "GUEST_SMP", 1), ("load_mem", "GUEST_LOAD_MB", 128))}
    passed = failed = 0
    vm = None
    for test in OWN + TESTS:
        if patterns and not any(p in test.__name__ for p in patterns):
            continue
        begin = time.monotonic()
        tell(f"{test.__name__}:")
        try:
            if test in OWN:
                test(local)
            else:
                vm = vm or Vm(local, **sizes)
                test(vm)
            tell(f"  ok, {time.monotonic() - begin:.1f} s")
            passed += 1
        except Exception:
            tell("  FAILED\n" + traceback.format_exc())
            failed += 1
            if test in OWN:
                continue
            if not vm:
                break  # without a guest there is nothing to test
            for log in sorted(vm.guest.dir.glob("qemu-*.log")):
                tell(f"    {log.name}: {log.read_text().strip()[-1500:]}")
            tell(vm.guest.console())
            vm.stop()
            vm = None
            said = subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()
            tell("\n".join(line for line in said[-200:] if re.search("kvm|BUG|WARN|Call Trace|RIP", line, re.I)))
    if vm:
        vm.stop()
    tell(f"{passed} passed, {failed} failed")
    return failed > 0 or not passed


if __name__ == "__main__":
    sys.exit(main())
