"""Whether a support is large enough, and what is tried next."""

import pytest
import torch

from codiffuse.estimation.support import border_mass, grown
from codiffuse.simulate.gaussian import gaussian_kernel


def test_border_mass_is_the_share_outside_the_inner_support():
    kernel = torch.zeros(2, 1, 17, 33)
    kernel[0, 0, 8, 16] = 1
    kernel[1, 0, 0, 5] = kernel[1, 0, 8, 31] = kernel[1, 0, 4, 4] = kernel[1, 0, 15, 30] = 0.25
    assert border_mass(kernel).tolist() == [0, 0.5]  # rings of 1 row and 2 columns


def test_border_mass_grows_as_a_support_is_cut():
    wide = gaussian_kernel(65, 6.0)[None]
    cut = [wide[..., m : 65 - m, m : 65 - m] for m in (0, 12, 20, 26)]
    masses = [float(border_mass(k / k.sum())) for k in cut]
    assert masses == sorted(masses)
    assert masses[0] < 1e-3 < 0.02 < masses[-1]


@pytest.mark.parametrize("size", [9, 16, 33, 49])
def test_the_next_size_is_odd_and_half_as_large_again(size):
    assert grown(size) % 2 == 1
    assert abs(grown(size) - 1.5 * size) <= 1
