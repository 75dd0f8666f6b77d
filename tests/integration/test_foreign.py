# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs that upgraded did not start: adopted, and upgraded like its own."""

import grp
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile

from common import LIGHT, NEW, OLD, Attempt, Case, alive, ctl, saw, status_of, stop_shared
from host import LOST, PATIENT, REFUSED, Guest, default_machine, status_by_qmp, wait_until

NOBODY = 65534
FILES = 4321  # a limit that nothing else has


def end(pids):
    for pid in pids:
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(pid and alive(pid) for pid in pids), 10, f"{pids} end")


def current(name):
    status, answer = ctl("show", name)
    return answer[-1]["process"]["pid"] if status == 0 else 0


class Bare:
    """A QEMU with nothing in it but its firmware, started by hand. It has two monitors: one for upgraded, one for us."""

    def __init__(self, name, binary, *extra, machine=None, share=True, user=None):
        self.name, self.user = name, user
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"bare-{name}-", dir="/var/tmp"))
        machine = machine or default_machine(OLD)
        memory = ["-machine", machine]
        if share:
            memory = ["-machine", f"{machine},memory-backend=ram0,aux-ram-share=on",
                      "-object", "memory-backend-memfd,id=ram0,size=64M,share=on"]
        self.argv = [binary, *memory, "-name", name, "-accel", "kvm", "-cpu", "host", "-m", "64", "-nodefaults",
                     "-display", "none", "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off",
                     "-qmp", f"unix:{self.dir}/mine,server=on,wait=off", *[e.format(dir=self.dir) for e in extra]]
        self.process = self.cgroup = None

    def __enter__(self):
        who = {}
        if self.user is not None:
            os.chown(self.dir, self.user, -1)
            kvm = grp.getgrgid(os.stat("/dev/kvm").st_gid).gr_gid
            who = {"user": self.user, "group": self.user, "extra_groups": [kvm]}
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=open(self.dir / "log", "w"),
                                        stderr=subprocess.STDOUT, **who)
        if self.user is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
            self.cgroup = pathlib.Path(f"/sys/fs/cgroup/bare-{self.name}")
            self.cgroup.mkdir()
            (self.cgroup / "cgroup.procs").write_text(str(self.process.pid))
        wait_until(lambda: (self.dir / "mine").exists() or self.process.poll() is not None, 60, "QEMU's monitor")
        if self.process.poll() is not None:
            raise RuntimeError(f"QEMU ended: {(self.dir / 'log').read_text()}")
        return self

    def __exit__(self, *_):
        last = current(self.name)
        self.process.kill()
        self.process.wait(10)
        end([last])
        ctl("forget", self.name)
        if self.cgroup:
            wait_until(lambda: not (self.cgroup / "cgroup.procs").read_text().strip(), 10, "an empty cgroup")
            self.cgroup.rmdir()
        shutil.rmtree(self.dir, ignore_errors=True)

    def adopt(self):
        return ctl("adopt", self.name, "--qmp", f"{self.dir}/qmp")

    def run_state(self):
        """What our own monitor says of the guest; it is at the same path after an upgrade."""
        return status_by_qmp(self.dir / "mine")


class ByHand(Guest):
    """A whole test guest, but its QEMU is started without upgraded and without systemd."""

    def start_by_hand(self, binary):
        self.prepare()
        argv = [binary] + self.arguments() + [
            "-object", f"memory-backend-memfd,id=ram0,size={self.memory}M,share=on",
            "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off", "-name", self.name]
        argv[argv.index("-machine") + 1] += ",memory-backend=ram0,aux-ram-share=on"
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=open(self.dir / "log", "w"),
                                        stderr=subprocess.STDOUT)
        self.wait_ready()

    def stop(self):
        last = current(self.name)
        self.process.kill()
        self.process.wait(10)
        end([last])
        ctl("forget", self.name)
        super().stop()


def ending(source):
    """Reaps our own child: a zombie is all that is left of it."""
    source.process.wait(20)


