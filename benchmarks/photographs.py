"""What can be measured of restored photographs without their truth, before and after, as a table.

    python -m benchmarks.photographs outputs/infer/FOLDER

`blur` is the perceptual blur of Crete et al. (SPIE 2007), 0 for sharp to 1. `residual` is the rms of y - k * x over the
noise level, and `correlation` how far from white it is (0 is white), both with the kernel that was found: first with
the measurement itself as x, then with the restoration. For blurs of `operator=blur`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.measure import blur_effect

from codiffuse.data.images import read_picture
from codiffuse.data.saturation import unsaturated
from codiffuse.metrics.consistency import residual_correlation, residual_ratio
from codiffuse.operators.blur import BlurOperator


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    print("| picture | blur | residual | correlation | trust | flags |\n|---|---|---|---|---|---|")
    for folder in arguments.folders:
        for line in (folder / "results.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["status"] == "ok":
                print(table_row(row, folder / "images" / row["id"]))
    return 0


def table_row(row: dict[str, Any], folder: Path) -> str:
    """One line of the table."""
    y, x = (read_picture(folder / f"{name}.png").pixels[None] for name in ("measurement", "restored"))
    kernel = torch.from_numpy(np.load(folder / "kernel.npy")).float()
    kernel = kernel.reshape(1, 1, *kernel.shape[-2:])
    operator, level = BlurOperator("valid"), torch.tensor([row["sigma"]])
    seen = operator.crop_to_frame(y, kernel_size=tuple(kernel.shape[-2:]))
    mask = unsaturated(y[0])
    if mask is not None:
        mask = operator.crop_to_frame(mask[None], kernel_size=tuple(kernel.shape[-2:]))
    residuals = [seen - operator(image, kernel=kernel) for image in (y, x)]
    blurs = [blur_effect(image[0].mean(0).numpy()) for image in (y, x)]
    ratios = [float(residual_ratio(residual, level, mask)) for residual in residuals]
    correlations = [float(residual_correlation(residual, mask=mask)) for residual in residuals]
    columns = [
        row["id"],
        "{:.2f} -> {:.2f}".format(*blurs),
        "{:.1f} -> {:.1f}".format(*ratios),
        "{:.2f} -> {:.2f}".format(*correlations),
        "" if row.get("trust") is None else f"{row['trust']:.2f}",
        ", ".join(row.get("flags") or ()),
    ]
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    raise SystemExit(main())
