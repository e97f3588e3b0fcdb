"""Gaussian blur kernels, isotropic or elongated."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.simulate.support import Size, as_kernel, check_positive, sides


def gaussian_kernel(size: Size, std: float, ratio: float = 1.0, angle: float = 0.0) -> Tensor:
    """Gaussian sampled at the pixel centres about `(h // 2, w // 2)`, cut off by the support, with sum 1.

    Args:
        size: side or `(h, w)` in pixels, odd or even.
        std: standard deviation along the major axis in pixels.
        ratio: major over minor standard deviation, >= 1.
        angle: direction of the major axis in radians, from the x axis (columns) towards the y axis (rows, downwards).

    Returns:
        Kernel `(1, h, w)`. Below 0.5 px a standard deviation is only nominal: the sampling is too coarse to show it.

    Raises:
        InputError: a side below 3, a std not above 0, or a ratio below 1.
    """
    h, w = sides(size)
    check_positive("std", std)
    if ratio < 1:
        raise InputError(f"ratio is major over minor standard deviation, at least 1, got {ratio}: invert it")
    y = np.arange(h)[:, None] - h // 2
    x = np.arange(w) - w // 2
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return as_kernel(np.exp(-0.5 * (along**2 + (ratio * across) ** 2) / std**2))


@dataclass(frozen=True)
class GaussianKernels:
    """Law of Gaussian kernels of any direction: `std` (major axis, px) uniform in a range, the ratio of the axes too.

    The ratio is at most `max_anisotropy`, and less where the minor axis would fall below the range of `std`.
    """

    size: Size
    std: tuple[float, float] = (0.5, 5.0)
    max_anisotropy: float = 4.0

    def __post_init__(self) -> None:
        sides(self.size)
        check_positive("std", *self.std)
        if self.max_anisotropy < 1:
            raise InputError(f"max_anisotropy must be at least 1 (round), got {self.max_anisotropy}")

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, h, w)`."""
        std = rng.uniform(*self.std)
        ratio = rng.uniform(1.0, min(self.max_anisotropy, std / self.std[0]))
        return gaussian_kernel(self.size, std, ratio, rng.uniform(0, np.pi))
