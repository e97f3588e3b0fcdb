"""Do tiles leave seams? And are time and memory what was announced?

A sharp picture, mirrored until it is large enough, is blurred by a random kernel and restored by tiles. At some of the
places where tiles meet, a window around the place is restored on its own with the same noise, and without tiles. The
loss is what tiles cost there in PSNR, over the pixels within 16 px of a seam:

    python -m benchmarks.tiles --size 320 --tile 192 --overlap 16 32 64
    python -m benchmarks.tiles --size 3000 4000 --max-memory 6

`difference` is the rms of the two results' difference there and `elsewhere` that in the same windows away from the
seams, both in gray levels: two solves of one place differ a little everywhere. Exits with 1 when a loss is above the
bound.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from dataclasses import replace
from itertools import pairwise, product

import hydra
import numpy as np
import torch
from torch import Tensor

from codiffuse import cli
from codiffuse.data.sources import sources
from codiffuse.fourier import crop_to_frame, pad
from codiffuse.methods.base import Measurement
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.tiles import Axis, Tiled
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import FieldNoise, GeneratorNoise
from codiffuse.simulate.motion import RandomPathKernels

SIGMA = 5 / 255
BAND = 16  # px to either side of a seam
LOOK = 64  # px around a place that are looked at
SURROUNDINGS = 2  # times the kernel's side, px, that a window needs around what is looked at
GRID = 8  # px: the stride of the shipped network
MAX_LOSS = 0.1  # dB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="sample:coffee", help="a sharp picture")
    parser.add_argument("--size", type=int, nargs="+", default=[320], help="side, or height and width, px")
    parser.add_argument("--tile", type=int, default=Tiled.tile)
    parser.add_argument("--overlap", type=int, nargs="+", default=[Tiled.overlap])
    parser.add_argument("--max-memory", type=float, default=None, help="GiB")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kernel", type=int, default=33, help="side of the kernel, px")
    parser.add_argument("--places", type=int, default=4, help="where tiles meet that are looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    truth, measurement = blurred(arguments)
    finish = finishing(arguments)
    worst = max(row(replace(finish, overlap=each), measurement, truth, arguments) for each in arguments.overlap)
    print(f"worst loss {worst:+.3f} dB (bound {MAX_LOSS})")
    return int(worst > MAX_LOSS)


def finishing(arguments: argparse.Namespace) -> Tiled:
    """How `pipeline=photograph` restores a picture with the kernel that it has found, one sample."""
    settings = ("input", "tile", "max_memory", "device", "precision")
    values = {name: getattr(arguments, name) for name in settings} | {"num_samples": 1, "num_particles": 1}
    plain, _ = cli.compose_infer(values, ["pipeline=photograph"])
    finish: Tiled = hydra.utils.instantiate(plain["pipeline"]["finish"])
    process = replace(finish.non_blind.process, num_steps=arguments.steps)
    return replace(finish, non_blind=replace(finish.non_blind, process=process))


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
    frame, kernel_size = (truth.shape[-2], truth.shape[-1]), (arguments.kernel, arguments.kernel)
    plan, noise = method.plan(frame, kernel_size), GeneratorNoise([arguments.seed])
    print(f"overlap {method.overlap}: {method.estimate(frame, kernel_size)}, {method.describe(frame, kernel_size)}")
    started = time.perf_counter()
    found = method(measurement, noise=noise).image
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  took {seconds:.0f} s, whole process {peak:.2f} GiB so far; {decibels(found - truth):.2f} dB", flush=True)
    if plan.at_once:
        return 0.0
    # Windows lie on the frame; tiles on the canvas, which begins before it.
    axes, before_frame = (plan.windows, 0) if plan.num_windows > 1 else (plan.tiles, arguments.kernel // 2)
    seams = tuple(seams_of(axis, before_frame) for axis in axes)
    near = near_a_seam(seams, frame).to(truth.device)
    crossings = list(product(*(at or [length // 2] for at, length in zip(seams, frame, strict=True))))
    chosen = crossings[:: math.ceil(len(crossings) / arguments.places)]
    seed = noise.spawn("tiles").seeds[0]
    seen = [beside(method.non_blind, measurement, truth, found, near, place, seed) for place in chosen]
    tiled, alone, difference, elsewhere = (torch.cat(parts) for parts in zip(*seen, strict=True))
    loss = decibels(alone) - decibels(tiled)
    levels = [255 * float(part.square().mean().sqrt()) for part in (difference, elsewhere)]
    scores = f"tiles {decibels(tiled):.2f} dB, alone {decibels(alone):.2f} dB, loss {loss:+.3f} dB"
    print(f"  {len(chosen)} places: {scores}; difference {levels[0]:.2f}, elsewhere {levels[1]:.2f}", flush=True)
    return loss


def beside(
    method: NonBlind,
    measurement: Measurement,
    truth: Tensor,
    found: Tensor,
    near: Tensor,
    place: tuple[int, int],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors by tiles and alone near a seam, and the difference of both there and elsewhere, around a place."""
    frame, reach = (truth.shape[-2], truth.shape[-1]), SURROUNDINGS * measurement.known["kernel"].shape[-1]
    looked_at, window = window_around(place, LOOK, frame), window_around(place, LOOK + reach, frame)
    field = FieldNoise(seed, (window.top, window.left))
    image = method(replace(measurement, y=window.crop(measurement.y)), noise=field).image
    alone = torch.zeros_like(truth)
    window.crop(alone).copy_(image)
    tiled, alone, truth, near = (looked_at.crop(each) for each in (found, alone, truth, near))
    errors, difference = (tiled - truth, alone - truth), tiled - alone
    return *(error[..., near].flatten() for error in errors), *(difference[..., at].flatten() for at in (near, ~near))


def seams_of(axis: Axis, before_frame: int) -> list[int]:
    """The rows or columns of the measurement where one tile, or window, has given way to the next by half."""
    return [(before + start + axis.side) // 2 - before_frame for before, start in pairwise(axis.starts)]


def near_a_seam(seams: tuple[list[int], ...], frame: tuple[int, int]) -> Tensor:
    """`(H, W)` bool."""
    near = torch.zeros(frame, dtype=torch.bool)
    for row_ in seams[0]:
        near[row_ - BAND : row_ + BAND] = True
    for column in seams[1]:
        near[:, column - BAND : column + BAND] = True
    return near


def window_around(place: tuple[int, int], reach: int, frame: tuple[int, int]) -> Window:
    """What lies within `reach` of a place; it starts on the grid of the network."""
    (top, bottom), (left, right) = (
        (max(at - reach, 0) // GRID * GRID, min(at + reach, length)) for at, length in zip(place, frame, strict=True)
    )
    return Window(top, left, bottom - top, right - left)


def decibels(error: Tensor) -> float:
    """PSNR of errors in [0, 1] units."""
    return -10 * math.log10(float(error.square().mean()))


if __name__ == "__main__":
    sys.exit(main())
