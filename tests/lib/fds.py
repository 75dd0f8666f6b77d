# SPDX-License-Identifier: GPL-2.0-or-later
"""Fds of another process, copied by pidfd_getfd(2), which Python does not offer."""

import contextlib
import ctypes
import os
import socket
import stat

PIDFD_GETFD = 438


def copied(pidfd, number):
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"fd {number}: pidfd_getfd")
    return fd


def sockets_of(pid):
    """A copy of each of its sockets, for as long as the caller looks at it. One that ends meanwhile has no more."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                fd = copied(pidfd, int(number))
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.close(fd)
                    continue
                with socket.socket(fileno=fd) as s:
                    yield s
    finally:
        os.close(pidfd)


def connected_of(pid):
    """Those that are connected, likewise."""
    for s in sockets_of(pid):
        try:
            s.getpeername()
        except OSError:
            continue
        yield s
