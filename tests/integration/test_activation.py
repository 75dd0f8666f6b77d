# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd starts upgraded when it is first needed, and knows it."""

import os
import pathlib
import signal

from common import Case, ctl, daemon_pid, saw, sh, shared, unit, alive
from host import NO_SUCH_VM, wait_until

KILLS = 8  # more than systemd lets a service start in ten seconds by default


class Activation(Case):
    def test_first_command_starts_the_daemon(self):
        before = unit("upgraded.service", "ActiveState", "Type")
        self.assertEqual(before, {"ActiveState": "inactive", "Type": "notify"})
        self.assertEqual(unit("upgraded.socket", "ActiveState")["ActiveState"], "active")
        status, answer = ctl("list")
        self.assertEqual((status, answer), (0, [{"vms": []}]))
        after = unit("upgraded.service", "ActiveState", "SubState", "MainPID")
        self.assertEqual((after["ActiveState"], after["SubState"]), ("active", "running"))
        saw(f"inactive before, running as pid {after['MainPID']} after the first upgradectl")
        comm = pathlib.Path(f"/proc/{after['MainPID']}/comm").read_text().strip()
        self.assertEqual(comm, "upgraded")

    def test_it_comes_back_however_often_it_dies(self):
        """A guest may stand still until it does."""
        self.assertEqual(ctl("list")[0], 0)
        pids = [daemon_pid()]
        for _ in range(KILLS):
            os.kill(pids[-1], signal.SIGKILL)
            pids.append(wait_until(lambda: (pid := daemon_pid()) not in (0, pids[-1]) and pid, 20,
                                   lambda: f"another daemon: {unit('upgraded.service', 'ActiveState', 'Result')}"))
        self.assertEqual(ctl("list")[0], 0)
        saw(f"killed {KILLS} times in a row, back each time: {unit('upgraded.service', 'NRestarts', 'Result')}")

    def test_unknown_vm_has_an_exit_status_of_its_own(self):
        for verb in (["show", "nobody"], ["check", "nobody"], ["upgrade", "nobody"], ["abort", "nobody"]):
            status, answer = ctl(*verb)
            self.assertEqual(status, NO_SUCH_VM, f"{verb}: {answer}")
            self.assertEqual(answer[-1]["error"]["code"], "no_such_vm", answer)

    def test_stopped_daemon_is_started_again_by_the_socket(self):
        first = daemon_pid()
        sh("systemctl", "stop", "upgraded.service", check=True)
        self.assertFalse(alive(first))
        self.assertEqual(ctl("list")[0], 0)
        self.assertNotIn(daemon_pid(), (0, first))

    def test_run_makes_a_unit_of_the_vm(self):
        guest = shared()
        vm = guest.show()
        seen = unit("vmm@web.service", "ActiveState", "MainPID", "Type", "Slice")
        self.assertEqual(seen, {"ActiveState": "active", "MainPID": str(vm["process"]["pid"]), "Type": "notify",
                                "Slice": "machine.slice"})
        self.assertEqual((vm["manager"], vm["unit"], vm["driver"]), ("systemd", "vmm@web.service", "qemu"))
        status, answer = ctl("list")
        self.assertEqual((status, [v["name"] for v in answer[0]["vms"]]), (0, ["web"]))
        self.assertTrue(answer[0]["vms"][0]["alive"])
        saw(f"{vm['machine']}, QEMU {vm['version']}, pid {vm['process']['pid']}")
