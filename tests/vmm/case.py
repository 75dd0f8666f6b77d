# SPDX-License-Identifier: GPL-2.0-or-later
"""A test of one tinyvmm under an upgraded of its own: what is said when it fails, and when all is well."""

import unittest

from tiny import COMMITTED, Host, wait_until


class Case(unittest.TestCase):
    options = ()
    daemon_options = ()
    fd_store = False
    where = ""  # in the middle of a loop, for a test that failed; no subTest(), which tests/check cannot read

    def setUp(self):
        self.host = Host(*self.daemon_options, fd_store=self.fd_store)
        self.addCleanup(self.host.__exit__)
        self.guest = self.host.guest("tiny", *self.options)
        self.guest.runs_on()

    def told(self):
        return f" at {self.where or 'the beginning'}\n{self.host.words()}\n{self.guest.words()}"

    def check_guest(self, pid=None, vmms=1):
        """It runs, in one process, which is the one that it should be."""
        try:
            self.guest.runs_on()
        except TimeoutError as e:
            self.fail(f"{e}{self.told()}")
        self.assertEqual(self.guest.trouble(), [], self.told())
        if pid:
            self.assertEqual(self.guest.proof.pid, pid, self.told())
        self.assertEqual(self.guest.pid(), self.guest.proof.pid)
        wait_until(lambda: len(self.guest.vmms()) == vmms, 5, "only one VMM is left")
        wait_until(lambda: not self.host.workers(), 5, "no worker is left")

    def settled(self):
        """The outcome of the upgrade that was running, once it has one."""
        def ended():
            # In this order: what ends in between is in the history.
            over = not self.guest.show().get("upgrade_id")
            reports = self.host.reports("tiny")
            return reports[0]["outcome"] if reports and over else None
        return wait_until(ended, 60, f"the upgrade is taken up again{self.told()}")

    def expect(self, outcome, status, report):
        self.assertEqual(status, outcome, f"{report}{self.told()}")

    def upgrade(self, *options):
        before = self.guest.proof.pid
        status, report = self.host.upgrade(self.guest, *options)
        self.expect(COMMITTED, status, report)
        self.check_guest()
        self.assertNotEqual(self.guest.proof.pid, before)
        return report
