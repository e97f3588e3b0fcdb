"""Coarse to fine: the kernel at a lower resolution first, where it is smaller, easier to find, and cheaper.

Blurring and averaging over blocks of pixels nearly commute, so a coarse measurement is the coarse scene blurred with
the kernel at that scale. The idea is that of the first methods for photographs (Fergus et al., SIGGRAPH 2006).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.methods.base import BlindMethod, Callback, Measurement, Restoration
from codiffuse.methods.steps import check_counts, of_part, part_of_run
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource
from codiffuse.spaces import shift_and_divide

MIN_SIDE = 32  # of a coarse measurement, px: less of it tells nothing


@dataclass(frozen=True)
class CoarseToFine:
    """A blind method at a lower resolution; another that goes on from its kernel, at each resolution above.

    The resolution is halved as often as the kernel keeps a side of `coarse_kernel` and the picture one of `MIN_SIDE`
    pixels; where the kernel is small from the start, both methods run at the resolution of y.

    Attributes:
        coarse: finds the kernel at the lowest resolution.
        fine: goes on from a kernel.
        kernel_size: side of the unknown kernel, px.
        coarse_kernel: least side of the kernel at the lowest resolution, px.
    """

    coarse: BlindMethod
    fine: BlindMethod
    kernel_size: int = 33
    coarse_kernel: int = 17
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(kernel_size=self.kernel_size)
        if self.coarse_kernel < 3:
            raise InputError(f"Expected coarse_kernel >= 3 px, got {self.coarse_kernel}.")

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return sum(method.num_steps for method, _ in self._runs())

    @property
    def work(self) -> float:
        """Time of a whole run, in steps at the resolution of y."""
        return sum(method.work / factor**2 for method, factor in self._runs())

    def with_kernel_size(self, size: int) -> CoarseToFine:
        """The same method for another kernel size."""
        return replace(self, kernel_size=size)

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        return self.coarse.supports(operator) or self.fine.supports(operator)

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y`; arguments as for the methods inside. With an `init` all runs see y as it is."""
        found: Restoration | None = None
        done, nfe, last, restarts = 0, 0, 1, None
        largest = 1 if init else largest_factor(measurement)
        for method, wanted in self._runs():
            factor = min(wanted, largest)
            seen, size = coarser(measurement, factor), coarse_size(self.kernel_size, factor)
            start = init if found is None else {"kernel": upsampled(found.params["kernel"], last // factor, size)}
            told = part_of_run(callback if factor == 1 else of_part(callback, seen), done, self.num_steps)
            found = method.with_kernel_size(size)(seen, noise=noise, init=start, callback=told)
            if found.restarts is not None:
                kernels = upsampled(found.restarts.kernels, factor, self.kernel_size)
                restarts = replace(found.restarts, kernels=kernels)
            done, nfe, last = done + method.num_steps, nfe + found.nfe, factor
        return replace(found, nfe=nfe, restarts=restarts)

    def _runs(self) -> list[tuple[BlindMethod, int]]:
        """Methods in their order, each with the side of the blocks that it sees of a large picture."""
        factors = [1]
        while coarse_size(self.kernel_size, 2 * factors[0]) >= self.coarse_kernel:
            factors.insert(0, 2 * factors[0])
        return [(self.coarse, factors[0]), *((self.fine, factor) for factor in factors[1:] or factors)]


def largest_factor(measurement: Measurement) -> int:
    """The largest power of two by which a measurement can be made coarser."""
    factor = 1
    while min(measurement.y.shape[-2:]) >= 2 * factor * MIN_SIDE:
        factor *= 2
    return factor


def coarser(measurement: Measurement, factor: int) -> Measurement:
    """The means over blocks of `factor` x `factor` pixels; an incomplete block at the end of an axis is left out.

    The noise level stays: the mean of a block has less noise, but the two sides of the model agree only up to aliasing,
    and with the level kept more kernels are found (docs/methods.md). A block with a masked pixel is masked.
    """
    if factor == 1:
        return measurement
    mask = measurement.mask
    if mask is not None:
        mask = (F.avg_pool2d(mask, factor) == 1).to(mask)
    operator = measurement.operator
    if any(side % factor for side in measurement.y.shape[-2:]):  # a periodic picture loses its period with a row
        operator = replace(operator, boundary="unknown", pad_value=0.0)
    return replace(measurement, y=F.avg_pool2d(measurement.y, factor), mask=mask, operator=operator, known={})


def coarse_size(size: int, factor: int) -> int:
    """The odd side that a kernel of `size` px needs in blocks of `factor` px."""
    return -(-size // factor) | 1


def upsampled(kernel: Tensor, factor: int, size: int) -> Tensor:
    """A kernel of a coarse measurement at the resolution of the fine one.

    Args:
        kernel: `(B, R, h, h)`, centre h//2.
        factor: between the resolutions.
        size: side of the result, px.

    Returns:
        `(B, R, size, size)`, non-negative, each of sum one, the centre where it was.
    """
    side = factor * (kernel.shape[-1] - 1) + 1
    fine = F.interpolate(kernel, (side, side), mode="bicubic", align_corners=True)
    margin = size // 2 - side // 2  # below zero it crops
    return shift_and_divide(F.pad(fine, (margin, size - side - margin) * 2))
