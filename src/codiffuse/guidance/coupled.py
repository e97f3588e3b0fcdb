"""What BlindDPS asks of a guidance: one residual that moves all unknowns of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        units: `(N,)` of each, `Space.unit`: how far values go with coordinates, in the root mean square.
        step: where in the chain.
        mask: `(N, 1, H', W')`, 0 where a pixel of y does not count; `None` counts all.
    """

    operator: Operator
    values: Mapping[str, Tensor]
    units: Mapping[str, Tensor]
    step: Step
    mask: Tensor | None = None


@dataclass(frozen=True)
class Pull:
    """How the measurement pulls at the x0-hats of a step.

    Attributes:
        at: the x0-hats.
        residual: `(N, C, H', W')`, y less what they predict, 0 where a pixel does not count.
        variance: of the noise of each pixel.
        weighed: the residual as the guidance weighs it.
        gradients: of the data term with respect to each x0-hat, in coordinates.
        explained: by how much shifts of some of the x0-hats change what they predict, to first order.
    """

    at: Estimates
    residual: Tensor
    variance: Tensor
    weighed: Tensor
    gradients: Mapping[str, Tensor]
    explained: Callable[[Mapping[str, Tensor]], Tensor]


class CoupledGuidance(Protocol):
    """Approximation of the gradients of log p(y | x_t, k_t, ...) (BlindDPS, Theorem 1)."""

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

    def measured(self, shifts: Mapping[str, Tensor], pull: Pull, steps: Mapping[str, float]) -> Mapping[str, Tensor]:
        """The shifts of all x0-hats, each as long as what it explains of the residual makes it, times its step."""
        ...
