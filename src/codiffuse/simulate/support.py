"""The support of what is simulated: its size, and of a kernel its normalisation and where its centre lies.

A kernel is a float32 tensor `(1, h, w)`, non-negative, with sum 1; its centre is the pixel `(h // 2, w // 2)`.
"""

import numpy as np
import torch
from torch import Tensor

from codiffuse.errors import InputError

Size = int | tuple[int, int]
HALF_TOLERANCE = 1e-5  # px: far above the rounding errors of a centre of mass


def sides(size: Size, what: str = "kernel", least: int = 3) -> tuple[int, int]:
    """Height and width of a kernel, or of a tilt field, given as one side (square) or as `(h, w)`.

    Raises:
        InputError: a side below `least` px.
    """
    h, w = (size, size) if isinstance(size, int | np.integer) else size
    if min(h, w) < least:
        raise InputError(f"a {what} needs at least {least} px a side, got size={size}: enlarge it")
    return h, w


def check_positive(name: str, *values: float, highest: float = float("inf")) -> None:
    """Raise InputError unless the values, one or the two ends of a range, are in (0, highest] and in rising order."""
    if not 0 < values[0] <= values[-1] <= highest:
        order = "" if len(values) == 1 else ", low <= high"
        raise InputError(f"expected 0 < {name} <= {highest}{order}, got {', '.join(map(str, values))}")


def as_kernel(raster: np.ndarray) -> Tensor:
    """Scale a non-negative raster `(h, w)` to sum 1 and return it as a float32 kernel `(1, h, w)`."""
    return torch.from_numpy((raster / raster.sum()).astype(np.float32))[None]


def pad_kernel(kernel: Tensor, size: Size) -> Tensor:
    """Zero-pad a kernel `(1, h, w)` to `size` so that its centre pixel becomes that of the larger support."""
    h, w = kernel.shape[-2:]
    canvas_h, canvas_w = sides(size)
    top, left = canvas_h // 2 - h // 2, canvas_w // 2 - w // 2
    bottom, right = canvas_h - h - top, canvas_w - w - left
    if min(top, left, bottom, right) < 0:
        raise InputError(
            f"a kernel of {h} x {w} pixels does not fit centred on {canvas_h} x {canvas_w}: enlarge the canvas"
        )
    return torch.nn.functional.pad(kernel, (left, right, top, bottom))


def centre_kernel(kernel: Tensor) -> Tensor:
    """Shift a kernel `(1, h, w)` by whole pixels until its centre of mass is within half a pixel of the centre pixel.

    Nothing wraps around: what is shifted over the border is cut off and the rest scaled back to sum 1. A cut moves the
    centre of mass again, hence the loop; it ends because each further round cuts off at least one more pixel, and
    because half a pixel, which rounding errors put on either side of the limit, is as good on either side.
    """
    while (offset := _centre_offset(kernel)) != (0, 0):
        kernel = _shift(kernel, *offset)
        kernel = kernel / kernel.sum()
    return kernel


def _centre_offset(kernel: Tensor) -> tuple[int, int]:
    """Whole pixels `(down, right)` from the centre of mass to the centre pixel."""
    h, w = kernel.shape[-2:]
    mass = kernel[0].double() / kernel.double().sum()
    row = mass.sum(1) @ torch.arange(h, dtype=torch.float64)
    column = mass.sum(0) @ torch.arange(w, dtype=torch.float64)
    return _whole(h // 2 - float(row)), _whole(w // 2 - float(column))


def _whole(offset: float) -> int:
    return 0 if abs(offset) <= 0.5 + HALF_TOLERANCE else round(offset)


def _shift(kernel: Tensor, down: int, right: int) -> Tensor:
    """Move the content of a kernel, filling with zeros (negative padding crops)."""
    return torch.nn.functional.pad(kernel, (right, -right, down, -down))
