#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our user-space header and the patched kernel's own say the same.

    tests/kernel/uapi.py INCLUDE        INCLUDE: the patched kernel's headers for user space

One program that prints every name, number, size and offset is compiled three times: against our header on top of
the system's, against the kernel's, and against ours on top of the kernel's (a system that has the extension).
What there is to print is read from both headers, so a name that only one of them has does not compile with the
other."""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "kernel/include/uapi"


def names(text):
    """What belongs to the extension: macros and enumerators, and structures with their members."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    constants = set(re.findall(r"#\s*define\s+(KVM_(?:CAP_)?GMEM_(?:LINK|TRANSFER)\w*)\s", text))
    constants |= set(re.findall(r"\b(KVM_GMEM_SLOT_\w+)\b", text))
    structures = {}
    for name, body in re.findall(r"\bstruct\s+(kvm_gmem_(?:link|transfer)\w*)\s*\{(.*?)\}", text, re.S):
        structures[name] = [re.sub(r"\[.*", "", word) for declaration in body.split(";") if declaration.strip()
                            for word in [declaration.split()[-1]]]
    return constants, structures


def program(constants, structures):
    lines = ["#include <linux/kvm.h>", "#include <stddef.h>", "#include <stdio.h>",
             '#define SHOW(x) printf("%s = %llx\\n", #x, (unsigned long long)(x))', "int main(void)", "{"]
    lines += [f"\tSHOW({name});" for name in sorted(constants)]
    for name, members in sorted(structures.items()):
        lines.append(f"\tSHOW(sizeof(struct {name}));")
        for member in members:
            this = f"((struct {name} *)0)->{member}"
            lines += [f"\tSHOW(offsetof(struct {name}, {member}));", f"\tSHOW(sizeof({this}));",
                      # signed or not, by what all bits set compares to; an array by its first element
                      f"\tSHOW(__builtin_choose_expr(__builtin_types_compatible_p(__typeof__({this}), __u64), 64,"
                      f" __builtin_choose_expr(__builtin_types_compatible_p(__typeof__({this}), __u32), 32,"
                      f" __builtin_choose_expr(__builtin_types_compatible_p(__typeof__({this}), __s32), 31, 0))));"]
    return "\n".join(lines + ["\treturn 0;", "}", ""])


def output_of(source, *flags):
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "show"
        done = subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, "-x", "c", "-", "-o", target],
                              input=source, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"does not compile with {' '.join(map(str, flags))}:\n{done.stdout}")
        return subprocess.run([target], stdout=subprocess.PIPE, text=True, check=True).stdout


def compare(include):
    """Yields (name, state, text), as the suites of tests/check do."""
    kernels = pathlib.Path(include) / "linux/kvm.h"
    our_names, their_names = names((OURS / "linux/kvm.h").read_text()), names(kernels.read_text())
    source = program(our_names[0] | their_names[0], {**our_names[1], **their_names[1]})
    seen = {}
    for name, flags in {"on_the_systems_header": ["-I", OURS],
                        "of_the_patched_kernel": ["-isystem", include],
                        "on_the_patched_kernels": ["-I", OURS, "-isystem", include]}.items():
        try:
            seen[name] = output_of(source, *flags)
            yield f"header_{name}_has_everything", "passed", ""
        except RuntimeError as e:
            yield f"header_{name}_has_everything", "failed", str(e)
    values = set(seen.values())
    enough = len(our_names[0]) >= 17 and len(our_names[1]) == 3 and len(seen) == 3
    text = "\n".join(f"{name}:\n{text}" for name, text in seen.items())
    yield "headers_agree_on_every_number_and_offset", "passed" if enough and len(values) == 1 else "failed", text


if __name__ == "__main__":
    failed = 0
    for test, state, said in compare(sys.argv[1]):
        print(state, test)
        if state == "failed":
            print(said)
            failed = 1
    sys.exit(failed)
