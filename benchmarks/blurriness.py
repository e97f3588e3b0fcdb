"""Does the spectrum of a picture tell how wide its blur is, before anything is restored?

Pictures are cut to random sizes, blurred by random paths of 3 to 33 px or not at all, given noise, some of them made
gray or stored as JPEG files on the way; the noise level is estimated:

    python -m benchmarks.blurriness bsd100            # the estimate that is shipped, on pictures it has not seen
    python -m benchmarks.blurriness bsds400 --fit 6   # fit it anew: constants for codiffuse/estimation/spectrum.py

A fit is greedy: predictor by predictor, the one that lowers the error most.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codiffuse.data.measurements import estimate_sigma
from codiffuse.data.sources import evaluation_set
from codiffuse.estimation.spectrum import EDGES, OFFSET, band_energies, expected_spread
from codiffuse.inference.pictures import to_image, to_tensor
from codiffuse.metrics.consistency import kernel_spread
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.motion import RandomPathKernels
from codiffuse.simulate.support import pad_kernel

SIZES = (1, 1, 1, 3, 3, 5, 5, 7, 9, 11, 13, 17, 21, 25, 33)  # of the kernels, px; 1 is no blur
LARGEST = max(SIZES)
SIDES = (96, 260)  # of the pictures, px
SIGMAS = (0.7 / 255, 12 / 255)
SHARE_REDUCED, SHARE_GRAY, SHARE_JPEG = 0.3, 0.15, 0.4
ORIENTATIONS = ("weakest", "mean", "strongest")
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Case:
    """One simulated picture: size and rms radius of its kernel, px; y, and the noise level as estimated."""

    size: int
    spread: float
    y: Tensor
    sigma: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set of sharp pictures")
    parser.add_argument("--count", type=int, default=7000, help="simulated pictures")
    parser.add_argument("--fit", type=int, default=None, metavar="TERMS", help="fit that many predictors")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    cases = simulate(arguments.data, arguments.count, np.random.default_rng(arguments.seed))
    if arguments.fit is None:
        found = [(case.size, case.spread, expected_spread(case.y, case.sigma)) for case in cases]
        report(*map(np.array, zip(*found, strict=True)))
    else:
        fit(cases, arguments.fit)
    return 0


def simulate(name: str, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """`count` pictures of a data set, one after the other."""
    pictures = [source.load().pixels for source in evaluation_set(name)]
    for index in range(count):
        yield simulated(pictures[index % len(pictures)], rng)


def simulated(picture: Tensor, rng: np.random.Generator) -> Case:
    """A part of the picture, reduced or not, blurred or not, with noise."""
    if rng.random() < SHARE_REDUCED:
        scale = float(rng.uniform(0.55, 1))
        picture = F.interpolate(picture[None], scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
    size, sigma = int(rng.choice(SIZES)), float(np.exp(rng.uniform(*np.log(SIGMAS))))
    kernel = RandomPathKernels(size=size)(rng) if size > 1 else torch.ones(1, 1, 1)
    kernel = pad_kernel(kernel, LARGEST)[None]
    sides = [min(int(rng.integers(*SIDES)) + LARGEST - 1, side) for side in picture.shape[-2:]]
    top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(picture.shape[-2:], sides, strict=True))
    part = picture[None, :, top : top + sides[0], left : left + sides[1]]
    y = BlurOperator("valid")(part, kernel=kernel)[0]
    y = y + sigma * torch.randn(y.shape)
    if rng.random() < SHARE_GRAY:
        y = y[:1].expand_as(y)
    if rng.random() < SHARE_JPEG:
        y = stored(y, int(rng.integers(80, 98)))
    return Case(size, float(kernel_spread(kernel)), y, estimate_sigma(y))


def stored(y: Tensor, quality: int) -> Tensor:
    """The picture as a JPEG file gives it back."""
    file = io.BytesIO()
    to_image(y).save(file, "JPEG", quality=quality)
    return to_tensor(Image.open(file))


def report(sizes: np.ndarray, spreads: np.ndarray, expected: np.ndarray) -> None:
    """Explained variance of the logarithm, and percentiles of the estimate for each size of kernel."""
    error = np.log(expected + OFFSET) - np.log(spreads + OFFSET)
    print(f"{len(sizes)} pictures, R2 {1 - error.var() / np.log(spreads + OFFSET).var():.3f}")
    print(f"kernel  true  percentiles of the estimate {PERCENTILES}, px")
    for size in sorted(set(sizes)):
        at = sizes == size
        found = " ".join(f"{value:6.2f}" for value in np.percentile(expected[at], PERCENTILES))
        print(f"{size:4d}  {spreads[at].mean():6.2f}  {found}")


def fit(cases: Iterable[Case], terms: int) -> None:
    """Greedy least squares, every fourth picture held out; prints the constants."""
    found = [(case.size, case.spread, band_energies(case.y, case.sigma)) for case in cases]
    names = [(name, index) for name in ORIENTATIONS for index in range(len(EDGES) - 1)]
    values = np.array([[energies[name][index] for name, index in names] for *_, energies in found])
    sizes, spreads = (np.array(column) for column in list(zip(*found, strict=True))[:2])
    goal, held_out = np.log(spreads + OFFSET), np.arange(len(found)) % 4 == 0
    chosen: list[int] = []
    for _ in range(terms):
        rest = [index for index in range(len(names)) if index not in chosen]
        chosen.append(
            min(rest, key=lambda index: errors(values[:, [*chosen, index]], goal, ~held_out)[~held_out].var())
        )
    weights = solve(values[:, chosen], goal, ~held_out)
    print(f"BIAS = {weights[0]:.3f}\nBANDS: tuple[Band, ...] = (")
    for index, weight in zip(chosen, weights[1:], strict=True):
        name, band = names[index]
        print(f'    Band("{name}", {band}, {weight:.3f}),')
    print(")\nheld out:")
    expected = np.exp(goal - errors(values[:, chosen], goal, ~held_out)) - OFFSET
    report(sizes[held_out], spreads[held_out], expected[held_out])


def solve(values: np.ndarray, goal: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Bias and weights of the regression on the cases that it may see."""
    design = np.column_stack([np.ones(len(values)), values])
    return np.linalg.lstsq(design[seen], goal[seen], rcond=None)[0]


def errors(values: np.ndarray, goal: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What the regression leaves of the goal, of all cases."""
    weights = solve(values, goal, seen)
    return goal - weights[0] - values @ weights[1:]


if __name__ == "__main__":
    raise SystemExit(main())
