#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots the test guest under plain emulation and holds the load to what it says of itself.

LOAD_BZIMAGE   a kernel with virtio built in (without it all tests are skipped)
LOAD_BUILD     where loadwatch and loadpeer were built (default: build/tests/guest of this tree)
LOAD_QEMU      the QEMU to use (default: qemu-system-x86_64)

No root is needed: the TCP stream goes through QEMU's own user networking.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../lib"))
from host import wrong_ticks  # noqa: E402

BZIMAGE = os.environ.get("LOAD_BZIMAGE", "")
BUILD = os.environ.get("LOAD_BUILD", os.path.join(HERE, "../../build/tests/guest"))
QEMU = os.environ.get("LOAD_QEMU", "qemu-system-x86_64")
PARTS = ("mem", "disk", "net", "clock", "hb")


def user_networking():
    r = subprocess.run([QEMU, "-machine", "none", "-netdev", "help"], capture_output=True, text=True)
    return "user" in r.stdout.split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Guest:
    """One boot of the load guest with loadwatch and loadpeer around it."""

    def __init__(self, initrd, seconds, append=""):
        self.dir = tempfile.mkdtemp(prefix="load-guest-")
        self.seconds = seconds
        self.procs = []
        try:
            self.start(initrd, append)
        except BaseException:
            self.clean()
            raise

    def start(self, initrd, append):
        port = free_port()
        self.peer = self.spawn([BUILD + "/loadpeer", "--listen", f"127.0.0.1:{port}"], stdout=subprocess.PIPE)
        self.watch = self.spawn([BUILD + "/loadwatch", "--hb", self.path("hb"), "--report", self.path("report"),
                                 "--ctl", self.path("ctl")], stdout=subprocess.PIPE)
        assert json.loads(self.watch.stdout.readline()) == {"loadwatch": "ready"}
        with open(self.path("disk.img"), "wb") as f:
            f.truncate(32 << 20)
        cmd = [QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-smp", "2", "-m", "512",
               "-kernel", BZIMAGE, "-initrd", initrd,
               "-append", f"console=ttyS0 quiet panic=-1 load.mem=128 load.disk=/dev/vda load.seconds={self.seconds} {append}"
               + (f" load.net=10.0.2.15/24 load.peer=10.0.2.2:{port}" if user_networking() else ""),
               "-chardev", f"file,id=con,path={self.path('console')}", "-serial", "chardev:con",
               "-drive", f"file={self.path('disk.img')},if=virtio,format=raw",
               "-device", "virtio-serial",
               "-chardev", f"file,id=report,path={self.path('report')},append=on",
               "-device", "virtserialport,name=org.upgraded.load,chardev=report",
               # One FIFO behind both ways out for the ticks: the guest takes the first that it can use.
               "-chardev", f"file,id=hb,path={self.path('hb')},append=on",
               "-device", "isa-debugcon,iobase=0xe9,chardev=hb",
               "-chardev", f"file,id=hbv,path={self.path('hb')},append=on",
               "-device", "virtserialport,name=org.upgraded.hb,chardev=hbv",
               "-qmp", f"unix:{self.path('qmp')},server=on,wait=off"]
        if user_networking():
            cmd += ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]
        with open(self.path("qemu.log"), "w") as log:
            self.qemu = self.spawn(cmd, stdout=log, stderr=subprocess.STDOUT)

    def path(self, name):
        return os.path.join(self.dir, name)

    def spawn(self, cmd, **kw):
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, text=True, **kw)
        self.procs.append(p)
        return p

    def ask(self, *command):
        r = subprocess.run([BUILD + "/loadwatch", "--ctl", self.path("ctl"), *command], capture_output=True, text=True)
        return r.returncode, json.loads(r.stdout)

    def wait_ready(self):
        code, status = self.ask("wait-ready", "60")
        assert code == 0, f"the guest was not READY in 60 s: {status}\n{self.console()}"

    def qmp(self, *commands):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(self.path("qmp"))
            f = s.makefile("rw")
            f.readline()
            for c in ("qmp_capabilities",) + commands:
                if isinstance(c, float):
                    time.sleep(c)
                    continue
                f.write(json.dumps({"execute": c}) + "\n")
                f.flush()
                while "return" not in (answer := json.loads(f.readline())):
                    assert "error" not in answer, answer

    def console(self):
        out = ""
        for name in ("qemu.log", "console"):
            if os.path.exists(self.path(name)):
                with open(self.path(name), errors="replace") as f:
                    out += f.read()
        return out

    def end(self):
        """Waits for the guest's own power-off; returns the watcher's last status and the peer's totals."""
        code = self.qemu.wait(self.seconds + 60)
        assert code == 0, f"QEMU ended with {code}: {self.console()}"
        time.sleep(0.2)
        _, status = self.ask("status")
        self.peer.terminate()
        return status, json.loads(self.peer.communicate(timeout=10)[0])

    def clean(self):
        for p in self.procs:
            if p.poll() is None:
                p.kill()
            p.wait()
            if p.stdout:
                p.stdout.close()
        shutil.rmtree(self.dir)


