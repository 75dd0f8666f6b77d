# SPDX-License-Identifier: GPL-2.0-or-later
"""A target that can not work is refused before anything is touched, with every reason."""

import pathlib

from common import NEW, OLD, Case, ctl, saw, shared
from host import REFUSED


def blockers(document):
    return {f["code"] for f in document["findings"] if f["severity"] == "blocker"}


class WrongTarget(Case):
    def refused(self, what, binary, *codes, upgrade=False):
        """check and upgrade name the blockers, the guest does not notice."""
        guest = shared(1)
        source = self.begin(guest)
        status, answer = ctl("check", guest.name, "--vmm", binary)
        found = blockers(answer[-1]) if answer and "findings" in answer[-1] else set()
        self.assertEqual(status, REFUSED, f"check of {what}: {answer}")
        self.assertTrue(set(codes) <= found, f"check of {what} found {found}: {answer}")
        for f in answer[-1]["findings"]:
            if f["severity"] == "blocker":
                self.assertTrue(f["text"] and f["remedy"], f"neither sentence nor remedy: {f}")
        if not upgrade:
            return guest, sorted(found)
        status, report = guest.upgrade(binary)
        self.assertEqual(status, REFUSED, f"upgrade to {what}: {report}")
        self.assertEqual(guest.pid(), source, "the guest has another process")
        return guest, sorted(found)

    def wrong(self, what, binary, *codes):
        guest, found = self.refused(what, binary, *codes, upgrade=True)
        self.healthy(guest, f"{what}: refused by {' '.join(found)}")

    def test_missing_target(self):
        self.wrong("a path that does not exist", "/usr/bin/no-such-qemu", "target.missing")

    def test_files_that_are_no_programs(self):
        guest = shared(1)
        plain, text = guest.dir / "plain", guest.dir / "text"
        plain.write_bytes(pathlib.Path("/bin/true").read_bytes())
        plain.chmod(0o644)
        text.write_text("this is not a program\n")
        text.chmod(0o755)
        self.refused("a program without x", str(plain), "target.not-executable")
        self.refused("a text file", str(text))
        self.wrong("a directory", "/opt")

    def test_programs_that_are_no_qemu(self):
        self.refused("/bin/true", "/bin/true")
        self.wrong("/bin/cat", "/bin/cat")

    def test_qemu_of_another_architecture(self):
        self.wrong("qemu-system-i386", NEW.replace("x86_64", "i386"), "target.architecture")

    def test_trimmed_qemu_is_refused_for_every_reason(self):
        self.wrong("a QEMU with few devices", OLD + "-microvm", "target.device", "target.machine-type")

    def test_older_qemu_that_lacks_the_machine(self):
        # The shared guest has the oldest QEMU's machine type: a newer one needs a paused guest of its own.
        from test_foreign import Bare
        with Bare("newest", NEW, machine="q35") as vm:
            self.assertEqual(vm.adopt()[0], 0)
            status, answer = ctl("check", "newest", "--vmm", OLD)
            found = blockers(answer[-1])
            self.assertEqual(status, REFUSED, answer)
            self.assertTrue({"target.machine-type", "target.older"} <= found, f"only {found}")
            saw(f"refused by {' '.join(sorted(found))}: all of them at once")

    def test_target_that_lacks_a_device(self):
        guest = shared(1)
        fake = guest.dir / "without-rng"
        # It says of itself that it has no virtio-rng, as a package without that module would.
        fake.write_text("#!/bin/bash\n"
                        f'case "$*" in *stdio*) exec < <(cat) > >(exec sed -u s/virtio-rng-pci/virtio-gone-pci/g);; esac\n'
                        f'exec {NEW} "$@"\n')
        fake.chmod(0o755)
        self.wrong("a QEMU without virtio-rng-pci", str(fake), "target.device")
