"""What is drawn: kernels, residuals, windows, panels, animations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from toys import make_outcome

from codiffuse.inference.panel import animation, panel
from codiffuse.inference.pictures import (
    FRAME_COLOUR,
    LEFT_OUT_COLOUR,
    kernel_picture,
    left_out_picture,
    residual_picture,
    restart_strip,
    spread_picture,
    windows_picture,
)


def colour_share(pixels: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    return ((pixels - colour.view(3, 1, 1)).abs().amax(0) < 0.01).float()


@pytest.mark.parametrize("support", [(9, 9), (33, 33), (64, 64), (21, 33), (300, 300)])
def test_kernel_picture_repeats_pixels(support):
    kernel = torch.rand(1, *support) / 1000
    picture = kernel_picture(kernel, 264)
    factor = picture.shape[-1] // support[1]
    assert picture.shape == (1, support[0] * factor, support[1] * factor)
    assert max(picture.shape) == pytest.approx(264, rel=0.15)
    torch.testing.assert_close(picture[:, factor // 2 :: factor, factor // 2 :: factor], kernel / kernel.max())
    assert kernel_picture(torch.zeros(1, 5, 5), 20).max() == 0


def test_residual_picture_is_gray_at_zero_and_clipped_at_three_sigma():
    residual = torch.tensor([-1.0, -0.06, -0.03, 0.0, 0.03, 0.06, 1.0]).view(1, 1, -1)
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]).view(1, 1, -1)
    torch.testing.assert_close(residual_picture(residual, sigma=0.02), expected)


def test_restart_strip_says_which_run_failed_and_prefers_none():
    kernels = torch.rand(5, 9, 9)
    kernels[1] = float("nan")
    strip = restart_strip(kernels, [1.4, float("inf"), 1.1, 1.2, 1.3])
    assert bool(torch.isfinite(strip).all())
    assert (strip == strip[:1]).all()  # gray: no colour marks a kernel
    below = strip[0, 8 + 108 + 4 : 8 + 108 + 26]  # room for words under the kernels of the first row
    written = [float(cell.max()) for cell in below[:, 8:].split((strip.shape[2] - 8) // 4, 1)]
    assert [value > 0.9 for value in written] == [False, True, False, False]


@pytest.mark.parametrize(("size", "scale"), [((64, 80), 8), ((960, 1280), 0.5)])
def test_windows_are_drawn_where_they_are(size, scale):
    y = torch.zeros(1, *size)
    top, left, height, width = 16, 32, 32, 40
    picture = windows_picture(y, [(top, left, height, width)])
    assert picture.shape == (3, size[0] * scale, size[1] * scale)
    framed = colour_share(picture, torch.tensor(FRAME_COLOUR) / 255)
    rows, columns = framed.sum(1).nonzero()[:, 0], framed.sum(0).nonzero()[:, 0]
    edges = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    expected = [scale * edge for edge in (top, left, top + height, left + width)]
    assert max(abs(int(a) - b) for a, b in zip(edges, expected, strict=True)) <= 1
    assert framed.mean() < 0.1


@pytest.mark.parametrize("size", [(40, 48), (1500, 2000)])
def test_a_single_pixel_left_out_is_seen(size):
    mask = torch.ones(1, *size)
    mask[0, size[0] // 4, size[1] // 2] = 0
    picture = left_out_picture(torch.rand(3, *size), mask)
    rows, columns = colour_share(picture, torch.tensor(LEFT_OUT_COLOUR)).nonzero(as_tuple=True)
    assert 0 < len(rows) < 300
    assert rows.float().mean() / picture.shape[1] == pytest.approx(0.25, abs=0.02)
    assert columns.float().mean() / picture.shape[2] == pytest.approx(0.5, abs=0.02)


def test_spread_picture_is_white_at_a_fifth():
    std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 4, 4)
    torch.testing.assert_close(spread_picture(std), torch.ones(1, 4, 4))


@pytest.mark.parametrize(("size", "truth", "n"), [((128, 128), True, 4), ((96, 96), False, 1), ((64, 300), True, 1)])
def test_panel_shows_small_pictures_enlarged(size, truth, n):
    outcome = make_outcome(size=size, truth=truth, n=n)
    picture = panel(outcome)
    factor = -(-256 // min(size)) if max(size) < 200 else 1
    assert picture.shape[0] == 3
    assert picture.shape[1] >= factor * size[0]
    assert picture.shape[2] >= factor * size[1] * (2 + truth + (n > 1)) + 90
    expected = outcome.y.clamp(0, 1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    tile = picture[:, 12 : 12 + factor * size[0], 12 : 12 + factor * size[1]]
    torch.testing.assert_close(tile, expected, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("size", [(900, 1400), (2400, 500), (40, 3000)])
def test_panel_of_a_large_picture_is_reduced(size):
    height, width = panel(make_outcome(size=size, truth=True, channels=1)).shape[-2:]
    assert width <= 2100
    assert height <= 2100


@pytest.mark.parametrize(("size", "width"), [((40, 48), 288), ((300, 400), 335), ((900, 1400), 335)])
def test_panel_shows_tilts_as_large_as_the_pictures(size, width):
    halves = torch.where(torch.arange(size[1]) < size[1] // 2, -2.0, 2.0).expand(2, *size)
    picture = panel(make_outcome(size=size, truth=True, channels=1, more={"tilt": 0.1 * halves, "true_tilt": halves}))
    assert picture.shape[-1] <= 2100
    range_of_colours = picture.amax(0) - picture.amin(0)
    for least, most in ((0.9, 1.0), (0.05, 0.2)):  # the true tilt, and one ten times paler beside it
        (columns,) = (((range_of_colours >= least) & (range_of_colours <= most)).float().mean(0) > 0.3).nonzero(
            as_tuple=True
        )
        assert len(columns) == pytest.approx(width, abs=6)
        assert int(columns[-1] - columns[0]) < len(columns) + 6


def test_animation_frames():
    outcome = make_outcome(frames=60, size=(30, 50))
    gif = Image.open(io.BytesIO(animation(outcome.frames)))
    assert gif.n_frames == 40
    assert gif.info["loop"] == 0
    shown = np.asarray(gif.convert("RGB"), float)[:90, :150] / 255
    expected = outcome.frames[0][0].repeat_interleave(3, -2).repeat_interleave(3, -1).permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).mean() < 0.1  # of random colours, in a palette of 64
    assert Image.open(io.BytesIO(animation(outcome.frames[:1]))).size == gif.size


def test_animation_of_frames_that_differ_in_size():
    frames = [(torch.ones(3, 40, 40), torch.ones(1, 9, 9)), (torch.ones(1, 60, 90), torch.ones(1, 21, 21))]
    gif = Image.open(io.BytesIO(animation(frames)))
    assert gif.n_frames == 2
    # At the left, in a field of 180 px for both, what was enlarged by 4 and by 2.
    white = [(np.asarray(frame.convert("L"))[:-4, :180] > 250).sum() for frame in ImageSequence.Iterator(gif)]
    assert white == [160 * 160, 120 * 180]
