"""Regularisers of the kernel: Phi in Eq. (21) of Fast EM, as the step (23) that half-quadratic splitting asks for.

Each solves or replaces `argmin_K weight Phi(K) + beta / 2 ||K - Z||^2`; kernels are `(B, 1, h, w)` of sum one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class KernelDenoiser(Protocol):
    """`(kernel, sigma) -> kernel`, `sigma` `(B,)` in the kernel's units."""

    def __call__(self, kernel: Tensor, sigma: Tensor) -> Tensor: ...


class Regularizer(Protocol):
    """One regularisation step of half-quadratic splitting."""

    def __call__(self, kernel: Tensor, weight: float, beta: float) -> Tensor: ...


@dataclass(frozen=True)
class PnP:
    """Plug and play: a denoiser at noise level sqrt(weight / beta)  (Fast EM, Eq. 25)."""

    denoiser: KernelDenoiser

    def __call__(self, kernel: Tensor, weight: float, beta: float) -> Tensor:
        level = kernel.new_full((len(kernel),), (weight / beta) ** 0.5)
        with torch.no_grad():
            return self.denoiser(kernel, level)


@dataclass(frozen=True)
class L1:
    """Phi = ||K||_1: soft thresholding at weight / beta."""

    def __call__(self, kernel: Tensor, weight: float, beta: float) -> Tensor:
        return torch.nn.functional.softshrink(kernel, weight / beta)


@dataclass(frozen=True)
class L2:
    """Phi = ||K||^2 / 2: division by 1 + weight / beta.

    NOTE(paper vs code): the division to sum one that follows undoes it; it is here for comparison only.
    """

    def __call__(self, kernel: Tensor, weight: float, beta: float) -> Tensor:
        return kernel / (1 + weight / beta)


@dataclass(frozen=True)
class NoRegularizer:
    """Phi = 0: only the simplex."""

    def __call__(self, kernel: Tensor, weight: float, beta: float) -> Tensor:
        return kernel