@unittest.skipUnless(BZIMAGE, "LOAD_BZIMAGE names no kernel")
@unittest.skipUnless(shutil.which(QEMU), f"there is no {QEMU}")
@unittest.skipUnless(os.access(BUILD + "/loadwatch", os.X_OK), f"there is no loadwatch in {BUILD}")
class LoadGuest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.initrd = os.path.join(cls.dir.name, "load.img")
        subprocess.run([os.path.join(HERE, "mkinitrd"), cls.initrd], check=True)
        cls.net = user_networking()
        if not cls.net:
            print("left out: the TCP stream, because this QEMU has no user networking")

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def boot(self, seconds, append=""):
        g = Guest(self.initrd, seconds, append)
        self.addCleanup(g.clean)
        return g

    def test_every_part_works_without_error_and_powers_off(self):
        g = self.boot(10)
        g.wait_ready()
        status, peer = g.end()
        guest = status["guest"]
        print("\nwatch:", json.dumps(status), "\npeer:", json.dumps(peer))
        self.assertEqual(status["state"], "done")
        self.assertEqual(guest["first_error"], "")
        self.assertEqual(status["errors"], 0)
        for part in PARTS:
            self.assertEqual(guest["parts"][part], "going" if self.net or part != "net" else "off", part)
        self.assertGreater(guest["mem"]["verified"], 1000)
        self.assertEqual(guest["mem"]["mb"], 128)
        self.assertGreater(guest["disk"]["fsyncs"], 10)
        self.assertGreater(guest["disk"]["verified"], 10)
        self.assertTrue(guest["disk"]["direct"])
        self.assertGreater(guest["clock"]["samples"], 100)
        self.assertEqual(guest["clock"]["cpus"], 2)
        self.assertIn(guest["hb"]["out"], ("/dev/port", "port", "virtio"))
        self.assertEqual(wrong_ticks(status["ticks"]), {})
        # Every tick that the guest made arrived.
        self.assertEqual(status["ticks"]["seen"], guest["hb"]["ticks"])
        self.assertEqual(status["reports"]["garbled"], 0)
        if self.net:
            self.assertEqual(guest["net"]["connects"], 1)
            self.assertGreater(guest["net"]["received"], 100000)
            self.assertEqual(guest["net"]["received"], guest["net"]["sent"])
            self.assertEqual(peer["bytes_in"], guest["net"]["sent"])
            self.assertEqual([peer[k] for k in ("connections", "sequence_errors", "bad_hellos", "resets")], [1, 0, 0, 0])

    def test_a_stopped_machine_is_a_gap_and_no_error(self):
        g = self.boot(14)
        g.wait_ready()
        time.sleep(2)
        g.ask("mark", "stop")
        g.qmp("stop", 0.4, "cont")
        time.sleep(3)
        _, window = g.ask("window", "stop")
        print("\nwindow:", json.dumps(window))
        self.assertGreaterEqual(window["longest_gap"]["ms"], 395)
        self.assertLess(window["longest_gap"]["ms"], 900)
        self.assertFalse(window["longest_gap"]["open"])
        self.assertEqual(wrong_ticks(window["ticks"]), {})
        self.assertEqual(window["errors_new"], 0)
        self.assertGreater(window["work"]["before_pages_per_s"], 0)
        self.assertGreater(window["work"]["after_pages_per_s"], 0)
        status, _ = g.end()
        self.assertEqual(status["errors"], 0, status["guest"]["first_error"])

    def test_every_checker_goes_red_on_its_fault(self):
        g = self.boot(10, "load.inject=mem,disk,net,clock,hb")
        g.wait_ready()
        status, peer = g.end()
        kinds = status["guest"]["by_kind"]
        print("\nby kind:", json.dumps(kinds), "ticks:", json.dumps(status["ticks"]), "peer:", json.dumps(peer))
        want = dict.fromkeys(kinds, 0) | {"mem": 1, "disk_lost": 1, "clock_mono": kinds["clock_mono"]}
        # One step back, which the watchers of both CPUs may have seen.
        self.assertIn(kinds["clock_mono"], (1, 2))
        if self.net:
            want["net_sequence"] = 1
            self.assertEqual(peer["sequence_errors"], 1)
            self.assertEqual(peer["connections"], 2)
        self.assertEqual(kinds, want)
        self.assertEqual(status["ticks"]["lost"], 3)

    def test_a_setting_not_understood_is_reported(self):
        g = self.boot(3, "load.memory=1")
        status, _ = g.end()
        self.assertEqual(status["guest"]["by_kind"]["setup"], 1)
        self.assertIn("load.memory=1", status["guest"]["first_error"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
