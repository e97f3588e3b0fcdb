"""What BlindDPS asks of a guidance: one residual that moves all unknowns of a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from codiffuse.operators.operator import Operator
from codiffuse.schedule import Step


@dataclass(frozen=True)
class Estimates:
    """Where the chains of all unknowns are at a step; N counts the particles of all images.

    Attributes:
        operator: A.
        values: the x0-hats as values, by name: `image` `(N, C, H, W)` and the parameters of A.
        units: `(N,)` of each, `Space.unit`: how far a value goes with its coordinate.
        step: where in the chain.
        mask: `(N, 1, H', W')`, 0 where a pixel of y does not count; `None` counts all.
    """

    operator: Operator
    values: Mapping[str, Tensor]
    units: Mapping[str, Tensor]
    step: Step
    mask: Tensor | None = None


class CoupledGuidance(Protocol):
    """Approximation of the gradients of log p(y | x_t, k_t, ...) (BlindDPS, Theorem 1).

    Attributes:
        measures_steps: whether it wants to know how much of the residual a step would explain, to scale it by
            `step_length` (`JointPiGDM`).
    """

    @property
    def measures_steps(self) -> bool: ...

    def weigh(self, residual: Tensor, variance: Tensor, at: Estimates) -> Tensor:
        """What the derivatives of A take back to each unknown.

        Args:
            residual: `(N, C, H', W')`, y - A(values), 0 where a pixel does not count.
            variance: of the noise of each pixel.
            at: the estimates.
        """
        ...

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What it adds to x0-hat, given the gradient in x_t."""
        ...
