"""How well the pixels near the frame are restored: gain by their distance from it, from finished runs with a truth.

    python -m benchmarks.frame outputs/infer/FOLDER ...

A restoration is moved by the whole pixels at which it matches the truth best, as image and kernel are only known up to
a shift; what this moves in from outside is not scored. Gains are means over pictures, in dB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from codiffuse.data.images import read_picture
from codiffuse.metrics.image import align

BANDS = ((0, 8), (8, 16), (16, 32), (32, 48), (48, None))  # px from the frame
MAX_SHIFT = 16  # px


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    names = (f"{low} to {high}" if high else f"beyond {low}" for low, high in BANDS)
    print(f"| run | pictures | {' | '.join(names)} |\n|---|---|{'---|' * len(BANDS)}")
    for folder in arguments.folders:
        rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
        images = [folder / "images" / row["id"] for row in rows if row["status"] == "ok"]
        gains = [gains_by_distance(*read(image)) for image in images if (image / "truth.png").exists()]
        if not gains:
            raise SystemExit(f"error: Expected restored pictures with a truth in {folder}, got none.")
        means = torch.stack(gains).nanmean(0).tolist()
        print(f"| {folder.name} | {len(gains)} | {' | '.join(f'{mean:.1f}' for mean in means)} |", flush=True)
    return 0


def read(folder: Path) -> tuple[Tensor, ...]:
    """Measurement, restoration and truth, `(C, H, W)`."""
    return tuple(read_picture(folder / f"{name}.png").pixels for name in ("measurement", "restored", "truth"))


def gains_by_distance(measurement: Tensor, restored: Tensor, truth: Tensor) -> Tensor:
    """PSNR of the restoration minus that of the measurement, dB, of each of `BANDS`; NaN where one has no pixel."""
    _, shift = align(restored[None], truth[None], max_shift=MAX_SHIFT, border=MAX_SHIFT)
    rows, columns = shift[0].round().int().tolist()
    moved = restored.roll((rows, columns), (-2, -1))
    inside = torch.ones_like(truth[0]).bool()
    for axis, by in ((0, rows), (1, columns)):  # what wrapped around
        inside.narrow(axis, 0 if by >= 0 else inside.shape[axis] + by, abs(by))[...] = False
    distance = distances(*truth.shape[-2:])
    gains = []
    for low, high in BANDS:
        band = inside & (distance >= low) & (distance < (high or max(truth.shape)))
        errors = [(picture - truth)[:, band].double().square().mean() for picture in (measurement, moved)]
        gains.append(10 * (errors[0] / errors[1]).log10())
    return torch.stack(gains)


def distances(height: int, width: int) -> Tensor:
    """`(H, W)` of each pixel from the frame, px; 0 for those at it."""
    rows, columns = (torch.minimum(torch.arange(side), torch.arange(side).flip(0)) for side in (height, width))
    return torch.minimum(rows[:, None], columns[None])


if __name__ == "__main__":
    raise SystemExit(main())
