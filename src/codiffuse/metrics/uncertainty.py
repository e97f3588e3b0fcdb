"""How sure a restoration is of each pixel, from a few samples, and whether it is right about that."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.errors import InputError

SMOOTHING = 5  # px: the variance of a handful of samples is too noisy to be used pixel by pixel


def predictive_std(samples: Tensor, factor: float = 1.0) -> Tensor:
    """Standard deviation of the truth about the mean of n samples, `factor sqrt((1 + 1 / n) s^2)`.

    s^2 is the unbiased variance over the samples, averaged over channels and over `SMOOTHING` x `SMOOTHING` px. Were
    truth and samples draws of one distribution, the factor would be 1; one larger than 1 makes up for what the samples
    do not vary: the kernel, and the errors of the prior.

    Args:
        samples: `(n, C, H, W)`, n >= 2.
        factor: of the calibration.

    Returns:
        `(C, H, W)`, equal channels.

    Raises:
        InputError: fewer than two samples.
    """
    n = len(samples)
    if n < 2:
        raise InputError(f"Expected two samples or more to tell their spread, got {n}; set num_samples=4.")
    variance = samples.var(0).mean(0, keepdim=True)
    edge = SMOOTHING // 2
    smooth = F.avg_pool2d(F.pad(variance[None], (edge, edge, edge, edge), mode="replicate"), SMOOTHING, 1)[0]
    return factor * ((1 + 1 / n) * smooth).sqrt().expand_as(samples[0])


def coverage(estimate: Tensor, std: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """Share of values for which the truth lies in the central interval of `level` of N(estimate, std^2).

    Args:
        estimate: of any shape.
        std: of the same shape.
        truth: of the same shape.
        level: nominal coverage, in (0, 1).

    Raises:
        InputError: a level outside (0, 1).
    """
    return float(((truth - estimate).abs() <= _reach(level) * std).double().mean())


def calibration_factor(estimate: Tensor, std: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """What `std` must be multiplied by for `coverage` to be `level`."""
    ratio = (truth - estimate).abs() / std.clamp_min(torch.finfo(std.dtype).tiny)
    kept = ratio.flatten().sort().values
    return float(kept[math.ceil(level * len(kept)) - 1] / _reach(level))


def _reach(level: float) -> float:
    """Half the width of the central interval of a standard normal variable."""
    if not 0 < level < 1:
        raise InputError(f"Expected a level in (0, 1), got {level}.")
    return NormalDist().inv_cdf((1 + level) / 2)
