# SPDX-License-Identifier: GPL-2.0-or-later
"""Twenty upgrades in a row of one guest: nothing that the daemon has grows."""

import os
import time

from common import NEW, Case, daemon_pid, saw, shared, status_of
from host import tell, wrong_ticks

ROUNDS = 20
SETTLED = 3  # rounds after which the daemon has everything it keeps


class Endurance(Case):
    def test_twenty_in_a_row(self):
        guest = shared(1)
        self.begin(guest)
        generation, daemon, figures, pauses, begin = guest.show()["generation"], daemon_pid(), [], [], time.monotonic()
        for n in range(1, ROUNDS + 1):
            source = guest.pid()
            guest.mark(f"round {n}")
            status, report = guest.upgrade(NEW)
            self.committed(guest, status, report, source)
            pauses.append(guest.window(f"round {n}")["longest_gap"]["ms"])
            figures.append((len(os.listdir(f"/proc/{daemon}/fd")), int(status_of(daemon)["VmRSS"].split()[0])))
            if n % 5 == 0:
                tell(f"      {n} commits, pauses of {', '.join(f'{p:.0f}' for p in pauses[-5:])} ms; daemon {figures[-1][0]} fds, "
                     f"{figures[-1][1]} KiB")
        guest.mark(self.id().split(".")[-1])
        self.healthy(guest)
        self.assertEqual(wrong_ticks(guest.status()["ticks"]), {})
        self.assertEqual(guest.show()["generation"], generation + ROUNDS)
        self.assertEqual(daemon_pid(), daemon, "the daemon is another one")
        (fds, rss), fds_end, rss_end = figures[SETTLED - 1], [f for f, _ in figures[-3:]], figures[-1][1]
        saw(f"{ROUNDS} commits in {time.monotonic() - begin:.0f} s, 0 errors; pauses {min(pauses):.0f} to {max(pauses):.0f} ms, "
            f"median {sorted(pauses)[ROUNDS // 2]:.0f}")
        saw(f"the daemon's fds after each round: {[f for f, _ in figures]}")
        saw(f"its VmRSS in KiB: {[r for _, r in figures]}")
        # Of a command that has just ended the daemon may not have closed its end yet.
        self.assertLessEqual(min(fds_end), fds, f"fds grew: {figures}")
        self.assertLess(rss_end - rss, 1024, f"memory grew: {figures}")

    test_twenty_in_a_row.seconds = 2400
