# SPDX-License-Identifier: GPL-2.0-or-later
"""Upgrades that work: what systemd, the files of the command line and the daemon look like afterwards."""

import grp
import hashlib
import json
import pathlib
import socket

from common import MONITOR_PORT, NEW, UPGRADECTL, Attempt, Case, ctl, daemon_pid, saw, sh, shared, unit
from host import wait_until

DENIED, GRANTED, ENDED = ("d10c975cd2cc4195ac2fad9089caa2ed", "922201bc05284128904df43a0bac9c9e",
                          "0deee85b92c94f71ae6d74d24d60a662")  # daemon/audit.c
TRIES = 5  # on a busy machine a guest may stand still for more than a second
PHASES = ["prepare", "check", "freeze", "load", "switch", "run", "done"]
REPORT_KEYS = {"outcome", "tier", "source_version", "target_version", "source_binary", "target_binary", "source", "target",
               "phases", "blackout_ms", "total_ms", "state_bytes", "fds", "findings", "error", "upgrade_id", "vm"}


def prompt(family, address):
    """What a human monitor says to who connects."""
    with socket.socket(family) as s:
        s.settimeout(20)
        s.connect(address)
        said = b""
        while b"(qemu)" not in said:
            part = s.recv(4096)
            if not part:
                break
            said += part
        return said.decode(errors="replace")


