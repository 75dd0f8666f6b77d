#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of the kernel extension, in the emulated host.

    tests/kernel/run.py [--stock] [--plain] [PROGRAM [ARGUMENT...]]

Without arguments: the whole suite, as tests/check kernel shows it. With a PROGRAM of testbed/selftests: only that,
once, in the kernel full of assertions; --plain takes the one without them, --stock the unchanged one.

A run boots a kernel with a share that holds the programs, a plan, and `inside`, which says how each of them ended
and keeps every word of the kernel. What comes out: the lines of the programs' TAP, each a test; the programs of the
kernel's own also run in the unchanged kernel, and are to end the same; and what the kernel said must be nothing
(splats.py), which would mean little if it could not be seen to say something: so it is provoked at the end."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import splats
import uapi

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARES = ROOT / "build/kernel"
SMALL = ["--base", "testbed/kernel-small.config"]
DEBUG = ["--patched", *SMALL, "--config", "testbed/kernel-debug.config"]

STRESS_SECONDS = int(os.environ.get("UPGRADED_STRESS_SECONDS", "60"))
NIGHTLY = STRESS_SECONDS > 60

# The kernel's own tests, unchanged: how many seconds they may take on a busy machine, and arguments that make them end
# in a minute or two of emulation with all the debugging (by themselves, one of them walks 128 GiB of guest memory).
# The nightly run asks for more.
KERNELS_OWN = {
    "guest_memfd_test": (600, []),
    "pre_fault_memory_test": (600, []),
    "set_memory_region_test": (3000, []),
    "memslot_modification_stress_test": (1800, [] if NIGHTLY else ["-b", "64M"]),
    "dirty_log_test": (1800, [] if NIGHTLY else ["-i", "6"]),
    # By default it takes all the memory there is. 1 GiB takes the debugging kernel twenty minutes.
    "mmu_stress_test": (3600, ["-m", "1", "-s", "1"]),
}


# What takes more than a hundred thousand changes of memslots: seconds, but many minutes with all the debugging.
PLAIN_ONLY = {"gmem_transfer_mmu_test": ["memory_is_never_taken_for_mmio_after_a_wrap",
                                         "memory_is_never_taken_for_mmio_when_a_transfer_would_wrap"]}

# What the kernel without debugging has no means for (CONFIG_MEMORY_FAILURE).
WANTS_DEBUG = ("race.memory_failures",)

# What wants KVM's module to be loaded without the TDP MMU.
WITHOUT_TDP_MMU = {"gmem_transfer_mmu_test": ["eopnotsupp_without_the_tdp_mmu",
                                              "guest_sees_the_guest_memfd_whatever_is_at_the_userspace_address"]}


