"""Samples of an image together with the parameters of its operator: folded for a run, and closed after it.

Shapes: a variable of all particles `(B n, C, H, W)`, folded, or `(B, n, C, H, W)`, apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from codiffuse.estimation.centering import moved
from codiffuse.estimation.consensus import match_central
from codiffuse.fourier import Size, reach
from codiffuse.methods.base import Measurement, Restoration, restoration, statuses
from codiffuse.methods.steps import lower
from codiffuse.spaces import shift_and_divide

IMAGE = "image"


def fold(measurement: Measurement, n: int) -> Measurement:
    """The measurement of every particle: `(B n, C, H, W)`."""

    def repeat(each: Tensor) -> Tensor:
        return each.repeat_interleave(n, 0)

    mask = None if measurement.mask is None else repeat(measurement.mask)
    return replace(measurement, y=repeat(measurement.y), noise=measurement.noise.repeated(n), mask=mask)


def close(
    measurement: Measurement, values: Mapping[str, Tensor], n: int, nfe: int, kernel_crop: int | None = None
) -> Restoration:
    """Closes a run: the samples of an image are moved to where their kernels match, as are the maps of its operator.

    Args:
        measurement: what was restored.
        values: final values, folded, in the channels of the prior: `image`, and the parameters of the operator.
        n: samples an image.
        nfe: network calls an image.
        kernel_crop: side of the centre of each kernel that is kept, px; `None` keeps all.

    Returns:
        The mean of the samples, and of their parameters. An image failed where one of its samples did.
    """
    parts = {name: value.unflatten(0, (len(measurement.y), n)) for name, value in values.items()}
    if n > 1 and "kernel" in parts:
        parts = aligned(parts)
    if kernel_crop is not None:
        parts = cropped(parts, measurement, (kernel_crop, kernel_crop))
    x = lower(parts.pop(IMAGE), measurement.y)
    found = restoration(measurement, x, {name: value.mean(1) for name, value in parts.items()}, nfe)
    # A mean of n hides one that is noise: each has to explain y with its own parameters.
    own = {name: value.flatten(0, 1) for name, value in parts.items()}
    each = statuses(fold(measurement, n), x.flatten(0, 1).unsqueeze(1), own)
    status = tuple(
        next((text for text in (whole, *each[i * n : (i + 1) * n]) if text != "ok"), "ok")
        for i, whole in enumerate(found.status)
    )
    samples = {f"{name}_samples": value for name, value in parts.items()}
    return replace(found, raw={**found.raw, **samples}, status=status)


def aligned(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Image and kernel are defined up to opposite shifts: whole pixels here, in which the image's maps go with it.

    Args:
        parts: `image` and `kernel` apart, and other parameters: maps of the image's size, which go with it, or values
            that lie elsewhere, which stay.
    """
    matched = [[*match_central(kernels[:, 0])[1:]] for kernels in parts["kernel"]]
    size = parts[IMAGE].shape[-2:]

    def shifted(name: str, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if name == "kernel":
            return moved(value, rows, columns)
        if value.shape[-2:] != size:
            return value
        shifts = zip(rows.tolist(), columns.tolist(), strict=True)
        return torch.stack([each.roll((-r, -c), (-2, -1)) for each, (r, c) in zip(value, shifts, strict=True)])

    return {
        name: torch.stack([shifted(name, each, *at) for each, at in zip(value, matched, strict=True)])
        for name, value in parts.items()
    }


def cropped(parts: Mapping[str, Tensor], measurement: Measurement, size: Size) -> dict[str, Tensor]:
    """The centre of each kernel, of `size`, and what it reads of the canvas; `parts` are apart."""
    before, frame = tuple(parts["kernel"].shape[-2:]), tuple(measurement.y.shape[-2:])
    canvas, needed = (measurement.operator.image_shape(frame, kernel_size=each) for each in (before, size))
    top, _, left, _ = (more - less for more, less in zip(reach(before), reach(size), strict=True))
    down, right = (more // 2 - less // 2 for more, less in zip(before, size, strict=True))
    found = dict(parts)
    for name, value in parts.items():
        if name == "kernel":
            found[name] = shift_and_divide(value[..., down : down + size[0], right : right + size[1]])
        elif canvas != needed and tuple(value.shape[-2:]) == canvas:
            found[name] = value[..., top : top + needed[0], left : left + needed[1]]
    return found
