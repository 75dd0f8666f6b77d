#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of testbed/run, held from outside: what a test may rely on that runs inside the emulated host.

Plain unittest: python3 tests/testbed/test_run.py. Most of it boots the busybox system (seconds); the class
Debian boots the whole one. Every run gets a mark in the name of its share, so that "nothing left running"
looks for our own machines only."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROJECT = pathlib.Path(__file__).resolve().parents[2]
RUN = str(PROJECT / "testbed/run")
ENVIRONMENT = dict(os.environ, UPGRADED_NO_BUILD="1")


def run(*argv, **more):
    return subprocess.run([RUN, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=600, env=ENVIRONMENT, **more)


def processes_naming(word):
    """Command lines of all processes that contain the word."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found


def parent(pid):
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def wait_until(what, seconds=20):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()


class TestCase(unittest.TestCase):
    def setUp(self):
        self.share = tempfile.mkdtemp(prefix="upgraded-test-run-")
        self.addCleanup(shutil.rmtree, self.share, ignore_errors=True)

    def assert_nothing_left(self):
        gone = wait_until(lambda: not processes_naming(self.share), 5)
        self.assertTrue(gone, f"still running: {processes_naming(self.share)}")


class KernelOnly(TestCase):
    def run_small(self, *command, options=()):
        return run("--kernel-only", "--share", self.share, "--timeout", "60", *options, "--", *command)

    def test_exit_status_is_passed_on(self):
        for status in (0, 1, 77, 255):
            done = self.run_small("sh", "-c", f"exit {status}")
            self.assertEqual(done.returncode, status, done.stderr)
        self.assert_nothing_left()

    def test_death_by_signal_is_128_and_its_number(self):
        done = self.run_small("sh", "-c", "kill -SEGV $$")
        self.assertEqual(done.returncode, 128 + signal.SIGSEGV, done.stderr)

    def test_unknown_command_is_127(self):
        done = self.run_small("no-such-command")
        self.assertEqual(done.returncode, 127)
        self.assertIn("no-such-command", done.stderr)

    def test_output_and_error_output_stay_apart(self):
        done = self.run_small("sh", "-c", "echo one; echo two >&2; echo three >/dev/stdout; echo four >/dev/stderr")
        self.assertEqual((done.stdout, done.stderr), ("one\nthree\n", "two\nfour\n"))

    def test_output_is_complete_and_exact(self):
        size = 3_000_000
        pathlib.Path(self.share, "data").write_bytes(os.urandom(size))
        done = subprocess.run([RUN, "--kernel-only", "--share", self.share, "--timeout", "60", "--", "cat", "/mnt/share/data"],
                              stdout=subprocess.PIPE, env=ENVIRONMENT, timeout=120)
        self.assertEqual(len(done.stdout), size)
        self.assertEqual(done.stdout, pathlib.Path(self.share, "data").read_bytes())

    def test_output_streams_while_the_command_runs(self):
        with subprocess.Popen([RUN, "--kernel-only", "--share", self.share, "--timeout", "60", "--", "sh", "-c", "echo early; sleep 4"],
                              stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
            self.assertEqual(process.stdout.readline(), b"early\n")
            early = time.monotonic()
            self.assertEqual(process.wait(60), 0)
            self.assertGreater(time.monotonic() - early, 2)

    def test_arguments_arrive_exactly(self):
        words = ["", " a  b ", "'", '"', "$HOME `id` $(id)", "*", "\\n", "line\nbreak", "--", "-x", "é", "%s", "a;b&c|d"]
        done = self.run_small("sh", "-c", 'for w; do printf "<%s>" "$w"; done', "sh", *words)
        self.assertEqual(done.stdout, "".join(f"<{word}>" for word in words), done.stderr)

    def test_input_is_empty(self):
        done = self.run_small("cat")
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_share_is_readable_and_writable(self):
        pathlib.Path(self.share, "question").write_text("42?\n")
        done = self.run_small("sh", "-c", "cat /mnt/share/question && echo yes >/mnt/share/answer")
        self.assertEqual(done.stdout, "42?\n", done.stderr)
        self.assertEqual(pathlib.Path(self.share, "answer").read_text(), "yes\n")

    def test_time_out_is_124_and_leaves_nothing(self):
        began = time.monotonic()
        done = run("--kernel-only", "--share", self.share, "--timeout", "6", "--", "sh", "-c", "echo before; sleep 1000")
        self.assertEqual((done.returncode, done.stdout), (124, "before\n"), done.stderr)
        self.assertLess(time.monotonic() - began, 20)
        self.assertIn("time-out after 6 s", done.stderr)
        self.assert_nothing_left()

    def test_left_behind_processes_do_not_hold_the_run_up(self):
        began = time.monotonic()
        done = self.run_small("sh", "-c", "(while sleep 0.01; do echo noise; done) & echo done")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("done\n", done.stdout)
        self.assertLess(time.monotonic() - began, 30)

    def test_panic_is_125_and_named(self):
        done = self.run_small("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60")
        self.assertEqual(done.returncode, 125)
        self.assertIn("the kernel of the emulated host panicked", done.stderr)
        self.assertIn("sysrq triggered crash", done.stderr)
        self.assert_nothing_left()

    def test_power_off_under_the_command_is_125(self):
        done = self.run_small("poweroff", "-f")
        self.assertEqual(done.returncode, 125)
        self.assertIn("ended before the command did", done.stderr)

    def test_a_host_that_stands_still_is_125(self):
        """As when emulation loses what would wake it: nobody waits for the time-out."""
        with subprocess.Popen([RUN, "--kernel-only", "--share", self.share, "--timeout", "300", "--", "sh", "-c", "echo up; sleep 200"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            self.assertEqual(process.stdout.readline(), "up\n")
            [emulator] = [int(e.name) for e in pathlib.Path("/proc").iterdir() if e.name.isdigit() and parent(e.name) == process.pid
                          and b"upgraded-testbed" in (e / "cmdline").read_bytes()]
            os.kill(emulator, signal.SIGSTOP)
            self.assertEqual(process.wait(90), 125)
            self.assertIn("stands still", process.stderr.read())
        self.assert_nothing_left()

    def test_a_kernel_that_is_none_is_125(self):
        bad = pathlib.Path(self.share, "bzImage")
        bad.write_bytes(b"no kernel at all")
        done = self.run_small("true", options=("--kernel", str(bad)))
        self.assertEqual(done.returncode, 125)

    def test_interrupt_leaves_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process = subprocess.Popen([RUN, "--kernel-only", "--share", self.share, "--", "sh", "-c", "echo up; sleep 1000"],
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
            self.assertEqual(process.stdout.readline(), b"up\n", number)
            process.send_signal(number)
            self.assertNotEqual(process.wait(20), 0, number)
            process.stdout.close()
            self.assert_nothing_left()

    def test_console_log_is_kept_when_asked_for(self):
        log = pathlib.Path(self.share, "console.log")
        done = self.run_small("sh", "-c", "echo on the console >/dev/console; sleep 1", options=("--console", str(log)))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("on the console", log.read_text())

    def test_kvm_is_there_with_nested_paging(self):
        done = self.run_small("sh", "-c", "ls /dev/kvm && cat /sys/module/kvm_amd/parameters/npt /sys/module/kvm/parameters/tdp_mmu")
        self.assertEqual(done.stdout, "/dev/kvm\nY\nY\n", done.stderr)

    def test_appended_words_reach_the_kernel(self):
        done = self.run_small("cat", "/sys/module/kvm/parameters/tdp_mmu", options=("--append", "kvm.tdp_mmu=0"))
        self.assertEqual(done.stdout, "N\n", done.stderr)

    def test_a_tree_lies_over_the_root(self):
        for name, text in (("etc/in-etc", "over\n"), ("lib/in-usr", "too\n")):
            path = pathlib.Path(self.share, "tree", name)
            path.parent.mkdir(parents=True)
            path.write_text(text)
        done = self.run_small("cat", "/etc/in-etc", "/usr/lib/in-usr", options=("--over", f"{self.share}/tree"))
        self.assertEqual(done.stdout, "over\ntoo\n", done.stderr)

    def test_wrong_usage_is_2(self):
        for argv in (["--kernel-only"], ["--no-such-option", "--", "true"], ["--share", "/no/such/folder", "--", "true"],
                     ["--over", "/no/such/folder", "--", "true"]):
            self.assertEqual(run(*argv).returncode, 2, argv)


GUEST = """#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox echo "guest up with $(/bin/busybox grep -c ^processor /proc/cpuinfo) processors"
/bin/busybox poweroff -f
"""

NESTED = """
set -e
ip link add br0 type bridge && ip link set br0 up
ip tuntap add tap0 mode tap && ip link set tap0 master br0 up
while read -r home version; do
    echo "$("$home/bin/qemu-system-x86_64" --version | sed -n 's/^QEMU emulator version \\([0-9]*[.][0-9]*\\).*/\\1/p') in $home"
    "$home/bin/qemu-system-x86_64" -nodefaults -display none -no-reboot -machine q35 -accel kvm -cpu host -smp 2 -m 256 \
        -kernel /usr/lib/upgraded-test/bzImage -initrd /mnt/share/guest.cpio -append 'console=ttyS0 quiet loglevel=1 panic=-1' \
        -netdev tap,id=n,ifname=tap0,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=n -serial stdio </dev/null
done </usr/lib/upgraded-test/qemus
"""


class Debian(TestCase):
    def test_systemd_runs_without_failed_units(self):
        done = run("--share", self.share, "--timeout", "200", "--", "sh", "-c",
                   "ps -p 1 -o comm=; systemctl is-system-running; systemctl --failed --no-legend --plain; id -un; pwd; . /etc/os-release; echo $VERSION_CODENAME")
        self.assertEqual((done.returncode, done.stdout), (0, "systemd\nrunning\nroot\n/root\ntrixie\n"), done.stderr)
        self.assert_nothing_left()

    def test_two_runs_at_once_do_not_meet(self):
        processes = [subprocess.Popen([RUN, "--mem", "1024", "--share", self.share, "--timeout", "300", "--", "sh", "-c",
                                       f"echo {i} >/only-mine-{i}; ls / | grep only-mine; echo {i} >/mnt/share/{i}; exit {i}"],
                                      stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for i in (3, 4)]
        for i, process in zip((3, 4), processes):
            output, _ = process.communicate(timeout=400)
            self.assertEqual((process.returncode, output), (i, f"only-mine-{i}\n"))
            self.assertTrue(pathlib.Path(self.share, str(i)).exists())
        self.assert_nothing_left()

    def test_both_qemus_boot_a_linux_guest_under_kvm(self):
        root = pathlib.Path(self.share, "guest")
        (root / "bin").mkdir(parents=True)
        (root / "proc").mkdir()
        shutil.copy(shutil.which("busybox"), root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        (root / "init").write_text(GUEST)
        (root / "init").chmod(0o755)
        names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
        with open(pathlib.Path(self.share, "guest.cpio"), "wb") as archive:
            subprocess.run(["cpio", "--quiet", "--create", "--format=newc"], cwd=root, input=names, stdout=archive, check=True)
        done = run("--share", self.share, "--timeout", "300", "--", "bash", "-c", NESTED)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        versions = re.findall(r"^([0-9.]+) in /opt/qemu-\1$", done.stdout, re.MULTILINE)
        self.assertGreaterEqual(len(set(versions)), 2, done.stdout)
        self.assertEqual(done.stdout.count("guest up with 2 processors"), len(versions), done.stdout)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
