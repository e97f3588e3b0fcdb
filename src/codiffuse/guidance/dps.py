"""Diffusion posterior sampling, DPS (Chung et al. 2023; Fast EM, Eq. 16): p(x0 | x_t) as a point at x0-hat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import over_batch, over_image
from codiffuse.guidance.coupled import Estimates, Pull
from codiffuse.operators.operator import Operator
from codiffuse.schedule import Step


@dataclass(frozen=True)
class DPS:
    """Guidance by the gradient of the data term.

    Attributes:
        rule: `norm`: step `scale` sqrt(alpha_bar) grad ||y - A x0-hat||, independent of sigma (released programs; in
            [-1, 1] units, whose residual norm is twice ours); `constant`: the same without sqrt(alpha_bar) (BlindDPS,
            Alg. 1); `likelihood`: zeta_t beta_t / sqrt(alpha_t) times
            grad -||y - A x0-hat||^2 / (2 sigma^2) (paper, Eq. 16 with the factor 1/2 that the Gaussian has), with
            zeta_t = `scale` sqrt(alpha_bar_t): stable only for small steps or large sigma.
        scale: see `rule`. When steps are dropped, `norm` wants scale x steps kept near 1000.
    """

    rule: Literal["norm", "constant", "likelihood"] = "norm"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in ("norm", "constant", "likelihood"):
            raise InputError(f"Expected rule norm, constant or likelihood, got {self.rule!r}.")
        if not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise InputError(f"Expected scale > 0 and finite for DPS, got {self.scale!r}; set method.guidance.scale=1.")

    def r2(self, step: Step) -> float:
        """The point approximation has no spread."""
        return 0.0

    def cotangent(
        self,
        operator: Operator,
        y: Tensor,
        x0: Tensor,
        sigma: Tensor,
        step: Step,
        *,
        mask: Tensor | None = None,
        y_hat: Tensor | None = None,
        x0_hat: Tensor | None = None,
        **params: Tensor,
    ) -> Tensor:
        """A^T (y - A x0) over sigma^2 (`likelihood`) or over half the particle's residual norm (`norm`).

        `sigma` is `(B,)`, or of each pixel, shaped like `y`; a `mask` `(B, 1, H', W')` is 0 where a pixel of y does not
        count; `params` are those of the operator.
        """
        residual = y - operator(x0, **params)
        if mask is not None:
            residual = residual * over_image(mask, residual)
        variance = (sigma if sigma.ndim > 1 else over_batch(sigma, residual)).square().expand_as(residual)
        return operator.adjoint(self.weigh(residual, variance), **params)

    def weigh(self, residual: Tensor, variance: Tensor, at: Estimates | None = None) -> Tensor:
        """What the derivatives of A take back: minus the gradient of the data term in A x.

        Args:
            residual: `(*, C, H, W)`, 0 where a pixel does not count.
            variance: of the noise of each pixel. Where it differs, the norm is that of the residual with the pixels
                weighed by it: so photon noise enters (Chung et al. 2023, Eq. 17).
            at: not used: a point has no spread, wherever it is.
        """
        if self.rule == "likelihood":
            return residual / variance
        weighed = residual * (variance.mean((-3, -2, -1), keepdim=True) / variance)
        # In [-1, 1] units the norm is twice as long: grad 2 ||r|| = -2 A^T r / ||r||.
        norm = (residual * weighed).sum((-3, -2, -1), keepdim=True).sqrt()
        return 2 * weighed / norm.clamp(min=1e-12)

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What guidance adds to x0-hat so that the mean of x_{t-1} moves by `rule` (in ancestral sampling, eta = 1)."""
        weight = self.scale * (1 if self.rule == "constant" else math.sqrt(step.alpha_bar))
        if self.rule == "likelihood":
            return gradient * (weight * step.score_weight)
        return gradient * (weight / step.x0_weight)

    def measured(self, shifts: Mapping[str, Tensor], pull: Pull, steps: Mapping[str, float]) -> Mapping[str, Tensor]:
        """The shifts times their steps: their length is a rule's."""
        return {name: steps[name] * shift for name, shift in shifts.items()}
