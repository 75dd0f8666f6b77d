#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Condense what gmem_transfer_bench measured.

    kernel_bench.py MEASURED RESULT

MEASURED has a JSON object per line, and whatever else the emulated host said, which is ignored. RESULT gets, for each
size and each way of handing a guest over, medians and spread; the tail of many transfers, without and with noise; and
the targets, each with what it was held against. A target for which a size is missing is not met: it says so.

Times of an emulated machine are no times of hardware. Ratios, counts and how they grow are what to look at; that is
also why a guest of each size is handed over forth and back in turn with one of 64 MiB, which sees the same noise."""

import collections
import json
import pathlib
import statistics
import sys

MIB = 1 << 20
GIB = 1 << 30
FLAT = 1.5  # at most, largest against 64 MiB
CHEAPER = 1000  # at least, ownership and pre-fault against a transfer, at 1 GiB
LARGE = 1000 * GIB  # what counts as 1 TiB: 40 bits of guest physical addresses have no room for all of it

PRE_FAULT, DEMAND, TRANSFER = "no_stage2_pre_fault", "no_stage2_demand", "transfer"


def spread(values):
    values = sorted(values)

    def at(part):
        return values[min(len(values) - 1, int(len(values) * part))]

    return {"median": statistics.median(values), "min": values[0], "max": values[-1], "p90": at(0.9), "p99": at(0.99), "n": len(values)}


def size_name(size):
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"


def read(path):
    samples, tails = collections.defaultdict(list), collections.defaultdict(list)
    flat, skipped = collections.defaultdict(list), []
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        if row["what"] == "sample":
            samples[row["layout"], row["size"], row["variant"]].append(row)
        elif row["what"] == "flat":
            flat[row["layout"], row["size"]].append(row)
        elif row["what"] == "tail":
            tails["noisy" if row["noisy"] else "quiet"].append(row["ioctl_ns"])
        elif row["what"] == "skipped":
            skipped.append(row)
    return samples, flat, tails, skipped


def condense(rows):
    """One size, one way."""
    result = {key: spread([row[key] for row in rows])
              for key in ("ioctl_ns", "pre_fault_ns", "walk_ns", "walk2_ns", "faults", "faults2", "tables", "zapped", "reference_ns")}
    # Until the guest has all its memory back at full speed.
    result["until_walked_ns"] = spread([row["ioctl_ns"] + row["pre_fault_ns"] + row["walk_ns"] for row in rows])
    result["ioctl_to_reference"] = spread([row["ioctl_ns"] / row["reference_ns"] for row in rows])
    return result


def median(rows, *keys):
    return statistics.median(sum(row[key] for key in keys) for row in rows) if rows else None


def largest(samples, variant):
    sizes = [size for layout, size, name in samples if layout == "sparse" and name == variant and size >= LARGE]
    return samples["sparse", max(sizes), variant] if sizes else []


def target(name, wanted, value, met):
    return {"target": name, "wanted": wanted, "value": value, "met": bool(value is not None and met(value))}


def targets(samples, flat, tails):
    large = [row for (layout, size), rows in flat.items() if layout == "sparse" and size >= LARGE for row in rows]
    yield target("time of a transfer, 1 TiB sparse to 64 MiB", f"<= {FLAT}",
                 median(large, "ioctl_ns") / median(large, "reference_ns") if large else None, lambda value: value <= FLAT)

    moved = [row for (_, _, variant), rows in samples.items() if variant == TRANSFER for row in rows]
    yield target("stage-2 faults after a transfer, of all sizes", "0",
                 max(row["faults"] + row["faults2"] for row in moved) if moved else None, lambda value: value == 0)

    one_gib = samples.get(("dense", GIB, TRANSFER)), samples.get(("dense", GIB, PRE_FAULT))
    yield target("ownership and pre-fault to a transfer, 1 GiB dense", f">= {CHEAPER}",
                 median(one_gib[1], "ioctl_ns", "pre_fault_ns") / median(one_gib[0], "ioctl_ns") if all(one_gib) else None,
                 lambda value: value >= CHEAPER)

    small = [row for variant in (PRE_FAULT, DEMAND) for row in samples.get(("dense", 64 * MIB, variant), [])]
    large = largest(samples, PRE_FAULT) + largest(samples, DEMAND)
    yield target("time of NO_STAGE2 itself, 1 TiB sparse to 64 MiB", f"<= {FLAT}",
                 median(large, "ioctl_ns") / median(small, "ioctl_ns") if large and small else None, lambda value: value <= FLAT)

    for kind, values in sorted(tails.items()):
        tail = spread(values)
        yield target(f"p99 to median of {tail['n']} transfers, {kind}", "reported", tail["p99"] / tail["median"], lambda value: True)


def show(result):
    ms = 1e6
    print(f"{'guest':>16} {'way':20} {'ioctl':>10} {'pre-fault':>10} {'walk':>10} {'faults':>8} {'tables':>8}   (ms, medians)")
    for row in result["guests"]:
        print(f"{size_name(row['size']) + ' ' + row['layout']:>16} {row['variant']:20} {row['ioctl_ns']['median'] / ms:10.3f} "
              f"{row['pre_fault_ns']['median'] / ms:10.1f} {row['walk_ns']['median'] / ms:10.1f} {row['faults']['median']:8g} "
              f"{row['tables']['median']:8g}")
    for row in result["flat"]:
        print(f"{size_name(row['size'])} {row['layout']}: {row['ioctl_ns']['median'] / ms:.3f} ms, 64 MiB in turn with it: "
              f"{row['reference_ns']['median'] / ms:.3f} ms ({row['ioctl_ns']['n']} transfers each; of one to the other "
              f"{row['ratio']['median']:.2f}, nine in ten up to {row['ratio']['p90']:.2f})")
    for kind, tail in sorted(result["tail"].items()):
        print(f"{tail['n']} transfers, {kind}: median {tail['median'] / ms:.3f}, p99 {tail['p99'] / ms:.3f}, max {tail['max'] / ms:.3f} ms")
    for row in result["skipped"]:
        print(f"NOT MEASURED: {size_name(row['size'])} {row['layout']} takes {row['needed_kib'] // 1024} MiB of memory, "
              f"there were {row['available_kib'] // 1024}")
    for row in result["targets"]:
        value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
        print(f"{'met' if row['met'] else 'MISSED'}: {row['target']}: {value} (wanted: {row['wanted']})")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    samples, flat, tails, skipped = read(pathlib.Path(sys.argv[1]))
    if not samples:
        sys.exit(f"{sys.argv[1]}: no measurement in it")

    order = sorted(samples, key=lambda key: (key[0], key[1], [TRANSFER, PRE_FAULT, DEMAND].index(key[2])))
    result = {
        "guests": [{"layout": layout, "size": size, "variant": variant, "pages": samples[layout, size, variant][0]["pages"],
                    **condense(samples[layout, size, variant])} for layout, size, variant in order],
        # In turn with a guest of 64 MiB, forth and back.
        "flat": [{"layout": layout, "size": size, "ioctl_ns": spread([row["ioctl_ns"] for row in rows]),
                  "reference_ns": spread([row["reference_ns"] for row in rows]),
                  # Of two that followed each other: what the noise does to one of them is in this, and what it does to both is not.
                  "ratio": spread([row["ioctl_ns"] / row["reference_ns"] for row in rows])} for (layout, size), rows in sorted(flat.items())],
        "tail": {kind: spread(values) for kind, values in tails.items()},
        "skipped": skipped,
        "targets": list(targets(samples, flat, tails)),
    }
    pathlib.Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
