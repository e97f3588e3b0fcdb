"""Two sets of finished runs on the same measurements, image by image.

    python -m benchmarks.paired --of outputs/infer/bsd100_motion/blind_dps-* --beside outputs/infer/bsd100_motion/dps-*

says what share of the second's gain the first has, which beside a method that is told the kernel is the price of
finding it, and the mean difference of each score with its 95 % bootstrap interval over images, each with its mean over
seeds: a diffusion prior against the uniform one, few steps against 1000. Folders of each side are of one method; seeds
are told by their settings. Pairs are the images of the seeds that both sides have a result for; what failed on either
side is counted, and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.leaderboard import by_image, read_runs
from codiffuse.errors import InputError
from codiffuse.inference.summary import gain
from codiffuse.metrics.statistics import Interval, bootstrap_ci, paired_difference, paired_share

SCORES = "gain psnr_aligned ssim lpips kernel_mnc tilt_epe seconds nfe".split()
SAME = "psnr_measurement"  # by which two rows are known to be of one measurement

Rows = dict[tuple[int, str], dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs="+", type=Path, required=True, help="folders")
    parser.add_argument("--beside", nargs="+", type=Path, required=True, help="folders that they are compared with")
    arguments = parser.parse_args()
    try:
        lines = report(rows_of(arguments.of), rows_of(arguments.beside))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def rows_of(folders: Sequence[Path]) -> Rows:
    """Rows of all seeds, by seed and image."""
    runs = read_runs(folders)
    return {(run["config"]["seed"], row["id"]): row for _, run in runs for row in run["rows"]}


def report(ours: Rows, theirs: Rows) -> list[str]:
    """The lines that are printed.

    Raises:
        InputError: no measurement in common, one without a truth, or two of the same seed and image that differ.
    """
    both = sorted(ours.keys() & theirs.keys())
    kept = [key for key in both if ours[key]["status"] == theirs[key]["status"] == "ok"]
    if not kept:
        raise InputError("Expected runs that have results for the same seeds and images, got none in common.")
    for key in kept:
        before = [rows[key].get(SAME) for rows in (ours, theirs)]
        if None in before or abs(before[0] - before[1]) > 1e-6:
            raise InputError(f"Expected the same measurements, got others for seed {key[0]}, image {key[1]}.")
    a, b = ([{**rows[key], "gain": gain(rows[key])} for key in kept] for rows in (ours, theirs))
    alone = len(ours.keys() ^ theirs.keys())
    failures = [sum(rows[key]["status"] != "ok" for key in both) for rows in (ours, theirs)]
    lines = [
        f"{a[0]['method']} beside {b[0]['method']}: {len({name for _, name in kept})} images, "
        f"{len({seed for seed, _ in kept})} seeds, {len(kept)} pairs; failed and left out: {failures[0]} and "
        f"{failures[1]}; on one side only: {alone}"
    ]
    names = [name for _, name in kept]
    for score in SCORES:
        if any(row.get(score) is None for row in a + b):
            continue
        mine, other = (by_image(names, [row[score] for row in rows]) for rows in (a, b))
        lines.append(
            f"{score}: {shown(bootstrap_ci(mine))} and {shown(bootstrap_ci(other))}; "
            f"difference {verdict(paired_difference(mine, other))}"
        )
        if score == "gain":
            share = paired_share(mine, other)
            lines.append(f"share of the gain: {share.mean:.1%} [{share.lo:.1%}, {share.hi:.1%}]")
    return lines


def shown(interval: Interval) -> str:
    """Mean and interval."""
    return f"{interval.mean:.3f} [{interval.lo:.3f}, {interval.hi:.3f}]"


def verdict(interval: Interval) -> str:
    """Mean and interval of a difference, and whether it could be none."""
    excludes = interval.lo > 0 or interval.hi < 0
    return f"{shown(interval)}, which {'excludes' if excludes else 'contains'} 0"


if __name__ == "__main__":
    sys.exit(main())
