"""Signs of a good or a bad restoration that need no truth: what residual, kernels and gradients tell.

Images and residuals are `(B, C, H, W)`, kernels `(B, 1, h, w)`, sets of kernels `(B, R, h, w)`, masks `(B, 1, H, W)`
with 1 for the pixels that count. Results are float64, one number an image, `(B,)`; NaN where a number is not defined.
"""

import math
from itertools import combinations

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse.metrics.kernel import mnc

HALF_LEVEL = 0.5 / 255  # of 8 bits: what counts as equal to black or white


def residual_ratio(residual: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square of the residual over the noise level, `rms(y - A x) / sigma`: about 1 when all is explained.

    `metrics.image.reblur` on a scale without unit: `reblur = sigma^2 (ratio^2 - 1)`.

    Args:
        residual: `y - A x`.
        sigma: `(B,)` noise level, in the unit of the residual.
        mask: pixels that count; `None` counts all.
    """
    kept = _weights(residual, mask)
    energy = (kept * residual.double().square()).sum((1, 2, 3)) / residual.shape[1]
    return (energy / kept.sum((1, 2, 3))).sqrt() / sigma.double()


def residual_correlation(residual: Tensor, max_lag: int = 4, mask: Tensor | None = None) -> Tensor:
    """Energy of the residual's autocorrelation, `sum_s (rho(s)^2 - 1 / N(s))` over the lags s up to `max_lag` but 0.

    White noise has `rho(s)^2 = 1 / N(s)` on average, N(s) being the number of pairs of pixels, so it scores 0 at every
    size, but for chance of either sign; structure raises the score. A relative of the whiteness measures of Almeida and
    Figueiredo (IEEE TIP 2013). Of s and -s one counts; channels are averaged.

    Args:
        residual: `y - A x`.
        max_lag: largest lag in rows and in columns, px.
        mask: pixels that count; `None` counts all.
    """
    kept = _weights(residual, mask)
    size = [side + max_lag for side in residual.shape[-2:]]  # no pair wraps around
    products = irfft2(rfft2(kept * residual.double(), s=size).abs().square(), s=size)
    pairs = irfft2(rfft2(kept, s=size).abs().square(), s=size).round()
    covariance = products / pairs
    rho = covariance / covariance[..., :1, :1]
    excess = torch.where(pairs > 0, rho.square() - 1 / pairs, 0.0)
    down, right = slice(1, max_lag + 1), slice(1, max_lag + 1)
    half_plane = (excess[..., down, :1], excess[..., : max_lag + 1, right], excess[..., -max_lag:, right])
    return sum(part.sum((-2, -1)) for part in half_plane).mean(1)


def kernel_spread(kernel: Tensor) -> Tensor:
    """Root mean square distance of the kernel's mass from its centre of mass, px: 0 for a delta."""
    return _covariance(kernel).diagonal(dim1=1, dim2=2).sum(1).sqrt()


def kernel_std(kernel: Tensor) -> Tensor:
    """Rms width of the kernel along an axis, px: the root of half the trace of its covariance, sigma of a Gaussian."""
    return kernel_spread(kernel) / math.sqrt(2)


def kernel_axes(kernel: Tensor) -> Tensor:
    """Rms widths `(B, 2)` along the principal axes of the kernel's mass, px, longer first: of a Gaussian its sigmas.

    The roots of the eigenvalues of the covariance of the mass about its centre; a delta has 0 and 0.
    """
    return torch.linalg.eigvalsh(_covariance(kernel)).flip(1).clamp_min(0).sqrt()  # rounding can leave -1e-17


def agreement(kernels: Tensor) -> Tensor:
    """Mean MNC over all pairs of a set of kernels `(B, R, h, w)`: 1 when they are equal up to shifts; NaN if R < 2."""
    pairs = combinations(range(kernels.shape[1]), 2)
    return _mean([mnc(kernels[:, i, None], kernels[:, j, None]) for i, j in pairs], kernels)


def support(kernel: Tensor, kernels: Tensor) -> Tensor:
    """Mean MNC of one kernel `(B, 1, h, w)` with each of a set `(B, R, h, w)`; NaN for an empty set."""
    return _mean([mnc(kernel, kernels[:, i, None]) for i in range(kernels.shape[1])], kernels)


def sharpening(image: Tensor, y: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
    """Gradients of the restoration over those of the measurement without its noise, a ratio of rms; 1 is no change.

    A wrong kernel often leaves a picture flatter than the measurement was, or full of ringing. Infinite where the
    measurement has no gradients beyond its noise.

    Args:
        image: the restoration of the part that y shows.
        y: the measurement.
        sigma: `(B,)` its noise level.
        mask: pixels of y that count; `None` counts all.
    """
    before = (_gradient_moments(y, mask)[0] - 2 * sigma.double().square()).clamp_min(0)
    return (_gradient_moments(image, mask)[0] / before).sqrt()


def gradient_sparsity(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised sparsity of the gradients, their mean modulus over their rms, in (0, 1]: blur and noise raise it.

    The l1 over l2 of Krishnan, Tay and Fergus (CVPR 2011), on a scale on which images of different size compare. NaN
    for a constant image.

    Args:
        image: any image.
        mask: pixels that count; `None` counts all.
    """
    power, modulus = _gradient_moments(image, mask)
    return modulus / power.sqrt()


def clipped_share(y: Tensor) -> Tensor:
    """Share of pixels with a channel that was cut off at black (0) or white (1).

    An image with values beyond a limit was not cut off there, wherever its noise happened to land.
    """
    y = y.double()
    white = (y >= 1 - HALF_LEVEL) & (y.amax((1, 2, 3), keepdim=True) <= 1 + HALF_LEVEL)
    black = (y <= HALF_LEVEL) & (y.amin((1, 2, 3), keepdim=True) >= -HALF_LEVEL)
    return (white | black).any(1).double().mean((1, 2))


def _covariance(kernel: Tensor) -> Tensor:
    """`(B, 2, 2)`, rows first, of the kernel's mass about its centre, px^2."""
    mass = (kernel.double() / kernel.double().sum((1, 2, 3), keepdim=True))[:, 0]
    down, right = (torch.arange(side, dtype=torch.float64, device=kernel.device) for side in mass.shape[-2:])
    down = down[:, None] - (mass.sum(2) @ down)[:, None, None]
    right = right - (mass.sum(1) @ right)[:, None, None]
    parts = [(mass * a * b).sum((1, 2)) for a, b in ((down, down), (down, right), (down, right), (right, right))]
    return torch.stack(parts, 1).reshape(-1, 2, 2)


def _weights(image: Tensor, mask: Tensor | None) -> Tensor:
    """The mask in float64, or ones, `(B, 1, H, W)`."""
    if mask is None:
        return torch.ones(len(image), 1, *image.shape[-2:], dtype=torch.float64, device=image.device)
    return mask.double()


def _mean(scores: list[Tensor], kernels: Tensor) -> Tensor:
    return torch.stack(scores).mean(0) if scores else kernels.new_full((len(kernels),), torch.nan, dtype=torch.float64)


def _gradient_moments(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean square and mean modulus of the differences of neighbours that both count, `(B,)` each."""
    image, kept = image.double(), _weights(image, mask)
    square = modulus = count = 0.0
    for axis in (-2, -1):
        size = image.shape[axis]
        difference = image.diff(dim=axis)
        both = kept.narrow(axis, 1, size - 1) * kept.narrow(axis, 0, size - 1)
        square = square + (both * difference.square()).sum((1, 2, 3))
        modulus = modulus + (both * difference.abs()).sum((1, 2, 3))
        count = count + image.shape[1] * both.sum((1, 2, 3))
    return square / count, modulus / count
