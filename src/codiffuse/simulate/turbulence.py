"""Random tilt fields: the patches of BlindDPS, and a field with the spectrum of Kolmogorov turbulence.

A tilt field is a float32 tensor `(2, H, W)` in pixels, channel 0 along x (columns) and channel 1 along y (rows).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from codiffuse.fourier import fast_shape
from codiffuse.simulate.support import Size, check_positive, sides

REFERENCE_AREA = 256**2  # px, of which the density of patches is told
SMOOTHING_RADIUS, SMOOTHING_STD = 3, 1.0  # px, of the Gaussian in BlindDPS: 7 x 7
# The published fields have 500 patches with their middles in the inner 192 x 192 of 256 x 256 px.
PUBLISHED_DENSITY = 500 * (256 / 192) ** 2
MAX_OUTER_SCALE = 4096  # px: the periodic grid grows with it


@dataclass(frozen=True)
class PatchTilts:
    """Law of the tilt fields in BlindDPS: square patches of smoothed white noise at random places, added up.

    Each patch is white noise times its strength S, smoothed by a Gaussian. Noise of patches that overlap adds up to
    white noise whose variance is the sum of their S^2, so one noise field with that variance is drawn and smoothed once
    (BlindDPS smooths inside each patch, which differs within 3 px of a patch's edge only).

    Unlike the published fields these are homogeneous: the places of the patches are a Poisson process on the plane, of
    the density that the middle of a published field has, and the frame is a window on it, of any size. The published
    patches lie wholly inside 256 x 256 px, so that the tilt fades towards the border, from about 0.55 px to 0.1 px or
    less in the corners. To match the mean power of a whole such field (0.41 px) and not its middle, use `density=500`.

    Attributes:
        size: side or `(H, W)` in pixels.
        density: mean number of patches with their middle in an area of 256 x 256 px.
        patch: side of a patch in pixels.
        strength: range of S, uniform: standard deviation of the white noise in pixels.
        clip: largest absolute value of a component in pixels.

    Raises:
        InputError: a size below 1 px, or a number that is not positive.
    """

    size: Size
    density: float = PUBLISHED_DENSITY
    patch: int = 64
    strength: tuple[float, float] = (0.1, 0.4)
    clip: float = 2.5

    def __post_init__(self) -> None:
        _sides(self.size)
        check_positive("density", self.density)
        check_positive("patch", self.patch)
        check_positive("strength", *self.strength)
        check_positive("clip", self.clip)

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one field `(2, H, W)`."""
        height, width = (side + 2 * SMOOTHING_RADIUS for side in _sides(self.size))  # the smoothing crops them
        noise = np.sqrt(self._variance(height, width, rng)) * rng.standard_normal((2, height, width))
        return _as_field(_smooth(noise).clip(-self.clip, self.clip))

    def _variance(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Sum of S^2 over the patches that cover each pixel, `(height, width)`."""
        # All places from which a patch reaches the frame, by its pixel nearest to the origin.
        places = height + self.patch - 1, width + self.patch - 1
        count = rng.poisson(self.density * places[0] * places[1] / REFERENCE_AREA)
        power = np.zeros(places)
        where = rng.integers(places[0], size=count), rng.integers(places[1], size=count)
        np.add.at(power, where, rng.uniform(*self.strength, size=count) ** 2)
        sums = np.pad(power, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        rows = sums[self.patch :] - sums[: -self.patch]
        return (rows[:, self.patch :] - rows[:, : -self.patch]).clip(min=0)  # rounding can leave -1e-15


@dataclass(frozen=True)
class KolmogorovTilts:
    """Law of Gaussian tilt fields with the spectrum of the angle of arrival in Kolmogorov turbulence.

    The wavefront has the von Karman phase spectrum, Kolmogorov's -11/3 law with an outer scale L0. The tilt is its
    gradient, averaged over a round aperture of diameter D. With f the frequency in cycles per pixel, the power spectra
    of the components and their cross spectrum are

        S_ij(f) = c f_i f_j (f^2 + L0^-2)^(-11/6) (2 J1(pi D f) / (pi D f))^2,

    with c such that each component has the given rms; see Roddier (Progress in Optics 19, 1981) for phase and angle of
    arrival, and Schwartzman et al. (ICCP 2017) for such fields over an image. The field is free of rotation, and its
    components agree over longer distances across their direction than along it.

    L0 and D are lengths in the turbulent layer, in pixels: what a pixel of the image measures there.

    Attributes:
        size: side or `(H, W)` in pixels.
        rms: root mean square of each component in pixels, over all fields of the law: the mean of one field, a shift of
            the whole picture, is part of it.
        outer_scale: L0 in pixels.
        aperture: D in pixels; details below it are averaged out.

    Raises:
        InputError: a size below 1 px, a number that is not positive, or a length above `MAX_OUTER_SCALE`.
    """

    size: Size
    rms: float = 0.5
    outer_scale: float = 256.0
    aperture: float = 16.0

    def __post_init__(self) -> None:
        _sides(self.size)
        check_positive("rms", self.rms)
        check_positive("outer_scale", self.outer_scale, highest=MAX_OUTER_SCALE)
        check_positive("aperture", self.aperture, highest=MAX_OUTER_SCALE)

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one field `(2, H, W)`."""
        height, width = _sides(self.size)
        # Beyond L0 the correlation is below 0.5 %, so on a periodic grid that much larger opposite edges do not meet.
        margin = int(np.ceil(max(self.outer_scale, self.aperture)))
        grid = fast_shape((height + margin, width + margin))
        noise = np.fft.rfft2(rng.standard_normal(grid))
        field = np.fft.irfft2(noise * _angle_of_arrival(grid, self.outer_scale, self.aperture), s=grid)
        return _as_field(self.rms * field[:, :height, :width])


@lru_cache(maxsize=4)
def _angle_of_arrival(grid: tuple[int, int], outer_scale: float, aperture: float) -> np.ndarray:
    """Transfer functions `(2, H, W // 2 + 1)` that make tilts of rms 1 px out of white noise on a periodic grid."""
    frequencies = np.stack(np.broadcast_arrays(np.fft.rfftfreq(grid[1]), np.fft.fftfreq(grid[0])[:, None]))
    squared = (frequencies**2).sum(0)
    argument = torch.from_numpy(np.pi * aperture * np.sqrt(squared)).clamp_min(1e-9)
    airy = (2 * torch.special.bessel_j1(argument) / argument).numpy()
    response = 1j * frequencies * (squared + outer_scale**-2) ** (-11 / 12) * airy
    variance = (np.fft.irfft2(response, s=grid) ** 2).sum() / 2  # mean of the two components
    return response / np.sqrt(variance)


def _smooth(field: np.ndarray) -> np.ndarray:
    """`(2, H + 6, W + 6)` smoothed by the Gaussian of the patches, `(2, H, W)`."""
    window = np.exp(-0.5 * (np.arange(-SMOOTHING_RADIUS, SMOOTHING_RADIUS + 1) / SMOOTHING_STD) ** 2)
    window /= window.sum()
    for axis in (1, 2):
        field = sliding_window_view(field, len(window), axis=axis) @ window
    return field


def _sides(size: Size) -> tuple[int, int]:
    """Height and width of a field given as one side (square) or as `(H, W)`."""
    return sides(size, "tilt field", least=1)


def _as_field(field: np.ndarray) -> Tensor:
    return torch.from_numpy(field.astype(np.float32))
