"""The endpoint error of tilt fields: hand-made cases, invariances, edge cases."""

import math

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.metrics import endpoint_error


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_endpoint_error_is_the_mean_distance_of_what_is_not_common():
    truth, estimate = torch.zeros(2, 2, 4, 6), torch.zeros(2, 2, 4, 6)
    estimate[0, :, :, :3] = torch.tensor([3.0, 4.0]).view(2, 1, 1)  # 5 px on a half: 2.5 about the mean on both
    estimate[1, 0, :2], estimate[1, 0, 2:] = 1.0, -3.0
    error = endpoint_error(estimate, truth, border=0)
    assert error.dtype == torch.float64
    torch.testing.assert_close(error, torch.tensor([2.5, 2.0], dtype=torch.float64))


def test_a_common_shift_and_the_border_do_not_count():
    truth = randn(2, 2, 12, 14)
    estimate = truth + 0.3 * randn(2, 2, 12, 14, seed=1)
    error = endpoint_error(estimate, truth, border=2)
    shifted = estimate + torch.tensor([2.0, -5.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(endpoint_error(shifted, truth, border=2), error)
    spoilt = shifted.clone()
    spoilt[..., :2, :], spoilt[..., -2:] = 99.0, -99.0
    torch.testing.assert_close(endpoint_error(spoilt, truth, border=2), error)
    assert (endpoint_error(truth, truth, border=2) == 0).all()


def test_endpoint_error_does_not_depend_on_the_direction_of_the_axes():
    truth, estimate = randn(1, 2, 9, 9), randn(1, 2, 9, 9, seed=1)
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=truth.dtype)
    turned = [torch.einsum("ij,bjhw->bihw", turn, field) for field in (estimate, truth)]
    torch.testing.assert_close(endpoint_error(*turned, border=1), endpoint_error(estimate, truth, border=1))


def test_against_zeros_it_is_the_size_of_a_gaussian_field():
    """The mean length of two normal components is sqrt(pi / 2) of their standard deviation."""
    field = 0.5 * randn(1, 2, 200, 200)
    error = endpoint_error(torch.zeros_like(field), field, border=0)
    assert float(error) == pytest.approx(0.5 * math.sqrt(math.pi / 2), rel=0.01)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="one shape"):
        endpoint_error(randn(1, 2, 8, 8), randn(1, 2, 8, 9), border=0)
    with pytest.raises(InputError, match="one shape"):
        endpoint_error(randn(1, 1, 8, 8), randn(1, 1, 8, 8), border=0)
    for border in (-1, 4):
        with pytest.raises(InputError, match="border"):
            endpoint_error(randn(1, 2, 8, 9), randn(1, 2, 8, 9), border=border)
