"""Windows for the kernel: texture in all directions, above the noise, unmasked, and spread over the picture."""

import math

import pytest
import torch
from toys import blurred_toy

from codiffuse.errors import InputError
from codiffuse.methods.windows import MAX_SHARED, Window, choose_windows, texture

SIGMA = 0.02


def noise(*shape, seed=0):
    return SIGMA * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat(height=160, width=200):
    """A noisy gray picture."""
    return 0.5 + noise(3, height, width)


def waves(height, width, angle=None):
    """A pattern of contrast 0.1 in all directions, or stripes along one of them (radians)."""
    y, x = torch.arange(height)[:, None] / 2, torch.arange(width) / 2
    if angle is None:
        return 0.05 * (y.sin() + x.sin())
    return 0.1 * (math.cos(angle) * x + math.sin(angle) * y).sin()


def overlap(a, b):
    rows = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    columns = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    return max(rows, 0) * max(columns, 0) / (a.height * a.width)


def covers(window, top, left, height, width):
    """Share of the window that lies in a rectangle."""
    return overlap(window, Window(top, left, height, width))


def test_a_window_is_a_view_of_any_image():
    image = torch.arange(60.0).reshape(1, 1, 6, 10)
    crop = Window(2, 3, 2, 4).crop(image)
    assert crop.tolist() == [[[[23, 24, 25, 26], [33, 34, 35, 36]]]]
    assert crop.data_ptr() == image[..., 2:, 3:].data_ptr()


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi / 4, 2.0])
def test_structure_in_all_directions_beats_stronger_stripes_in_one(angle):
    # The stripes fade away slowly: their ends would be structure across them.
    y = flat() + 3 * waves(160, 200, angle) * torch.linspace(1, 0, 200)
    y[:, 88:152, 120:184] += waves(64, 64)
    assert covers(choose_windows(y, 48, 1, SIGMA)[0], 88, 120, 64, 64) > 0.7


def test_noise_is_no_texture():
    """The noisier part has the steeper slopes, but they are those of the noise."""
    assert texture(flat(), SIGMA) < 0.2
    assert texture(waves(160, 200, 0.7).expand(3, -1, -1) + noise(3, 160, 200), SIGMA) < 0.2
    assert texture(waves(160, 200).expand(3, -1, -1) + noise(3, 160, 200), SIGMA) > 0.5


def test_texture_is_the_slope_over_the_noise():
    """0.05 sin(r / 2) has a slope of rms 0.05 / 2 / sqrt(2) a pixel in both directions; 2 x 2 pixels see 2 % less."""
    y = waves(400, 400).expand(3, -1, -1)
    slope = 0.05 / 2 / math.sqrt(2)
    assert texture(y, 1e-4) == pytest.approx(slope / 1e-4, rel=0.03)
    assert texture(y + noise(3, 400, 400), SIGMA) == pytest.approx(texture(y, SIGMA / 100) / 100, rel=0.05)
    rising = [texture(0.5 + contrast * y, SIGMA) for contrast in (2, 4, 8)]
    assert rising == sorted(rising)
    assert rising[0] > 0
    falling = [texture(2 * y, sigma) for sigma in (0.01, 0.02, 0.03)]
    assert falling == sorted(falling, reverse=True)


