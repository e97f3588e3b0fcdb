"""The unknowns of a blind problem, each with its own reverse process (BlindDPS, Remark 1).

Shapes: coordinates and values of a variable `(N, C, H, W)`, where N = B n counts the particles of all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Protocol

from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import Size
from codiffuse.methods.steps import PullBack, ReverseProcess, denoise
from codiffuse.priors.prior import Prior
from codiffuse.schedule import Step
from codiffuse.spaces import KernelSpace, Space


class Penalty(Protocol):
    """A term of the data loss that promotes sparsity of a kernel (BlindDPS, Eq. 20).

    It is added to what the guidance takes the gradient of, and its weight, lambda, counts in that unit: twice the norm
    of the residual in [0, 1] units, which is the norm of the paper's [-1, 1] units (DPS, rules `norm` and `constant`),
    or minus the log-likelihood in nats (DPS, rule `likelihood`, and joint PiGDM).
    """

    def __call__(self, x0: Tensor) -> Tensor:
        """`(N,)` of a kernel's coordinates, before they are normalised: -1 is no light."""
        ...


@dataclass(frozen=True)
class L1Penalty:
    """weight * sum |k|, of values in [0, 1]: once a kernel is normalised, this is one whatever the kernel."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, x0: Tensor) -> Tensor:
        return self.weight * ((x0 + 1) / 2).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class L0Penalty:
    """weight * sum k^2 / (k^2 + width^2), of values in [0, 1]: about how many exceed `width`, and with a gradient."""

    weight: float = 1.0
    width: float = 0.1

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not 0 < self.width < math.inf:
            raise InputError(f"Expected width > 0 of an l0 penalty, in units of the range [0, 1], got {self.width}.")

    def __call__(self, x0: Tensor) -> Tensor:
        square = ((x0 + 1) / 2).square()
        return self.weight * (square / (square + self.width**2)).flatten(1).sum(1)


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise InputError(f"Expected weight >= 0 and finite of a sparsity penalty (lambda), got {weight}.")


@dataclass(frozen=True)
class Variable:
    """An unknown with its prior.

    Attributes:
        prior: of its coordinates. `None` is the uniform prior: no denoising and no noise, a mere descent along the
            gradient of the likelihood (BlindDPS, Fig. 7).
        space: between its values and its coordinates; `None` is the prior's.
        channels: how many it has, where no prior says so: 1 of a kernel, 2 of a tilt field.
        size: side, or `(h, w)`, px; `None` is that of the image.
        step: factor on the guidance's step.
        projected_mean: whether the mean of x_{t-1} takes x0-hat as its values are after the projection (the paper's
            Alg. 1, lines 7 and 10), or as the prior gives it (the released program).
        penalty: what promotes sparsity of a kernel; see `Penalty` for the unit of its weight.
        dark: of a kernel, the share of the range up to which a value is no light; `None` is that of its space
            (`KernelSpace.dark`).
    """

    prior: Prior | None = None
    space: Space | None = None
    channels: int = 1
    size: int | tuple[int, int] | None = None
    step: float = 1.0
    projected_mean: bool = False
    penalty: Penalty | None = None
    dark: float | None = None

    def __post_init__(self) -> None:
        if self.prior is None and self.space is None:
            raise InputError("Expected a prior or a space for each variable, got neither; set space=.")
        if not self.step > 0:
            raise InputError(f"Expected a step > 0, got {self.step}.")
        if self.size is not None and not _is_size(self.size):
            raise InputError(
                f"Expected a size of whole pixels, N or [H, W] of at least 1, got {self.size!r}; set size=."
            )

    @property
    def coordinates(self) -> Space:
        """Between its values and its coordinates."""
        space = self.space if self.space is not None else self.prior.space
        has_dark = self.dark is not None and isinstance(space, KernelSpace)
        return replace(space, dark=self.dark) if has_dark else space

    def shape(self, image_size: Size) -> tuple[int, int, int]:
        """Channels, height and width, beside an image of that height and width."""
        channels = self.prior.channels if self.prior is not None else self.channels
        size = image_size if self.size is None else self.size
        return channels, *((size, size) if isinstance(size, int) else size)

    def denoise(self, x_t: Tensor, step: Step, *, clip: bool) -> tuple[Tensor, Tensor | None, PullBack]:
        """x0-hat, the variance fraction or `None`, and what takes a gradient from x0-hat back to x_t."""
        if self.prior is None:
            return x_t, None, lambda cotangent: cotangent
        x0, fraction, pull_back = denoise(self.prior, x_t.unsqueeze(1), step, clip=clip)
        return (
            x0.squeeze(1),
            None if fraction is None else fraction.squeeze(1),
            lambda cotangent: pull_back(cotangent.unsqueeze(1)).squeeze(1),
        )

    def advance(
        self,
        process: ReverseProcess,
        x_t: Tensor,
        x0: Tensor,
        shift: Tensor,
        step: Step,
        z: Tensor,
        fraction: Tensor | None,
    ) -> Tensor:
        """x_{t-1}, its mean moved by `shift` of x0-hat.

        Where `process.variance` is `learned`, so is that of each variable whose prior learned one; that of the others
        is beta~_t.
        """
        if self.prior is None:
            return (x_t + step.x0_weight * shift).clamp(-1, 1)
        if self.projected_mean:
            x0 = self.coordinates.encode(self.coordinates.decode(x0))
        if process.variance == "learned" and fraction is None:
            process = replace(process, variance="small")
        return process.advance(x_t, x0 + shift, step, z, fraction)


def _is_size(size: object) -> bool:
    sides = size if isinstance(size, tuple | list) else (size, size)
    return len(sides) == 2 and all(isinstance(side, Integral) and side >= 1 for side in sides)
