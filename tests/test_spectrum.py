"""How wide the blur is, told by the spectrum."""

import math

import numpy as np
import pytest
import torch
from skimage import data

from codiffuse.data.saturation import unsaturated
from codiffuse.estimation.spectrum import BANDS, BLOCK, EDGES, band_energies, expected_spread
from codiffuse.methods.photograph import Photograph
from codiffuse.metrics.consistency import kernel_spread
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.gaussian import gaussian_kernel
from codiffuse.simulate.motion import RandomPathKernels

SIGMA = 2 / 255
SHARP = Photograph.sharp_spread
PICTURES = ("astronaut", "coffee", "chelsea", "rocket")


def picture(name, side=256):
    pixels = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1) / 255
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    return pixels[:, top : top + side, left : left + side]


def noisy(image, seed=0):
    return image + SIGMA * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def blurred(image, kernel):
    return noisy(BlurOperator("valid")(image[None], kernel=kernel[None])[0])


@pytest.mark.parametrize("name", PICTURES)
def test_a_sharp_picture_has_no_spread_and_a_blurred_one_has(name):
    kernel = gaussian_kernel(33, 2.5)
    assert expected_spread(noisy(picture(name)), SIGMA) < SHARP
    assert expected_spread(blurred(picture(name), kernel), SIGMA) > 2 * SHARP


def test_the_estimate_is_near_the_spread_of_motion_and_grows_with_it():
    found, true = [], []
    for size in (5, 13, 31):
        kernels = [RandomPathKernels(size)(np.random.default_rng(seed)) for seed in range(4)]
        estimates = [expected_spread(blurred(picture(name), k), SIGMA) for name in PICTURES for k in kernels]
        found.append(math.exp(sum(map(math.log, estimates)) / len(estimates)))
        true.append(float(kernel_spread(torch.stack(kernels)).log().mean().exp()))
    assert found == sorted(found)
    assert all(0.5 < estimate / spread < 2 for estimate, spread in zip(found, true, strict=True))


def test_motion_along_either_axis_is_seen_alike():
    kernel = torch.zeros(1, 15, 15)
    kernel[0, 7] = 1 / 15
    along = expected_spread(blurred(picture("coffee"), kernel), SIGMA)
    turned = expected_spread(blurred(picture("coffee").mT, kernel.mT), SIGMA)
    assert along > 2 * SHARP
    assert turned == pytest.approx(along, rel=0.1)  # another noise


def test_the_energy_of_a_wave_is_in_its_band_and_orientation():
    amplitude, frequency = 0.1, 20 / BLOCK
    wave = 0.5 + amplitude * torch.cos(2 * math.pi * frequency * torch.arange(160.0)).expand(1, 160, 160)
    energies = {name: torch.tensor(values).exp() for name, values in band_energies(wave, 1e-4).items()}
    band = next(index for index, upper in enumerate(EDGES[1:]) if frequency < upper)
    assert int(energies["strongest"].argmax()) == band
    assert energies["strongest"][band] > 1e3 * energies["weakest"][band]
    assert energies["mean"][band] == pytest.approx(float(energies["strongest"][band]) / 4, rel=0.01)


def test_noise_alone_is_at_the_floor():
    gray = 0.5 + SIGMA * torch.randn(3, 512, 512, generator=torch.Generator().manual_seed(0))
    noise = SIGMA**2 / 3
    assert max(band_energies(gray, SIGMA)["mean"]) < math.log(0.3 * noise)
    assert max(band_energies(gray, SIGMA / 2)["mean"]) > math.log(2 * noise / 4)  # the level given counts


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 64, 400), (1, 300, 32)])
def test_small_and_narrow_pictures(shape):
    image = torch.from_numpy(data.camera().copy())[None, 160 : 160 + shape[1], 90 : 90 + shape[2]].expand(shape) / 255
    assert 0 <= expected_spread(noisy(image), SIGMA) < 5


@pytest.mark.parametrize("height", range(32, 40))
@pytest.mark.parametrize("width", [32, 33, 39])
def test_all_that_the_regression_sees_has_frequencies(height, width):
    """A sector without any would be at the floor, and pass for the weakest."""
    noise = 0.5 + torch.randn(1, height, width, generator=torch.Generator().manual_seed(0))
    energies = band_energies(noise, 0.01)
    seen = [energies[band.orientation][band.index] for band in BANDS]
    assert all(map(math.isfinite, seen))
    assert min(seen) > math.log(1e-3)


@pytest.mark.parametrize("lamps", [6, 20])
def test_blurred_lamps_do_not_make_a_picture_sharp(lamps):
    kernel = RandomPathKernels(17)(np.random.default_rng(0))
    scene, places = 0.3 * picture("coffee"), np.random.default_rng(1).integers(20, 230, (lamps, 2))
    for row, column in places:
        scene[:, row : row + 2, column : column + 2] = 40
    y = blurred(scene, kernel).clamp(0, 1)
    assert expected_spread(y, SIGMA, unsaturated(y)) > 2 * SHARP
    sharp = noisy(picture("coffee")).clamp(0, 1)
    assert expected_spread(sharp, SIGMA, unsaturated(sharp)) < SHARP


def test_a_gray_picture_stored_in_colour_is_gray():
    y = noisy(picture("astronaut")[:1])
    assert expected_spread(y.expand(3, -1, -1), SIGMA) == expected_spread(y, SIGMA)


def test_a_picture_too_small_to_tell():
    assert math.isnan(expected_spread(torch.rand(3, 31, 200), SIGMA))


def test_a_flat_picture_is_not_taken_for_a_sharp_one():
    assert expected_spread(torch.full((3, 64, 64), 0.5), SIGMA) > SHARP
