"""Spread and coverage: exact for draws of one Gaussian."""

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.metrics.uncertainty import calibration_factor, coverage, predictive_std


def draws(n, side=128, scale=1.0, seed=0):
    return scale * torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_draws_of_one_distribution_are_covered_as_promised(level):
    samples, truth = draws(4), draws(1, seed=1)[0]
    mean, std = samples.mean(0), predictive_std(samples)
    assert coverage(mean, std, truth, level) == pytest.approx(level, abs=0.01)
    assert coverage(mean, 0.5 * std, truth, level) < level - 0.1


def test_the_factor_restores_the_coverage():
    samples, truth = draws(4), draws(1, scale=2.0, seed=1)[0]
    mean, std = samples.mean(0), predictive_std(samples)
    factor = calibration_factor(mean, std, truth)
    assert 1.5 < factor < 2.1
    assert coverage(mean, factor * std, truth) == pytest.approx(0.9, abs=1e-3)
    torch.testing.assert_close(predictive_std(samples, factor), factor * std)


def test_the_spread_follows_the_place():
    samples = draws(4, side=64)
    samples[..., 32:] *= 0.1
    std = predictive_std(samples)
    assert std.shape == (3, 64, 64)
    assert std[..., :28].mean() == pytest.approx(1.25**0.5, abs=0.05)
    assert std[..., 36:].mean() == pytest.approx(0.1 * 1.25**0.5, abs=0.01)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(InputError, match="num_samples"):
        predictive_std(draws(1))
    with pytest.raises(InputError, match="level"):
        coverage(torch.zeros(1), torch.ones(1), torch.zeros(1), 1.0)
