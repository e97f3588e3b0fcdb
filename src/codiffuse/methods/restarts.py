"""Several short runs of a blind method, of which the one that explains the measurement best is refined.

Blind deconvolution has many local optima, and a run's seed decides in which it ends. The residual tells good ends from
bad ones: a wrong kernel leaves what no sharp picture explains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.methods.base import Callback, Measurement, Method, Restoration
from codiffuse.methods.steps import check_counts, part_of_run
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource


@dataclass(frozen=True)
class BestOfRestarts:
    """Restarts, a choice by the residual, refinements that must lower it.

    Attributes:
        first: blind method that is run `num_restarts` times, each time with fresh noise.
        refine: blind method that goes on from the best kernel and image so far, `num_refinements` times; what it finds
            is kept where it lowers the residual.
        num_restarts: runs of `first`.
        num_refinements: runs of `refine`.
    """

    first: Method
    refine: Method
    num_restarts: int = 4
    num_refinements: int = 3
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(num_restarts=self.num_restarts)

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return self.num_restarts * self.first.num_steps + self.num_refinements * self.refine.num_steps

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
        """Restore `measurement.y`; arguments as for the methods inside."""
        best: Restoration | None = None
        done = nfe = 0
        for number in range(self.num_restarts + self.num_refinements):
            refining = number >= self.num_restarts
            method, start = (self.refine, best.as_init()) if refining else (self.first, init)
            part = part_of_run(callback, done, self.num_steps)
            found = method(measurement, noise=noise, init=start, callback=part)
            best = found if best is None else keep_better(measurement, best, found)
            done, nfe = done + method.num_steps, nfe + found.nfe
        return replace(best, nfe=nfe)


def residual(measurement: Measurement, found: Restoration) -> Tensor:
    """`(B,)` rms of y - A x over the frame, in units of sigma; infinite for a failed image."""
    image = found.canvas().clamp(0, 1)
    rms = (measurement.operator(image, **found.params) - measurement.y).square().flatten(1).mean(1).sqrt()
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
