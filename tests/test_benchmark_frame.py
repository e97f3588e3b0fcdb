"""Gain by the distance from the frame, on errors that are put there."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.frame import distances, gains_by_distance


def smooth(side=128):
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0.1, 0.9)[0]


def test_distances():
    found = distances(5, 8)
    assert found.shape == (5, 8)
    assert found[0].max() == 0
    assert (found[2, 2], found[2, 4], found[1, 3]) == (2, 2, 1)


def test_each_band_has_its_own_gain():
    truth = smooth()
    error = torch.where(distances(128, 128) < 8, 0.1, 0.01)
    gains = gains_by_distance(truth + 0.1, truth + error, truth)
    assert gains.tolist() == pytest.approx([0, 20, 20, 20, 20], abs=0.05)


@pytest.mark.parametrize("shift", [(3, 0), (-2, 5)])
def test_a_shift_costs_nothing(shift):
    truth = smooth(160)
    cut = truth[:, 16:144, 16:144]
    moved = truth[:, 16 - shift[0] : 144 - shift[0], 16 - shift[1] : 144 - shift[1]]
    gains = gains_by_distance(cut + 0.1, moved + 0.01, cut)
    assert gains.tolist() == pytest.approx([20] * 5, abs=0.05)


def test_a_band_that_does_not_exist():
    truth = smooth(80)
    assert math.isnan(gains_by_distance(truth + 0.1, truth, truth)[-1])
