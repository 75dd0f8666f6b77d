# SPDX-License-Identifier: GPL-2.0-or-later
"""Units whose main process is a VMM, ours and somebody else's: what systemd says of them before and after an upgrade."""

import os
import pathlib
import re
import signal
import subprocess

from common import NEW, Attempt, Case, alive, ctl, fault, saw, sh
from host import PATIENT, ROLLED_BACK, status_by_qmp, wait_until

UNITS = pathlib.Path("/run/systemd/system")
EXPOSURE = 9.5  # of 10; systemd/upgraded.service.in says of each setting why the service does without
KEPT = ("ActiveState", "SubState", "NRestarts", "CPUWeight", "MemoryMax", "ControlGroup", "InvocationID")


def show(unit, *properties):
    lines = sh("systemctl", "show", unit, *(f"-p{p}" for p in properties), check=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def main_pid(unit):
    return int(show(unit, "MainPID")["MainPID"])


class Foreign:
    """A unit that knows nothing of upgraded."""

    def __init__(self, name, *lines):
        self.name, self.unit, self.lines = name, f"{name}.service", lines
        self.file = UNITS / self.unit
        self.qmp = pathlib.Path(f"/run/{name}.qmp")

    def __enter__(self):
        UNITS.mkdir(exist_ok=True)
        self.file.write_text("\n".join([
            "[Service]", *self.lines, "CPUWeight=77", "MemoryMax=1G", "Restart=on-failure", "RestartSec=100ms",
            f"ExecStart={NEW} -name {self.name} -machine q35,aux-ram-share=on,memory-backend=ram -accel kvm -cpu host -m 64 "
            "-object memory-backend-memfd,id=ram,size=64M,share=on -display none -nodefaults "
            f"-qmp unix:{self.qmp},server=on,wait=off", ""]))
        sh("systemctl", "daemon-reload", check=True)
        sh("systemctl", "start", self.unit, check=True)
        wait_until(self.qmp.exists, 30, "its monitor is there")
        return self

    def __exit__(self, *_):
        ctl("forget", self.name)
        sh("systemctl", "stop", self.unit)
        self.file.unlink()
        sh("rm", "-r", f"{self.file}.d")
        sh("systemctl", "daemon-reload")
        self.qmp.unlink(missing_ok=True)


class Systemd(Case):
    def upgraded(self, vm, unit, before):
        """Two upgrades, after which systemd says the same of the unit; the pid of its main process."""
        for _ in range(2):
            source = main_pid(unit)
            status, answer = ctl("upgrade", vm, "--vmm", NEW, *PATIENT)
            self.assertEqual((status, answer[-1].get("outcome")), (0, "committed"), answer[-1])
            target = answer[-1]["target"]["pid"]
            wait_until(lambda pid=source: not alive(pid), 20, "the source ends")
            self.assertEqual(main_pid(unit), target)
            self.assertEqual(show(unit, *KEPT), before)
            self.assertTrue(alive(target))
        return target

    def foreign(self, name, *lines):
        with Foreign(name, *lines) as vm:
            source, before = main_pid(vm.unit), show(vm.unit, *KEPT)
            out = os.readlink(f"/proc/{source}/fd/2")
            status, answer = ctl("adopt", name, "--pid", source)
            self.assertEqual(status, 0, answer)
            status, answer = ctl("check", name)
            self.assertEqual(status, 0, answer)
            notes = [f["text"] for f in answer[-1]["findings"] if f["code"] == "unit.main"]
            self.assertEqual(len(notes), 1, answer)
            self.assertEqual((main_pid(vm.unit), "NotifyAccess=main" in notes[0]), (source, "NotifyAccess" not in " ".join(lines)))
            target = self.upgraded(name, vm.unit, before)
            self.assertEqual(os.readlink(f"/proc/{target}/fd/2"), out, "its words go to the unit's journal")
            # It is systemd's as before: one that dies is started anew, one that is stopped ends.
            os.kill(target, signal.SIGKILL)
            wait_until(lambda: main_pid(vm.unit) not in (0, target), 30, "Restart=on-failure")
            self.assertEqual(show(vm.unit, "NRestarts")["NRestarts"], "1")
            again = main_pid(vm.unit)
            sh("systemctl", "stop", vm.unit, check=True)
            self.assertFalse(alive(again))
            saw(f"{vm.unit}: main process {source} -> {target}, {notes[0]}")

    def test_a_simple_unit_of_somebody_elses(self):
        self.foreign("foreign-simple", "Type=simple")

    def test_a_unit_that_listens_gets_no_drop_in(self):
        self.foreign("foreign-listens", "Type=exec", "NotifyAccess=all")

    def test_a_rollback_leaves_the_unit_as_it_was(self):
        with Foreign("foreign-back", "Type=simple") as vm:
            self.with_faults("worker.verified sleep 60000")
            source, before = main_pid(vm.unit), show(vm.unit, *KEPT)
            self.assertEqual(ctl("adopt", vm.name, "--pid", source)[0], 0)
            attempt = Attempt(vm, NEW)
            os.kill(attempt.held_at("worker.verified"), signal.SIGKILL)
            fault()
            status, report = attempt.wait()
            self.assertEqual((status, report.get("outcome")), (ROLLED_BACK, "rolled_back"), report)
            self.assertEqual(report["failed_phase"], "freeze")
            self.assertEqual((main_pid(vm.unit), show(vm.unit, *KEPT)), (source, before))
            self.assertTrue(alive(source))
            self.assertEqual(status_by_qmp(vm.qmp), "running")

    def test_our_own_unit(self):
        unit = "vmm@own.service"
        sh("upgradectl", "run", "own", "--", NEW, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64", "-display", "none",
           "-nodefaults", check=True)
        try:
            sh("systemctl", "set-property", "--runtime", unit, "CPUWeight=33", "MemoryMax=1G", check=True)
            before = show(unit, *KEPT)
            self.assertEqual(before["CPUWeight"], "33")
            target = self.upgraded("own", unit, before)
            self.assertIn("Upgraded from", show(unit, "StatusText")["StatusText"])
            os.kill(target, signal.SIGKILL)
            wait_until(lambda: show(unit, "NRestarts", "ActiveState") == {"NRestarts": "1", "ActiveState": "active"}, 60,
                       "Restart=on-failure starts it anew")
        finally:
            sh("systemctl", "stop", unit)
            subprocess.run(["upgradectl", "forget", "own"], capture_output=True, check=False)

    def test_the_service_is_as_confined_as_it_says(self):
        said = sh("systemd-analyze", "security", "--no-pager", "upgraded.service").stdout.splitlines()[-1]
        saw(said.strip("→ "))
        self.assertLessEqual(float(re.search(r"upgraded\.service: ([\d.]+)", said)[1]), EXPOSURE, said)
        for unit in ("upgraded.service", "upgraded-outdated.service", "vmm@.service"):
            said = sh("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{unit}".replace("@.", "@x."))
            self.assertEqual((said.returncode, said.stdout + said.stderr), (0, ""))
