"""Several short runs of a blind method, and one more from what they agree on.

Blind deconvolution has many local optima, and a run's start decides in which it ends. Runs that err do so in different
ways, so the mean of the kernels that agree is better than nearly each of them (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.consensus import consensus
from codiffuse.methods.base import BlindMethod, Callback, Measurement, Restarts, Restoration, choose
from codiffuse.methods.steps import check_counts, part_of_run
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource
from codiffuse.simulate.gaussian import gaussian_kernel


@dataclass(frozen=True)
class BestOfRestarts:
    """Restarts, their consensus, refinements.

    Attributes:
        first: blind method that is run once for each of `initial_widths`, each time with fresh noise.
        refine: blind method that goes on from the kernel of the restarts, `num_refinements` times.
        kernel_size: side of the unknown kernel, px.
        initial_widths: standard deviations of the Gaussian kernels that the runs start from, as shares of
            `kernel_size`. A delta is a poor start: the first M-steps, which see coarse structure only, keep its peak.
        num_refinements: runs of `refine`.
        min_agreement: MNC with the most central kernel from which a run's kernel enters the mean that refinement
            starts from; what refinement finds is then kept, unless it failed. `None` starts from the run of least
            residual, and keeps what lowers it.
    """

    first: BlindMethod
    refine: BlindMethod
    kernel_size: int = 33
    initial_widths: Sequence[float] = (0.09, 0.045, 0.15, 0.06)
    num_refinements: int = 1
    min_agreement: float | None = 0.6
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(kernel_size=self.kernel_size, initial_widths=len(self.initial_widths))
        if self.num_refinements < 0:
            raise InputError(f"Expected num_refinements >= 0, got {self.num_refinements}.")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"Expected min_agreement in [0, 1] or null, got {self.min_agreement}.")
        if min(self.initial_widths) <= 0:
            raise InputError(f"Expected initial_widths > 0 (shares of kernel_size), got {list(self.initial_widths)}.")

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.initial_widths) * self.first.num_steps + self.num_refinements * self.refine.num_steps

    @property
    def work(self) -> float:
        """Time of a whole run, in steps of one particle at the resolution of y."""
        return len(self.initial_widths) * self.first.work + self.num_refinements * self.refine.work

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
        runs: list[Restoration] = []
        for start in starts:
            seen = part_of_run(callback, len(runs) * self.first.num_steps, self.num_steps)
            runs.append(self.first(measurement, noise=noise, init=start, callback=seen))
        kernels = torch.cat([found.params["kernel"] for found in runs], 1)
        residuals = torch.stack([residual(measurement, found) for found in runs], 1)
        best = reduce(partial(keep_better, measurement), runs)
        start, done = best.as_init(), len(runs) * self.first.num_steps
        if self.min_agreement is not None:
            start = {"kernel": consensus(kernels, torch.isfinite(residuals), self.min_agreement)}
        nfe = sum(found.nfe for found in runs)
        for _ in range(self.num_refinements):
            seen = part_of_run(callback, done, self.num_steps)
            found = self.refine(measurement, noise=noise, init=start, callback=seen)
            best = self._keep(measurement, best, found)
            start, done, nfe = best.as_init(), done + self.refine.num_steps, nfe + found.nfe
        return replace(best, nfe=nfe, restarts=Restarts(kernels, residuals))

    def _keep(self, measurement: Measurement, best: Restoration, found: Restoration) -> Restoration:
        if self.min_agreement is None:
            return keep_better(measurement, best, found)
        return choose(torch.isfinite(residual(measurement, found)), found, best)

    def _gaussian(self, y: Tensor, width: float) -> Tensor:
        kernel = gaussian_kernel(self.kernel_size, width * self.kernel_size)
        return kernel.to(y).expand(len(y), -1, -1, -1)


def residual(measurement: Measurement, found: Restoration) -> Tensor:
    """`(B,)` rms of y - A x over the pixels that count, in units of sigma; infinite for a failed image."""
    rms = measurement.misfit(found.canvas(), found.params).sqrt()
    return torch.where(found.failed, torch.inf, (rms / measurement.sigma).nan_to_num(torch.inf))


def keep_better(measurement: Measurement, best: Restoration, found: Restoration) -> Restoration:
    """For each image, whichever of two restorations has the smaller residual."""
    return choose(residual(measurement, found) < residual(measurement, best), found, best)
