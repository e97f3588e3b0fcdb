"""Measurement noise: what is added to the noiseless measurement, and how large it is.

Intensities are in [0, 1] units and the noisy measurement is not clipped. Every image draws from its own generator, on
the generator's device, so that a draw does not depend on the batch or on where the images live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import over_batch


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """White Gaussian noise, `y = x + sigma n` with `n ~ N(0, I)`.

    Args:
        sigma: standard deviation in [0, 1] units (5 of 255 grey levels = 0.0196), one number or one an image, `(B,)`.
            0 simulates a noise-free measurement; inference needs a positive value.

    Raises:
        InputError: a negative or non-finite sigma.
    """

    sigma: float | Tensor

    def __post_init__(self) -> None:
        sigma = torch.as_tensor(self.sigma)
        if not (torch.isfinite(sigma) & (sigma >= 0)).all():
            raise InputError(f"expected a noise level sigma >= 0 in [0, 1] units (5/255 = 0.0196), got {self.sigma}")

    def __call__(self, image: Tensor, generators: Generator | Sequence[Generator]) -> Tensor:
        """Draws a noisy measurement.

        Args:
            image: `(B, *, H, W)`, the noiseless measurement.
            generators: one an image, or one for all that is read in the order of the batch.

        Raises:
            InputError: there are fewer or more generators than images.
        """
        normal = [
            torch.randn(image.shape[1:], generator=generator, device=generator.device)
            for generator in _one_per_image(generators, image)
        ]
        return image + over_batch(self.level(image), image) * torch.stack(normal).to(image)

    def variance(self, y: Tensor) -> Tensor:
        """The noise variance of every pixel, shaped like `y`."""
        return over_batch(self.level(y) ** 2, y).expand_as(y)

    def repeated(self, n: int) -> GaussianNoise:
        """That of n copies of each image, one after the other."""
        sigma = self.sigma
        return GaussianNoise(sigma.repeat_interleave(n) if isinstance(sigma, Tensor) and sigma.ndim else sigma)

    def level(self, y: Tensor) -> Tensor:
        """The standard deviation of every image's noise, `(B,)`."""
        return torch.as_tensor(self.sigma, dtype=y.dtype, device=y.device).expand(len(y))


@dataclass(frozen=True)
class PoissonNoise:
    """Photon noise, `y = Poisson(peak x) / peak`; negative intensities count as 0.

    Args:
        peak: mean number of photons of a white (1.0) pixel.

    Raises:
        InputError: a peak that is not positive and finite.
    """

    peak: float

    def __post_init__(self) -> None:
        if not 0 < self.peak < float("inf"):
            raise InputError(f"expected a positive number of photons for a white pixel, got peak = {self.peak}")

    def __call__(self, image: Tensor, generators: Generator | Sequence[Generator]) -> Tensor:
        """Draws a noisy measurement; arguments and errors as for `GaussianNoise`."""
        rates = self.peak * image.clamp_min(0)
        counts = [
            torch.poisson(rate.to(generator.device), generator)
            for rate, generator in zip(rates, _one_per_image(generators, image), strict=True)
        ]
        return torch.stack(counts).to(image.device) / self.peak

    def variance(self, y: Tensor) -> Tensor:
        """The estimated noise variance of every pixel, `y / peak`, at least that of one photon."""
        return (self.peak * y).clamp_min(1) / self.peak**2

    def repeated(self, n: int) -> PoissonNoise:
        """That of n copies of each image: the same."""
        return self

    def level(self, y: Tensor) -> Tensor:
        """The standard deviation of Gaussian noise of the same mean power, for every image, `(B,)`."""
        return self.variance(y).flatten(1).mean(dim=1).sqrt()


Noise = GaussianNoise | PoissonNoise


def noise_of(sigma: float | Tensor, peak: float | None = None) -> Noise:
    """White Gaussian noise of a level `sigma`; with a `peak`, photon noise, whatever the level."""
    return GaussianNoise(sigma) if peak is None else PoissonNoise(peak)


def _one_per_image(generators: Generator | Sequence[Generator], image: Tensor) -> Sequence[Generator]:
    if isinstance(generators, Generator):
        return [generators] * len(image)
    if len(generators) != len(image):
        raise InputError(f"expected one generator for each of the {len(image)} images, got {len(generators)}")
    return generators
