"""One kernel from several runs: the mean of those that agree.

Runs of a blind method from different starts make different errors. Where they found the same blur their mean is nearer
to it than most of them; a run that ended elsewhere is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codiffuse.estimation.centering import moved, recentre_integer
from codiffuse.fourier import cross_correlate


def consensus(kernels: Tensor, counts: Tensor, min_agreement: float) -> Tensor:
    """The mean of the kernels that agree with the most central one, each moved by whole pixels to where it matches it.

    Agreement is the maximum of the normalised cross-correlation (MNC); the most central kernel is the one whose mean
    agreement with the others is largest.

    Args:
        kernels: `(B, R, h, w)` of R runs, non-negative, each of sum one.
        counts: `(B, R)`, whether a run counts; where none does all do.
        min_agreement: with the most central kernel, in [0, 1].

    Returns:
        `(B, 1, h, w)`, recentred.
    """
    counts = torch.where(counts.any(1, keepdim=True), counts, torch.ones_like(counts))
    merged = [_consensus(each[valid], min_agreement) for each, valid in zip(kernels, counts, strict=True)]
    return recentre_integer(torch.stack(merged))


def _consensus(kernels: Tensor, min_agreement: float) -> Tensor:
    """`(R, h, w)` to `(1, h, w)`."""
    agreement, rows, columns = match_central(kernels)
    return moved(kernels.unsqueeze(1), rows, columns)[agreement >= min_agreement].mean(0)


def match_central(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How well kernels `(R, h, w)` agree with the most central one, and where.

    Returns:
        `(R,)` the maximum of the normalised cross-correlation with it, and by how many whole pixels each must move down
        and to the right to match it best, `(R,)` each: the central one, which agrees most, by none.
    """
    h, w = kernels.shape[-2:]
    correlation = cross_correlate(kernels.unsqueeze(1), kernels.unsqueeze(0))  # (R, R, 2 h - 1, 2 w - 1)
    norm = kernels.square().sum((-2, -1)).sqrt()
    # A kernel of a failed run may be NaN: it agrees with none.
    agreement = (correlation.amax((-2, -1)) / (norm[:, None] * norm)).nan_to_num(-1.0)
    central = int(agreement.sum(1).argmax())
    best = correlation[:, central].flatten(1).argmax(1)
    rows, columns = best // (2 * w - 1) - (h - 1), best % (2 * w - 1) - (w - 1)
    agreement[central, central] = 1.0  # of a failed run too
    return agreement[:, central], rows, columns
