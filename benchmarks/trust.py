"""Does the trust of a restoration, which is estimated without the truth, tell the good ones from the bad?

    python -m benchmarks.trust outputs/infer/bsd100_motion           # evaluate the trust that is shipped
    python -m benchmarks.trust outputs/infer/trust --fit             # fit it anew: constants for diagnostics.py
    python -m benchmarks.trust outputs/infer/trust --fit texture,sharpening,border_mass

Reads the rows of all run folders below the given ones that have a gain and features; bad means a gain below 0 dB. A fit
is judged on pictures that it has not seen: all rows of one id, whatever their seed, are left out together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codiffuse.inference.diagnostics import REACH, TRUST_TERMS, Term, predictors, trust
from codiffuse.inference.summary import gain

PREFIX = "feature_"
RIDGE = 1.0  # of the regression, in runs
MAX_GAIN = 3.0  # dB, of either sign, that the regression sees: how much more it was says little about its sign
LOGISTIC_OVER_NORMAL = 1.702  # by which a logistic curve comes closest to a normal distribution's


@dataclass(frozen=True)
class Run:
    """One restored picture: its id, its gain in dB, its features and, on the scale of the fit, its predictors."""

    id: str
    gain: float
    features: dict[str, float]
    predictors: dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fit", nargs="?", const=",".join(TRUST_TERMS), help="predictors, separated by commas")
    arguments = parser.parse_args()
    runs = read_runs(arguments.folders)
    bad = torch.tensor([run.gain < 0 for run in runs])
    if not bad.any() or bad.all():
        print(
            f"Expected good and bad runs with features, got {len(runs)} of which {int(bad.sum())} bad.", file=sys.stderr
        )
        return 2
    pictures = len({run.id for run in runs})
    print(f"{len(runs)} runs of {pictures} pictures, {int(bad.sum())} with a gain below 0 dB")
    print("\nAUROC of single features (0.5 is chance)")
    for name, value in sorted(single_aurocs(runs, bad).items(), key=lambda item: -abs(item[1] - 0.5)):
        print(f"  {name:22} {value:.3f}")
    if arguments.fit is None:
        report("shipped trust", torch.tensor([trust(run.features) for run in runs]), runs)
        return 0
    names = arguments.fit.split(",")
    report(f"trust fitted on {', '.join(names)}; each picture left out in turn", cross_validated(runs, names), runs)
    bias, terms = fit(runs, names)
    print(f"\nTRUST_BIAS = {bias:.3f}\nTRUST_TERMS: dict[str, Term] = {{")
    for name, term in terms.items():
        print(f'    "{name}": Term({term.weight:.3f}, {term.mean:.4g}, {term.std:.4g}),')
    print("}")
    return 0


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All rows below the folders that did not fail and have features, a gain, and a blur to be judged."""
    runs = []
    for path in sorted({file for folder in folders for file in folder.rglob("results.jsonl")}):
        for row in map(json.loads, path.read_text().splitlines()):
            features = {key.removeprefix(PREFIX): value for key, value in row.items() if key.startswith(PREFIX)}
            # A picture taken for sharp, or nearly, has no trust, and nothing to learn it from.
            if row["status"] == "ok" and features and gain(row) is not None and row["trust"] is not None:
                runs.append(Run(row["id"], gain(row), features, predictors(features)))
    return runs


def auroc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive scores above a negative, ties counting a half."""
    from torchmetrics.functional.classification import binary_auroc

    # Ranks, because values outside [0, 1] would go through a sigmoid, which makes ties of large ones.
    ranks = score.double().unique(return_inverse=True)[1]
    return float(binary_auroc(ranks / ranks.max().clamp_min(1), positive.int()))


def single_aurocs(runs: Sequence[Run], bad: Tensor) -> dict[str, float]:
    """AUROC of each feature for bad runs, over the runs that have it; below 0.5 where high values are good."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.predictors):
        has = torch.tensor([name in run.predictors for run in runs])
        values = torch.tensor([run.predictors[name] for run in runs if name in run.predictors], dtype=torch.float64)
        if 0 < bad[has].sum() < has.sum():
            found[name] = auroc(values, bad[has])
    return found


def fit(runs: Sequence[Run], names: Sequence[str]) -> tuple[float, dict[str, Term]]:
    """Bias and terms of the chance that the gain is positive.

    The gain is regressed on the predictors; what the fit leaves is taken to be normal. Few runs are bad, so how good
    the others are tells more of the predictors than that they are good.
    """
    missing = [name for name in names if not any(name in run.predictors for run in runs)]
    if missing:
        raise SystemExit(f"Expected predictors that the runs have, got {', '.join(missing)}.")
    columns = [
        torch.tensor([run.predictors[name] for run in runs if name in run.predictors]).double() for name in names
    ]
    scales = [(float(column.mean()), float(column.std()) or 1.0) for column in columns]
    z = [standardised(runs, name, *scale) for name, scale in zip(names, scales, strict=True)]
    design = torch.stack([torch.ones(len(runs), dtype=torch.float64), *z], 1)
    gains = torch.tensor([run.gain for run in runs]).double().clamp(-MAX_GAIN, MAX_GAIN)
    penalty = RIDGE * torch.eye(len(names) + 1, dtype=torch.float64)
    penalty[0, 0] = 0
    weights = torch.linalg.solve(design.T @ design + penalty, design.T @ gains)
    spread = (gains - design @ weights).square().mean().sqrt()
    bias, *found = (LOGISTIC_OVER_NORMAL * weights / spread).tolist()
    return bias, {name: Term(weight, *scale) for name, weight, scale in zip(names, found, scales, strict=True)}


def standardised(runs: Sequence[Run], name: str, mean: float, std: float) -> Tensor:
    """One predictor of all runs as `trust` uses it: in standard deviations, cut at `REACH`, 0 where it is missing."""
    values = torch.tensor([run.predictors.get(name, mean) for run in runs], dtype=torch.float64)
    return ((values - mean) / std).clamp(-REACH, REACH)


def cross_validated(runs: Sequence[Run], names: Sequence[str]) -> Tensor:
    """Trust of each run, `(N,)`, from a fit to the runs of all other pictures."""
    values = torch.zeros(len(runs), dtype=torch.float64)
    for left_out in {run.id for run in runs}:
        bias, terms = fit([run for run in runs if run.id != left_out], names)
        for index, run in enumerate(runs):
            if run.id == left_out:
                values[index] = trust(run.features, bias, terms)
    return values


def report(title: str, trusts: Tensor, runs: Sequence[Run]) -> None:
    """Prints how a trust ranks the runs, what it promises and keeps, and what choosing by it would bring."""
    gains = torch.tensor([run.gain for run in runs])
    good = gains >= 0
    brier = float((trusts - good.double()).square().mean())
    rate = float(good.double().mean())
    print(f"\n{title}: AUROC {auroc(-trusts, ~good):.3f}, Brier score {brier:.3f} (constant: {rate * (1 - rate):.3f})")
    order = trusts.argsort(descending=True)
    print("  promised and kept, by fifths of the trust")
    for part in order.tensor_split(5):
        share, mean = good[part].double().mean(), gains[part].mean()
        print(f"    trust {trusts[part].mean():.2f}  good {share:.2f}  gain {mean:+.2f} dB")
    print("  keeping the most trusted")
    for share in (1.0, 0.9, 0.8, 0.6, 0.4):
        kept = order[: max(1, round(share * len(order)))]
        print(f"    {share:4.0%}  bad {(~good[kept]).double().mean():5.1%}  gain {gains[kept].mean():+.2f} dB")


if __name__ == "__main__":
    sys.exit(main())
