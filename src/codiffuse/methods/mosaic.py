"""Several windows of one picture as one measurement, so that any blind method finds the kernel that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codiffuse.methods.base import Measurement
from codiffuse.methods.coarse import LARGEST_BLOCK
from codiffuse.methods.windows import Window


@dataclass(frozen=True)
class Mosaic:
    """Windows of one size in a row, with gaps that are masked out.

    A gap is as wide as the kernel less one, so that no pixel of the scene is seen by two windows, and wider by one
    `LARGEST_BLOCK`, because at a lower resolution the blocks at the ends of windows reach into it.

    Attributes:
        measurement: the row; the picture itself when its only window is the whole of it.
        windows: where they come from.
        gap: between two windows, px.
    """

    measurement: Measurement
    windows: tuple[Window, ...]
    gap: int

    @classmethod
    def of(cls, measurement: Measurement, windows: Sequence[Window], kernel_size: int) -> Mosaic:
        """Lays out windows of one size of a picture `(1, C, H, W)`, for a kernel of this side."""
        windows, gap = tuple(windows), kernel_size + LARGEST_BLOCK - 1
        if tuple(windows[0].crop(measurement.y).shape) == tuple(measurement.y.shape):
            return cls(measurement, windows, gap)
        parts = [measurement.through(window) for window in windows]
        if len(parts) == 1:
            return cls(parts[0], windows, gap)
        kept = [torch.ones_like(part.y[:, :1]) if part.mask is None else part.mask for part in parts]
        # Any value would do in a gap; with that of the edge a start from y begins closer to the scene.
        fill = [part.y[..., -1:].expand(-1, -1, -1, gap) for part in parts]
        hole = [torch.zeros_like(part[..., :1]).expand(-1, -1, -1, gap) for part in kept]
        y, mask = (torch.cat(_between(*pair), -1) for pair in (([part.y for part in parts], fill), (kept, hole)))
        return cls(replace(parts[0], y=y, mask=mask), windows, gap)

    def split(self, canvas: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Takes the row apart again.

        Args:
            canvas: `(1, C, H', W')`, an image on the canvas of the row's operator.

        Returns:
            y `(W, C, h, w)`, the image on the canvas of each window `(W, C, h', w')`, and the mask `(W, 1, h, w)` or
            `None`, of the W windows.
        """
        y, mask = self.measurement.y, self.measurement.mask
        width, beyond = self.windows[0].width, canvas.shape[-1] - y.shape[-1]
        lefts = [index * (width + self.gap) for index in range(len(self.windows))]

        def part(row: Tensor, extra: int = 0) -> Tensor:
            return torch.cat([row[..., left : left + width + extra] for left in lefts])

        return part(y), part(canvas, beyond), None if mask is None else part(mask)


def _between(parts: list[Tensor], fillings: list[Tensor]) -> list[Tensor]:
    """Part, filling, part, filling, ..., part."""
    pairs = [piece for pair in zip(parts, fillings, strict=True) for piece in pair]
    return pairs[:-1]
