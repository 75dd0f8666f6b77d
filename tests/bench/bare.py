# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator does by hand today: cpr-transfer between two QEMUs with a short script, unsupervised.

The yardstick of bench.py. It is the fastest honest way: the target is not started with -S, so it runs the guest as
soon as it has loaded the state, nobody asks it whether it did, and there is no way back. Owns both processes."""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


def open_tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    os.set_inheritable(fd, True)
    return fd


class Qmp:
    def __init__(self, path, deadline=60):
        self.socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + deadline
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.002)
        self.events = {}  # name: QEMU's own time stamp, in ms
        self.file = self.socket.makefile("r")
        self.file.readline()
        self.command("qmp_capabilities")

    def command(self, name, **arguments):
        self.socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        while True:
            answer = self.note(json.loads(self.file.readline()))
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def note(self, message):
        if "event" in message:
            at = message["timestamp"]
            self.events[message["event"]] = at["seconds"] * 1000 + at["microseconds"] / 1000
        return message

    def note_waiting(self):
        """Takes the events that have come already."""
        try:
            for line in self.socket.recv(1 << 20, socket.MSG_DONTWAIT).splitlines():
                self.note(json.loads(line))
        except (BlockingIOError, ValueError):
            pass

    def close(self):
        self.file.close()
        self.socket.close()


def unix(kind, path):
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


class BareVm:
    """A guest of host.Guest's making, started and upgraded without upgraded."""

    def __init__(self, guest):
        self.guest, self.dir, self.generation = guest, guest.dir, 0
        guest.prepare()
        self.tap = open_tap(guest.tap)
        self.pid = self.qmp = self.path = self.no_runner = None

    def spawn(self, binary, *extra):
        self.generation += 1
        qmp = self.dir / f"qmp-{self.generation}"
        argv = [binary] + self.guest.arguments()
        argv[argv.index("-netdev") + 1] = f"tap,id=net0,fd={self.tap},vhost={'on' if self.guest.vhost else 'off'}"
        argv[argv.index("-machine") + 1] += ",aux-ram-share=on,memory-backend=ram0"
        argv += ["-object", f"memory-backend-memfd,id=ram0,size={self.guest.memory}M,share=on",
                 "-qmp", f"unix:{qmp},server=on,wait=off", *extra]
        log = open(self.dir / f"qemu-{self.generation}.log", "w")
        return subprocess.Popen(argv, pass_fds=[self.tap], stdout=log, stderr=log, stdin=subprocess.DEVNULL), qmp

    def start(self, binary):
        target, self.path = self.spawn(binary)
        self.pid = target.pid
        self.qmp = Qmp(self.path)
        self.guest.wait_ready(240)
        return self

    def log(self):
        return (self.dir / f"qemu-{self.generation}.log").read_text()

    def upgrade(self, binary):
        cpr, main = self.dir / "cpr.sock", self.dir / "main.sock"
        for path in (cpr, main):
            path.unlink(missing_ok=True)
        target, qmp = self.spawn(binary, "-incoming", json.dumps(unix("main", main)),
                                 "-incoming", json.dumps(unix("cpr", cpr)))
        while not cpr.exists():
            if target.poll() is not None:
                raise RuntimeError(self.log())
            time.sleep(0.001)
        self.qmp.command("migrate-set-parameters", mode="cpr-transfer")
        self.qmp.command("migrate", channels=[unix("main", main), unix("cpr", cpr)])
        target_qmp = Qmp(qmp)
        while target_qmp.command("query-status")["status"] != "running":
            if target.poll() is not None:
                raise RuntimeError(self.log())
            time.sleep(0.01)
        self.end()
        self.qmp.note_waiting()
        self.no_runner = self.qmp.events["STOP"], target_qmp.events["RESUME"]
        self.qmp.close()
        self.pid, self.qmp, self.path = target.pid, target_qmp, qmp
        return self.no_runner

    def take_over(self, pid):
        """Somebody else replaced the VMM; its monitor has the old path."""
        self.pid, self.qmp = pid, Qmp(self.path)

    def end(self):
        fd = os.pidfd_open(self.pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], 30)
        os.close(fd)

    def stop(self):
        if self.qmp:
            self.qmp.close()
        if self.pid:
            self.end()
        os.close(self.tap)
        self.guest.stop()
