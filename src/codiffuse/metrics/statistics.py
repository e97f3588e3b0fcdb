"""Bootstrap confidence intervals of a mean over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codiffuse.errors import InputError


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    lo: float
    hi: float


def bootstrap_ci(
    values: Sequence[float | None], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the values and the percentile bootstrap interval of that mean.

    Args:
        values: one number an image; None and NaN (a metric that could not be computed) are skipped.
        level: coverage of the interval, in (0, 1).
        num_resamples: number of resampled means.
        seed: of the resampling; equal input gives an equal interval.

    Returns:
        `(mean, lo, hi)`. One value says nothing about the spread: `lo = hi = mean`. No value: three NaN.
    """
    data = np.asarray(values, dtype=np.float64)  # None becomes NaN
    data = data[~np.isnan(data)]
    if data.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    index = np.random.default_rng(seed).integers(data.size, size=(num_resamples, data.size))
    lo, hi = np.quantile(data[index].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(lo), float(hi))


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """`bootstrap_ci` of `a - b` over images scored in both: `a` is above `b` when the interval lies above 0.

    Args:
        a: one number an image.
        b: the numbers of the same images in the same order; a pair with a None or NaN is skipped.
        level: coverage of the interval.
        num_resamples: number of resampled means.
        seed: of the resampling.

    Raises:
        InputError: the lengths differ.
    """
    difference = np.subtract(*_pairs(a, b))
    return bootstrap_ci(difference, level, num_resamples, seed)


def paired_share(
    a: Sequence[float | None], b: Sequence[float | None], level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `a` as a share of that of `b`, over images scored in both, and its percentile bootstrap interval.

    The share of the means and not the mean of shares: `b` of a single image may be near 0. Images are drawn with both
    of their numbers. Three NaN where there is no image; an interval means nothing where that of `b` contains 0.

    Args:
        a: one number an image.
        b: the numbers of the same images in the same order; a pair with a None or NaN is skipped.
        level: coverage of the interval.
        num_resamples: number of resamples.
        seed: of the resampling.

    Raises:
        InputError: the lengths differ.
    """
    pairs = _pairs(a, b)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    if not pairs.size:
        return Interval(np.nan, np.nan, np.nan)
    count = pairs.shape[1]
    index = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    shares = np.divide(*pairs[:, index].mean(axis=2))
    lo, hi = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.divide(*pairs.mean(axis=1))), float(lo), float(hi))


def _pairs(a: Sequence[float | None], b: Sequence[float | None]) -> np.ndarray:
    """`(2, n)` float64; None becomes NaN."""
    if len(a) != len(b):
        raise InputError(f"expected scores of the same images, got {len(a)} and {len(b)} of them")
    return np.asarray([a, b], dtype=np.float64)
