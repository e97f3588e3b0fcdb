"""Is the uncertainty right? How often the truth lies where the samples say it should.

    python -m benchmarks.coverage bsd100 --limit 60 --step 2               # what factor the spread needs
    python -m benchmarks.coverage bsd100 --limit 60 --step 2 --start 1     # coverage with it, on the others
    python -m benchmarks.coverage bsd100 --limit 10 --factor 2 --plot curve.svg
    python -m benchmarks.coverage bsd100 --set method=pigdm num_particles=4   # with the true kernel

Pictures are cut from larger blurred ones (`bench/bsd100_valid`) and restored as photographs: the kernel, then samples.
The truth is moved to where it matches the restoration best, as image and kernel are only known up to a shift, and the
border of the kernel's radius is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from codiffuse import cli
from codiffuse.errors import InputError
from codiffuse.inference.uncertainty import FACTORS
from codiffuse.metrics.image import align
from codiffuse.metrics.uncertainty import calibration_factor, coverage, predictive_std

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="name of a data set, or a folder")
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--start", type=int, default=0, help="first of these pictures that is used")
    parser.add_argument("--step", type=int, default=1, help="from one of them to the next")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", type=float, help="instead of the shipped ones")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="other settings, as on the command line of infer.py")
    arguments = parser.parse_args()
    settings = {"input": arguments.pictures, "limit": arguments.limit, "crop": arguments.crop, "seed": arguments.seed}
    chosen = ["experiment=bench/bsd100_valid", "pipeline=photograph", "lpips=false", "animate=false", *arguments.set]
    try:
        plain, method = cli.compose_infer(settings, chosen)
        with cli.input_errors():
            source, restorer = cli.measurements(plain), cli.restorer_of(plain, method)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    parts, scaled = [], []
    for index in range(arguments.start, len(source.ids), arguments.step):
        [outcome] = restorer([source.load(index)])
        if outcome.row["status"] != "ok":
            print(f"{outcome.id:16} left out: {outcome.row['status']}", flush=True)
            continue
        parts.append(scored(outcome.samples, outcome.truth, outcome.true_kernel.shape[-1] // 2))
        factor = FACTORS[outcome.origin] if arguments.factor is None else arguments.factor
        estimate, std, truth = parts[-1]
        scaled.append(factor * std)
        inside, wanted = coverage(estimate, scaled[-1], truth), calibration_factor(*parts[-1])
        print(f"{outcome.id:16} coverage of 90 %: {inside:.3f}, factor for 90 %: {wanted:.2f}", flush=True)
    if not parts:
        raise SystemExit("error: Expected pictures that can be restored, got none; change --limit, --start or --step.")
    estimate, std, truth = (torch.cat(values) for values in zip(*parts, strict=True))
    scaled = torch.cat(scaled)
    print(f"factor for 90 % over all: {calibration_factor(estimate, std, truth):.3f}")
    found = [coverage(estimate, scaled, truth, level) for level in LEVELS]
    for level, value in zip(LEVELS, found, strict=True):
        print(f"nominal {level:.2f}: {value:.3f}")
    if arguments.plot:
        arguments.plot.write_text(plot(found))


def scored(samples: Tensor, truth: Tensor, border: int) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate, spread and truth of the pixels that count, flat."""
    estimate = samples.mean(0)
    moved, _ = align(truth[None], estimate[None], max_shift=border, border=border)
    parts = estimate, predictive_std(samples), moved[0].to(estimate)
    return tuple(part[..., border:-border, border:-border].flatten() for part in parts)


def plot(found: list[float]) -> str:
    """The calibration curve as SVG: nominal coverage to the right, that of the truth upwards."""
    side, edge = 300, 44

    def at(x: float, y: float) -> str:
        return f"{edge + x * side:.1f},{edge / 2 + (1 - y) * side:.1f}"

    curve = " ".join(at(level, value) for level, value in zip((0, *LEVELS, 1), (0, *found, 1), strict=True))
    dots = "".join(
        f'<circle cx="{at(*point).split(",")[0]}" cy="{at(*point).split(",")[1]}" r="3" fill="#2563eb"/>'
        for point in zip(LEVELS, found, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 1.5 * edge} {side + 1.5 * edge}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<polyline points="{at(0, 1)} {at(0, 0)} {at(1, 0)}" fill="none" stroke="#888"/>'
        f'<polyline points="{at(0, 0)} {at(1, 1)}" stroke="#888" stroke-dasharray="4"/>'
        f'<polyline points="{curve}" fill="none" stroke="#2563eb" stroke-width="2"/>{dots}'
        f'<text x="{edge + side / 2}" y="{side + edge}" text-anchor="middle">nominal coverage</text>'
        f'<text transform="rotate(-90)" x="{-(edge / 2 + side / 2)}" y="16" text-anchor="middle">truth inside</text>'
        f'<text x="{edge}" y="{side + edge * 0.85}">0</text>'
        f'<text x="{edge + side}" y="{side + edge * 0.85}">1</text></svg>\n'
    )


if __name__ == "__main__":
    main()