class Foreign(Case):
    def setUp(self):
        stop_shared()  # the emulated host is slow enough for one guest

    def test_vm_started_by_hand_is_adopted_and_upgraded(self):
        for left in (1, 0):
            guest = ByHand("byhand", smp=1, **LIGHT)
            try:
                guest.start_by_hand(NEW)
                break
            except RuntimeError:
                guest.stop()
                if not left:
                    raise
        with guest:
            status, answer = ctl("adopt", guest.name, "--pid", guest.process.pid)
            self.assertEqual(status, 0, answer)
            self.assertEqual((answer[0]["manager"], answer[0]["process"]["pid"]), ("none", guest.process.pid))
            source = self.begin(guest)
            status, report = guest.upgrade(NEW)
            self.assertEqual((status, report.get("outcome")), (0, "committed"), report)
            ending(guest)
            self.committed(guest, status, report, source)
            self.healthy(guest, "adopted by pid, committed")

    def test_vm_of_an_ordinary_user_keeps_its_identity(self):
        with Bare("ordinary", NEW, "-device", "virtio-rng-pci", user=NOBODY) as vm:
            status, answer = vm.adopt()
            self.assertEqual(status, 0, answer)
            source = vm.process.pid
            fields = ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
            wanted = {f: status_of(source)[f] for f in fields}
            limits = pathlib.Path(f"/proc/{source}/limits").read_text()
            group = pathlib.Path(f"/proc/{source}/cgroup").read_text()
            status, answer = ctl("upgrade", vm.name, "--vmm", NEW, *PATIENT)
            self.assertEqual((status, answer[-1].get("outcome")), (0, "committed"), answer[-1])
            vm.process.wait(20)
            target = current(vm.name)
            self.assertNotEqual(target, source)
            self.assertEqual({f: status_of(target)[f] for f in fields}, wanted)
            self.assertEqual(pathlib.Path(f"/proc/{target}/limits").read_text(), limits)
            self.assertIn(str(FILES), limits)
            self.assertEqual(pathlib.Path(f"/proc/{target}/cgroup").read_text(), group)
            self.assertEqual(vm.run_state(), "running")
            saw(f"uid {wanted['Uid'].split()[0]}, groups {wanted['Groups']}, CapEff {wanted['CapEff']}, {FILES} files, "
                f"{group.strip()}: the target's too; its second monitor answers")

    def test_names_are_taken_over_with_the_users_rights(self):
        victim = pathlib.Path("/root/victim")
        victim.write_text("root's\n")
        with Bare("planted", NEW, "-pidfile", "{dir}/pid", "-monitor", "unix:{dir}/monitor,server=on,wait=off",
                  user=NOBODY) as vm:
            self.assertEqual(vm.adopt()[0], 0)
            # The VM's user wants root to write there.
            (vm.dir / "pid").unlink()
            (vm.dir / "pid").symlink_to(victim)
            status, answer = ctl("upgrade", vm.name, "--vmm", NEW, *PATIENT)
            self.assertEqual((status, answer[-1].get("outcome")), (0, "committed"), answer[-1])
            vm.process.wait(20)
            self.assertEqual(victim.read_text(), "root's\n")
            said = [f["text"] for f in answer[-1]["findings"] if f["code"] == "finish"]
            self.assertEqual(said, [f"cannot write the pid file {vm.dir}/pid: Permission denied"])
            # What its user may do is done.
            self.assertEqual((vm.run_state(), (vm.dir / "monitor").stat().st_uid), ("running", NOBODY))
            saw(said[0])
        victim.unlink()

    def test_vmm_that_dies_while_it_is_examined_is_lost(self):
        with Bare("dying", NEW) as vm:
            self.assertEqual(vm.adopt()[0], 0)
            attempt = Attempt(vm, NEW, on={"prepare": lambda _: vm.process.kill()})
            status, report = attempt.wait()
            self.assertEqual((status, report.get("outcome")), (LOST, "lost"), report)
            self.assertIn(f"the VMM of dying (process {vm.process.pid}) ended", report["error"])
            saw(report["error"])

    def test_private_memory_is_refused_with_the_remedy(self):
        with Bare("private", NEW, share=False) as vm:
            status, answer = vm.adopt()
            self.assertEqual(status, 0, answer)
            status, answer = ctl("check", vm.name, "--vmm", NEW)
            self.assertEqual(status, REFUSED, answer)
            found = {f["code"]: f for f in answer[-1]["findings"] if f["severity"] == "blocker"}
            self.assertTrue({"source.ram-private", "source.aux-ram-private"} <= found.keys(), found)
            self.assertIn("share=on", found["source.ram-private"]["remedy"])
            self.assertIn("aux-ram-share=on", found["source.aux-ram-private"]["remedy"])
            status, answer = ctl("upgrade", vm.name, "--vmm", NEW, *PATIENT)
            self.assertEqual(status, REFUSED)
            self.assertIn("private to its process", answer[-1]["error"])
            self.assertEqual((current(vm.name), vm.run_state()), (vm.process.pid, "running"))
            saw(f"refused by {' '.join(sorted(found))}")
