"""The windows of a photograph: which are looked at, and the kernel of each alone."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from test_photograph import UNKNOWN, Truncating, photograph, run

from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.methods.base import Measurement, restoration
from codiffuse.operators.noise import GaussianNoise

SIDE = 40  # px, of a window


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Moved(Truncating):
    """A blind method that takes y for the scene, but moves it one pixel to the right in all windows but the first.

    Masked pixels it takes for gray.
    """

    def __call__(self, measurement, **options):
        found = super().__call__(measurement, **options)
        y, edge = measurement.y, self.kernel_size // 2
        seen = y if measurement.mask is None else torch.where(measurement.mask > 0, y, 0.5)
        canvas = F.pad(seen, (edge,) * 4, mode="replicate")
        beyond = SIDE + 2 * edge  # the canvas of the first window ends here
        canvas = torch.cat([canvas[..., :beyond], canvas.roll(1, -1)[..., beyond:]], -1)
        moved = restoration(measurement, canvas[:, None], found.params, found.nfe)
        return replace(moved, status=("ok",))


def looking(blind, kernel_size=9, **options):
    """A method with two windows of `SIDE` px, and one tile for the whole."""
    options = {"window": SIDE, "num_windows": 2, "kernel_size": kernel_size, "tile": 128, "num_samples": 1} | options
    return photograph(blind, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_each_window_has_the_kernel_that_it_shows(masked):
    """In the first y is the scene, in the second it is moved by a pixel: two deltas, whatever kernel was found.

    With a fifth of the pixels masked and spoilt it is the same.
    """
    y, mask = rand(1, 3, 96, 96), None
    if masked:
        mask = (rand(1, 1, 96, 96, seed=1) > 0.2).float()
        y = torch.where(mask > 0, y, 1.5)
    method = replace(looking(Moved()), m_step=HQS(NoRegularizer(), iterations=10, beta=1e3, recentring="none"))
    found = run(method, Measurement(y, GaussianNoise(0.02), UNKNOWN, mask=mask))
    assert found.params["kernel"].max() < 0.02
    expected = torch.zeros(2, 9, 9)
    expected[0, 4, 4] = expected[1, 4, 3] = 1
    torch.testing.assert_close(found.windows.kernels, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(("least", "count"), [(5 / 255, 1), (0.0, 2)])
def test_texture_below_the_least_noise_level_makes_no_window(least, count):
    """One corner shows something; elsewhere there is a texture of one gray level, a few times the noise."""
    y = 0.5 + 0.005 * (2 * rand(1, 3, 96, 96) - 1)
    y[..., :16, :16] = rand(1, 3, 16, 16, seed=1)
    found = run(looking(Moved(), least_sigma=least), Measurement(y, GaussianNoise(0.001), UNKNOWN))
    assert len(found.windows.places) == count
    assert (found.windows.places[0].top, found.windows.places[0].left) == (0, 0)


@pytest.mark.parametrize(("kernel_size", "side"), [(9, SIDE), (15, 60)])
def test_a_window_is_four_times_as_large_as_the_kernel_at_least(kernel_size, side):
    blind = Moved()
    found = run(looking(blind, kernel_size), Measurement(rand(1, 3, 100, 100), GaussianNoise(0.02), UNKNOWN))
    assert {(place.height, place.width) for place in found.windows.places} == {(side, side)}
    assert blind.seen[0][1].y.shape[-2] == side
