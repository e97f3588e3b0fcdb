"""Several short runs of a blind method, of which the one that explains the measurement best is refined.

Blind deconvolution has many local optima, and a run's seed decides in which it ends. The residual tells good ends from
bad ones: a wrong kernel leaves what no sharp picture explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.methods.base import BlindMethod, Callback, Measurement, Restarts, Restoration
from codiffuse.methods.steps import check_counts, part_of_run
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource
from codiffuse.simulate.gaussian import gaussian_kernel


@dataclass(frozen=True)
class BestOfRestarts:
    """Restarts, a choice by the residual, refinements that must lower it.

    Attributes:
        first: blind method that is run once for each of `initial_widths`, each time with fresh noise.
        refine: blind method that goes on from the best kernel and image so far, `num_refinements` times; what it finds
            is kept where it lowers the residual.
        kernel_size: side of the unknown kernel, px.
        initial_widths: standard deviations of the Gaussian kernels that the runs start from, as shares of
            `kernel_size`. A delta is a poor start: the first M-steps, which see coarse structure only, keep its peak.
        num_refinements: runs of `refine`.
    """

    first: BlindMethod
    refine: BlindMethod
    kernel_size: int = 33
    initial_widths: Sequence[float] = (0.09, 0.045, 0.15, 0.06)
    num_refinements: int = 2
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(kernel_size=self.kernel_size, initial_widths=len(self.initial_widths))
        if self.num_refinements < 0:
            raise InputError(f"Expected num_refinements >= 0, got {self.num_refinements}.")
        if min(self.initial_widths) <= 0:
            raise InputError(f"Expected initial_widths > 0 (shares of kernel_size), got {list(self.initial_widths)}.")

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.initial_widths) * self.first.num_steps + self.num_refinements * self.refine.num_steps

    def with_kernel_size(self, size: int) -> BestOfRestarts:
        """The same method for another kernel size."""
        first, refine = self.first.with_kernel_size(size), self.refine.with_kernel_size(size)
        return replace(self, kernel_size=size, first=first, refine=refine)

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        return self.first.supports(operator) or self.refine.supports(operator)

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y`; arguments as for the methods inside. An `init` replaces the Gaussians."""
        starts = [init or {"kernel": self._gaussian(measurement.y, width)} for width in self.initial_widths]
        best: Restoration | None = None
        kernels, residuals = [], []
        done = nfe = 0
        for number in range(len(starts) + self.num_refinements):
            refining = number >= len(starts)
            method, start = (self.refine, best.as_init()) if refining else (self.first, starts[number])
            found = method(measurement, noise=noise, init=start, callback=part_of_run(callback, done, self.num_steps))
            if not refining:
                kernels.append(found.params["kernel"][:, 0])
                residuals.append(residual(measurement, found))
            best = found if best is None else keep_better(measurement, best, found)
            done, nfe = done + method.num_steps, nfe + found.nfe
        return replace(best, nfe=nfe, restarts=Restarts(torch.stack(kernels, 1), torch.stack(residuals, 1)))

    def _gaussian(self, y: Tensor, width: float) -> Tensor:
        kernel = gaussian_kernel(self.kernel_size, width * self.kernel_size)
        return kernel.to(y).expand(len(y), -1, -1, -1)


def residual(measurement: Measurement, found: Restoration) -> Tensor:
    """`(B,)` rms of y - A x over the pixels that count, in units of sigma; infinite for a failed image."""
    rms = measurement.misfit(found.canvas(), found.params).sqrt()
    failed = torch.tensor([status != "ok" for status in found.status], device=rms.device)
    return torch.where(failed, torch.inf, (rms / measurement.sigma).nan_to_num(torch.inf))


def keep_better(measurement: Measurement, best: Restoration, found: Restoration) -> Restoration:
    """For each image, whichever of two restorations has the smaller residual."""
    better = residual(measurement, found) < residual(measurement, best)

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Restoration(
        image=choose(found.image, best.image),
        params={name: choose(value, best.params[name]) for name, value in found.params.items()},
        samples=choose(found.samples, best.samples),
        raw={name: choose(value, best.raw[name]) for name, value in found.raw.items()},
        nfe=found.nfe,
        status=tuple(
            new if chosen else old for new, old, chosen in zip(found.status, best.status, better.tolist(), strict=True)
        ),
    )