def test_masked_pixels_are_avoided_and_do_not_count_as_texture():
    y = flat()
    for left in (8, 120):
        y[:, 48:112, left : left + 64] += waves(64, 64)
    y[:, 60:100, 20:60] = (torch.rand(40, 40, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    mask = torch.ones(1, 160, 200)
    mask[:, 60:100, 20:60] = 0
    assert covers(choose_windows(y, 48, 1, SIGMA)[0], 48, 8, 64, 64) > 0.5
    assert covers(choose_windows(y, 48, 1, SIGMA, mask)[0], 48, 120, 64, 64) > 0.9
    only_masked = torch.where(mask > 0, 0.5 + noise(3, 160, 200), y)
    assert texture(only_masked, SIGMA, mask) < 0.2 < texture(only_masked, SIGMA)
    assert texture(y, SIGMA, torch.zeros_like(mask)) == 0


def test_masked_pixels_cost_more_than_their_share():
    """What surrounds clipped lights cannot be trusted: with a third masked, twice the texture is not enough."""
    y = flat()
    y[:, 48:112, 8:72] += 1.8 * waves(64, 64)
    y[:, 48:112, 120:184] += waves(64, 64)
    mask = torch.ones(1, 160, 200)
    mask[:, 48:112:3, 8:72] = 0
    assert covers(choose_windows(y, 64, 1, SIGMA)[0], 48, 8, 64, 64) > 0.5
    assert covers(choose_windows(y, 64, 1, SIGMA, mask)[0], 48, 120, 64, 64) > 0.5


def test_noise_far_away_is_not_preferred_to_texture_nearby():
    y = flat(200, 300)
    y[:, 60:124, 20:148] += waves(64, 128) / 2
    for window in choose_windows(y, 64, 2, SIGMA):
        assert covers(window, 60, 20, 64, 128) > 0.7


def test_masking_half_of_an_even_texture_leaves_its_measure():
    y = waves(200, 200).expand(3, -1, -1) + noise(3, 200, 200)
    mask = torch.ones(1, 200, 200)
    mask[:, :, :100] = 0
    assert texture(y, SIGMA, mask) == pytest.approx(texture(y, SIGMA), rel=0.05)


def test_windows_hardly_overlap_and_come_from_all_over_the_picture():
    y = waves(240, 320).expand(3, -1, -1) + noise(3, 240, 320)
    windows = choose_windows(y, 64, 4, SIGMA)
    assert len(windows) == 4
    shared = [overlap(a, b) for i, a in enumerate(windows) for b in windows[:i]]
    assert max(shared) <= MAX_SHARED
    far = [math.hypot(a.top - b.top, a.left - b.left) for i, a in enumerate(windows) for b in windows[:i]]
    assert min(far) >= 0.2 * math.hypot(240, 320)
    crowded = choose_windows(y, 64, 100, SIGMA)
    assert 12 <= len(crowded) < 100
    assert max(overlap(a, b) for i, a in enumerate(crowded) for b in crowded[:i]) <= MAX_SHARED


def test_a_short_axis_is_taken_whole_and_all_windows_lie_inside():
    y = waves(40, 150).expand(1, -1, -1) + noise(1, 40, 150)
    windows = choose_windows(y, 64, 2, SIGMA)
    assert {(w.top, w.height, w.width) for w in windows} == {(0, 40, 64)}
    assert all(0 <= w.left <= 150 - 64 for w in windows)
    assert choose_windows(y, 1000, 3, SIGMA) == [Window(0, 0, 40, 150)]


def test_the_last_place_ends_with_the_picture():
    y = flat(101, 101) + 3 * waves(101, 101) * torch.linspace(0, 1, 101)[:, None] * torch.linspace(0, 1, 101)
    assert choose_windows(y, 32, 1, SIGMA) == [Window(69, 69, 32, 32)]


def test_there_is_always_one_window_even_of_a_flat_picture():
    assert len(choose_windows(torch.full((3, 50, 50), 0.5), 20, 3, SIGMA)) == 1


def test_the_worth_of_a_window_is_its_own_texture():
    """Running sums over the whole picture find what each window alone shows."""
    y = blurred_toy(side=96).y[0]
    best = choose_windows(y, 32, 1, SIGMA)[0]
    own = {
        (top, left): texture(Window(top, left, 32, 32).crop(y), SIGMA)
        for top in range(0, 65, 4)
        for left in range(0, 65, 4)
    }
    assert own[best.top, best.left] == pytest.approx(max(own.values()))


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 1), (16, 0)])
def test_windows_without_a_gradient_are_refused(size, count):
    with pytest.raises(InputError, match="Expected 1 window"):
        choose_windows(flat(), size, count, SIGMA)
