# SPDX-License-Identifier: GPL-2.0-or-later
"""A test guest under load in the emulated host, and what its watcher saw.

Used by the demo, the integration tests and the benchmarks; runs as root inside the emulated host (testbed/run),
where upgraded is installed and started by systemd. Owns everything it starts: Guest.stop() ends it, by pid or
by unit, and `with Guest(...)` does so on every way out."""

import glob
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from waits import wait_until, within  # pylint: disable=unused-import

TOOLS = pathlib.Path("/usr/lib/upgraded-test")
UPGRADECTL = "upgradectl"

COMMITTED, REFUSED, ROLLED_BACK, NO_SUCH_VM, LOST = 0, 3, 4, 5, 8  # exit statuses of upgradectl
# More time for a phase than by default: an emulated processor takes a minute to probe a QEMU when the one below is busy.
# Of several --timeout the last one counts.
PATIENT = ("--timeout", "150")
BOOT_SECONDS = 300  # for a guest on a machine that is slow, and busy with another emulated host
# What each part of the load counts as done. Without errors, all of it grows.
WORK = (("mem", "verified"), ("disk", "fsyncs"), ("net", "received"), ("clock", "samples"))
REPORT_SECONDS = 90  # two reports over an emulated serial port, in a busy emulated host: who waits longer hangs


def qemus():
    """{version: path} of the QEMUs in the emulated host, oldest first."""
    found = {}
    for path in glob.glob("/opt/qemu-*/bin/qemu-system-x86_64"):
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        found[text.split()[3]] = path
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


