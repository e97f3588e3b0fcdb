"""Do tiles leave seams? And are time and memory what was announced?

A sharp picture, mirrored until it is large enough, is blurred by a random kernel, and restored by tiles. At some of the
places where tiles meet, a window of a tile's size is restored on its own with the same noise, so that the place lies in
its middle. The loss is what tiles cost there in PSNR, over the pixels within 16 px of a seam:

    python -m benchmarks.tiles --size 368 --tile 224 --overlap 32 64 --steps 12
    python -m benchmarks.tiles --size 3000 4000

`difference` is the rms of the two results' difference there and `inside` that of the same window away from the seams,
both in gray levels: two solves of one place differ a little everywhere, as the network looks at the whole of each.
Exits with 1 when a loss is above the bound.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from codiffuse.data.sources import sources
from codiffuse.fourier import crop_to_frame, pad
from codiffuse.methods.base import Measurement
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.tiles import Axis, Plan, Tiled
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors import zoo
from codiffuse.randomness import FieldNoise, GeneratorNoise
from codiffuse.simulate.motion import RandomPathKernels

SIGMA = 5 / 255
BAND = 16  # px to either side of a seam
GRID = 8  # px: the stride of the shipped network
MAX_LOSS = 0.1  # dB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="sample:coffee", help="a sharp picture")
    parser.add_argument("--size", type=int, nargs="+", default=[368], help="side, or height and width, px")
    parser.add_argument("--tile", type=int, default=Tiled.tile)
    parser.add_argument("--overlap", type=int, nargs="+", default=[Tiled.overlap])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--kernel", type=int, default=33, help="side of the kernel, px")
    parser.add_argument("--windows", type=int, default=4, help="places looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    truth, measurement = blurred(arguments)
    prior = zoo.load("natural_image", "prior", arguments.device, precision=arguments.precision)
    non_blind = NonBlind(prior, process=ReverseProcess(num_steps=arguments.steps))
    methods = [Tiled(non_blind, arguments.tile, overlap) for overlap in arguments.overlap]
    worst = max(row(method, measurement, truth, arguments) for method in methods)
    print(f"worst loss {worst:+.3f} dB (bound {MAX_LOSS})")
    return int(worst > MAX_LOSS)


def blurred(arguments: argparse.Namespace) -> tuple[Tensor, Measurement]:
    """A truth `(1, C, H, W)` and its measurement, of which nothing is known beyond the frame."""
    height, width = arguments.size * 2 if len(arguments.size) == 1 else arguments.size
    sharp, margin = sources(arguments.input)[0].load().pixels[None], arguments.kernel - 1
    missing = (height + margin - sharp.shape[-2], width + margin - sharp.shape[-1])
    scene = pad(sharp, (0, max(missing[0], 0), 0, max(missing[1], 0)), "symmetric")
    scene = scene[..., : height + margin, : width + margin]
    kernel = RandomPathKernels(arguments.kernel)(np.random.default_rng(arguments.seed))[None]
    operator = BlurOperator("unknown")
    y = GaussianNoise(SIGMA)(operator(scene, kernel=kernel), torch.Generator().manual_seed(arguments.seed))
    known = {"kernel": kernel.to(arguments.device)}
    truth = crop_to_frame(scene, kernel.shape[-2:]).to(arguments.device)
    return truth, Measurement(y.to(arguments.device), GaussianNoise(SIGMA), operator, known)


def row(method: Tiled, measurement: Measurement, truth: Tensor, arguments: argparse.Namespace) -> float:
    """Restores by tiles, prints what came out, and returns the loss at the seams in dB."""
    frame, kernel_size = tuple(truth.shape[-2:]), (arguments.kernel, arguments.kernel)
    plan, noise = method.plan(frame, kernel_size), GeneratorNoise([arguments.seed])
    print(f"overlap {method.overlap}: {method.describe(frame, kernel_size)}", flush=True)
    started = time.perf_counter()
    found = method(measurement, noise=noise).image
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  took {seconds:.0f} s, whole process {peak:.2f} GiB so far; {decibels(found - truth):.2f} dB", flush=True)
    seams = seams_of(plan.rows), seams_of(plan.columns)
    pairs = list(product(seams[0] or [frame[0] // 2], seams[1] or [frame[1] // 2])) if any(seams) else []
    chosen = pairs[:: math.ceil(len(pairs) / arguments.windows)] if pairs else []
    if not chosen:
        return 0.0
    near = near_a_seam(seams, frame).to(truth.device)
    seen = [
        beside(method.non_blind, measurement, truth, found, near, window_around(pair, plan, frame), noise)
        for pair in chosen
    ]
    tiled, alone, differ, inside = (torch.cat(parts) for parts in zip(*seen, strict=True))
    loss = decibels(alone) - decibels(tiled)
    levels = [255 * float(part.square().mean().sqrt()) for part in (differ, inside)]
    scores = f"tiles {decibels(tiled):.2f} dB, alone {decibels(alone):.2f} dB, loss {loss:+.3f} dB"
    print(f"  {len(chosen)} places: {scores}; difference {levels[0]:.2f}, inside {levels[1]:.2f}", flush=True)
    return loss


def beside(
    method: NonBlind,
    measurement: Measurement,
    truth: Tensor,
    found: Tensor,
    near: Tensor,
    window: Window,
    noise: GeneratorNoise,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors by tiles and alone near a seam, and the difference of both there and elsewhere, in a window's middle."""
    field = FieldNoise(noise.spawn("tiles").seeds[0], (window.top, window.left))
    alone = method(replace(measurement, y=window.crop(measurement.y)), noise=field).image
    # The outer quarters of the window lack surroundings themselves.
    middle = Window(window.height // 4, window.width // 4, window.height // 2, window.width // 2)
    tiled, alone, truth, near = (
        middle.crop(image) for image in (window.crop(found), alone, window.crop(truth), window.crop(near))
    )
    errors, difference = (tiled - truth, alone - truth), tiled - alone
    return *(error[..., near].flatten() for error in errors), *(difference[..., at].flatten() for at in (near, ~near))


def seams_of(axis: Axis) -> list[int]:
    """The pixels where one tile has given way to the next by half."""
    return [(before + start + axis.side) // 2 for before, start in pairwise(axis.starts)]


def near_a_seam(seams: tuple[list[int], list[int]], frame: tuple[int, int]) -> Tensor:
    """`(H, W)` bool."""
    near = torch.zeros(frame, dtype=torch.bool)
    for row in seams[0]:
        near[row - BAND : row + BAND] = True
    for column in seams[1]:
        near[:, column - BAND : column + BAND] = True
    return near


def window_around(pair: tuple[int, int], plan: Plan, frame: tuple[int, int]) -> Window:
    """A window of a tile's size with a place in its middle, on the grid of the tiles, inside the frame."""
    sides = plan.rows.side, plan.columns.side
    starts = (min(max(at - side // 2, 0), length - side) for at, side, length in zip(pair, sides, frame, strict=True))
    top, left = (start // GRID * GRID for start in starts)
    return Window(top, left, *sides)


def decibels(error: Tensor) -> float:
    """PSNR of errors in [0, 1] units."""
    return -10 * math.log10(float(error.square().mean()))


if __name__ == "__main__":
    sys.exit(main())
