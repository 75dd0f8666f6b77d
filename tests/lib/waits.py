# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for what comes by itself."""

import time


def within(condition, seconds, what):
    """Polls until condition() is true, which is promised for so long at most; what, or what it returns, is said when it is not."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value


def wait_until(condition, seconds, what):
    """Of what nobody promises when: a machine that is busy gets three times as long. Who hangs, hangs longer."""
    return within(condition, 3 * seconds, what)
