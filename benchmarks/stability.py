"""How often BlindDPS diverges, and whether that is always noticed.

    python -m benchmarks.stability bsd100
    python -m benchmarks.stability bsd100 --set method=blind_dps_official method.guidance.scale=20

Each run has a picture, a kernel, noise and a sampler of its own seed. A run that diverges is made again with half the
step, twice at most, and is marked as failed if that does not help; the exit code is 1 if an unmarked one is not finite.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace

import torch

from codiffuse import cli
from codiffuse.errors import InputError
from codiffuse.inference.writers import Outcome

UNMARKED = "ok, but not finite"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="name of a data set, or a folder; taken in turn")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", nargs="*", default=[], help="other settings, as on the command line of infer.py")
    arguments = parser.parse_args()
    settings = {"input": arguments.pictures, "crop": arguments.crop, "lpips": False, "animate": False}
    chosen = ["experiment=bench/bsd100_motion", f"method.process.num_steps={arguments.steps}"]
    if not any(setting.startswith("method=") for setting in arguments.set):
        chosen.append("method=blind_dps")
    try:
        plain, name = cli.compose_infer(settings, [*chosen, *arguments.set])
        with cli.input_errors():
            restorer = cli.restorer_of(plain, name)
            sources = [cli.measurements(plain | {"data": plain["data"] | {"seed": s}}) for s in range(arguments.runs)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts: Counter[str] = Counter()
    for seed, source in enumerate(sources):
        [outcome] = replace(restorer, seed=seed)([source.load(seed % len(source.ids))])
        found = verdict(outcome)
        counts[found] += 1
        if found != "ok":
            print(f"seed {seed:3d} {outcome.id:16} {found}", flush=True)
    failed = sum(count for found, count in counts.items() if found.startswith("failed"))
    retried = sum(count for found, count in counts.items() if found.startswith("retried"))
    print(f"{name}, {arguments.runs} runs of {arguments.steps} steps at {arguments.crop} px:")
    print(f"ok {counts['ok']}, ok after a retry {retried}, failed {failed}, not finite and unmarked {counts[UNMARKED]}")
    return int(counts[UNMARKED] > 0)


def verdict(outcome: Outcome) -> str:
    """`ok`, `retried ...`, `failed: reason`, or `UNMARKED`."""
    status, factor = outcome.row["status"], outcome.row.get("step_factor", 1.0)
    if status != "ok":
        return status
    parts = (outcome.image, outcome.kernel, outcome.tilt, outcome.samples)
    if not all(bool(torch.isfinite(part).all()) for part in parts if part is not None):
        return UNMARKED
    return "ok" if factor == 1 else f"retried with {factor:g} of the step"


if __name__ == "__main__":
    sys.exit(main())
