"""Scores of an estimated blur kernel: one float64 number a kernel, blind to integer shifts.

Kernels are `(B, 1, h, w)`; estimate and truth may differ in size. All scores rest on the full cross-correlation
`c(s) = sum_r estimate(r - s) truth(r)`, both kernels zero outside their support.
"""

import torch
from torch import Tensor

from codiffuse.fourier import cross_correlate


def mnc(estimate: Tensor, truth: Tensor) -> Tensor:
    """Maximum of normalised cross-correlation, `max_s c(s) / (|estimate| |truth|)`, `(B,)` in [0, 1]; 1 is best.

    BlindDPS, Eq. (21), which prints a convolution; only the correlation gives 1 for equal kernels. NaN for a zero
    kernel.
    """
    norms = _energy(estimate).sqrt() * _energy(truth).sqrt()
    return _correlation(estimate, truth).amax(dim=(1, 2)) / norms


def kernel_mse(estimate: Tensor, truth: Tensor) -> Tensor:
    """Squared error after the best integer shift, `min_s sum_r (estimate(r - s) - truth(r))^2 / (h w)`, `(B,)`.

    The sum runs over the whole plane, so mass that falls outside the truth's support counts; `h w` is the size of that
    support.
    """
    error = _energy(estimate) + _energy(truth) - 2 * _correlation(estimate, truth).amax(dim=(1, 2))
    return error.clamp_min(0) / (truth.shape[-2] * truth.shape[-1])  # rounding can leave -1e-17


def kernel_shift(estimate: Tensor, truth: Tensor) -> Tensor:
    """Integer shift `(B, 2)` (rows, columns) that moves the estimate onto the truth: where `c(s)` is largest.

    Counted between the centre indices `h // 2`, so kernels of different size that blur alike are at shift 0. The image
    restored with the estimate is off by the opposite shift.
    """
    correlation = _correlation(estimate, truth)
    best = correlation.flatten(1).argmax(1)
    num_columns = correlation.shape[-1]
    index = torch.stack([best // num_columns, best % num_columns], dim=-1)
    # Index i holds the shift i - (size of the estimate - 1) between the first pixels of the two supports.
    size, truth_size = (torch.tensor(kernel.shape[-2:], device=index.device) for kernel in (estimate, truth))
    return index - (size - 1) + size // 2 - truth_size // 2


def _energy(kernel: Tensor) -> Tensor:
    return kernel.double().square().sum(dim=(1, 2, 3))


def _correlation(estimate: Tensor, truth: Tensor) -> Tensor:
    """Full cross-correlation `(B, h + h' - 1, w + w' - 1)` in float64."""
    return cross_correlate(estimate.double(), truth.double())[:, 0]
