"""Spaces between what an unknown is and the coordinates in which it diffuses."""

import pytest
import torch

from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace, shift_and_divide, simplex_projection


def kernels(count=3, side=5) -> torch.Tensor:
    values = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0)) ** 4
    return values / values.sum((-2, -1), keepdim=True)


def wild(count=4, side=5) -> torch.Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "space", [KernelSpace(scaling, "euclidean", turned) for scaling in ("max", "sum") for turned in (False, True)]
)
def test_kernels_come_back(space):
    torch.testing.assert_close(space.decode(space.encode(kernels())), kernels())
    torch.testing.assert_close(
        KernelSpace(space.scaling, "divide", space.rotated).decode(space.encode(kernels())), kernels()
    )


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


def test_the_euclidean_projection_takes_a_floor_away():
    kernel = torch.zeros(1, 1, 5, 5)
    kernel[..., 2, 1:4] = 1 / 3
    dusty = kernel + 0.01
    assert float((simplex_projection(dusty) - kernel).abs().max()) < 1e-6
    assert float(shift_and_divide(dusty)[..., 0, 0]) > 0.005


def test_the_unit_is_how_far_a_value_goes_with_its_coordinate():
    space, at = KernelSpace(), KernelSpace().encode(kernels())
    step = torch.zeros_like(at)
    step[..., 0, 0], step[..., 4, 4] = 1e-3, -1e-3  # of sum zero, so that dividing by the sum changes nothing more
    moved = space.decode(at + step) - space.decode(at)
    inside = kernels()[:, 0, 4, 4] > 1e-3  # else it is clipped
    torch.testing.assert_close((moved[:, 0, 0, 0] / 1e-3)[inside], space.unit(at)[inside], rtol=1e-3, atol=0)
    assert TiltSpace(2.5).unit(torch.zeros(2, 2, 4, 4)).tolist() == [2.5, 2.5]
