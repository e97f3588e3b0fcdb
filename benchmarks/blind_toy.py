"""How far the samples of BlindDPS are from the posterior, where that is known.

    python -m benchmarks.blind_toy --plot docs/pictures/blind_toy.svg

One pixel x seen through a filter of unknown density k: y = k x + n, with Gaussian x, k and n, whose score functions are
exact. The posterior p(x, k | y) is not Gaussian, as of any blind problem; its moments come from quadrature on a grid.
What is left between them and the moments of the samples is the bias of the approximation of p(y | x_t, k_t): of a point
(DPS, Theorem 1 of BlindDPS) or of a Gaussian (joint PiGDM).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.exact import GaussianDenoiser
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.methods.base import Measurement
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import Variable
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors.parameterizations import X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.randomness import GeneratorNoise
from codiffuse.spaces import ImageSpace

IMAGE, DENSITY = (0.5, 0.15), (1.0, 0.25)  # mean and standard deviation of x and of k
GRID = 801  # points along each axis of the quadrature
REACH = 6  # standard deviations that it covers
FAR = 100  # a value beyond it, of x or k, has run away
SHOWN = 400  # samples in a picture
RANGES = (0.0, 1.2), (0.0, 2.0)  # of x and k there


@dataclass(frozen=True)
class Filter:
    """y = k x, pixel by pixel."""

    params: ClassVar[tuple[str, ...]] = ("kernel",)

    def __call__(self, image: Tensor, *, kernel: Tensor) -> Tensor:
        return kernel * image

    def image_shape(self, y_shape: tuple[int, int], *, kernel_size: tuple[int, int]) -> tuple[int, int]:
        """That of the measurement."""
        return y_shape

    def crop_to_frame(self, image: Tensor, *, kernel_size: tuple[int, int]) -> Tensor:
        """All of it."""
        return image

    def solve_joint_gram(self, residual, r2, sigma2, *, image, kernel, mask=None) -> Tensor:
        """(r_x^2 k^2 + r_k^2 x^2 + r_x^2 r_k^2 + sigma^2)^-1 r."""
        of_image, of_kernel, noise = (v.reshape(-1, 1, 1, 1) for v in (r2["image"], r2["kernel"], sigma2))
        return residual / (of_image * kernel**2 + of_kernel * image**2 + of_image * of_kernel + noise)


@dataclass(frozen=True)
class DensitySpace:
    """Coordinates of mean 0 and a standard deviation of 0.5."""

    def encode(self, physical: Tensor) -> Tensor:
        return (physical - DENSITY[0]) / (2 * DENSITY[1])

    def decode(self, coordinates: Tensor) -> Tensor:
        return DENSITY[0] + 2 * DENSITY[1] * coordinates

    def unit(self, coordinates: Tensor) -> Tensor:
        return coordinates.new_full(coordinates.shape[:1], 2 * DENSITY[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--y", type=float, default=0.7)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    print("| sigma | | mean x | std x | mean k | std k | correlation |\n|---|---|---|---|---|---|---|")
    panels = []
    for sigma in arguments.sigma:
        print(row(sigma, "posterior", moments(*quadrature(arguments.y, sigma))), flush=True)
        for name, guidance in guidances().items():
            x, k = samples(guidance, arguments.y, sigma, arguments.samples, arguments.steps)
            print(row_of_samples(sigma, name, x, k, arguments.steps), flush=True)
            panels.append((f"{name}, sigma = {sigma:g}", sigma, x[:SHOWN], k[:SHOWN]))
    if arguments.plot:
        arguments.plot.write_text(plot(panels, arguments.y))


def row(sigma: float, name: str, values: list[float]) -> str:
    """A line of the table."""
    return f"| {sigma:g} | {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def row_of_samples(sigma: float, name: str, x: Tensor, k: Tensor, steps: int) -> str:
    """A line of the table; where samples ran away it says so, and why, for their moments would say nothing."""
    lost = int((~((x.abs() < FAR) & (k.abs() < FAR))).sum())  # NaN is not below either
    if lost:
        why = (
            f"a step along the gradient of a likelihood this narrow is unstable with {steps} steps; take more (--steps)"
        )
        return f"| {sigma:g} | {name} | {lost} of {len(x)} samples diverged: {why} | | | | |"
    return row(sigma, name, moments(x, k))


def guidances() -> dict[str, DPS | JointPiGDM]:
    """What is compared: the point approximation by both of its rules, and the Gaussian one."""
    variances = {"image": (2 * IMAGE[1]) ** 2, "kernel": 0.25}
    return {
        "DPS, likelihood": DPS("likelihood"),
        "DPS, norm": DPS("norm"),
        "joint PiGDM": JointPiGDM(variances, zeta="one", lengths="joint"),  # as in the preset
    }


def samples(guidance: DPS | JointPiGDM, y: float, sigma: float, count: int, steps: int) -> tuple[Tensor, Tensor]:
    """`(count,)` x and k of BlindDPS."""
    image = Prior(
        GaussianDenoiser((2 * IMAGE[1]) ** 2, 2 * IMAGE[0] - 1, 1), X0Prediction(), LogSigmaTime(), ImageSpace()
    )
    density = Prior(GaussianDenoiser(0.25, channels=1), X0Prediction(), LogSigmaTime(), DensitySpace())
    process = ReverseProcess(num_steps=steps, clip="none")
    variable = Variable(density.frozen(), size=1)
    method = BlindDPS(Variable(image.frozen()), {"kernel": variable}, guidance, process, max_retries=0)
    measurement = Measurement(torch.full((count, 1, 1, 1), y), GaussianNoise(sigma), Filter())
    found = method(measurement, noise=GeneratorNoise(list(range(count))))
    return found.raw["x"].flatten().double(), found.raw["kernel"].flatten().double()


def moments(x: Tensor, k: Tensor, weight: Tensor | None = None) -> list[float]:
    """Means, standard deviations and correlation."""
    weight = torch.ones_like(x) if weight is None else weight
    weight = weight / weight.sum()
    mean_x, mean_k = (weight * x).sum(), (weight * k).sum()
    var_x, var_k = (weight * (x - mean_x) ** 2).sum(), (weight * (k - mean_k) ** 2).sum()
    correlation = (weight * (x - mean_x) * (k - mean_k)).sum() / (var_x * var_k).sqrt()
    return [float(value) for value in (mean_x, var_x.sqrt(), mean_k, var_k.sqrt(), correlation)]


def quadrature(y: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """x and k on a grid, and p(x, k | y) there, `(GRID, GRID)`; the largest density is 1."""
    axis = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    x, k = torch.meshgrid(IMAGE[0] + IMAGE[1] * axis, DENSITY[0] + DENSITY[1] * axis, indexing="ij")
    log_density = -0.5 * (axis[:, None] ** 2 + axis**2 + ((y - k * x) / sigma) ** 2)
    return x, k, (log_density - log_density.max()).exp()


def plot(panels: Sequence[tuple[str, float, Tensor, Tensor]], y: float) -> str:
    """SVG, a row for each sigma: samples as dots on the region that holds 90 % of the posterior; x right, k up."""
    side, gap, columns = 200, 28, len(guidances())
    (low_x, high_x), (low_k, high_k) = RANGES

    def at(x: float, k: float) -> str:
        return f"{side * (x - low_x) / (high_x - low_x):.1f},{side * (high_k - k) / (high_k - low_k):.1f}"

    drawn = []
    for index, (title, sigma, xs, ks) in enumerate(panels):
        left, top = (index % columns) * (side + gap) + gap, (index // columns) * (side + gap) + gap
        region = "".join(
            f'<path d="M{at(x, low)} L{at(x, high)}" stroke="#bfdbfe" stroke-width="1.5"/>'
            for x, low, high in credible_region(y, sigma)
        )
        dots = "".join(
            f'<circle cx="{at(x, k).split(",")[0]}" cy="{at(x, k).split(",")[1]}" r="1.2"/>'
            for x, k in zip(xs.tolist(), ks.tolist(), strict=True)
            if low_x < x < high_x and low_k < k < high_k
        )
        frame = f'<rect width="{side}" height="{side}" fill="none" stroke="#888"/>'
        words = f'<text x="{side / 2}" y="-8" text-anchor="middle">{title}</text>'
        drawn.append(f'<g transform="translate({left},{top})">{region}<g fill="#b45309">{dots}</g>{frame}{words}</g>')
    width, height = columns * (side + gap) + gap, math.ceil(len(panels) / columns) * (side + gap) + gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(drawn)}</svg>\n'
    )


def credible_region(y: float, sigma: float) -> Iterator[tuple[float, float, float]]:
    """Vertical lines `(x, from k, to k)` through where the posterior is densest, 90 % of it."""
    x, k, density = quadrature(y, sigma)
    descending = density.flatten().sort(descending=True).values
    level = descending[int((descending.cumsum(0) < 0.9 * density.sum()).sum())]
    for column in range(0, GRID, 4):
        inside = k[column][density[column] >= level]
        if len(inside):
            yield float(x[column, 0]), float(inside.min()), float(inside.max())


if __name__ == "__main__":
    main()
