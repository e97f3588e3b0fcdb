"""How good the kernels of finished runs are, beside the best answer that looks at no picture.

    python -m benchmarks.blind_kernels outputs/infer/bsd100_motion/blind_dps-*

The folders are of one method and one set of data; their seeds, and nothing else, may differ. Printed are the match of
the kernels (MNC) and the median relative error of their widths, for turbulence also the error of the tilt beside that
of none. Intervals are 95 % bootstrap intervals over images, each with its mean over seeds. The true kernels are drawn
again from the settings that each folder keeps.

The best constant kernel is the one kernel whose mean MNC with all true kernels is largest. With each true kernel scaled
to norm 1 and moved to where it matches best, that mean is the inner product with their average, so the maximiser is
proportional to this average: matching and averaging take turns until the mean MNC stands still, from the average of the
unmoved kernels and from up to 32 of the true ones, and the best end counts. A local maximum is all that this promises.

Widths are the roots of the eigenvalues of the covariance of a kernel's mass (`metrics.kernel_axes`), of a Gaussian its
two standard deviations: longer is compared with longer and shorter with shorter, and of `both axes` the median is over
twice as many numbers as kernels. The rms width is `kernel_std` of the rows, one number a kernel. Of a straight motion
the shorter width is nearly 0, and its relative error means nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.leaderboard import by_image, per_image, read_runs
from benchmarks.paired import shown, verdict
from codiffuse import cli
from codiffuse.data.measurements import SimulatedBlur
from codiffuse.errors import InputError
from codiffuse.estimation.centering import moved
from codiffuse.inference.summary import gain
from codiffuse.metrics.consistency import kernel_axes
from codiffuse.metrics.kernel import kernel_shift, mnc
from codiffuse.metrics.statistics import bootstrap_ci, paired_difference
from codiffuse.simulate.support import pad_kernel

STARTS = 32  # true kernels from which the search for the best constant one starts
MAX_ROUNDS = 50
TOLERANCE = 1e-4  # between the MNC in a row and that with the kernel drawn again


@dataclass(frozen=True)
class Kernels:
    """Of all images of all seeds that have a result.

    Attributes:
        names: of the image behind each.
        found: `(1, h, w)` each.
        true: `(1, h, w)` each.
        rows: of `results.jsonl`.
        seeds: number of them.
        failed: images without a result.
    """

    names: list[str]
    found: list[Tensor]
    true: list[Tensor]
    rows: list[dict[str, Any]]
    seeds: int
    failed: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    try:
        kernels = read_kernels(arguments.folders)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(kernels)))
    return 0


def read_kernels(folders: Sequence[Path]) -> Kernels:
    """What the run folders hold.

    Raises:
        InputError: no such runs (`read_runs`), other true kernels than in their rows, or no result.
    """
    read = read_runs(folders)
    names, found, true, rows = [], [], [], []
    for folder, run in read:
        source = simulation(run["config"])
        for row in run["rows"]:
            if row["status"] == "ok":
                kernel = torch.from_numpy(np.load(folder / "images" / row["id"] / "kernel.npy"))[None]
                names.append(row["id"])
                found.append(kernel)
                true.append(true_kernel(source, row, kernel))
                rows.append(row)
    if not rows:
        raise InputError("Expected a run with a result, got failed images only.")
    return Kernels(names, found, true, rows, len(read), sum(len(run["rows"]) for _, run in read) - len(rows))


def simulation(config: dict[str, Any]) -> SimulatedBlur:
    """What draws the kernels of a run with these settings; none of its pictures is looked at."""
    with cli.input_errors():
        return cli.measurements({"data": config["data"] | {"input": "sample"}})


def true_kernel(source: SimulatedBlur, row: dict[str, Any], found: Tensor) -> Tensor:
    """`(1, h, w)` that blurred the picture of a row, drawn again; its MNC has to be that of the row."""
    before = row.get("kernel_mnc")
    if before is None:
        raise InputError(f"Expected pictures that were blurred by a law, got {row['id']} without a true kernel.")
    true = source.true_kernel(row["id"])
    again = float(mnc(found[None], true[None]))
    if abs(again - before) > TOLERANCE:
        raise InputError(
            f"Expected the MNC {again:.4f} with the kernel of these settings for {row['id']}, got {before:.4f}; the "
            "run was made by another version, make it again."
        )
    return true


def best_constant(true: Sequence[Tensor]) -> Tensor:
    """`(1, H, W)` of sum 1: the kernel whose mean MNC with `true` is largest; see the top of this file."""
    sides = [max(kernel.shape[axis] for kernel in true) for axis in (-2, -1)]
    canvas = 2 * sides[0], 2 * sides[1]
    stack = torch.stack([pad_kernel(kernel.double(), canvas) for kernel in true])
    stack = stack / stack.square().sum((1, 2, 3), keepdim=True).sqrt()
    chosen = torch.linspace(0, len(stack) - 1, min(STARTS, len(stack))).round().long()
    ends = [_climb(start, stack) for start in [stack.mean(0), *stack[chosen]]]
    best = max(ends, key=lambda end: end[0])[1]
    return (best / best.sum()).float()


def _climb(start: Tensor, stack: Tensor) -> tuple[float, Tensor]:
    """The mean MNC at the end, and the kernel there."""
    score, kernel = -1.0, start
    for _ in range(MAX_ROUNDS):
        now = float(mnc(kernel[None], stack).mean())
        if now < score + 1e-7:
            break
        score, best = now, kernel
        kernel = moved(stack, *kernel_shift(stack, kernel[None]).unbind(1)).mean(0)
    return score, best


def report(kernels: Kernels) -> list[str]:
    """The lines that are printed."""
    constant = best_constant(kernels.true)
    scores = [float(mnc(found[None], true[None])) for found, true in zip(kernels.found, kernels.true, strict=True)]
    constants = [float(mnc(constant[None], true[None])) for true in kernels.true]
    mine, other = by_image(kernels.names, scores), by_image(kernels.names, constants)
    images = len(mine)
    lines = [
        f"{kernels.rows[0]['method']}: {images} images, {kernels.seeds} seeds, {len(scores)} kernels, "
        f"{kernels.failed} failed and left out",
        f"MNC {shown(bootstrap_ci(mine))}; best constant kernel {shown(bootstrap_ci(other))}; "
        f"difference {verdict(paired_difference(mine, other))}",
    ]
    lines += [
        f"median relative error of the width: {width_errors(kernels.found, kernels.true)}",
        f"  of the best constant kernel:      {width_errors([constant] * len(scores), kernels.true)}",
    ]
    gains = by_image(kernels.names, [gain(row) for row in kernels.rows])
    if gains:
        lines.append(f"gain, dB {verdict(bootstrap_ci(gains))}, {len(gains)} images")
    tilted = [row for row in kernels.rows if row.get("tilt_epe") is not None]
    if tilted:
        epe, zero = per_image(tilted, "tilt_epe"), per_image(tilted, "tilt_epe_zero")
        lines.append(
            f"end-point error, px {shown(bootstrap_ci(epe))}; of no tilt {shown(bootstrap_ci(zero))}; "
            f"difference {verdict(paired_difference(epe, zero))}"
        )
    return lines


def width_errors(found: Sequence[Tensor], true: Sequence[Tensor]) -> str:
    """Medians of the relative errors, in words; kernels of which the true width is 0 are left out."""
    widths, expected = (torch.stack([kernel_axes(kernel[None])[0] for kernel in kernels]) for kernels in (found, true))
    rms, rms_expected = (each.square().mean(1).sqrt() for each in (widths, expected))
    axes = ((widths - expected).abs() / expected).numpy()
    of = {
        "both axes": axes,
        "longer": axes[:, 0],
        "shorter": axes[:, 1],
        "rms": ((rms - rms_expected).abs() / rms_expected).numpy(),
    }
    return ", ".join(f"{name} {100 * np.median(values[np.isfinite(values)]):.1f} %" for name, values in of.items())


if __name__ == "__main__":
    sys.exit(main())