def make(*argv):
    """What one of the makers prints; its progress goes to our error output. Compilers give way to what is tested meanwhile."""
    done = subprocess.run(["nice", *argv], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed (status {done.returncode})")
    return pathlib.Path(done.stdout.strip())


class Run:
    """One boot: what the programs said, how they ended, what the kernel said."""

    def __init__(self, name, kernel, programs, plan, mem, timeout, without_tdp_mmu=None):
        """programs: folder of testbed/selftests. plan, without_tdp_mmu: {test: (seconds, program, [argument])}."""
        self.plan = {**plan, **(without_tdp_mmu or {})}
        self.folder = SHARES / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shutil.copy(ROOT / "tests/kernel/inside", self.folder)
        for program in {program for _, program, _ in self.plan.values()}:
            shutil.copy(programs / program, self.folder)
        for module in kernel.parent.glob("*.ko"):
            shutil.copy(module, self.folder)
        for file, part in (("plan", plan), ("plan-without-tdp-mmu", without_tdp_mmu or {})):
            (self.folder / file).write_text("".join(f"{test} {seconds} {program} {' '.join(arguments)}\n"
                                                    for test, (seconds, program, arguments) in part.items()))
        began = time.monotonic()
        done = subprocess.run(["testbed/run", "--kernel-only", "--kernel", kernel, "--mem", str(mem), "--timeout", str(timeout),
                               "--share", self.folder, "--console", self.folder / "console", "--", "/mnt/share/inside"],
                              cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.seconds = time.monotonic() - began
        self.status, self.said = done.returncode, done.stdout
        self.results = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in self.read("results").splitlines()
                        if len(line.split()) == 4}
        self.ended = self.read("results").endswith("end\n")
        kernel_said = splats.lines_of_kmsg(self.read("kmsg"))
        if not self.ended:  # the last words may have reached the console only
            kernel_said += self.read("console").splitlines()
        self.provoked, self.splats = [], []
        for running, text in splats.splats(kernel_said):
            (self.provoked if running.startswith("provoked_") else self.splats).append((running, text))

    def read(self, name):
        try:
            return (self.folder / name).read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def output(self, test):
        return self.read(f"out/{test}")

    def tests(self, test):
        """[(name, state, text)] of one program: its TAP lines, or itself when it has none."""
        if test not in self.results:
            return [(test, "failed", f"did not end; the run: status {self.status}\n{self.said[-3000:]}\n{self.output(test)[-3000:]}")]
        status, seconds, left = self.results[test]
        text = f"status {status} after {seconds} s\n" + "\n".join(self.output(test).splitlines()[-60:])[-4000:]
        found = tap(self.output(test))
        states = [state for _, state, _ in found]
        planned = re.search(r"^1\.\.(\d+)", self.output(test), re.M)
        tests = [(f"{test}.{name}", state, why or (own_words(self.output(test), name) if state == "failed" else "") or text)
                 for name, state, why in found]
        if not found:
            state = {0: "passed", 4: "skipped"}.get(status, "failed")
            tests.append((test, state, text))
        elif planned and len(found) != int(planned[1]):
            tests.append((f"{test}.all_that_was_planned_ran", "failed", f"{len(found)} of {planned[1]}: {text}"))
        elif status not in (0, 4) and "failed" not in states:
            tests.append((f"{test}.exit_status", "failed", text))
        if left:
            tests.append((f"{test}.leaves_no_process_behind", "failed", f"{left} processes still ran"))
        return tests

    def health(self):
        """What the kernel itself has to say, once everything has run."""
        yield "run_ends", "passed" if self.ended and not self.read("trouble") else "failed", \
            f"status {self.status}\n{self.read('trouble')}{self.said[-4000:]}"
        yield "kernel_says_nothing_wrong", "failed" if self.splats else "passed", \
            "\n\n".join(f"during {running}:\n{text}" for running, text in self.splats[:5])
        leaked = splats.leaks(self.read("leaks"))
        scanned = (self.folder / "leaks").exists()
        yield "no_memory_is_leaked", "failed" if leaked or not scanned else "passed", \
            "\n\n".join(leaked[:5]) or "the search for leaks did not run"
        yield "lock_checking_was_on_to_the_end", \
            "passed" if splats.lock_checking_is_on(self.read("lockdep_stats")) else "failed", self.read("lockdep_stats")
        kinds = {running for running, _ in self.provoked}
        yield "provoked_reports_are_seen", \
            "passed" if kinds == {"provoked_WARNING", "provoked_READ_AFTER_FREE"} else "failed", f"seen: {sorted(kinds)}"


TAP = re.compile(r"^(not )?ok \d+[ \t-]*(.*?)[ \t]*(?:#[ \t]*(SKIP|XFAIL)\b[ \t]*(.*))?$", re.M)


def tap(text):
    """[(name, state, reason)]"""
    found, seen = [], {}
    for bad, name, directive, why in TAP.findall(text):
        name = re.sub(r"[^\w.:-]+", "_", name or why or "test").strip("_")
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name += f"_{seen[name]}"
        found.append((name, "skipped" if directive else "failed" if bad else "passed", why))
    return found


def own_words(text, name):
    """What the selftests' harness and the test itself said from its beginning to its "not ok"."""
    found = re.search(rf"^#\s+RUN\s+{re.escape(name)} .*?^not ok \d+ {re.escape(name)}.*?$", text, re.M | re.S)
    return found[0][-4000:] if found else ""


def our_programs(programs):
    return sorted(path.name for path in programs.glob("gmem_transfer_*") if path.name.endswith("_test"))


def words(option, tests):
    """Arguments of the selftests' harness: -t is only this test, -T is not this one."""
    return [word for test in tests for word in (option, test)]


def plan_of_ours(programs, debug=False):
    plan = {name: (2400 if debug else 1200, name,
                   words("-T", WITHOUT_TDP_MMU.get(name, []) + (PLAIN_ONLY.get(name, []) if debug else [])))
            for name in our_programs(programs)}
    if (programs / "gmem_transfer_stress").exists():
        seed = os.environ.get("UPGRADED_STRESS_SEED") or str(time.time_ns() % 1000000007 if NIGHTLY else 1)
        plan["gmem_transfer_stress"] = (STRESS_SECONDS * 2 + 600, "gmem_transfer_stress", ["-t", str(STRESS_SECONDS), "-s", seed])
    return plan


def plan_of_plain_only():
    return {f"{name}_plain": (1200, name, words("-t", tests)) for name, tests in PLAIN_ONLY.items()}


def plan_without_tdp_mmu():
    return {f"{name}_without_tdp_mmu": (600, name, words("-t", tests)) for name, tests in WITHOUT_TDP_MMU.items()}


def plan_of_kernels_own():
    return {name: (seconds, name, arguments) for name, (seconds, arguments) in KERNELS_OWN.items()}


def timeout_of(plan):
    return 900 + sum(seconds for seconds, _, _ in plan.values())


def compare_with_stock(ours, stock):
    """The kernel's own tests: each line must end as it does in the unchanged kernel."""
    for program in KERNELS_OWN:
        expected = {name: state for name, state, _ in stock.tests(program)}
        for name, state, text in ours.tests(program):
            before = expected.pop(name, "missing")
            if state == before == "failed":
                yield name, "skipped", "fails in the unchanged kernel, too"
            elif state in (before, "passed") and before != "missing":
                yield name, state, text
            else:
                yield name, "failed", f"in the unchanged kernel: {before}; here {state}: {text}"
        yield f"{program}.as_in_the_unchanged_kernel", "failed" if expected else "passed", \
            f"only in the unchanged kernel: {expected}"


# What the short form runs of the kernel's own tests, without the unchanged kernel to compare with.
ESSENTIAL = {"guest_memfd_test", "pre_fault_memory_test"}


def suite(short=False):
    """Yields (name, state, text). In short: our tests, in a kernel without assertions."""
    if not (ROOT / "kernel/patches/series").exists():
        yield "series", "skipped", "there is no kernel/patches/series"
        return

    done = subprocess.run(["kernel/export"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    yield "series_applies_and_checkpatch_is_clean", "failed" if done.returncode else "passed", done.stdout[-6000:]

    programs = make("testbed/selftests", "--patched")
    yield from uapi.compare(programs / "include")
    if short:
        yield from run_alone(programs)
    else:
        yield from run_and_compare(programs, make("testbed/selftests"))


def results_of_ours(ours, programs, without=()):
    """None of our tests may be skipped, but for those @without which the kernel that they run in has to do."""
    if not our_programs(programs):
        yield "our_own_tests", "failed", "there are none"
    for program in ours.plan:
        if program not in KERNELS_OWN:
            for name, state, text in ours.tests(program):
                if state == "skipped" and not name.endswith(without):
                    state, text = "failed", f"skipped: {text}"
                yield name, state, text


def health_without_debugging(run):
    return [row for row in run.health() if row[0] in ("run_ends", "kernel_says_nothing_wrong")]


def run_alone(programs):
    plan = {**plan_of_ours(programs), **{name: how for name, how in plan_of_kernels_own().items() if name in ESSENTIAL}}
    ours = Run("patched", make("testbed/kernel", "--patched", *SMALL), programs, plan, 4096, timeout_of(plan) + 600,
               plan_without_tdp_mmu())
    yield from results_of_ours(ours, programs, WANTS_DEBUG)
    for program in sorted(ESSENTIAL):
        yield from ours.tests(program)
    yield from health_without_debugging(ours)


def run_and_compare(programs, stock_programs):
    done = subprocess.run(["tests/kernel/matrix"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    for name, state, _ in tap(done.stdout):
        yield f"compiles.{name}", state, done.stdout[-6000:]
    if done.returncode and "\nnot ok" not in done.stdout:
        yield "compiles", "failed", f"tests/kernel/matrix: status {done.returncode}\n{done.stdout[-3000:]}"

    debug_kernel, stock_kernel = make("testbed/kernel", *DEBUG), make("testbed/kernel")
    yield "kernel_links_with_kvm_as_modules", "passed" if (debug_kernel.parent / "kvm.ko").exists() else "failed", ""
    plan = {**plan_of_ours(programs, debug=True), **plan_of_kernels_own()}
    plain_kernel, plain_plan = make("testbed/kernel", "--patched", *SMALL), plan_of_plain_only()
    stock_plan = plan_of_kernels_own()
    enough = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 9 << 30
    with concurrent.futures.ThreadPoolExecutor(2 if enough and (os.cpu_count() or 1) > 1 else 1) as pool:
        ours = pool.submit(Run, "patched", debug_kernel, programs, plan, 4096, timeout_of(plan))
        stock = pool.submit(Run, "stock", stock_kernel, stock_programs, stock_plan, 4096, timeout_of(stock_plan))
        # Whichever of the two ends first makes room for it.
        plain = pool.submit(Run, "plain", plain_kernel, programs, plain_plan, 4096, timeout_of(plain_plan) + 600,
                            plan_without_tdp_mmu())
        ours, stock, plain = ours.result(), stock.result(), plain.result()
    yield from results_of_ours(ours, programs)
    yield from results_of_ours(plain, programs)
    yield from compare_with_stock(ours, stock)
    yield from ours.health()
    for name, state, text in health_without_debugging(plain):
        yield f"plain.{name}", state, text
    (SHARES / "seconds.json").write_text(json.dumps({"patched": {**{k: v[1] for k, v in ours.results.items()}, "all": round(ours.seconds)},
                                                     "stock": {**{k: v[1] for k, v in stock.results.items()}, "all": round(stock.seconds)}},
                                                    indent=1))


def one(arguments):
    """A single program by hand; its output, then what the kernel had to say."""
    stock, plain = "--stock" in arguments, "--plain" in arguments
    name, *more = [word for word in arguments if word not in ("--stock", "--plain")]
    kernel = make("testbed/kernel", *([] if stock else ["--patched", *SMALL] if plain else DEBUG))
    run = Run("one", kernel, make("testbed/selftests", *([] if stock else ["--patched"])), {name: (3000, name, more)}, 4096, 4000)
    print(run.output(name))
    failed = 0
    for test, state, text in [*run.tests(name), *([] if stock or plain else run.health())]:
        print(state, test)
        failed |= state == "failed"
        if state == "failed" and test not in run.output(name):
            print(text)
    for running, text in run.splats:
        print(f"during {running}:\n{text}")
    return int(failed or bool(run.splats))


def main():
    if sys.argv[1:]:
        return one(sys.argv[1:])
    failed = 0
    for name, state, text in suite():
        print(state, name, flush=True)
        if state == "failed":
            print(text)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
