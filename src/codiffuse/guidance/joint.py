"""Guidance of all unknowns of a blind problem at once: PiGDM for image and operator together.

PiGDM (Song et al. 2023) takes p(x0 | x_t) as N(x0-hat, r_t^2 I). With the parameters of the operator treated alike, y
is about Gaussian around A(x0-hat, k0-hat) with the covariance

    S = A R A^T + r_k^2 B B^T + (that of the product of both errors) + sigma^2 I,

where A and B are the derivatives of the measurement in the image and in the kernel. S discounts what an error of
either could explain, so that neither is pulled to mend the other's. DPS, which BlindDPS takes, has S ~ I. R is r_t^2 I,
or that of pictures, whose neighbouring pixels are alike (`PowerLaw`): what x_t leaves open is then mostly fine detail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import Size, over_batch
from codiffuse.guidance.coupled import Estimates, Pull
from codiffuse.operators.covariance import Covariance, Stationary
from codiffuse.schedule import Step

LENGTHS = ("joint", "parameters_first", "assumed")


@dataclass(frozen=True)
class PowerLaw:
    """Natural images as a stationary Gaussian process: the power `amplitude` |f|^-`exponent` at each frequency.

    The defaults were fitted to the brightness of photographs in [-1, 1] units (docs/methods.md).

    Attributes:
        amplitude: power at one cycle a pixel.
        exponent: how fast it falls.
        lowest: cycles a pixel, below which it is constant: pictures have an end.
    """

    amplitude: float = 0.0037
    exponent: float = 2.5
    lowest: float = 0.004

    def __post_init__(self) -> None:
        for name in ("amplitude", "exponent", "lowest"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(
                    f"Expected a number > 0 for {name} of the image's spectrum, got {value!r}; set "
                    f"method.guidance.data_variance.image.{name}=."
                )

    def power(self, grid: Size, device: torch.device) -> Tensor:
        """`(H, W // 2 + 1)`, on the half spectrum of `rfft2`, float64."""
        rows = torch.fft.fftfreq(grid[0], dtype=torch.float64, device=device)[:, None]
        columns = torch.fft.rfftfreq(grid[1], dtype=torch.float64, device=device)
        return self.amplitude * torch.hypot(rows, columns).clamp_min(self.lowest) ** -self.exponent


def _stationary(law: PowerLaw, step: Step, unit: Tensor) -> Stationary:
    def power(grid: Size) -> Tensor:
        r2 = step.gaussian_variance(law.power(grid, unit.device)).to(unit)
        return unit.square().reshape(-1, 1, 1, 1) * r2

    return Stationary(power)


@dataclass(frozen=True)
class JointPiGDM:
    """Gaussian guidance of several unknowns.

    Attributes:
        data_variance: v > 0 of each unknown in its diffusion coordinates: r_t^2 = (1 - alpha_bar) v / (1 - alpha_bar +
            alpha_bar v), the posterior variance of Gaussian data of that variance; infinite: (1 - alpha_bar) /
            alpha_bar. Of the image also a `PowerLaw`: the same at each frequency.
        zeta: factor on the gradient: `sqrt_alpha_bar` (Fast EM) or `one` (theory).
        data_unit: of unknowns whose priors differ in the unit of their coordinates, such as tilts, the unit (px) that
            `data_variance` is meant in; that of the prior at hand where it is left out.
        lengths: of a step. S is what the errors are taken for, while the networks' derivatives say how far the x0-hats
            really go. `assumed` trusts S. The others look at how much of the residual a step would explain: `joint`
            gives all x0-hats one length; `parameters_first` gives those of the operator theirs, then the image what
            explains the rest. That suits laws of few numbers, such as Gaussian kernels.
    """

    data_variance: Mapping[str, float | PowerLaw]
    zeta: Literal["sqrt_alpha_bar", "one"] = "sqrt_alpha_bar"
    data_unit: Mapping[str, float] = field(default_factory=dict)
    lengths: Literal["assumed", "joint", "parameters_first"] = "assumed"

    def __post_init__(self) -> None:
        if self.lengths not in LENGTHS:
            raise InputError(
                f"Expected lengths among {', '.join(LENGTHS)}, got {self.lengths!r}; set step_lengths=joint."
            )
        if self.zeta not in ("sqrt_alpha_bar", "one"):
            raise InputError(f"Expected zeta sqrt_alpha_bar or one, got {self.zeta!r}.")
        for setting in ("data_variance", "data_unit"):
            if not isinstance(getattr(self, setting), Mapping):
                raise InputError(
                    f"Expected {setting} of each unknown, got {getattr(self, setting)!r}; set "
                    f"method.guidance.{setting}.kernel=."
                )
            for name, value in getattr(self, setting).items():
                if setting == "data_variance" and name == "image" and isinstance(value, PowerLaw):
                    continue
                if not isinstance(value, int | float) or not value > 0:
                    raise InputError(
                        f"Expected a number > 0 for {setting}.{name} of joint PiGDM, got {value!r}; set "
                        f"method.guidance.{setting}.{name}=."
                    )

    def covariance(self, name: str, step: Step, unit: Tensor) -> Covariance:
        """r_t^2 of an unknown in its values' units, `(N,)` where it is white; `unit` `(N,)` is that of its coordinates.

        Raises:
            InputError: its variance is not given.
        """
        if name not in self.data_variance:
            raise InputError(
                f"Expected the data variance of {name} for joint PiGDM, got that of {', '.join(self.data_variance)}; "
                f"set method.guidance.data_variance.{name}=."
            )
        data_variance = self.data_variance[name]
        if isinstance(data_variance, PowerLaw):
            return _stationary(data_variance, step, unit)
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
        return at.operator.solve_joint_gram(residual, self._r2(at), variance.mean((1, 2, 3)), **at.values, mask=at.mask)

    def _r2(self, at: Estimates) -> dict[str, Covariance]:
        return {name: self.covariance(name, at.step, at.units[name]) for name in at.values}

    def measured(self, shifts: Mapping[str, Tensor], pull: Pull, steps: Mapping[str, float]) -> Mapping[str, Tensor]:
        """The shifts of all x0-hats, as long as `lengths` says, times zeta and a step of each.

        A shift is C J^T w, with the covariance C of what x_t leaves open as the networks' derivatives give it, and
        w = S^-1 r. Were S = J C J^T + sigma^2 I, the whole of it would be the mean of the posterior. As it is not,
        `joint` takes the first step of conjugate gradients for that system, preconditioned by S.
        """
        zeta = math.sqrt(pull.at.step.alpha_bar) if self.zeta == "sqrt_alpha_bar" else 1.0
        taken = {name: zeta * steps[name] * shift for name, shift in shifts.items()}
        if self.lengths == "assumed":
            return taken
        if self.lengths == "joint":
            return _scaled(taken, _step_length(pull, pull.residual, pull.explained(shifts)))
        image = {"image": shifts["image"]}
        parameters = {name: shift for name, shift in shifts.items() if name not in image}
        length = self._parameter_length(pull, pull.explained(parameters))
        found = _scaled({name: taken[name] for name in parameters}, length)
        rest = pull.residual - pull.explained(found)
        length = _step_length(pull, rest, pull.explained(image))
        return found | _scaled({"image": taken["image"]}, length)

    def _parameter_length(self, pull: Pull, explained: Tensor) -> Tensor:
        """`(N,)` for the parameters of the operator, given what their shifts explain.

        The first step of conjugate residuals for S' w = r, where S' has their networks' covariance in place of the
        one assumed: it leaves least of r, as S weighs it.
        """
        at, w = pull.at, pull.weighed
        assumed = at.operator.parameter_gram(w, self._r2(at), **at.values, mask=at.mask)
        really = pull.residual - assumed + explained  # S' w, as S w is the residual
        along = (w * really).sum((1, 2, 3))
        return _ratio(along, (really * self.weigh(really, pull.variance, at)).sum((1, 2, 3)))

    def x0_shift(self, gradient: Tensor, step: Step) -> Tensor:
        """What guidance adds to x0-hat, before zeta: (1 - alpha_bar) / sqrt(alpha_bar) gradient."""
        return gradient * step.score_weight


def _scaled(shifts: Mapping[str, Tensor], length: Tensor) -> dict[str, Tensor]:
    return {name: over_batch(length, shift) * shift for name, shift in shifts.items()}


def _step_length(pull: Pull, residual: Tensor, explained: Tensor) -> Tensor:
    """`(N,)`: <r, w> / <w, (J C J^T + sigma^2) w>, along shifts C J^T w that explain J C J^T w of a residual r."""
    along, across = ((pull.weighed * v).sum((1, 2, 3)) for v in (residual, explained + pull.variance * pull.weighed))
    return _ratio(along, across)


def _ratio(along: Tensor, across: Tensor) -> Tensor:
    """A length >= 0: what goes the wrong way is not taken."""
    return torch.where(across > 0, along / across.clamp_min(1e-20), 0.0).clamp_min(0)
