"""What is not known of an image or a kernel, as a Gaussian about its estimate.

Of an image: white, a variance `(B,)` of every pixel; or `Stationary`, a power at each frequency. Of a kernel: white on
its support, but for its sum, which is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse import fourier
from codiffuse.fourier import Size, abs2, over_batch


@dataclass(frozen=True)
class Stationary:
    """Errors that are alike everywhere in the picture, and correlated between neighbours.

    Attributes:
        power: of a grid `(H, W)`: `(B, 1, H, W // 2 + 1)`, on the half spectrum of `rfft2`. Its mean over the whole
            spectrum is the variance of a pixel.
    """

    power: Callable[[Size], Tensor]

    def __add__(self, white: Tensor) -> Stationary:
        """With independent errors of variance `(B,)` a pixel besides."""
        return Stationary(lambda grid: self.power(grid) + white.reshape(-1, 1, 1, 1))


Covariance = Tensor | Stationary


def image_power(covariance: Covariance, grid: Size) -> Tensor:
    """The power at each frequency of a grid, or `(B, 1, 1, 1)` where it is white."""
    return covariance.reshape(-1, 1, 1, 1) if isinstance(covariance, Tensor) else covariance.power(grid)


def covary(power: Tensor, image: Tensor) -> Tensor:
    """A covariance matrix, as its `image_power`, times an image `(B, C, H, W)`, on a torus of its size."""
    if power.shape[-2:] == (1, 1):
        return power * image
    return filtered(image, power, (image.shape[-2], image.shape[-1]))


def filtered(image: Tensor, power: Tensor, grid: Size) -> Tensor:
    """An image, filled up with zeros to the grid, times a power at each frequency; the part of its own size."""
    return irfft2(power * rfft2(image, s=grid), s=grid)[..., : image.shape[-2], : image.shape[-1]]


def kernel_power(kernel: Tensor, r2: Tensor, grid: Size) -> Tensor:
    """`E |dK|^2` `(B, 1, H, W // 2 + 1)` on a grid, of `zero_sum` white noise of variance r2 on the kernel's support.

    Nothing at zero frequency, and little at those that the support is too small to tell from it.
    """
    area = kernel.shape[-2] * kernel.shape[-1]
    support = fourier.kernel_otf(torch.ones_like(kernel[:1]), grid)
    return over_batch(r2, support) * (area - abs2(support) / area).clamp_min(0)


def zero_sum(change: Tensor) -> Tensor:
    """A change of a kernel `(B, 1, h, w)` without what would change its sum, which is one; an orthogonal projection."""
    return change - change.mean((-2, -1), keepdim=True)
