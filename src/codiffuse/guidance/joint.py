"""Guidance of all unknowns of a blind problem at once: PiGDM for image and operator together.

PiGDM (Song et al. 2023) takes p(x0 | x_t) as N(x0-hat, r_t^2 I). With the parameters of the operator treated alike, y
is to first order Gaussian about A(x0-hat, k0-hat) with the covariance

    S = r_x^2 A A^T + r_k^2 B B^T + sigma^2 I,

where A and B are the derivatives of the measurement in the image and in the kernel. S discounts what an error of either
could explain, so that neither is pulled to mend the other's. DPS, which BlindDPS takes, has S ~ I.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.operators.blur import BlurOperator
from codiffuse.schedule import Step


@dataclass(frozen=True)
class JointPiGDM:
    """Gaussian guidance of several unknowns.

    Attributes:
        data_variance: of each unknown in its diffusion coordinates: r_t^2 = (1 - alpha_bar) v / (1 - alpha_bar +
            alpha_bar v), the posterior variance of Gaussian data of variance v; infinite: 1 - alpha_bar over alpha_bar.
        zeta: factor on the gradient: `sqrt_alpha_bar` (Fast EM) or `one` (theory).
    """

    data_variance: Mapping[str, float]
    zeta: Literal["sqrt_alpha_bar", "one"] = "sqrt_alpha_bar"

    def __post_init__(self) -> None:
        if self.zeta not in ("sqrt_alpha_bar", "one"):
            raise InputError(f"Expected zeta sqrt_alpha_bar or one, got {self.zeta!r}.")

    def r2(self, name: str, step: Step) -> float:
        """r_t^2 of an unknown, in its diffusion coordinates; raises InputError where its variance is not given."""
        if name not in self.data_variance:
            raise InputError(
                f"Expected the data variance of {name} for joint PiGDM, got that of {', '.join(self.data_variance)}; "
                f"set method.guidance.data_variance.{name}=."
            )
        return step.gaussian_variance(self.data_variance[name])

    def weigh(
        self,
        residual: Tensor,
        variance: Tensor,
        *,
        operator: BlurOperator,
        values: Mapping[str, Tensor],
        units: Mapping[str, Tensor],
        step: Step,
        mask: Tensor | None,
    ) -> Tensor:
        """S^-1 r, which the derivatives take back to each unknown.

        Args:
            residual: `(N, C, H', W')`, y - A(values), 0 where a pixel does not count.
            variance: of the noise of each pixel; its mean is taken.
            operator: A.
            values: the estimates, by name.
            units: `(N,)` of each, `Space.unit`.
            step: where in the chain.
            mask: `(N, 1, H', W')` or `None`.
        """
        r2 = {name: self.r2(name, step) * units[name].square() for name in values}
        return operator.solve_joint_gram(residual, r2, variance.mean((1, 2, 3)), **values, mask=mask)

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What guidance adds to x0-hat: zeta (1 - alpha_bar) / sqrt(alpha_bar) gradient."""
        zeta = math.sqrt(step.alpha_bar) if self.zeta == "sqrt_alpha_bar" else 1.0
        return gradient * (zeta * step.score_weight)
