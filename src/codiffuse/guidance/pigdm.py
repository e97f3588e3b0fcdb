"""Pseudo-inverse guidance, PiGDM (Song et al. 2023; Fast EM, Eq. 17).

p(x0 | x_t) is taken as N(x0-hat, r_t^2 I), so that y | x_t ~ N(A x0-hat, r_t^2 A A^T + sigma^2 I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.operators.blur import BlurOperator
from codiffuse.schedule import Step


@dataclass(frozen=True)
class PiGDM:
    """Guidance by the Gaussian approximation of p(x0 | x_t).

    Attributes:
        r2_rule: r_t^2 = `one_minus_alpha_bar` (PiGDM), `vp` = (1 - alpha_bar) / (1 - alpha_bar + alpha_bar sigma_x^2)
            sigma_x^2 (the posterior variance of Gaussian data of variance sigma_x^2), or `beta_tilde` =
            beta~_t / (1 + beta~_t) (released Fast EM). The first two are derived in [-1, 1] units and converted; the
            released program uses its value in [0, 1] units as it is.
        r2_scale: factor on r_t^2.
        data_variance: sigma_x^2 of the `vp` rule, in [-1, 1] units.
        zeta: the factor on the gradient: `sqrt_alpha_bar` (paper), `one` (theory), or `released`.
    """

    r2_rule: Literal["one_minus_alpha_bar", "vp", "beta_tilde"] = "one_minus_alpha_bar"
    r2_scale: float = 1.0
    data_variance: float = 0.25
    zeta: Literal["sqrt_alpha_bar", "one", "released"] = "sqrt_alpha_bar"

    def __post_init__(self) -> None:
        if self.r2_rule not in ("one_minus_alpha_bar", "vp", "beta_tilde"):
            raise InputError(f"Expected r2_rule one_minus_alpha_bar, vp or beta_tilde, got {self.r2_rule!r}.")
        if self.zeta not in ("sqrt_alpha_bar", "one", "released"):
            raise InputError(f"Expected zeta sqrt_alpha_bar, one or released, got {self.zeta!r}.")
        if not self.data_variance > 0:
            raise InputError(f"Expected data_variance > 0 for PiGDM, got {self.data_variance}.")

    def r2(self, step: Step) -> float:
        """r_t^2 in [0, 1]^2 units."""
        if self.r2_rule == "beta_tilde":
            return self.r2_scale * step.posterior_variance / (1 + step.posterior_variance)
        variance = step.gaussian_variance(self.data_variance) if self.r2_rule == "vp" else 1 - step.alpha_bar
        return self.r2_scale * variance / 4

    def cotangent(
        self,
        operator: BlurOperator,
        y: Tensor,
        x0: Tensor,
        sigma: Tensor,
        step: Step,
        *,
        kernel: Tensor,
        mask: Tensor | None = None,
        y_hat: Tensor | None = None,
        x0_hat: Tensor | None = None,
    ) -> Tensor:
        """A^T (r_t^2 A A^T + sigma^2 I)^-1 (y - A x0), shaped like `x0` `(B, n, C, H, W)`.

        A `mask` `(B, 1, H', W')` is 0 where a pixel of y does not count; `y_hat` and `x0_hat` are the real FFTs of `y`
        and `x0` where they are at hand.
        """
        r2 = sigma.new_full(sigma.shape, self.r2(step))
        return operator.guidance_direction(
            y, x0, r2, sigma.square(), kernel=kernel, mask=mask, y_hat=y_hat, image_hat=x0_hat
        )

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What guidance adds to x0-hat: zeta_t (1 - alpha_bar) / sqrt(alpha_bar) gradient.

        In the mean of x_{t-1} this is the paper's zeta_t beta_t / sqrt(alpha_t) gradient (Fast EM, Eq. 15).
        """
        if self.zeta == "released":
            # NOTE(paper vs code): the mean moves by sqrt(alpha_bar) r^2 / sqrt(1 + beta~) gradient instead.
            weight = math.sqrt(step.alpha_bar) * self.r2(step) / math.sqrt(1 + step.posterior_variance)
            return gradient * (weight / step.x0_weight)
        zeta = math.sqrt(step.alpha_bar) if self.zeta == "sqrt_alpha_bar" else 1.0
        return gradient * (zeta * step.score_weight)
