#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/check and tests/bench/bench.py say what was: nothing that failed is lost on the way to the last line."""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
import time
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "bench"))
sys.dont_write_bytecode = True
import bench  # noqa: E402  pylint: disable=wrong-import-position


def load(path):
    loader = importlib.machinery.SourceFileLoader(path.name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.name, loader))
    loader.exec_module(module)
    return module


check = load(HERE / "check")

SUITE = """
import os, unittest
class T(unittest.TestCase):
{body}
unittest.main(verbosity=2)
"""


class Scratch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


class PythonSuites(Scratch):
    def states(self, **tests):
        """What tests/check makes of a suite of these, by name."""
        body = "".join(f"    def {name}(self):\n        {text}\n" for name, text in tests.items())
        (self.folder / "suite.py").write_text(SUITE.format(body=body))
        return {name: state for name, state, _ in check.python_suite(self.folder / "suite.py")}

    def test_each_test_is_a_row(self):
        self.assertEqual({"test_a": "passed", "test_b": "failed", "test_c": "failed", "test_d": "skipped", "test_e": "passed"},
                         self.states(test_a="'says what it is for'", test_b="self.fail('FAILED (errors=9)')", test_c="1 / 0",
                                     test_d="self.skipTest('no such thing here')", test_e="print('a word in between')"))

    def test_a_failed_subtest_fails(self):
        loop = "for i in (1, 2):\n            with self.subTest(i): self.assertEqual(i, 1)"
        states = self.states(test_a="pass", test_b=loop, test_c="pass", test_d="pass")
        self.assertEqual("failed", states["suite.all_that_ran_is_seen"])

    def test_a_suite_that_is_cut_off_fails(self):
        for status in (0, 1):
            states = self.states(test_a="pass", test_b=f"os._exit({status})")
            self.assertEqual({"test_a": "passed", "suite.all_that_ran_is_seen": "failed"}, states)

    def test_a_word_of_the_test_is_not_taken_for_its_result(self):
        states = self.states(test_a="print('\\nok'); self.fail()")
        self.assertEqual("failed", states["suite.all_that_ran_is_seen"])

    def test_a_status_that_nothing_explains_fails(self):
        states = self.states(test_a="__import__('atexit').register(os._exit, 1)")
        self.assertEqual({"test_a": "passed", "suite.all_that_ran_is_seen": "failed"}, states)

    def test_no_test_fails(self):
        self.assertEqual({"suite.all_that_ran_is_seen": "failed"}, self.states(nothing="pass"))


