#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""kernel/import and kernel/export are each other's way back, and refuse what would lose something.

On a kernel of three files, whose checkpatch objects to the word BADSTYLE; copies of the two scripts in a project of
their own."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECKPATCH = """#!/bin/sh
for last; do :; done
grep -q '^+.*BADSTYLE' "$last" && printf 'ERROR:BADSTYLE: not like this\\n#1: FILE: x:1:\\n\\n'
grep -q '^+.*COLUMNS' "$last" && printf 'ERROR:SPACING: space\\n#1: FILE: include/trace/events/kvm.h:1:\\n+\\tCOLUMNS\\n\\n'
! grep -q '^+.*BADSTYLE\\|^+.*COLUMNS' "$last"
"""


class Series(unittest.TestCase):
    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp(prefix="upgraded-test-series-"))
        self.addCleanup(shutil.rmtree, self.top)
        self.tree, self.source, self.project = self.top / "tree", self.top / "source", self.top / "project"
        self.write(self.tree / "virt/kvm/kvm_main.c", "one\ntwo\nthree\n")
        self.write(self.tree / "include/trace/events/kvm.h", "events\n")
        self.write(self.tree / "scripts/checkpatch.pl", CHECKPATCH, 0o755)
        self.write(self.tree / ".gitignore", "/*\n")  # as the distribution's has it
        shutil.copytree(self.tree, self.source)
        self.environment = dict(os.environ, XDG_CACHE_HOME=str(self.top / "cache"), KERNEL_SRC=str(self.source),
                                GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1")
        for who in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{who}_NAME": "Some | One", f"GIT_{who}_EMAIL": "one@example.org"}
        self.git(self.tree, "init", "-q")
        self.commit(self.tree, "The kernel")
        self.git(self.tree, "tag", "base")
        for path in ("kernel/import", "kernel/export", "testbed/common.sh", "testbed/kernel-tree.sh"):
            self.write(self.project / path, (ROOT / path).read_text(), 0o755)
        self.write(self.project / "testbed/deps", "#!/bin/sh\n", 0o755)
        self.write(self.project / ".gitignore", "/build/\n")
        self.git(self.project, "init", "-q")
        self.commit(self.project, "The project")

    def write(self, path, text, mode=0o644):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def git(self, where, *argv):
        return subprocess.run(["git", "-C", where, *argv], env=self.environment, check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout

    def commit(self, where, subject, body="Because."):
        self.git(where, "add", "--all", "--force")
        self.git(where, "commit", "-q", "-m", subject, "-m", body)

    def tool(self, *argv):
        return subprocess.run([self.project / "kernel" / argv[0], *argv[1:]], env=self.environment, text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def good(self, *argv):
        done = self.tool(*argv)
        self.assertEqual(0, done.returncode, done.stdout)
        return done.stdout

    def refused(self, why, *argv):
        done = self.tool(*argv)
        self.assertEqual(1, done.returncode, done.stdout)
        self.assertIn(why, done.stdout)

    def three_commits(self):
        self.write(self.tree / "virt/kvm/kvm_main.c", "one\ntwo, ünïcode\nthree\n")
        self.commit(self.tree, "KVM: Change a file")
        self.write(self.tree / "virt/kvm/kvm_main.c", "one\ntwo, ünïcode\nthree\nfour\n")
        self.write(self.tree / "virt/kvm/gmem_transfer.c", "a new file\n")
        self.commit(self.tree, "KVM: Change a file and add one")
        self.write(self.tree / "tools/testing/selftests/kvm/gmem.sh", "#!/bin/sh\n", 0o755)
        self.commit(self.tree, "KVM: selftests: Add nothing but a file", "Line one.\n\nLine two; --- is no end.")

    def imported(self):
        self.good("import", self.tree)
        self.commit(self.project, "Import")

    def exported(self):
        self.good("export")
        return sorted((self.project / "build/kernel-series").iterdir())

    def test_what_was_imported_is_exported_again(self):
        self.three_commits()
        self.imported()
        kernel = self.project / "kernel"
        self.assertEqual("a new file\n", (kernel / "virt/kvm/gmem_transfer.c").read_text())
        self.assertTrue(os.access(kernel / "tools/testing/selftests/kvm/gmem.sh", os.X_OK))
        stored = sorted((kernel / "patches").glob("*.patch"))
        self.assertEqual(3, len(stored))
        self.assertNotIn("a new file", "".join(path.read_text() for path in stored))

        patches = self.exported()
        again = self.top / "again"
        self.git(self.top, "clone", "-q", self.tree, again)
        self.git(again, "reset", "-q", "--hard", "base")
        self.git(again, "am", "-q", *map(str, patches))
        what = ("log", "--reverse", "--format=%an|%ae|%ad|%B", "-p", "base..HEAD")
        self.assertEqual(self.git(self.tree, *what), self.git(again, *what))

    def test_exporting_again_gives_the_same(self):
        self.three_commits()
        self.imported()
        first = [(path.name, path.read_text()) for path in self.exported()]
        self.assertEqual(first, [(path.name, path.read_text()) for path in self.exported()])
        (trees,) = (self.top / "cache/upgraded/linux").iterdir()
        shutil.rmtree(trees / "series/.git")
        self.git(trees / "series", "init", "-q")  # as if it had been killed
        self.assertEqual(first, [(path.name, path.read_text()) for path in self.exported()])

    def test_importing_the_same_again_changes_nothing(self):
        self.three_commits()
        self.imported()
        self.good("import", self.tree)
        self.assertEqual("", self.git(self.project, "status", "--porcelain"))

    def test_a_file_that_left_the_series_leaves_the_project(self):
        self.three_commits()
        self.imported()
        self.git(self.tree, "reset", "-q", "--hard", "HEAD~1")
        self.imported()
        self.assertFalse((self.project / "kernel/tools/testing/selftests/kvm/gmem.sh").exists())
        self.assertEqual(2, len(self.exported()))

    def test_a_new_file_belongs_to_one_commit(self):
        self.three_commits()
        self.write(self.tree / "virt/kvm/gmem_transfer.c", "changed later\n")
        self.commit(self.tree, "KVM: Change it again")
        self.refused("fold the two", "import", self.tree)

    def test_a_file_that_git_was_not_told_of_is_missed(self):
        self.three_commits()
        self.write(self.tree / "virt/kvm/forgotten.c", "hidden by .gitignore\n")
        self.refused("virt/kvm/forgotten.c", "import", self.tree)

    def test_uncommitted_work_is_not_overwritten(self):
        self.three_commits()
        self.imported()
        self.write(self.project / "kernel/virt/kvm/gmem_transfer.c", "edited here\n")
        self.refused("not committed", "import", self.tree)
        self.assertEqual("edited here\n", (self.project / "kernel/virt/kvm/gmem_transfer.c").read_text())

    def test_a_new_file_that_was_changed_here_is_not_overwritten(self):
        self.three_commits()
        self.imported()
        self.write(self.project / "kernel/virt/kvm/gmem_transfer.c", "better here\n")
        self.commit(self.project, "Better")
        self.refused("changed here since the last import", "import", self.tree)
        self.assertIn("+better here", self.exported()[1].read_text())
        self.write(self.tree / "virt/kvm/gmem_transfer.c", "better here\n")
        self.git(self.tree, "commit", "-q", "--all", "--amend", "--no-edit")
        self.refused("fold the two", "import", self.tree)
        self.git(self.tree, "reset", "-q", "--hard", "HEAD~1")
        self.good("import", "--overwrite", self.tree)

    def test_a_new_file_that_was_changed_there_is_replaced(self):
        self.three_commits()
        self.imported()
        self.git(self.tree, "reset", "-q", "--hard", "HEAD~1")
        self.write(self.tree / "virt/kvm/gmem_transfer.c", "better there\n")
        self.git(self.tree, "commit", "-q", "--all", "--amend", "--no-edit")
        self.imported()
        self.assertEqual("better there\n", (self.project / "kernel/virt/kvm/gmem_transfer.c").read_text())

    def test_a_file_that_no_patch_names_is_not_forgotten(self):
        self.three_commits()
        self.imported()
        self.write(self.project / "kernel/virt/kvm/more.c", "more\n")
        self.refused("virt/kvm/more.c", "export")

    def test_checkpatch_is_listened_to(self):
        self.three_commits()
        self.write(self.tree / "virt/kvm/kvm_main.c", "BADSTYLE\n")
        self.commit(self.tree, "KVM: Do it badly")
        self.imported()
        self.refused("ERROR:BADSTYLE", "export")

    def test_columns_of_trace_events_are_no_style_errors(self):
        self.write(self.tree / "include/trace/events/kvm.h", "COLUMNS\n")
        self.commit(self.tree, "KVM: Add an event")
        self.imported()
        self.exported()

    def test_a_series_for_another_kernel_is_refused(self):
        self.three_commits()
        self.imported()
        self.write(self.source / "virt/kvm/kvm_main.c", "something else\n")
        self.refused("does not apply", "export")

    def test_the_source_is_never_written_to(self):
        self.three_commits()
        self.imported()
        self.exported()
        self.assertEqual("one\ntwo\nthree\n", (self.source / "virt/kvm/kvm_main.c").read_text())
        self.assertFalse((self.source / "virt/kvm/gmem_transfer.c").exists())


if __name__ == "__main__":
    unittest.main()
