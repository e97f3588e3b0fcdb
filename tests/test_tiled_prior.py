"""A prior that sees pictures by tiles: one denoiser, with its exact derivative, whatever is kept in memory."""

from itertools import pairwise

import pytest
import torch
from toys import gaussian_prior, tiny_prior

from codiffuse.networks.unet import UNet
from codiffuse.priors.parameterizations import EpsPrediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.priors.tiled import Axis, TiledPrior, boxes, tile_axis
from codiffuse.spaces import ImageSpace

ALPHA_BAR = torch.tensor([0.5], dtype=torch.float64)


def picture(height=50, width=70, channels=3):
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [49, 60, 72, 73, 96, 100, 127, 500, 4000])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(48, 16, 1), (48, 24, 8), (64, 32, 8), (50, 8, 4)])
def test_tiles_cover_an_axis_and_share_enough(length, tile, overlap, multiple):
    axis = tile_axis(length, tile, overlap, multiple)
    if length <= tile:
        assert axis == Axis(length, (0,))
        return
    steps = [after - before for before, after in pairwise(axis.starts)]
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.side == length
    assert axis.side <= tile
    assert all(start % multiple == 0 for start in axis.starts)
    assert axis.side - max(steps) >= overlap
    assert 0 < min(steps) <= max(steps) <= min(steps) + multiple
    # Tiles of the largest side could not be fewer, up to what the grid costs.
    assert len(axis.starts) <= (length - overlap - 1) // ((tile - overlap - multiple) // multiple * multiple) + 1


def test_tiles_are_no_larger_than_their_number_needs():
    assert tile_axis(600, 384, 64, 8) == Axis(336, (0, 264))
    assert tile_axis(4000, 384, 64, 8).side < 384


@pytest.mark.parametrize("axis", [Axis(48, (0, 24, 40, 52)), Axis(336, (0, 264)), Axis(50, (0,))])
def test_what_tiles_contribute_adds_up_to_one_everywhere(axis):
    total = torch.zeros(axis.starts[-1] + axis.side)
    for start, share in zip(axis.starts, axis.shares(8), strict=True):
        assert share.shape == (axis.side,)
        assert share.min() >= 0
        total[start : start + axis.side] += share
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_one_tile_gives_way_smoothly_in_the_middle_of_what_two_share():
    first, second = Axis(336, (0, 264)).shares(32)
    assert (first[:284] == 1).all()  # they share pixels 264 to 335: the middle is 300
    assert (first[316:] == 0).all()
    assert float(first[299] + first[300]) == pytest.approx(1)
    assert first.diff().abs().max() < 0.06
    assert torch.equal(second[: 284 - 264], torch.zeros(20))


def test_boxes_put_the_shares_of_rows_and_columns_together():
    rows, columns = Axis(20, (0, 12)), Axis(30, (0, 18, 36))
    total = torch.zeros(32, 66)
    for box, share in boxes(rows, columns, 4):
        total[box] += share
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_one_tile_is_the_prior_itself():
    prior, x_t = tiny_prior(), picture()
    assert torch.equal(TiledPrior(prior, 80, 16).denoise(x_t, ALPHA_BAR).x0, prior.denoise(x_t, ALPHA_BAR).x0)


def test_tiles_of_a_network_that_looks_at_pixels_are_the_prior_itself():
    prior, x_t = gaussian_prior(0.1), picture()
    tiled = TiledPrior(prior, 32, 8)
    assert len(tiled.axes((50, 70))[1].starts) == 3
    assert torch.allclose(tiled.denoise(x_t, ALPHA_BAR).x0, prior.denoise(x_t, ALPHA_BAR).x0, atol=1e-6)


def by_autograd(tiled, x_t):
    """The blend written out, for autograd to differentiate."""
    x0 = torch.zeros_like(x_t)
    for box, share in boxes(*tiled.axes(tuple(x_t.shape[-2:])), tiled.overlap // 2):
        whole = torch.zeros_like(x_t)
        whole[..., *box] = share * tiled.prior.denoise(x_t[..., *box], ALPHA_BAR).x0
        x0 = x0 + whole
    return x0


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_the_derivative_is_that_of_the_blend(kept):
    tiled, x_t = TiledPrior(tiny_prior(), 32, 8, kept), picture().requires_grad_()
    cotangent = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    x0, expected = tiled.denoise(x_t, ALPHA_BAR).x0, by_autograd(tiled, x_t)
    assert torch.allclose(x0, expected, atol=1e-5)
    gradient, wanted = (torch.autograd.grad(y, x_t, cotangent)[0] for y in (x0, expected))
    assert torch.allclose(gradient, wanted, atol=1e-5)
    assert wanted.abs().max() > 0.1


def test_only_kept_tiles_are_not_computed_again():
    prior, calls = tiny_prior(), []
    prior.network.register_forward_hook(lambda *_: calls.append(1))
    for kept, forward, backward in ((0, 6, 6), (4, 6, 2), (6, 6, 0)):
        x_t = picture().requires_grad_()
        calls.clear()
        x0 = TiledPrior(prior, 32, 8, kept).denoise(x_t, ALPHA_BAR).x0
        assert len(calls) == forward
        x0.sum().backward()
        assert len(calls) == forward + backward


def test_a_picture_without_gradient_gets_none():
    assert not TiledPrior(tiny_prior(), 32, 8, 4).denoise(picture(), ALPHA_BAR).x0.requires_grad


def test_tiles_start_on_the_grid_of_the_network():
    tiled = TiledPrior(tiny_prior(), 32, 8)
    assert tiled.stride == 2
    assert all(start % 2 == 0 for axis in tiled.axes((51, 71)) for start in axis.starts)


def test_a_learned_variance_is_blended_too():
    torch.manual_seed(0)
    network = UNet(3, 6, channels=8, channel_mult=(1,), attention_levels=(), middle_attention=False, norm_groups=4)
    torch.nn.init.normal_(network.out[-1].weight, std=0.05)
    prior = Prior(network, EpsPrediction(), LogSigmaTime(), ImageSpace(), learned_variance=True).frozen()
    x_t = picture().requires_grad_()
    denoised = TiledPrior(prior, 32, 8).denoise(x_t, ALPHA_BAR)
    whole = prior.denoise(x_t, ALPHA_BAR).variance_fraction
    assert denoised.variance_fraction.shape == whole.shape
    assert not denoised.variance_fraction.requires_grad
    assert torch.allclose(denoised.variance_fraction, whole, atol=0.1 * float(whole.detach().abs().max()))
    denoised.x0.sum().backward()