def default_machine(path, machine="q35"):
    """The machine type that `machine` means for this QEMU: pc-q35-10.0."""
    text = subprocess.run([path, "-machine", "help"], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        if line.split()[0] == machine and "(alias of " in line:
            return line.split("(alias of ")[1].rstrip(")")
    raise RuntimeError(f"{path} has no machine {machine}")


def cpu_ticks(pid, tid):
    """Processor time of a thread, in clock ticks."""
    fields = pathlib.Path(f"/proc/{pid}/task/{tid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def hmp(path, *commands):
    """What QEMU's human monitor says to the commands."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(path))
        s.settimeout(1)
        answer = b""
        for command in commands:
            s.sendall(command.encode() + b"\n")
            try:
                while not answer.endswith(b"(qemu) "):
                    answer += s.recv(65536)
            except TimeoutError:
                pass
            answer += b"\n"
    # Without the echo, which is edited character by character, and without what no kernel waits for.
    return "\n".join(line for line in answer.decode(errors="replace").splitlines()
                     if "\x1b" not in line and not line.startswith(("FPR", "XMM", "FCW", "DR")))


def status_by_qmp(path, seconds=20):
    """What the QMP monitor at the path says of the guest: "running", "paused"."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(seconds)
        s.connect(str(path))
        with s.makefile("rw") as lines:
            lines.readline()
            for command in ("qmp_capabilities", "query-status"):
                lines.write(json.dumps({"execute": command}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    pass
    return answer["return"]["status"]


class Guest:
    """One VM under its unit vmm@NAME.service, with its load, its peer and its watcher."""

    serial = 0

    # How its disk is attached: the name that it has in the guest, the drive, the devices.
    DISKS = {
        "virtio-blk": ("vda", "if=virtio", []),
        "virtio-scsi": ("sda", "if=none,id=disk0",
                        ["-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,bus=scsi0.0,drive=disk0"]),
        "nvme": ("nvme0n1", "if=none,id=disk0", ["-device", "nvme,serial=load,drive=disk0"]),
        "ahci": ("sda", "if=none,id=disk0", ["-device", "ide-hd,drive=disk0"]),
    }

    def __init__(self, name="vm", memory=512, smp=2, load_mem=128, machine=None, extra=(), cmdline="", vhost=True,
                 virtio=True, heartbeat_us=1000, disk=None, kernel=TOOLS / "bzImage", initrd=TOOLS / "load.img"):
        Guest.serial += 1
        self.name, self.memory, self.smp, self.load_mem, self.virtio = name, memory, smp, load_mem, virtio
        self.machine, self.extra, self.cmdline, self.vhost = machine, list(extra), cmdline, vhost
        self.heartbeat_us, self.kernel, self.initrd = heartbeat_us, kernel, initrd
        self.disk = disk or ("virtio-blk" if virtio else "ahci")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"guest-{name}-", dir="/var/tmp"))
        self.net = f"10.77.{Guest.serial}"
        self.tap = f"tap-{name}"[:15]
        self.peer = self.watch = None
        self.started = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # What is around the VM.

    def prepare(self):
        """Network, disk, peer and watcher; everything but the VMM."""
        d = self.dir
        os.mkfifo(d / "heartbeat")
        os.mkfifo(d / "report")
        subprocess.run(["ip", "tuntap", "add", "dev", self.tap, "mode", "tap", "vnet_hdr"], check=True)
        subprocess.run(["ip", "addr", "add", f"{self.net}.1/24", "dev", self.tap], check=True)
        subprocess.run(["ip", "link", "set", self.tap, "up"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", d / "disk.qcow2", "256M"], check=True,
                       env=dict(os.environ, PATH=os.environ["PATH"] + ":/opt/qemu-10.0/bin:/opt/qemu-11.1/bin"))
        self.peer = subprocess.Popen([TOOLS / "loadpeer", "--listen", f"{self.net}.1:7777"],
                                     stdout=open(d / "peer.json", "w"), stderr=subprocess.STDOUT)
        self.watch = subprocess.Popen([TOOLS / "loadwatch", "--hb", d / "heartbeat", "--report", d / "report",
                                       "--ctl", d / "watch", "--period-us", str(self.heartbeat_us)],
                                      stdout=open(d / "watch.json", "w"), stderr=subprocess.STDOUT)
        wait_until((d / "watch").exists, 10, "loadwatch listens")

    def arguments(self):
        """The VM's command line after the binary, as an operator would write it."""
        d = self.dir
        machine = self.machine or default_machine(next(iter(qemus().values())))
        disk, drive, devices = self.DISKS[self.disk]
        devices = ["-drive", f"file={d}/disk.qcow2,format=qcow2,{drive}", *devices]
        devices += self.virtio_devices() if self.virtio else self.emulated_devices()
        report = "" if self.virtio else "load.report=/dev/ttyS1 load.report_ms=2000 "
        # Without the parameter KVM turns the clock back at any "cont", with or without an upgrade: docs/limits.md.
        append = (f"console=ttyS0 quiet no-kvmclock-vsyscall load.mem={self.load_mem} load.disk=/dev/{disk} {report}"
                  f"load.net={self.net}.2/24 load.peer={self.net}.1:7777 load.hb_us={self.heartbeat_us} {self.cmdline}")
        return ["-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", str(self.smp), "-m", str(self.memory),
                "-nodefaults", "-display", "none", "-vga", "std",
                "-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", append.strip(),
                "-serial", f"file:{d}/console.log",
                "-chardev", f"file,id=heartbeat,path={d}/heartbeat",
                "-device", "isa-debugcon,iobase=0xe9,chardev=heartbeat",
                "-chardev", f"file,id=report,path={d}/report"] + devices + self.extra

    def virtio_devices(self):
        return ["-netdev", f"tap,id=net0,ifname={self.tap},script=no,downscript=no,vhost={'on' if self.vhost else 'off'}",
                "-device", "virtio-net-pci,netdev=net0",
                "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "virtio-serial-pci",
                "-device", "virtserialport,name=org.upgraded.load,chardev=report"]

    def emulated_devices(self):
        """No virtio at all: what can cross from QEMU 10.0.13, see docs/limits.md."""
        return ["-netdev", f"tap,id=net0,ifname={self.tap},script=no,downscript=no",
                "-device", "e1000e,netdev=net0",
                "-device", "isa-serial,chardev=report"]

    def start(self, binary, ready=BOOT_SECONDS, tries=3):
        """Under emulation a guest with two processors sometimes hangs while it boots: try again, and say so."""
        for left in reversed(range(tries)):
            try:
                self.prepare()
                self.started = True
                subprocess.run([UPGRADECTL, "run", self.name, "--", binary] + self.arguments(), check=True,
                               stdout=subprocess.DEVNULL)
                self.wait_ready(ready)
                return self
            except BaseException as e:
                self.stop()
                if not left or not isinstance(e, RuntimeError):
                    raise
                tell(f"  {self.name} did not boot, starting it again: {str(e)[:200]}")
                self.dir.mkdir()

    def wait_ready(self, seconds=BOOT_SECONDS):
        r = subprocess.run([TOOLS / "loadwatch", "--ctl", self.dir / "watch", "wait-ready", str(seconds)],
                           capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(f"{self.name}: the load is not ready: {r.stdout}{r.stderr}\n{self.console()}")

    def stop(self):
        if self.started:
            subprocess.run(["systemctl", "stop", f"vmm@{self.name}.service"], capture_output=True)
            subprocess.run([UPGRADECTL, "forget", self.name], capture_output=True)
        for child in (self.peer, self.watch):
            if child:
                child.send_signal(signal.SIGTERM)
                child.wait(10)
        subprocess.run(["ip", "link", "del", self.tap], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)
        self.started, self.peer, self.watch = False, None, None

    # What is seen of it.

    def ask(self, *words):
        r = subprocess.run([TOOLS / "loadwatch", "--ctl", self.dir / "watch", *words], capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(f"loadwatch {' '.join(words)}: {r.stdout}{r.stderr}")
        return json.loads(r.stdout)

    def mark(self, name):
        return self.ask("mark", name)

    def window(self, name):
        return self.ask("window", name)

    def gap_between(self, begin, end):
        """The longest gap of the heartbeat that overlaps this time, in ms since 1970, and the work around it."""
        since_boot = (time.time() - time.monotonic()) * 1000
        return self.ask("gap", f"{begin - since_boot} {end - since_boot}")

    @staticmethod
    def no_runner(report):
        """From when to when there was none, in ms since 1970, at most."""
        phase = {p["phase"]: p for p in report["phases"]}
        begin = report["started_at_us"] / 1000
        return begin + phase["freeze"]["start_ms"], begin + phase["run"]["start_ms"] + phase["run"]["duration_ms"]

    def switch_gap(self, report):
        return self.gap_between(*self.no_runner(report))

    def status(self):
        return self.ask("status")

    def console(self, lines=20):
        try:
            return "\n".join((self.dir / "console.log").read_text(errors="replace").splitlines()[-lines:])
        except OSError as e:
            return str(e)

    def fresh_report(self, seconds=REPORT_SECONDS):
        """The first report that the guest sends from now on: it is alive, and this is what it says."""
        seen = self.status()["reports"]["seen"]
        try:
            status = wait_until(lambda: (s := self.status())["reports"]["seen"] > seen + 1 and s, seconds,
                                f"{self.name} reports")
        except TimeoutError as e:
            raise TimeoutError(f"{e}; {self.diagnosis()}") from None
        return status["guest"]

    def progress(self):
        """Waits until every part of the load has got something done since the next report; returns the one that says so.
        A disk or a connection that stands still is no error to the guest."""
        def still():
            now = self.status()["guest"]
            return [part for part, counter in WORK if now[part][counter] <= before[part][counter]]

        before = self.fresh_report()
        wait_until(lambda: not still(), REPORT_SECONDS, lambda: f"{self.name} gets on, still are {still()}")
        return self.status()["guest"]

    def diagnosis(self):
        """Of a guest that does not report, in few words: is it the guest that stands, its VMM, or only the report?"""
        ticks, threads = self.status()["ticks"], []
        pid = self.pid()
        before = {tid: cpu_ticks(pid, tid) for tid in os.listdir(f"/proc/{pid}/task")}
        time.sleep(1)
        for tid, ran in before.items():
            task = pathlib.Path(f"/proc/{pid}/task/{tid}")
            threads.append(f"{(task / 'comm').read_text().strip()} {(task / 'stat').read_text().rsplit(')', 1)[1].split()[0]} "
                           f"{cpu_ticks(pid, tid) - ran} ticks/s in {(task / 'wchan').read_text()} "
                           f"{(task / 'syscall').read_text().split()[:3]}")
        text = f"{ticks['seen']} heartbeats, silent for {ticks['silent_ms']} ms; threads: {'; '.join(threads)}"
        monitor = self.dir / "monitor"
        if monitor.exists():
            text += "; " + " ".join(hmp(monitor, "info status", "info cpus", "info registers -a", "info lapic 0", "info lapic 1").split())
        return f"{text}; console:\n{self.console()}"

    def show(self):
        r = subprocess.run([UPGRADECTL, "--json", "show", self.name], capture_output=True, text=True, check=True)
        return json.loads(r.stdout)

    def pid(self):
        return self.show()["process"]["pid"]

    # What is done to it.

    def upgrade(self, binary, *options):
        """Returns (exit status, report); the report is {} when there was none."""
        r = subprocess.run([*upgrade_command(self.name, binary), *options],
                           capture_output=True, text=True)
        lines = [json.loads(line) for line in r.stdout.splitlines() if line.strip()]
        reports = [line for line in lines if "outcome" in line]
        return r.returncode, reports[-1] if reports else {"stdout": r.stdout, "stderr": r.stderr}


def upgrade_command(name, binary):
    return [UPGRADECTL, "--json", "upgrade", name, "--vmm", binary, *PATIENT]


def wrong_ticks(ticks):
    """{kind: how many} of the heartbeats that did not come once each, in order. With two VMs that run the guest a number
    comes again or one from before does: that depends on how far ahead the other one is."""
    return {kind: ticks[kind] for kind in ("lost", "duplicated", "reordered") if ticks[kind]}


def tell(text):
    print(text, flush=True)
