"""Floats on another scale than [0, 1] are refused; what noise does to pixels is not."""

import re

import numpy as np
import pytest
from skimage import data

from codiffuse.data.images import picture_of
from codiffuse.errors import InputError

COFFEE = data.coffee()[:256, :256] / 255
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("pixels", "span"),
    [
        (2 * COFFEE - 1, "-1 to 1"),
        (0.8 * COFFEE - 0.4, "-0.4 to 0.4"),  # of [-1, 1], with little contrast
        (2 * COFFEE - 1 + RNG.normal(0, 0.1, COFFEE.shape), "-1.3"),
        (COFFEE - 0.5, "-0.5 to 0.5"),
        ((COFFEE - MEAN) / STD, "-2.04 to 2.64"),
        ((COFFEE - COFFEE.mean()) / COFFEE.std(), "to"),
        (RNG.uniform(-1, 1, (64, 64)), "-1 to 1"),
        (RNG.uniform(-9, -8, (64, 64)), "-9 to -8"),
        (np.where(np.eye(64) * np.arange(64) == 9, -3.0, COFFEE[:64, :64, 0]), "-3 to"),
    ],
    ids="signed low_contrast noisy_signed centred imagenet standardised uniform negative one_pixel".split(),
)
def test_other_scales_are_refused(pixels, span):
    with pytest.raises(InputError, match=r"^image: expected float values in \[0, 1\], .*\(x \+ 1\) / 2") as caught:
        picture_of(pixels.astype(np.float32))
    assert "\n" not in str(caught.value)
    assert re.search(f"got .*{span}", str(caught.value)), caught.value


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2])
@pytest.mark.parametrize(
    "scene", [COFFEE, COFFEE / 8, 0 * COFFEE, 0 * COFFEE[..., :1]], ids=["any", "dark", "black", "gray"]
)
def test_noise_is_not(scene, sigma):
    pixels = (scene + RNG.normal(0, sigma, scene.shape)).astype(np.float32)
    assert pixels.min() < -sigma
    assert np.array_equal(picture_of(pixels).pixels.numpy().transpose(1, 2, 0), pixels)


def test_neither_is_the_noise_of_a_high_dynamic_range():
    light = 8 * COFFEE**3 + RNG.normal(0, 0.6, COFFEE.shape)
    assert light.min() < -2
    [note] = picture_of(light).notes
    assert "divided by" in note


@pytest.mark.parametrize("pixels", [np.full((40, 40), -0.25), COFFEE * 1.4 - 0.2], ids=["offset", "ringing"])
def test_nor_is_a_black_that_lies_a_little_lower(pixels):
    assert picture_of(pixels).pixels.min() == pytest.approx(pixels.min())
