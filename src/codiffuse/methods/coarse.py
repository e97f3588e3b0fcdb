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
LARGEST_BLOCK = 8  # px: what pictures side by side must leave room for


@dataclass(frozen=True)
class CoarseToFine:
    """A blind method at a lower resolution; another that goes on from its kernel, at each resolution above.

    The resolution is halved as often as the kernel keeps a side of `coarse_kernel` and the picture one of `MIN_SIDE`
    pixels; where the kernel has no room for that, both methods run at the resolution of y.

    Attributes:
        coarse: finds the kernel at the lowest resolution.
        fine: goes on from a kernel.
        kernel_size: side of the unknown kernel, px.
        coarse_kernel: least side of the kernel at the lowest resolution, px.
        small: finds a kernel smaller than `coarse_kernel`, instead of both; `None` leaves it to them.
    """

    coarse: BlindMethod
    fine: BlindMethod
    kernel_size: int = 33
    coarse_kernel: int = 17
    small: BlindMethod | None = None
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
        """Time of a whole run, in steps of one particle at the resolution of y."""
        return sum(method.work / factor**2 for method, factor in self._runs())

    def with_kernel_size(self, size: int) -> CoarseToFine:
        """The same method for another kernel size."""
        return replace(self, kernel_size=size)

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        problems = (method.supports(operator) for method in (self.coarse, self.fine, self.small) if method)
        return next((problem for problem in problems if problem), None)

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
        largest = 1 if init else largest_factor(measurement, self.kernel_size)
        for method, wanted in self._runs():
            factor = min(wanted, largest)
            seen, size = coarser(measurement, factor), coarse_size(self.kernel_size, factor)
            start = init if found is None else {"kernel": upsampled(found.params["kernel"], last // factor, size)}
            told = part_of_run(
                callback if factor == 1 else of_part(callback, seen, factor=factor), done, self.num_steps
            )
            found = method.with_kernel_size(size)(seen, noise=noise, init=start, callback=told)
            if found.restarts is not None:
                restarts = replace(found.restarts, factor=factor)
            done, nfe, last = done + method.num_steps, nfe + found.nfe, factor
        return replace(found, nfe=nfe, restarts=restarts)

    def _runs(self) -> list[tuple[BlindMethod, int]]:
        """Methods in their order, each with the side of the blocks that it sees of a large picture."""
        if self.small and self.kernel_size < self.coarse_kernel:
            return [(self.small, 1)]
        factors = [1]
        while coarse_size(self.kernel_size, 2 * factors[0]) >= self.coarse_kernel:
            factors.insert(0, 2 * factors[0])
        return [(self.coarse, factors[0]), *((self.fine, factor) for factor in factors[1:] or factors)]


def largest_factor(measurement: Measurement, kernel_size: int) -> int:
    """The largest power of two by which a measurement can be made coarser: it must still hold the kernel."""
    factor, side = 1, min(measurement.y.shape[-2:])
    while factor < LARGEST_BLOCK and side // (2 * factor) >= max(MIN_SIDE, coarse_size(kernel_size, 2 * factor)):
        factor *= 2
    return factor


def coarser(measurement: Measurement, factor: int) -> Measurement:
    """The means over blocks of `factor` x `factor` pixels; an incomplete block at the end of an axis is left out.

    The noise level stays: the mean of a block has less noise, but the two sides of the model agree only up to aliasing,
    and with the level kept more kernels are found (docs/methods.md). Masked pixels do not enter a mean, and a block
    counts when more than half of its pixels do.
    """
    if factor == 1:
        return measurement
    y, mask = measurement.y, measurement.mask
    if mask is None:
        y = F.avg_pool2d(y, factor)
    else:
        kept = F.avg_pool2d(mask, factor)
        y, mask = F.avg_pool2d(mask * y, factor) / kept.clamp_min(1 / factor**2), (kept > 0.5).to(mask)
    operator = measurement.operator
    if any(side % factor for side in measurement.y.shape[-2:]):  # a periodic picture loses its period with a row
        operator = replace(operator, boundary="unknown", pad_value=0.0)
    return replace(measurement, y=y, mask=mask, operator=operator, known={})


def coarse_size(size: int, factor: int) -> int:
    """The side, odd but at factor 1, that a kernel of `size` px needs in blocks of `factor` px."""
    return size if factor == 1 else -(-size // factor) | 1


def downsampled(kernel: Tensor, factor: int) -> Tensor:
    """The kernel that blurs the block means of a picture like `kernel` blurs the picture.

    It is `kernel` seen through two blocks, that of the picture and that of the measurement: exact for pictures that are
    constant over blocks.

    Args:
        kernel: `(..., h, w)`, centre `(h//2, w//2)`.
        factor: side of the blocks, px.

    Returns:
        `(..., h', w')`, of the size of `coarse_size`, centred.
    """
    if factor == 1:
        return kernel
    margins = []
    for side in reversed(kernel.shape[-2:]):
        coarse = coarse_size(side, factor)
        before = factor * (coarse // 2) - side // 2
        after = factor * (coarse - 1) + 1 - side - before
        margins += [before + factor - 1, after + factor - 1]
    triangle = factor - torch.arange(1 - factor, factor, device=kernel.device).abs().to(kernel)
    weights = (triangle[:, None] * triangle)[None, None] / factor**2  # each block gets all of the mass it sees
    padded = F.pad(kernel, margins)
    seen = F.conv2d(padded.reshape(-1, 1, *padded.shape[-2:]), weights, stride=factor)
    return seen.reshape(*kernel.shape[:-2], *seen.shape[-2:])


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
