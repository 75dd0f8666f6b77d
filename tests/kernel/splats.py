# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a kernel's log says that the kernel is wrong.

Used by run.py on what the tests' kernel said, and held to samples of every kind by test_splats.py: a filter that
never finds anything would make every test look good."""

import re

# Each alternative is the first line of a kind of report, as the kernel prints it. "Call Trace:" catches the kinds
# that nobody thought of: nothing healthy prints one.
COMPLAINT = re.compile(r"""
    \bBUG:                                      # KASAN, sleeping, scheduling while atomic, bad page, NULL pointer, soft lockup
  | \bkernel\ BUG\ at\b
  | \bBUG\ [\w-]+(\ \(.*\))?:                   # SLUB: BUG kmalloc-64 (Not tainted): Poison overwritten
  | \bWARNING:                                  # WARN_ON, lockdep, suspicious RCU usage, bad unlock balance
  | ------------\[\ cut\ here
  | \bUBSAN:
  | \bKASAN:
  | \bKCSAN:
  | \bOops:
  | \bKernel\ panic\b
  | \bgeneral\ protection\ fault\b
  | \bunable\ to\ handle\b
  | \bpossible\ (circular|recursive)\ locking
  | \bpossible\ irq\ lock
  | [Ii]nconsistent\ lock\ state
  | \bturning\ off\ the\ locking\ correctness\ validator
  | \bsuspicious\ RCU\ usage
  | \bsleeping\ function\ called
  | \brcu:.*\b(detected|stall)
  | \bINFO:\ task\ .*\ blocked\ for\ more\ than
  | \bblocked\ tasks\ on
  | \bsoft\ lockup\b | \bhard\ LOCKUP\b
  | \bworkqueue\ lockup\b
  | \blist_(add|del)\b.*\bcorruption
  | \brefcount_t:
  | \bunreferenced\ object\b
  | \bnew\ suspected\ memory\ leaks
  | \bObjects\ remaining\b
  | \bCall\ Trace:
""", re.X)

MARK = re.compile(r"upgraded-test: (begin (?P<name>\S+)|end)")


def lines_of_kmsg(text):
    """The messages of /dev/kmsg without their numbers: "6,340,5140900,-;text"; a line that continues begins with a space."""
    found = []
    for line in text.splitlines():
        head, semicolon, message = line.partition(";")
        if semicolon and re.fullmatch(r"\d+,\d+,\d+,\S+", head):
            found.append(message)
        elif not line.startswith(" "):
            found.append(line)
    return found


def splats(lines, context=25):
    """[(what ran, text)]: every complaint with the lines after it. What belongs to one report counts once."""
    found, running, silent_until = [], "boot", -1
    for number, line in enumerate(lines):
        mark = MARK.search(line)
        if mark:
            running, silent_until = mark["name"] or "end", -1
        elif COMPLAINT.search(line) and number > silent_until:
            end = next((i for i in range(number, min(number + context, len(lines))) if i > number and MARK.search(lines[i])),
                       number + context)
            found.append((running, "\n".join(lines[number:end])))
            silent_until = end - 1
    return found


def leaks(text):
    """The reports of /sys/kernel/debug/kmemleak."""
    return [part.strip() for part in re.split(r"(?m)^(?=unreferenced object)", text) if part.startswith("unreferenced object")]


def lock_checking_is_on(lockdep_stats):
    """Lockdep switches itself off after its first report: without this, silence would mean nothing."""
    return re.search(r"^\s*debug_locks:\s+1$", lockdep_stats, re.M) is not None