class Series(Case):
    def test_upgrade_keeps_the_unit_and_the_guest(self):
        guest = shared()
        source = self.begin(guest)
        console = pathlib.Path(guest.dir / "console.log").read_text(errors="replace")
        status, report = guest.upgrade(NEW)
        target = self.committed(guest, status, report, source)
        self.assertFalse(REPORT_KEYS - report.keys(), "missing in the report")
        self.assertEqual([p["phase"] for p in report["phases"]], PHASES)
        self.healthy(guest, "committed: " + ", ".join(f"{p['phase']} {p['duration_ms']:.0f} ms" for p in report["phases"]))

        seen = wait_until(lambda: (u := unit("vmm@web.service", "ActiveState", "MainPID", "NRestarts"))["MainPID"] ==
                          str(target) and u, 10, "systemd knows the new main process")
        self.assertEqual((seen["ActiveState"], seen["NRestarts"]), ("active", "0"))
        log = sh("journalctl", "-b", "--no-pager", "-o", "cat", "-u", "upgraded.service", "-u", "vmm@web.service").stdout
        for word in [p.upper() for p in PHASES] + ["the guest runs in the target"]:
            self.assertIn(word, log)
        self.assertEqual((guest.dir / "pid").read_text().strip(), str(target), "the pid file")
        now = (guest.dir / "console.log").read_text(errors="replace")
        self.assertTrue(now.startswith(console), f"the console's log was {len(console)} bytes, is {now[:200]!r}")
        saw(f"pid {source} -> {target}; unit active, MAINPID and pid file follow, console log kept ({len(now)} bytes)")

    def records(self, **fields):
        """What the journal has with these fields, oldest first."""
        found = sh("journalctl", "-b", "-o", "json", *(f"{k}={v}" for k, v in fields.items())).stdout
        return [json.loads(line) for line in found.splitlines()]

    def test_the_audit_trail_says_who_did_what(self):
        guest = shared()
        source = self.begin(guest)
        status, report = guest.upgrade(NEW)
        self.committed(guest, status, report, source)
        asked = wait_until(lambda: self.records(MESSAGE_ID=GRANTED, UPGRADED_VM=guest.name, UPGRADED_REQUEST="upgrade"), 10, "the request")[-1]
        self.assertEqual((asked["UPGRADED_UID"], asked["UPGRADED_DECISION"]), ("0", "granted"))
        ended = self.records(MESSAGE_ID=ENDED, UPGRADED_ID=report["upgrade_id"])
        self.assertEqual(len(ended), 1)
        digest = hashlib.sha256(pathlib.Path(NEW).read_bytes()).hexdigest()
        expected = {"UPGRADED_OUTCOME": "committed", "UPGRADED_TIER": "memfd", "UPGRADED_UID": "0", "UPGRADED_VM": guest.name,
                    "UPGRADED_SOURCE_PID": str(source), "UPGRADED_TARGET_PID": str(guest.pid()), "UPGRADED_ERROR": "",
                    "UPGRADED_TARGET_BINARY": NEW, "UPGRADED_TARGET_SHA256": digest,
                    "UPGRADED_TARGET_VERSION": report["target_version"], "UPGRADED_SOURCE_VERSION": report["source_version"]}
        self.assertEqual({name: ended[0][name] for name in expected}, expected)
        phases = dict(word.split("=") for word in ended[0]["UPGRADED_PHASES_USEC"].split())
        self.assertEqual([p.lower() for p in phases], PHASES)
        self.assertEqual(hashlib.sha256(pathlib.Path(ended[0]["UPGRADED_SOURCE_BINARY"]).read_bytes()).hexdigest(),
                         ended[0]["UPGRADED_SOURCE_SHA256"])
        sh("journalctl", "--update-catalog", check=True)
        told = sh("journalctl", "-b", "--no-pager", "--catalog", f"MESSAGE_ID={ENDED}", f"UPGRADED_ID={report['upgrade_id']}").stdout
        self.assertIn(f"Upgrade {report['upgrade_id']} of VM {guest.name} has ended: committed", told)

    def test_who_is_not_root_may_not_name_a_command_line(self):
        group = grp.getgrnam("upgraded").gr_gid
        refused = sh("setpriv", "--reuid", "65534", "--regid", str(group), "--clear-groups", UPGRADECTL, "run", "mine", "--", "/bin/true")
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("is for root", refused.stderr)
        record = wait_until(lambda: self.records(MESSAGE_ID=DENIED, UPGRADED_UID=65534), 10, "the record")[-1]
        self.assertEqual((record["UPGRADED_REQUEST"], record["UPGRADED_VM"], record["UPGRADED_GID"]), ("run", "mine", str(group)))

    def told(self, guest, upgrade_id):
        """When the daemon told the journal of each phase, in seconds; None while it has not all of them."""
        told = {}
        for record in self.records(_SYSTEMD_UNIT="upgraded.service", UPGRADED_ID=upgrade_id):
            for phase in PHASES:
                if record["MESSAGE"].startswith(f"{guest.name}: {phase.upper()}"):
                    told.setdefault(phase, int(record["_SOURCE_REALTIME_TIMESTAMP"]) / 1e6)
        return told if len(told) == len(PHASES) else None

    def test_nobody_is_told_while_the_guest_stands_still(self):
        """But for what takes more than a second, which is told of while it lasts. All moments are of the host's clock."""
        guest = shared()
        for _ in range(TRIES):
            source = self.begin(guest)
            attempt = Attempt(guest, NEW)
            status, report = attempt.wait()
            self.committed(guest, status, report, source)
            entered, told = attempt.entered, wait_until(lambda i=report["upgrade_id"]: self.told(guest, i), 10, "the phases")
            ms = {phase: (told[phase] - entered["done"]) * 1000 for phase in PHASES}
            saw("told, in ms after the guest went on: " + ", ".join(f"{phase} {t:.0f}" for phase, t in ms.items()))
            self.assertLess(told["freeze"], entered["load"])
            for phase in PHASES[PHASES.index("load"):]:
                self.assertGreater(told[phase], min(entered["done"], entered["freeze"] + 1), phase)
            self.healthy(guest)
            if entered["load"] < entered["freeze"] + 0.9:
                return  # it would have been too early to tell
        self.fail(f"none of {TRIES} upgrades came to LOAD soon enough to show anything")

    def test_monitors_answer_after_an_upgrade(self):
        guest = shared()
        source = self.begin(guest)
        status, report = guest.upgrade(NEW)
        self.committed(guest, status, report, source)
        for name, family, address in (("TCP", socket.AF_INET, ("127.0.0.1", MONITOR_PORT)),
                                      ("UNIX", socket.AF_UNIX, str(guest.dir / "monitor"))):
            said = prompt(family, address)
            self.assertIn("QEMU", said, f"{name} monitor")
        self.assertEqual([p.name for p in guest.dir.glob("*.upgraded-*")], [], "names of the upgrade were left behind")
        saw("a TCP and a UNIX monitor answer at their old addresses")

    def test_history_has_the_report(self):
        guest = shared()
        status, answer = ctl("history", guest.name, "--limit", "1")
        self.assertEqual(status, 0)
        self.assertEqual([r["outcome"] for r in answer[0]["reports"]], ["committed"])

    def test_upgrade_works_after_the_daemon_was_restarted(self):
        guest = shared()
        source, first = self.begin(guest), daemon_pid()
        sh("systemctl", "restart", "upgraded.service", check=True)
        self.assertNotEqual(daemon_pid(), first)
        status, answer = ctl("list")
        self.assertEqual((status, [(v["name"], v["alive"], v["process"]["pid"]) for v in answer[0]["vms"]]),
                         (0, [("web", True, source)]))
        self.assertEqual(unit("vmm@web.service", "ActiveState", "NRestarts"), {"ActiveState": "active", "NRestarts": "0"})
        status, report = guest.upgrade(NEW)
        self.committed(guest, status, report, source)
        self.healthy(guest, "the restarted daemon knew the VM and upgraded it")
