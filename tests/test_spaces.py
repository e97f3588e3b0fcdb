"""Spaces between what an unknown is and the coordinates in which it diffuses."""

from dataclasses import replace

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace, shift_and_divide, simplex_projection


def kernels(count=3, side=5) -> torch.Tensor:
    values = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0)) ** 4
    return values / values.sum((-2, -1), keepdim=True)


def wild(count=4, side=5) -> torch.Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def line(side=5) -> torch.Tensor:
    """A kernel that leaves more than half of its support dark."""
    kernel = torch.zeros(2, 1, side, side)
    kernel[..., 2, 1:4] = torch.tensor([0.2, 0.5, 0.3])
    return kernel


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("scaling", ["max", "sum"])
def test_kernels_come_back(scaling, turned):
    divide, euclidean = (KernelSpace(scaling, name, turned) for name in ("divide", "euclidean"))
    torch.testing.assert_close(divide.decode(divide.encode(kernels())), kernels())
    torch.testing.assert_close(euclidean.decode(euclidean.encode(line())), line())


def test_images_and_tilts_come_back():
    image, tilt = torch.rand(2, 3, 4, 5), torch.randn(2, 2, 4, 5)
    torch.testing.assert_close(ImageSpace().decode(ImageSpace().encode(image)), image)
    torch.testing.assert_close(TiltSpace(2.5).decode(TiltSpace(2.5).encode(tilt)), tilt)


@pytest.mark.parametrize("projection", [shift_and_divide, simplex_projection])
def test_projections_end_on_the_simplex(projection):
    found = projection(wild())
    assert float(found.min()) >= 0
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(4, 1))
    torch.testing.assert_close(projection(found), found)


def test_the_euclidean_projection_is_the_nearest_point():
    """p is nearest to v among all q of a convex set exactly if (v - p) . (q - p) <= 0, and corners suffice for q."""
    v = wild().flatten(1)
    p = simplex_projection(wild()).flatten(1)
    corners = v - p  # (v - p) . e_i
    assert float((corners - ((v - p) * p).sum(1, keepdim=True)).max()) <= 1e-6
    assert bool((p == 0).any())


@pytest.mark.parametrize("scaling", ["max", "sum"])
def test_the_euclidean_projection_takes_a_floor_away(scaling):
    """Coordinates whose scale is free: a floor of 0.02, of the largest value, on all of the support."""
    space = KernelSpace(scaling, "euclidean")
    dusty = space.encode(line()) + 2 * 0.02 * (1 if scaling == "max" else 0.5)
    torch.testing.assert_close(space.decode(dusty), line(), atol=1e-6, rtol=0)
    torch.testing.assert_close(space.decode(0.5 * (dusty + 1) - 1), line(), atol=1e-6, rtol=0)
    assert float(KernelSpace(scaling).decode(dusty)[0, 0, 0, 0]) > 0.005
    torch.testing.assert_close(simplex_projection(line() + 0.01), line(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("coordinates", [-torch.ones(2, 1, 5, 5), torch.ones(2, 1, 5, 5), 3 * wild(2)])
def test_the_euclidean_projection_of_anything_is_a_kernel(coordinates):
    at = coordinates.clone().requires_grad_()
    found = KernelSpace(projection="euclidean").decode(at)
    assert float(found.detach().min()) >= 0
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(2, 1))
    assert bool(torch.isfinite(torch.autograd.grad((found * wild(2)).sum(), at)[0]).all())


@pytest.mark.parametrize(("projection", "floor"), [("divide", 0.0), ("euclidean", 0.04)])
def test_the_unit_is_how_far_a_value_goes_with_its_coordinate(projection, floor):
    space = KernelSpace(projection=projection)
    at = space.encode(line()) + floor
    step = torch.zeros_like(at)
    step[..., 2, 1], step[..., 2, 2] = 1e-3, -1e-3  # of sum zero, so that dividing by the sum changes nothing more
    moved = space.decode(at + step) - space.decode(at)
    slope = moved[:, 0, 2, 1] / 1e-3  # 0.5 / mass; of the 25 pixels, mass are unsure
    torch.testing.assert_close(slope * (0.5 / slope / 25).sqrt(), space.unit(at), rtol=1e-3, atol=0)
    assert TiltSpace(2.5).unit(torch.zeros(2, 2, 4, 4)).tolist() == [2.5, 2.5]


def test_what_is_dark_is_no_light():
    """A haze of 1 % over 33 x 33 px would outweigh a kernel of three pixels threefold."""
    kernel = torch.zeros(1, 1, 33, 33)
    kernel[..., 16, 15:18] = 1
    haze = 2 * (0.99 * kernel + 0.01) - 1
    assert float(KernelSpace().decode(haze)[..., 16, 15:18].sum()) < 0.25
    torch.testing.assert_close(KernelSpace(dark=0.02).decode(haze), kernel / 3)
    with pytest.raises(InputError, match="dark from 0"):
        KernelSpace(dark=1.0)


@pytest.mark.parametrize("projection", ["divide", "euclidean"])
@pytest.mark.parametrize("scaling", ["max", "sum"])
def test_the_dark_is_a_share_of_the_kernels_range(scaling, projection):
    """Whatever the scale of the coordinates: what lies below a tenth of the peak is gone, the rest loses as much."""
    kernel, space = line(), KernelSpace(scaling, projection)
    found = replace(space, dark=0.1).decode(space.encode(kernel))
    expected = shift_and_divide(kernel - 0.1 * kernel.amax((-2, -1), keepdim=True))
    torch.testing.assert_close(found, expected)
    unit = replace(space, dark=0.1).unit(space.encode(kernel))
    assert bool((unit > space.unit(space.encode(kernel))).all())  # less light, in fewer pixels