class Runs(Scratch):
    def test_what_hangs_ends_with_all_that_it_has_started(self):
        check.GRACE, program, number = 0.5, self.folder / "program", self.folder / "pid"
        # One in a session of its own, as an upgrade starts a target; neither ends when it is asked to.
        program.write_text("import pathlib, signal, subprocess, sys, time\n"
                           "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                           "other = subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=subprocess.DEVNULL)\n"
                           "pathlib.Path(sys.argv[1]).write_text(str(other.pid))\nprint('begun', flush=True)\ntime.sleep(600)\n")
        begin = time.monotonic()
        done = check.run("python3", program, number, timeout=3)
        self.assertLess(time.monotonic() - begin, 60)
        self.assertEqual(done.returncode, -9, done.stdout)
        self.assertEqual(done.stdout, "begun\n\npython3 did not end within 3 s\n")
        stat = pathlib.Path(f"/proc/{number.read_text()}/stat")
        self.assertTrue(not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


class EmulatedHosts(Scratch):
    def failed(self, status, passed=(), failed=(), skipped=()):
        """The failed rows of a run that left these results."""
        seen = json.dumps({"passed": passed, "failed": [{"name": name, "text": ""} for name in failed],
                           "skipped": [{"name": name, "why": ""} for name in skipped]})
        with mock.patch.object(check, "RESULTS", self.folder), mock.patch.object(check, "prepare"):
            command = ["sh", "-c", 'echo "$1" >"$2"; exit $3', "sh", seen, self.folder / "run.json", str(status)]
            rows = list(check.emulated("run", command))
        return [name for name, state, _ in rows if state == "failed"]

    def test_what_passed_passed(self):
        self.assertEqual([], self.failed(0, passed=["a"], skipped=["b"]))

    def test_a_failed_test_is_one_failure(self):
        self.assertEqual(["b"], self.failed(1, passed=["a"], failed=["b"]))

    def test_nothing_but_skipped_tests_fails(self):
        for status in (0, 1):
            self.assertEqual(["run_ends"], self.failed(status, skipped=["a", "b"]))

    def test_a_pattern_that_matches_nothing_fails(self):
        for status in (0, 1):
            self.assertEqual(["run_ends"], self.failed(status))

    def test_a_status_that_nothing_explains_fails(self):
        self.assertEqual(["run_ends"], self.failed(1, passed=["a"]))
        self.assertEqual(["run_ends"], self.failed(124, passed=["a"]))
        self.assertEqual(["b", "run_ends"], self.failed(0, failed=["b"]))


class UnitTests(Scratch):
    def failed(self, status, log):
        """The failed rows when meson ends so and leaves this log; there is one of another day."""
        path = self.folder / "build/asan/meson-logs/testlog.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = json.dumps({"name": "x / test_it", "result": "OK", "stdout": "[       OK ] it_works\n"})
        path.write_text(entry + "\n")

        def run(*argv, **_):
            if argv[0] == "meson" and log:
                path.write_text(log.replace("ENTRY", entry) + "\n")
            return mock.Mock(returncode=status if argv[0] == "meson" else 0, stdout="")
        with mock.patch.object(check, "ROOT", self.folder), mock.patch.object(check, "run", run):
            return [name for name, state, _ in check.unit() if state == "failed"]

    def test_what_passed_passed(self):
        self.assertEqual([], self.failed(0, "ENTRY"))

    def test_results_of_another_day_do_not_count(self):
        for status in (0, 1):
            self.assertEqual(["meson_test_ends"], self.failed(status, None))

    def test_a_status_that_nothing_explains_fails(self):
        self.assertEqual(["meson_test_ends"], self.failed(1, "ENTRY"))


class Benchmarks(unittest.TestCase):
    def test_the_median_is_as_sure_as_the_binomial_distribution_says(self):
        # Of ten: all but one on the same side is 2 * (1 + 10) / 1024.
        self.assertEqual([2, 9, 1 - 22 / 1024], bench.median_between(list(range(1, 11))))
        self.assertEqual([1, 6, 1 - 2 / 64], bench.median_between(list(range(1, 7))))
        self.assertIsNone(bench.median_between([1, 2, 3, 4, 5]))
        # The tables' value for fifty.
        self.assertEqual([18, 33], bench.median_between(list(range(1, 51)))[:2])

    def test_a_zero_counts_and_what_is_unknown_is_counted(self):
        seen = bench.summary([0.0, None, 0.9, 0.8])
        self.assertEqual((0.0, 0.8, 3, 1), (seen["min"], seen["median"], seen["runs"], seen["unknown"]))
        self.assertIn("1 unknown", bench.shown("work", seen, None))
        self.assertIsNone(bench.summary([None]))

    def test_a_missed_target_says_by_how_much(self):
        ratios = {"ratio": bench.summary([1.12]), "work": bench.summary([0.5]), "none": None}
        targets = bench.judged(ratios, {"ratio": ("<=", 1.0), "work": (">=", 0.95), "none": ("<=", 1.0)})
        self.assertEqual([False] * 3, [target["met"] for target in targets.values()])
        self.assertIn("MISSED by 12.0%: <= 1.0", bench.shown("ratio", ratios["ratio"], targets["ratio"]))
        self.assertIn("MISSED by 47.4%: >= 0.95", bench.shown("work", ratios["work"], targets["work"]))
        self.assertIn("not measured; MISSED: <= 1.0", bench.shown("none", None, targets["none"]))
        met = bench.judged(ratios, {"ratio": ("<=", 1.12), "work": (">=", 0.5)})
        self.assertEqual([True, True], [target["met"] for target in met.values()])

    def test_the_work_of_a_second_that_is_not_whole_is_unknown(self):
        guest = mock.Mock()
        guest.fresh_report.return_value = {"errors": 0}
        guest.window.return_value = {"longest_gap": {"ms": 1}, "ticks": {"lost": 0}}
        with mock.patch.multiple(bench, AFTER=0, LATE=0, work_rate=lambda guest: 200):
            for work, known in (({"after_pages_per_s": 0.0, "complete": True}, 0.0),
                                ({"after_pages_per_s": 180.0, "complete": True}, 0.9),
                                ({"after_pages_per_s": 180.0, "complete": False}, None), (None, None)):
                guest.gap_between.return_value = {"ms": 1, "work": work}
                self.assertEqual(known, bench.measured(guest, "name", lambda: (0, 1))["work_ratio"])

    def test_the_work_before_is_what_slices_of_several_reports_say(self):
        guest = mock.Mock()
        guest.fresh_report.side_effect = [{"slices": {"ms": 100, "first": 1, "pages": [5, 5]}},
                                          {"slices": {"ms": 100, "first": 2, "pages": [5, 20]}}]
        with mock.patch.object(bench.time, "monotonic", side_effect=[0, 1, 3]):
            self.assertEqual(100, bench.work_rate(guest))


if __name__ == "__main__":
    unittest.main()
