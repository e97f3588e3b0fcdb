"""What it brings to leave clipped pixels out of the likelihood, and how many around them.

    python -m benchmarks.saturation bsd100 --start 6 --limit 10                                # small bright lamps
    python -m benchmarks.saturation bsd100 --start 6 --limit 10 --radius 12 25 --brightness 1 1.6   # large white discs

Discs are put into sharp pictures before they are blurred, and the result is clipped to [0, 1]; pictures are cut from
larger ones, and restored with the true kernel. The gain in dB is over the pixels that the default mask keeps.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from codiffuse import cli
from codiffuse.data import saturation
from codiffuse.data.measurements import Sample
from codiffuse.data.sources import centre_crop, evaluation_set
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import derive_seed
from codiffuse.simulate.motion import RandomPathKernels

SIGMA = 5 / 255
SIDE, KERNEL = 128, 33  # px
NUM_DISCS = 6
EVERYTHING = 10**4  # px: no highlight is as deep


@dataclass(frozen=True)
class Mask:
    """How clipped pixels are left out: `margin` px around them too, but not what is `depth` px inside a highlight."""

    margin: int = saturation.MARGIN
    depth: int = saturation.DEPTH

    def __call__(self, y: Tensor) -> Tensor | None:
        with mock.patch.multiple(saturation, MARGIN=self.margin, DEPTH=self.depth):
            return saturation.unsaturated(y)


MASKS: dict[str, Mask | None] = {
    "all pixels count": None,
    "1 px around": Mask(margin=1),
    "2 px around (default)": Mask(),
    "4 px around": Mask(margin=4),
    "2 px around, and all inside": Mask(depth=EVERYTHING),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="name of a data set")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--radius", type=float, nargs=2, default=(2, 6), help="of the discs, px")
    parser.add_argument("--brightness", type=float, nargs=2, default=(2, 5), help="of the discs; white is 1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = {"input": arguments.pictures, "method": "pigdm", "precision": "bfloat16", "seed": arguments.seed}
    plain, method = cli.compose_infer(values, ["pipeline=null", "lpips=false", "animate=false"])
    restorer, gains = cli.restorer_of(plain, method), defaultdict(list)
    for source in evaluation_set(arguments.pictures, arguments.limit)[arguments.start :]:
        sample = clipped(source.load().pixels, source.id, arguments)
        kept = MASKS["2 px around (default)"](sample.y)
        for name, mask in MASKS.items():
            [outcome] = restorer([Sample(**vars(sample) | {"mask": mask and mask(sample.y)})])
            gains[name].append(gain(sample.y, outcome.image, sample.truth, kept))
        share = 0.0 if kept is None else 1 - float(kept.mean())
        print(f"{source.id:10} {share:.1%} left out by default", flush=True)
    for name, found in gains.items():
        print(f"{name:28} gain {mean(found):+.2f} dB   {' '.join(f'{value:+.2f}' for value in found)}")
    return 0


def clipped(picture: Tensor, name: str, arguments: argparse.Namespace) -> Sample:
    """A picture with discs, blurred, noisy, clipped."""
    rng = np.random.default_rng(derive_seed(arguments.seed, name, "discs"))
    truth = centre_crop(picture, SIDE + KERNEL - 1).clone()
    rows, columns = np.mgrid[: truth.shape[-2], : truth.shape[-1]]
    for _ in range(NUM_DISCS):
        row, column = rng.uniform(KERNEL // 2, SIDE + KERNEL // 2, 2)
        radius, brightness = rng.uniform(*arguments.radius), rng.uniform(*arguments.brightness)
        truth[:, torch.from_numpy(np.hypot(rows - row, columns - column) < radius)] = brightness
    kernel = RandomPathKernels(KERNEL)(np.random.default_rng(derive_seed(arguments.seed, name, "kernel")))
    blurred = BlurOperator("unknown")(truth[None], kernel=kernel[None])
    noise = torch.Generator().manual_seed(derive_seed(arguments.seed, name, "noise"))
    y = GaussianNoise(SIGMA)(blurred, noise)[0].clamp(0, 1)
    return Sample(name, y, SIGMA, centre_crop(truth, SIDE).clamp(0, 1), kernel)


def gain(y: Tensor, restored: Tensor, truth: Tensor, kept: Tensor | None) -> float:
    """PSNR of the restoration minus that of the measurement, dB, over the pixels that are kept."""
    weight = torch.ones_like(y[:1]) if kept is None else kept
    before, after = ((weight * (picture - truth).square()).sum() for picture in (y, restored))
    return float(10 * (before / after).log10())


if __name__ == "__main__":
    raise SystemExit(main())
