"""Signs of a good or bad restoration that need no truth: what the residual, the kernels and the gradients tell.

Images and residuals are `(B, C, H, W)`, kernels `(B, 1, h, w)` of sum one, sets of kernels `(B, R, h, w)`, masks
`(B, 1, H, W)` with 1 for the pixels that count. All numbers are float64, one an image, `(B,)`; NaN where a number is not
defined.
"""

from itertools import combinations

import torch
from torch import Tensor
from torch.fft import fftfreq, irfft2, rfft2, rfftfreq

from codiffuse.metrics.kernel import mnc

QUANTUM = 0.5 / 255  # half a grey level: what counts as equal to black or white


def residual_ratio(residual: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square of the residual over the noise level, `rms(y - A x) / sigma`: about 1 when all is explained.

    The same as `metrics.image.reblur` on a scale without unit: `reblur = sigma^2 (ratio^2 - 1)`.

    Args:
        residual: y - A x.
        sigma: `(B,)` noise level.
        mask: pixels that count; `None` counts all.
    """
    residual, kept = residual.double(), _weights(residual, mask)
    mean_square = (kept * residual.square()).sum((1, 2, 3)) / (residual.shape[1] * kept.sum((1, 2, 3)))
    return mean_square.sqrt() / sigma.double()


def correlated_share(residual: Tensor, max_lag: int = 4, mask: Tensor | None = None) -> Tensor:
    """Energy of the residual's autocorrelation `sum_s (rho(s)^2 - 1 / N(s))` over lags up to `max_lag` but 0.

    White noise has `rho(s)^2 = 1 / N(s)` on average, N(s) being the number of pairs, so it scores 0 at every size (up
    to chance, either sign); residuals of a wrong kernel score more. After the whiteness measures of Almeida and
    Figueiredo, IEEE TIP 2013. Lags s and -s count once; channels are averaged.

    Args:
        residual: y - A x.
        max_lag: largest lag in rows and columns, px; less than the sides.
        mask: pixels that count; `None` counts all.
    """
    residual, kept = residual.double(), _weights(residual, mask)
    size = [side + max_lag for side in residual.shape[-2:]]  # no pair wraps around
    products = irfft2(rfft2(kept * residual, s=size).abs().square(), s=size)
    pairs = irfft2(rfft2(kept, s=size).abs().square(), s=size).round()
    covariance = products / pairs.clamp_min(1)
    rho = covariance / covariance[..., :1, :1]
    excess = torch.where(pairs > 0, rho.square() - 1 / pairs.clamp_min(1), 0.0)
    down = excess[..., 1 : max_lag + 1, :1].sum((-2, -1))
    right = excess[..., : max_lag + 1, 1 : max_lag + 1].sum((-2, -1))
    up = excess[..., -max_lag:, 1 : max_lag + 1].sum((-2, -1))
    return (down + right + up).mean(1)


def border_mass(kernel: Tensor, width: int = 1) -> Tensor:
    """Share of the kernel's mass on the outermost `width` pixels of its support: large when the support is too small."""
    kernel = kernel.double()
    inner = kernel[..., width:-width, width:-width].sum((1, 2, 3))
    return 1 - inner / kernel.sum((1, 2, 3))


def kernel_spread(kernel: Tensor) -> Tensor:
    """Root mean square distance of the kernel's mass from its centre of mass, in px: 0 for a delta."""
    mass = kernel.double() / kernel.double().sum((1, 2, 3), keepdim=True)
    variance = 0.0
    for axes, size in (((1, 3), kernel.shape[-2]), ((1, 2), kernel.shape[-1])):
        place = torch.arange(size, dtype=torch.float64, device=kernel.device)
        marginal = mass.sum(axes)
        mean = marginal @ place
        variance = variance + (marginal * (place - mean[:, None]).square()).sum(1)
    return variance.sqrt()


def effective_pixels(kernel: Tensor) -> Tensor:
    """How many pixels the kernel's mass covers, `exp(entropy)`: 1 for a delta, `h w` for a constant."""
    mass = (kernel.double() / kernel.double().sum((1, 2, 3), keepdim=True)).flatten(1)
    return torch.special.entr(mass).sum(1).exp()


def agreement(kernels: Tensor, residuals: Tensor | None = None, best: int = 3) -> Tensor:
    """Mean MNC between all pairs of several kernels: 1 when they are the same up to shifts.

    Args:
        kernels: `(B, R, h, w)`.
        residuals: `(B, R)`; only the `best` kernels of finite residual are compared. `None` compares all.
        best: how many.

    Returns:
        NaN with fewer than two kernels to compare.
    """
    if residuals is not None:
        order = residuals.argsort(1)[:, :best]
        residuals = residuals.gather(1, order)
        kernels = kernels.gather(1, order[..., None, None].expand(-1, -1, *kernels.shape[-2:]))
        kernels = torch.where(torch.isfinite(residuals)[..., None, None], kernels, torch.nan)
    scores = [mnc(kernels[:, i, None], kernels[:, j, None]) for i, j in combinations(range(kernels.shape[1]), 2)]
    return torch.stack(scores).nanmean(0) if scores else kernels.new_full((len(kernels),), torch.nan).double()


def support_by_others(kernel: Tensor, kernels: Tensor, residuals: Tensor, best: int = 3) -> Tensor:
    """TRIAL: mean MNC of kernel with best kernels."""
    order = residuals.argsort(1)[:, :best]
    kernels = kernels.gather(1, order[..., None, None].expand(-1, -1, *kernels.shape[-2:]))
    return torch.stack([mnc(kernel, kernels[:, i, None]) for i in range(kernels.shape[1])]).mean(0)


def texture(y: Tensor, sigma: Tensor, mask: Tensor | None = None) -> Tensor:
    """Gradients of the measurement over those of its noise, `sqrt(max(mean |grad y|^2 / (4 sigma^2) - 1, 0))`.

    Differences of neighbours have variance `2 sigma^2` along each axis from the noise alone. 0 for a flat picture.
    """
    dx, dy, kept = _gradients(y, mask)
    power = ((dx.square() + dy.square()) * kept).sum((1, 2, 3)) / (y.shape[1] * kept.sum((1, 2, 3)))
    return (power / (4 * sigma.double().square()) - 1).clamp_min(0).sqrt()


def gradient_sparsity(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised sparsity of the gradients, `|grad x|_1 / (sqrt(N) |grad x|_2)` in (0, 1]: blur and noise raise it.

    Krishnan, Tay and Fergus, CVPR 2011, divided by the square root of the number of gradients so that sizes compare. NaN
    for a constant image.
    """
    dx, dy, kept = _gradients(image, mask)
    count = 2 * image.shape[1] * kept.sum((1, 2, 3))
    first = ((dx.abs() + dy.abs()) * kept).sum((1, 2, 3))
    second = ((dx.square() + dy.square()) * kept).sum((1, 2, 3)).sqrt()
    return first / (second * count.sqrt())


def clipped_share(y: Tensor) -> Tensor:
    """Share of pixels of which a channel is clipped to black or white.

    A side at which values go beyond the range is not clipped: noise that was never cut does so.
    """
    y = y.double()
    limits = y.amax((1, 2, 3), keepdim=True), y.amin((1, 2, 3), keepdim=True)
    white = (y >= 1 - QUANTUM) & (limits[0] <= 1 + QUANTUM)
    black = (y <= QUANTUM) & (limits[1] >= -QUANTUM)
    return (white | black).any(1).double().mean((1, 2))


def spectral_agreement(y: Tensor, kernel: Tensor, sigma: Tensor) -> Tensor:
    """TRIAL."""
    y = y.double().mean(1)
    h, w = y.shape[-2:]
    win = torch.hann_window(h, periodic=False, dtype=torch.float64)[:, None] * torch.hann_window(w, periodic=False, dtype=torch.float64)
    y = (y - y.mean((1, 2), keepdim=True)) * win
    P = rfft2(y).abs().square() / win.square().sum()
    K = rfft2(kernel.double()[:, 0], s=(h, w)).abs().square()
    fy, fx = fftfreq(h, dtype=torch.float64)[:, None], rfftfreq(w, dtype=torch.float64)
    f = (fy**2 + fx**2).sqrt()
    noise = (sigma.double() ** 2 / 3)[:, None, None]
    band = (f > 0.03) & (f < 0.4)
    out = []
    for p, k, s in zip(P, K, noise):
        # scale c of c K/f^2 + s by robust match of the mean over band
        prior = (K.new_tensor(0.01) * 0 + 1) / f.clamp_min(1e-3) ** 2
        m = prior * k
        c = ((p - s).clamp_min(0)[band].sum() / m[band].sum())
        model = (c * m + s).log()
        data = (p + 1e-12).log()
        bins = (f * 40).long().clamp(max=40)
        def radial(v):
            su = torch.zeros(41, dtype=v.dtype).scatter_add(0, bins[band], v[band])
            n = torch.zeros(41, dtype=v.dtype).scatter_add(0, bins[band], torch.ones_like(v[band]))
            return v[band] - (su / n.clamp_min(1))[bins[band]]
        a, b = radial(model), radial(data)
        out.append((a * b).sum() / (a.norm() * b.norm()))
    return torch.stack(out)


def _weights(image: Tensor, mask: Tensor | None) -> Tensor:
    shape = (len(image), 1, *image.shape[-2:])
    return image.new_ones(shape).double() if mask is None else mask.double()


def _gradients(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Differences along columns and rows `(B, C, H - 1, W - 1)` and the weight of the pixels they touch."""
    image, kept = image.double(), _weights(image, mask)
    corner = image[..., :-1, :-1]
    dx, dy = image[..., :-1, 1:] - corner, image[..., 1:, :-1] - corner
    return dx, dy, kept[..., :-1, :-1] * kept[..., :-1, 1:] * kept[..., 1:, :-1]
