"""Measurement noise: its statistics, one stream an image, and what is refused."""

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.operators.noise import GaussianNoise, PoissonNoise, noise_of

NOISES = [GaussianNoise(0.05), PoissonNoise(peak=50.0)]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ramp(batch, size=128):
    """Grey levels 0.2 to 0.8, the same for each image."""
    return torch.linspace(0.2, 0.8, size).expand(batch, 3, size, size)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_mean_zero_and_the_variance_it_says(noise):
    image = ramp(4)
    residual = noise(image, generators(0, 1, 2, 3)) - image
    variance = noise.variance(image)
    standardised = residual / variance.sqrt()
    count = standardised.numel()
    assert abs(standardised.mean()) < 4 / count**0.5
    # Per grey level too: Poisson noise grows with the signal. The variance of a sample variance is about 2 / count.
    by_column = standardised.square().mean(dim=(0, 1, 2))
    assert (by_column - 1).abs().max() < 6 * (2 * 128 / count) ** 0.5
    torch.testing.assert_close(noise.level(image), residual.square().mean(dim=(1, 2, 3)).sqrt(), rtol=0.02, atol=0)


def test_gaussian_noise_is_white_and_independent_between_channels_and_images():
    noise = GaussianNoise(1.0)(torch.zeros(2, 3, 64, 64), generators(0, 1))
    planes = noise.flatten(0, 1).flatten(1)
    covariance = planes @ planes.T / planes.shape[1]
    assert (covariance - torch.eye(6)).abs().max() < 5 / 64
    for shift in ((0, 1), (1, 0), (1, 1)):
        assert (noise * noise.roll(shift, (-2, -1))).mean().abs() < 5 / planes.numel() ** 0.5


@pytest.mark.parametrize("noise", NOISES)
def test_an_image_does_not_notice_its_batch_neighbours(noise):
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = noise(image, generators(7, 8, 9))
    alone = noise(image[1:2], generators(8))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
    assert not torch.equal(together[1:2], noise(image[1:2], generators(10)))


@pytest.mark.parametrize("noise", NOISES)
def test_one_generator_serves_the_images_in_turn(noise):
    image = ramp(2, size=8)
    shared = noise(image, *generators(3))
    one_by_one = generators(3)[0]
    expected = torch.cat([noise(image[:1], one_by_one), noise(image[1:], one_by_one)])
    torch.testing.assert_close(shared, expected, rtol=0, atol=0)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(noise, dtype):
    image = ramp(2, size=8).to(dtype)
    assert noise(image, generators(0, 1)).dtype == dtype
    assert noise.variance(image).dtype == noise.level(image).dtype == dtype


def test_every_image_may_have_its_own_sigma():
    noise = GaussianNoise(torch.tensor([0.0, 0.1]))
    image = ramp(2)
    y = noise(image, generators(0, 0))
    torch.testing.assert_close(y[0], image[0], rtol=0, atol=0)
    assert (y[1] - image[1]).std() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noise.level(y), torch.tensor([0.0, 0.1]))
    assert noise.variance(y)[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.01])


def test_measurements_are_not_clipped():
    y = GaussianNoise(0.5)(ramp(1), generators(0))
    assert y.min() < 0
    assert y.max() > 1


def test_poisson_measurements_are_whole_photons_and_black_has_none():
    image = torch.tensor([-0.1, 0.0, 0.5, 2.0]).reshape(1, 1, 1, 4)
    y = PoissonNoise(peak=10.0)(image, generators(0))
    torch.testing.assert_close(y * 10, (y * 10).round())
    assert y[..., :2].tolist() == [[[[0.0, 0.0]]]]
    # Where no photon came, the variance is that of one.
    assert PoissonNoise(peak=10.0).variance(image).flatten().tolist() == pytest.approx([0.01, 0.01, 0.05, 0.2])


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -0.1])])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(InputError, match="sigma >= 0"):
        GaussianNoise(sigma)


@pytest.mark.parametrize("peak", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_peak_is_refused(peak):
    with pytest.raises(InputError, match="photons"):
        PoissonNoise(peak)


@pytest.mark.parametrize("noise", NOISES)
def test_too_few_generators_are_refused(noise):
    with pytest.raises(InputError, match=r"each of the 2 images, got 1"):
        noise(ramp(2, size=8), generators(0))


def test_a_peak_makes_it_photon_noise():
    assert isinstance(noise_of(0.02), GaussianNoise)
    assert noise_of(0.02).sigma == 0.02
    assert noise_of(0.02, peak=50.0) == PoissonNoise(50.0)
