"""Windows side by side: the row's likelihood is that of the windows."""

from dataclasses import replace

import pytest
import torch

from codiffuse.methods.base import Measurement
from codiffuse.methods.mosaic import Mosaic
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise

WINDOWS = [Window(2, 3, 12, 14), Window(20, 1, 12, 14), Window(9, 26, 12, 14)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def picture(boundary="circular", mask=None):
    return Measurement(randn(1, 3, 40, 44), GaussianNoise(0.02), BlurOperator(boundary), mask=mask)


@pytest.mark.parametrize("size", [5, 4])
def test_the_row_measures_each_window_alone(size):
    """Residuals under the mask are those of the windows, each solved on its own canvas."""
    mosaic = Mosaic.of(picture(), WINDOWS, size)
    row = mosaic.measurement
    kernel = randn(1, 1, size, size, seed=1).softmax(-1)
    canvas = randn(1, 3, *row.operator.image_shape(row.y.shape[-2:], kernel_size=(size, size)), seed=2)
    square = row.mask * (row.y - row.operator(canvas, kernel=kernel)).square()
    y, image, mask = mosaic.split(canvas)
    alone = mask * (y - row.operator(image, kernel=kernel.expand(3, -1, -1, -1))).square()
    torch.testing.assert_close(square.sum(), alone.sum())
    for window, part in zip(WINDOWS, y, strict=True):
        assert torch.equal(part, window.crop(picture().y)[0])


def test_no_pixel_of_the_scene_is_seen_by_two_windows():
    row = Mosaic.of(picture(), WINDOWS[:2], 5).measurement
    kernel = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    left, right = row.mask.clone(), row.mask.clone()
    left[..., 14:], right[..., :14] = 0, 0
    seen = [row.operator.adjoint(part, kernel=kernel) > 1e-9 for part in (left, right)]
    assert seen[0].any()
    assert seen[1].any()
    assert not (seen[0] & seen[1]).any()


def test_the_whole_picture_is_left_as_it_is():
    whole = picture("reflect")
    mosaic = Mosaic.of(whole, [Window(0, 0, 40, 44)], 5)
    assert mosaic.measurement is whole
    y, image, mask = mosaic.split(whole.y)
    assert torch.equal(y, whole.y)
    assert torch.equal(image, whole.y)
    assert mask is None


def test_one_window_has_no_gap_and_a_window_forgets_the_boundary():
    row = Mosaic.of(picture(), WINDOWS[:1], 5).measurement
    assert row.y.shape[-2:] == (12, 14)
    assert row.mask is None
    assert row.operator.boundary == "unknown"


def test_masked_pixels_stay_masked():
    mask = torch.ones(1, 1, 40, 44, dtype=torch.float64)
    mask[..., 22, 2] = 0
    row = Mosaic.of(picture(mask=mask), WINDOWS, 5).measurement
    expected = 3 * 12 * 14 - 1
    assert row.mask.sum() == expected
    assert row.mask[0, 0, 2, 14 + 4 + 1] == 0
    alone = Mosaic.of(replace(picture(), mask=mask), WINDOWS[1:2], 5).measurement
    assert alone.mask.sum() == 12 * 14 - 1
