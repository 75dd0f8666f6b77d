#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The integration tests, inside the emulated host: one line per test, as it ends.

    testbed/run --share REPO -- python3 /mnt/share/tests/integration/run.py [--module NAME[,NAME]...] [--results NAME] [--resume] [PATTERN]...

PATTERN is a part of a test's name. --module runs test_NAME.py instead of the usual ones (tests/tiers/run does).
The outcome of every test is in build/test-results/integration.json, or NAME.json, from the moment
it ended, so a crash of this program is a failure of one test. With --resume those that ended before are not run again: for
a second host, where the first one failed."""

import argparse
import importlib
import json
import pathlib
import signal
import sys
import time
import traceback
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]
import common
from host import tell

# In this order: the first finds upgraded as systemd started it, the next five share a guest, of two vCPUs first and then of one.
MODULES = ["activation", "series", "rollback", "endurance", "custody", "wrong_target", "across_versions", "foreign", "systemd"]
RESULTS = HERE.parent.parent / "build/test-results"
TEST_SECONDS = 900  # unless the test has an attribute seconds
UNFINISHED = "the test was running when everything ended"


class Results(unittest.TestResult):
    """Writes the file anew at the start and at the end of each test."""

    def __init__(self, path, resume):
        super().__init__()
        self.path = path
        self.passed, self.failed, self.skips, self.begin = [], [], [], 0.0
        if resume and path.exists():
            before = json.loads(path.read_text())
            self.passed, self.skips = before["passed"], before["skipped"]
            self.failed = [f for f in before["failed"] if f["text"] != UNFINISHED]
            tell(f"going on after {len(self.passed)} passed and {len(self.failed)} failed tests")

    def ended(self, name):
        return name in self.passed or any(t["name"] == name for t in self.failed + self.skips)

    @staticmethod
    def name(test):
        words = test.id().split(".")
        return f"{words[0].removeprefix('test_')}.{words[-1].removeprefix('test_')}"

    def write(self, running=None):
        failed = self.failed + ([{"name": running, "text": UNFINISHED}] if running else [])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"passed": self.passed, "failed": failed, "skipped": self.skips}, indent=1) + "\n")
        part.rename(self.path)

    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()
        common.seen.clear()
        self.write(self.name(test))
        signal.alarm(getattr(getattr(test, test._testMethodName), "seconds", TEST_SECONDS))

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)
        self.write()

    def took(self):
        return f"({time.monotonic() - self.begin:.1f} s)"

    def addSuccess(self, test):
        self.passed.append(self.name(test))
        tell(f"ok    {self.name(test)} {self.took()}")

    def addFailure(self, test, err):
        signal.alarm(0)
        # The logs first: who shows only the beginning of this shows what happened.
        text = "".join(f"saw: {line}\n" for line in common.seen) + common.circumstances()
        text += "\n" + "".join(traceback.format_exception(*err))
        # A class that could not be set up has no startTest().
        name = self.name(test) if isinstance(test, unittest.TestCase) else str(test)
        self.failed.append({"name": name, "text": text})
        # What it is about stands first, before what it takes many lines to say.
        why = " ".join(str(err[1]).split())[:400]
        tell(f"FAIL  {name} {self.took()}: {why}\n" + "\n".join("    | " + line for line in text.splitlines()))
        self.write()

    addError = addFailure

    def addSkip(self, test, reason):
        self.skips.append({"name": self.name(test), "why": reason})
        tell(f"skip  {self.name(test)}: {reason}")


def tests(modules, patterns, short):
    for module in modules:
        suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(f"test_{module}"))
        for case in suite:
            if short and any(getattr(test, "long", False) for test in case):
                continue
            # Tests stand in the file in the order in which they run.
            for test in sorted(case, key=lambda t: getattr(t, t._testMethodName).__code__.co_firstlineno):
                if not patterns or any(p in Results.name(test) for p in patterns):
                    yield test


def too_long(*_):
    raise TimeoutError("the test took too long")


def main(options):
    signal.signal(signal.SIGALRM, too_long)
    results, begin = Results(RESULTS / f"{options.results}.json", options.resume), time.monotonic()
    results.write()
    try:
        chosen = list(tests(options.module.split(",") if options.module else MODULES, options.pattern, options.short))
        if not chosen:
            tell("no test has such a name: " + " ".join(options.pattern))
        for test in chosen:
            if not results.ended(results.name(test)):
                test.run(results)
    finally:
        common.stop_shared()
    tell(f"{len(results.passed)} passed, {len(results.failed)} failed, {len(results.skips)} skipped "
         f"in {time.monotonic() - begin:.0f} s")
    return 0 if results.passed and not results.failed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--module")
    parser.add_argument("--results", default="integration")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--short", action="store_true", help="without the classes that say long = True")
    parser.add_argument("pattern", nargs="*")
    sys.exit(main(parser.parse_args()))
