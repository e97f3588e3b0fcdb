"""The restorer: what a method says of its run reaches the row and the outcome."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_runner import Copy
from toys import blurred_toy

from codiffuse.data.measurements import Sample
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.scoring import Scorer
from codiffuse.methods.base import Windows
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator

SIGMA = 0.02
PLACES = (Window(0, 0, 20, 20), Window(0, 28, 20, 20))


@dataclass(frozen=True)
class Telling(Copy):
    """A copy whose run has more to say."""

    more: dict | None = None

    def __call__(self, measurement, **options):
        return replace(super().__call__(measurement, **options), **self.more)


def outcome(**more):
    """Of a method that has found a line of five pixels, if nothing else is said."""
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4, 2:7] = 0.2
    more = {"params": {"kernel": line}} | more
    operator = BlurOperator()
    restorer = Restorer(Telling(more=more), "toy", operator, Scorer(operator), num_frames=0)
    [found] = restorer([Sample("a", blurred_toy(side=48).y[0], SIGMA)])
    assert found.row["status"] == "ok"
    return found


def windows(*columns):
    """A line each, upright or level."""
    kernels = torch.zeros(len(columns), 5, 5)
    for kernel, upright in zip(kernels, columns, strict=True):
        (kernel.T if upright else kernel)[2] = 0.2
    return Windows(PLACES, kernels)


@pytest.mark.parametrize(("factor", "raised"), [(1.0, False), (2.0, True)])
def test_more_noise_than_was_told_is_a_flag(factor, raised):
    row = outcome(noise_level=torch.tensor([factor * SIGMA])).row
    assert row["sigma_used"] == pytest.approx(factor * SIGMA)
    assert row["sigma"] == SIGMA
    assert ("noise_corrected" in row["flags"]) == raised


@pytest.mark.parametrize(("columns", "agreement"), [((True, True), 1.0), ((True, False), 0.2)])
def test_windows_whose_kernels_differ_are_a_flag(columns, agreement):
    """Two crossed lines of five pixels have one of them in common."""
    found = outcome(windows=windows(*columns))
    assert found.row["feature_window_agreement"] == pytest.approx(agreement)
    assert ("blur_not_uniform" in found.row["flags"]) == (agreement < 0.5)
    assert found.windows == [(0, 0, 20, 20), (0, 28, 20, 20)]


def test_a_picture_that_was_taken_for_sharp_has_no_trust():
    row = outcome(is_sharp=True).row
    assert row["trust"] is None
    assert "sharp" in row["flags"]
    assert outcome().row["trust"] > 0
