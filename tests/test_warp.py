"""Warping by a tilt field: an independent interpolation, the adjoint, autograd, recorded numbers, edge cases."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from codiffuse.errors import InputError
from codiffuse.fourier import pad
from codiffuse.operators.warp import warp, warp_adjoint

SCIPY_MODE = {
    "circular": "grid-wrap",
    "reflect": "mirror",
    "symmetric": "reflect",
    "replicate": "nearest",
    "zero": "grid-constant",
}
BOUNDARIES = tuple(SCIPY_MODE)
SIZES = [(6, 7), (5, 1), (1, 4), (1, 1), (2, 9)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("reach", [0.4, 3.0, 40.0])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_warp_is_linear_interpolation_of_the_continued_image(boundary, size, reach):
    image, tilt = randn(2, 3, *size), reach * randn(2, 2, *size, seed=1)
    warped = warp(image, tilt, boundary, 0.3 if boundary == "zero" else 0.0)
    rows, columns = np.indices(size)
    for b, c in np.ndindex(2, 3):
        places = [rows + tilt[b, 1].numpy(), columns + tilt[b, 0].numpy()]
        expected = scipy.ndimage.map_coordinates(
            image[b, c].numpy(), places, order=1, mode=SCIPY_MODE[boundary], cval=0.3
        )
        np.testing.assert_allclose(warped[b, c].numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, -1), (-13, 9)])
def test_a_constant_integer_tilt_shifts_the_continued_image(boundary, right, down):
    image = randn(1, 2, 6, 7)
    tilt = torch.tensor([right, down], dtype=image.dtype).view(1, 2, 1, 1).expand(1, 2, 6, 7)
    continued = pad(image, (20, 20, 20, 20), boundary, 0.5)
    expected = continued[..., 20 + down : 26 + down, 20 + right : 27 + right]
    torch.testing.assert_close(warp(image, tilt, boundary, 0.5), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_warp_adjoint_is_the_transpose(boundary, size):
    image, tilt, residual = randn(2, 3, *size), 3 * randn(2, 2, *size, seed=1), randn(2, 3, *size, seed=2)
    with torch.no_grad():
        back = warp_adjoint(residual, tilt, boundary)
    torch.testing.assert_close((warp(image, tilt, boundary) * residual).sum(), (image * back).sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_autograd_finds_the_derivatives(boundary):
    image, tilt = randn(2, 2, 4, 5).requires_grad_(), (2 * randn(2, 2, 4, 5, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, phi: warp(x, phi, boundary, 0.5), (image, tilt))


def test_recorded_warp_and_its_gradients(fixture_npz):
    data = {name: torch.from_numpy(values).float() for name, values in fixture_npz("numeric/tilt_warp.npz").items()}
    image, tilt = data["image"].requires_grad_(), data["tilt"].requires_grad_()
    warped = warp(image, tilt, "zero")
    torch.testing.assert_close(warped.detach(), data["warped"], rtol=0, atol=1e-5)
    image_grad, tilt_grad = torch.autograd.grad(warped, (image, tilt), data["v"])
    torch.testing.assert_close(image_grad, data["grad_image"], rtol=0, atol=1e-5)
    # Values up to 11, recorded in float32: computed in float64 they differ by as much.
    torch.testing.assert_close(tilt_grad, data["grad_tilt"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warp_adjoint(data["v"], data["tilt"], "zero"), data["grad_image"], rtol=0, atol=1e-5)


def test_any_axes_may_stand_between_batch_and_plane():
    particles, tilt = randn(2, 4, 3, 5, 6), randn(2, 2, 5, 6, seed=1)
    warped = warp(particles, tilt, "reflect")
    torch.testing.assert_close(warped[:, 1], warp(particles[:, 1], tilt, "reflect"))
    torch.testing.assert_close(warped[:, 1, 2], warp(particles[:, 1, 2], tilt, "reflect"))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_float32_stays_accurate_on_a_large_image(boundary):
    image, tilt = randn(1, 1, 40, 2000).sigmoid(), 2 * randn(1, 2, 40, 2000, seed=1)
    single = warp(image.float(), tilt.float(), boundary)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), warp(image, tilt, boundary), rtol=0, atol=3e-4)


@pytest.mark.parametrize("shape", [(1, 2, 5, 6), (2, 1, 5, 6), (2, 2, 5, 5), (2, 5, 6)])
def test_tilts_never_broadcast(shape):
    with pytest.raises(InputError, match="one tilt field for each of the 2 images"):
        warp(randn(2, 3, 5, 6), randn(*shape), "zero")


def test_a_boundary_that_continues_nothing_is_named():
    with pytest.raises(InputError, match="'unknown'"):
        warp(randn(1, 1, 5, 6), randn(1, 2, 5, 6), "unknown")
