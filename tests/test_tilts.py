"""Random tilt fields: laws, statistics against formulas and recorded numbers, edge cases."""

import numpy as np
import pytest
import torch
from scipy.special import kv

from codiffuse.errors import InputError
from codiffuse.simulate.turbulence import PUBLISHED_DENSITY, KolmogorovTilts, PatchTilts, _angle_of_arrival

LAWS = [PatchTilts, KolmogorovTilts]
MEAN_SQUARE_STRENGTH = 0.07  # of U(0.1, 0.4)
GAUSSIAN = np.exp(-0.5 * np.arange(-3, 4) ** 2) / np.exp(-0.5 * np.arange(-3, 4) ** 2).sum()


def draws(law, count, seed=0):
    rng = np.random.default_rng(seed)
    return torch.stack([law(rng) for _ in range(count)]).double().numpy()


def expected_std(mean_cover):
    """Of smoothed patches when so many of them cover a pixel on average."""
    return np.sqrt(mean_cover * MEAN_SQUARE_STRENGTH) * (GAUSSIAN**2).sum()


@pytest.mark.parametrize("size", [48, (20, 75), (1, 1), (1, 30)])
@pytest.mark.parametrize("law", LAWS)
def test_every_size_gives_a_field(law, size):
    field = law(size)(np.random.default_rng(0))
    assert field.shape == (2, *(size if isinstance(size, tuple) else (size, size)))
    assert field.dtype == torch.float32
    assert field.isfinite().all()


