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
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.guidance.coupled import Estimates
from codiffuse.schedule import Step


@dataclass(frozen=True)
class JointPiGDM:
    """Gaussian guidance of several unknowns.

    Attributes:
        data_variance: v > 0 of each unknown in its diffusion coordinates: r_t^2 = (1 - alpha_bar) v / (1 - alpha_bar +
            alpha_bar v), the posterior variance of Gaussian data of that variance; infinite: (1 - alpha_bar) /
            alpha_bar.
        zeta: factor on the gradient: `sqrt_alpha_bar` (Fast EM) or `one` (theory).
        data_unit: of unknowns whose priors differ in the unit of their coordinates, such as tilts, the unit (px) that
            `data_variance` is meant in; that of the prior at hand where it is left out.
    """

    data_variance: Mapping[str, float]
    zeta: Literal["sqrt_alpha_bar", "one"] = "sqrt_alpha_bar"
    data_unit: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.zeta not in ("sqrt_alpha_bar", "one"):
            raise InputError(f"Expected zeta sqrt_alpha_bar or one, got {self.zeta!r}.")
        for setting in ("data_variance", "data_unit"):
            for name, value in getattr(self, setting).items():
                if not isinstance(value, int | float) or not value > 0:
                    raise InputError(
                        f"Expected a number > 0 for {setting}.{name} of joint PiGDM, got {value!r}; set "
                        f"method.guidance.{setting}.{name}=."
                    )

    def variance(self, name: str, step: Step, unit: Tensor) -> Tensor:
        """r_t^2 `(N,)` of an unknown in its values' units; `unit` `(N,)` is that of its coordinates.

        Raises:
            InputError: its variance is not given.
        """
        if name not in self.data_variance:
            raise InputError(
                f"Expected the data variance of {name} for joint PiGDM, got that of {', '.join(self.data_variance)}; "
                f"set method.guidance.data_variance.{name}=."
            )
        data_variance = self.data_variance[name]
        if name in self.data_unit:
            data_variance = data_variance * (self.data_unit[name] / unit).square()
        return step.gaussian_variance(data_variance) * unit.square()

    def weigh(self, residual: Tensor, variance: Tensor, at: Estimates) -> Tensor:
        """S^-1 r, which the derivatives take back to each unknown.

        Args:
            residual: `(N, C, H', W')`, y - A(values), 0 where a pixel does not count.
            variance: of the noise of each pixel; its mean is taken.
            at: the estimates.
        """
        r2 = {name: self.variance(name, at.step, at.units[name]) for name in at.values}
        return at.operator.solve_joint_gram(residual, r2, variance.mean((1, 2, 3)), **at.values, mask=at.mask)

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What guidance adds to x0-hat: zeta (1 - alpha_bar) / sqrt(alpha_bar) gradient."""
        zeta = math.sqrt(step.alpha_bar) if self.zeta == "sqrt_alpha_bar" else 1.0
        return gradient * (zeta * step.score_weight)
