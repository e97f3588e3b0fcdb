"""Preconditioned conjugate gradients for the linear systems that have no closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS_BETWEEN_CHECKS = 10  # the device is asked only this often whether every system has converged


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float,
    axes: int = 2,
) -> Tensor:
    """Solves `M x = b` by preconditioned conjugate gradients, every plane `(..., H, W)` a system of its own.

    A system that has converged stays as it is, so a result does not depend on its neighbours in the batch.

    Args:
        matrix: applies M, symmetric and positive definite on each plane.
        rhs: b, `(..., H, W)`.
        start: first guess.
        precondition: applies an approximate inverse of M, symmetric and positive definite.
        iterations: most steps.
        axes: how many of the last axes belong to one system; 3 where the channels are coupled.
        tolerance: stop when `r^T P r <= tolerance^2 b^T P b`, with P the approximate inverse and r the residual.
    """
    tiny = torch.finfo(rhs.dtype).tiny
    limit = tolerance**2 * _dot(rhs, precondition(rhs), axes)
    x, residual = start, rhs - matrix(start)
    direction = preconditioned = precondition(residual)
    rho = _dot(residual, preconditioned, axes)
    for step in range(iterations):
        active = rho > limit
        if step % STEPS_BETWEEN_CHECKS == 0 and not active.any():
            break
        product = matrix(direction)
        step_size = active * rho / _dot(direction, product, axes).clamp_min(tiny)
        x = x + step_size * direction
        residual = residual - step_size * product
        preconditioned = precondition(residual)
        rho_next = _dot(residual, preconditioned, axes)
        direction = preconditioned + rho_next / rho.clamp_min(tiny) * direction
        rho = rho_next
    return x


def _dot(a: Tensor, b: Tensor, axes: int) -> Tensor:
    return (a * b).sum(tuple(range(-axes, 0)), keepdim=True)
