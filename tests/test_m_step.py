"""The M-step's settings: what each does to the problem that is solved."""

import pytest
import torch
from toys import blurred_toy

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer


def problem():
    toy = blurred_toy(2)
    y = toy.y
    images = y.unsqueeze(1).roll(1, -1)
    equations = toy.operator.normal_equations(y, images, kernel_size=(7, 7))
    start = torch.full((2, 1, 7, 7), 1 / 49)
    return equations, torch.tensor([0.02, 0.05]), start


def test_the_blurred_spread_of_the_images_adds_to_the_noise():
    equations, sigma, start = problem()
    r2 = 0.09
    spread = HQS(NoRegularizer(), iterations=3, blurred_spread=0.2)(equations, sigma, start, r2)
    louder = HQS(NoRegularizer(), iterations=3)(equations, (sigma**2 + 0.04 * r2).sqrt(), start)
    torch.testing.assert_close(spread, louder)
    assert not torch.allclose(spread, HQS(NoRegularizer(), iterations=3)(equations, sigma, start, r2))


def test_a_negative_spread_is_refused():
    with pytest.raises(InputError, match="blurred_spread"):
        HQS(NoRegularizer(), blurred_spread=-0.1)