@pytest.mark.parametrize("law", LAWS)
def test_field_depends_on_the_seed_alone(law):
    first, again, other = (law(33)(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("law", [PatchTilts((96, 60)), KolmogorovTilts((96, 60), rms=1, outer_scale=32, aperture=4)])
def test_fields_are_alike_everywhere_and_in_both_components(law):
    fields = draws(law, 150)
    power = (fields**2).mean(0)
    border = np.concatenate([power[:, :4].ravel(), power[:, -4:].ravel(), power[..., :4].ravel()])
    assert border.mean() == pytest.approx(power[:, 8:-8, 8:-8].mean(), rel=0.1)
    assert power[0].mean() == pytest.approx(power[1].mean(), rel=0.05)
    assert abs((fields[:, 0] * fields[:, 1]).mean()) < 0.03 * power.mean()
    assert abs(fields.mean()) < 0.05 * np.sqrt(power.mean())


# The patches of BlindDPS.


def test_patches_have_the_strength_of_the_middle_of_a_published_field():
    fields = draws(PatchTilts(96), 100)
    assert fields.std() == pytest.approx(expected_std(500 * 64**2 / 192**2), rel=0.04)
    assert 0.5 < fields.std() < 0.57
    fewer = draws(PatchTilts(96, density=500), 100)
    assert fewer.std() == pytest.approx(np.sqrt(500 / PUBLISHED_DENSITY) * fields.std(), rel=0.04)


def test_patches_are_as_correlated_as_the_recorded_ones(fixture_npz):
    """A field of 80 px has all of its 500 patches over the 16 px in its middle."""
    recorded = fixture_npz("numeric/tilt_warp.npz")["tilt_map_seed0_80"][0].astype(float)
    middle = recorded[:, 32:48, 32:48]
    assert middle.std() == pytest.approx(expected_std(500), rel=0.1)

    fields = draws(PatchTilts(64, density=500, clip=1e3), 40)
    for lag in (1, 2, 3):
        kernel = np.correlate(GAUSSIAN, GAUSSIAN, "full")
        expected = kernel[6 + lag] / kernel[6]
        inner = recorded[:, 24:56, 24:56]
        assert (inner[..., lag:] * inner[..., :-lag]).mean() / (inner**2).mean() == pytest.approx(expected, abs=0.15)
        assert (fields[..., lag:] * fields[..., :-lag]).mean() / (fields**2).mean() == pytest.approx(expected, abs=0.03)


def test_one_noise_field_is_the_sum_of_the_patches():
    """Against patches that are added one by one, each smoothed by itself, so few that most of the field has none."""
    side, patch = 40, 24
    law = PatchTilts(side, density=40, patch=patch, clip=1e3)
    rng = np.random.default_rng(1)
    reach = side + patch - 1
    sums = np.zeros((1000, side + 2 * patch, side + 2 * patch))
    for field in sums:
        for _ in range(rng.poisson(law.density * reach**2 / 256**2)):
            top, left = rng.integers(1, reach + 1, size=2)
            noise = np.pad(rng.uniform(0.1, 0.4) * rng.standard_normal((patch, patch)), 3)
            for axis in (0, 1):
                noise = np.lib.stride_tricks.sliding_window_view(noise, 7, axis=axis) @ GAUSSIAN
            field[top : top + patch, left : left + patch] += noise
    reference, fields = sums[:, patch:-patch, patch:-patch], draws(law, 500)

    def moments(values):
        return (values**2).mean(), (values**4).mean() / (values**2).mean() ** 2

    assert moments(fields) == pytest.approx(moments(reference), rel=0.15)


def test_patches_are_clipped():
    fields = draws(PatchTilts(96, density=5000), 5)
    assert np.abs(fields).max() == 2.5
    assert (np.abs(fields) == 2.5).mean() < 0.1


# Kolmogorov turbulence.


def test_kolmogorov_tilts_have_their_rms():
    for rms in (0.3, 2.0):
        fields = draws(KolmogorovTilts(48, rms=rms, outer_scale=24, aperture=4), 100)
        assert np.sqrt((fields**2).mean()) == pytest.approx(rms, rel=0.03)


def screen_covariances(r, outer_scale, h=0.01):
    """Along and across a distance: -grad grad M(r) with the Matern covariance M = z^(5/6) K_5/6(z), z = 2 pi r / L0."""

    def screen(r):
        z = 2 * np.pi * r / outer_scale
        return z ** (5 / 6) * kv(5 / 6, z)

    return -(screen(r + h) - 2 * screen(r) + screen(r - h)) / h**2, -(screen(r + h) - screen(r - h)) / (2 * h * r)


def test_the_spectrum_is_that_of_the_gradient_of_a_von_karman_screen():
    covariance = np.fft.irfft2(abs(_angle_of_arrival((800, 800), 160.0, 2.0)[0]) ** 2)
    lags = np.array([16, 24, 36, 54, 81])
    along, across = screen_covariances(lags, 160.0)
    scale = covariance[24, 0] / screen_covariances(24, 160.0)[1]
    np.testing.assert_allclose(covariance[0, lags], scale * along, rtol=0.02)
    np.testing.assert_allclose(covariance[lags, 0], scale * across, rtol=0.02)


def test_the_aperture_averages_over_its_disc():
    """What passes at the frequency f: the mean of exp(2 pi i f x) over the disc."""
    f, diameter = 5 / 64, 9.0
    full, fine = (_angle_of_arrival((64, 64), 1e3, d)[0] for d in (diameter, 1e-3))
    full, fine = (response / response[0, 1] for response in (full, fine))
    x = np.linspace(-diameter / 2, diameter / 2, 20001)
    chord = np.sqrt((diameter / 2) ** 2 - x**2)

    def passed(f):
        return (chord * np.cos(2 * np.pi * f * x)).sum() / chord.sum()

    assert abs(full[0, 5] / fine[0, 5]) == pytest.approx(passed(f) / passed(1 / 64), rel=1e-4)


def test_kolmogorov_fields_correlate_as_their_spectrum_says():
    fields = draws(KolmogorovTilts(64, rms=1, outer_scale=48, aperture=3), 400)
    x, y = fields[:, 0], fields[:, 1]
    response = _angle_of_arrival((256, 256), 48.0, 3.0)
    covariance = np.fft.irfft2(abs(response[0]) ** 2)
    for lag in (4, 8, 16):
        along, across = covariance[0, lag], covariance[lag, 0]
        measured = (x[..., lag:] * x[..., :-lag]).mean(), (x[:, lag:] * x[:, :-lag]).mean()
        assert measured == pytest.approx((along, across), abs=0.02)
        measured = (y[:, lag:] * y[:, :-lag]).mean(), (y[..., lag:] * y[..., :-lag]).mean()
        assert measured == pytest.approx((along, across), abs=0.02)
    assert covariance[0, 16] < -0.04 < 0.04 < covariance[16, 0]  # what tells the two directions apart


def test_kolmogorov_tilts_are_free_of_rotation():
    fields = draws(KolmogorovTilts(64, rms=1, outer_scale=64, aperture=8), 20)
    (x_by_y, x_by_x), (y_by_y, y_by_x) = (np.gradient(fields[:, i], axis=(1, 2)) for i in (0, 1))
    rotation, divergence = (y_by_x - x_by_y)[:, 1:-1, 1:-1], (x_by_x + y_by_y)[:, 1:-1, 1:-1]
    assert (rotation**2).mean() < 0.01 * (divergence**2).mean()


def test_opposite_edges_of_a_kolmogorov_field_do_not_meet():
    fields = draws(KolmogorovTilts((40, 40), rms=1, outer_scale=24, aperture=4), 300)
    assert abs((fields[..., 0] * fields[..., -1]).mean()) < 0.03
    assert abs((fields[..., 0, :] * fields[..., -1, :]).mean()) < 0.03


@pytest.mark.parametrize(
    ("law", "setting", "message"),
    [
        (PatchTilts, {"size": (4, 0)}, "tilt field needs at least 1 px"),
        (PatchTilts, {"density": 0}, "density"),
        (PatchTilts, {"patch": -1}, "patch"),
        (PatchTilts, {"strength": (0.4, 0.1)}, "strength"),
        (PatchTilts, {"clip": 0}, "clip"),
        (KolmogorovTilts, {"size": 0}, "at least 1 px"),
        (KolmogorovTilts, {"rms": 0}, "rms"),
        (KolmogorovTilts, {"outer_scale": float("inf")}, "outer_scale"),
        (KolmogorovTilts, {"aperture": -2}, "aperture"),
    ],
)
def test_unusable_settings_are_refused(law, setting, message):
    with pytest.raises(InputError, match=message):
        law(**{"size": 8, **setting})
