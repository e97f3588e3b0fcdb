"""Spaces: the one place where physical quantities and diffusion coordinates are exchanged.

A network sees variables in about [-1, 1]; measurements, operators and metrics see images in [0, 1] and kernels that are
non-negative and sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from codiffuse.errors import InputError


class Space(Protocol):
    """A pair of maps between physical values and diffusion coordinates."""

    def encode(self, physical: Tensor) -> Tensor:
        """Physical values to diffusion coordinates."""
        ...

    def decode(self, coordinates: Tensor) -> Tensor:
        """Diffusion coordinates to physical values."""
        ...

    def unit(self, coordinates: Tensor) -> Tensor:
        """`(B,)` physical values per unit of the coordinates that are unsure, about these ones; the RMS over pixels."""
        ...


@dataclass(frozen=True)
class ImageSpace:
    """Images: [0, 1] <-> [-1, 1]. `decode` does not clip: whether x0-hat is clipped is a method's choice."""

    def encode(self, physical: Tensor) -> Tensor:
        return 2 * physical - 1

    def decode(self, coordinates: Tensor) -> Tensor:
        return (coordinates + 1) / 2

    def unit(self, coordinates: Tensor) -> Tensor:
        return coordinates.new_full(coordinates.shape[:1], 0.5)

    def decode_gradient(self, cotangent: Tensor) -> Tensor:
        """A gradient with respect to physical values, taken back through `decode`."""
        return cotangent / 2


@dataclass(frozen=True)
class KernelSpace:
    """Kernels `(B, 1, h, w)` on the simplex <-> [-1, 1].

    Attributes:
        scaling: `max` divides by the largest value, so that every kernel fills the range; `sum` keeps the sum-one
            scale, 2 k - 1, as the published kernel networks do. Both decode alike: the absolute scale is free.
        projection: onto the simplex: `divide` clips at zero and divides by the sum, as published; `euclidean` goes to
            the nearest point. That depends on the scale of what is projected, which the coordinates leave free: divided
            by its own sum, it is on the simplex already. Here it is such that what exceeds the median has sum one. A
            kernel leaves most of its support dark, so what half of the pixels share is no light: the projection takes
            this floor away, and leaves a kernel as it is that covers less than half of its support.
        rotated: coordinates show kernels turned by 180 degrees: those that a cross-correlation blurs with.
        dark: share of the range up to which a value is no light: it is taken off before the projection. What a network
            leaves in the dark is little, but there are a thousand pixels of it. Kernels of scaling `sum` do not fill
            the range: of them it is a share of the largest value.
    """

    scaling: Literal["max", "sum"] = "max"
    projection: Literal["divide", "euclidean"] = "divide"
    rotated: bool = False
    dark: float = 0.0

    def __post_init__(self) -> None:
        if self.scaling not in ("max", "sum"):
            raise InputError(f"Expected scaling max or sum, got {self.scaling!r}.")
        if self.projection not in ("divide", "euclidean"):
            raise InputError(f"Expected projection divide or euclidean, got {self.projection!r}.")
        if not 0 <= self.dark < 1:
            raise InputError(f"Expected dark from 0 to below 1, a share of the range of a kernel, got {self.dark}.")

    def encode(self, physical: Tensor) -> Tensor:
        scaled = physical / physical.amax((-2, -1), keepdim=True) if self.scaling == "max" else physical
        return self._turned(2 * scaled - 1)

    def decode(self, coordinates: Tensor) -> Tensor:
        kernel = self._turned(self._light(coordinates))
        if self.projection == "divide":
            return shift_and_divide(kernel)
        # What is subtracted everywhere does not change the nearest point.
        return simplex_projection((kernel - self._floor(kernel)) / self._mass(kernel))

    def unit(self, coordinates: Tensor) -> Tensor:
        # Of the support, only about as many pixels as its mass have light, and only these are unsure: a share of
        # mass / area in the mean square.
        area = coordinates.shape[-2] * coordinates.shape[-1]
        return 0.5 / (area * self._mass(self._light(coordinates)).flatten()).sqrt()

    def _light(self, coordinates: Tensor) -> Tensor:
        kernel = (coordinates + 1) / 2
        if self.dark == 0:
            return kernel
        return kernel - self.dark * (kernel.amax((-2, -1), keepdim=True) if self.scaling == "sum" else 1)

    def _mass(self, kernel: Tensor) -> Tensor:
        """`(B, 1, 1, 1)` what the projection takes for the sum of a kernel of free scale."""
        kept = kernel.clamp(min=0) if self.projection == "divide" else (kernel - self._floor(kernel)).clamp(min=0)
        return kept.sum((1, 2, 3), keepdim=True).clamp(min=1e-2)

    def _floor(self, kernel: Tensor) -> Tensor:
        """`(B, 1, 1, 1)` the median, if it is positive."""
        return kernel.flatten(1).median(1).values.clamp(min=0).reshape(-1, 1, 1, 1)

    def _turned(self, kernel: Tensor) -> Tensor:
        return kernel.flip((-2, -1)) if self.rotated else kernel


@dataclass(frozen=True)
class TiltSpace:
    """Tilt fields `(B, 2, H, W)` in pixels <-> units of `max_tilt_px`."""

    max_tilt_px: float = 1.0

    def __post_init__(self) -> None:
        if not self.max_tilt_px > 0:
            raise InputError(f"Expected max_tilt_px > 0, got {self.max_tilt_px}.")

    def encode(self, physical: Tensor) -> Tensor:
        return physical / self.max_tilt_px

    def decode(self, coordinates: Tensor) -> Tensor:
        return coordinates * self.max_tilt_px

    def unit(self, coordinates: Tensor) -> Tensor:
        return coordinates.new_full(coordinates.shape[:1], self.max_tilt_px)


def shift_and_divide(kernel: Tensor) -> Tensor:
    """Clip at zero and divide each kernel of a batch by its own sum (the published projection onto the simplex)."""
    positive = kernel.clamp(min=0)
    return positive / positive.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def simplex_projection(kernel: Tensor) -> Tensor:
    """The nearest point of the simplex to each kernel of a batch: max(k - tau, 0), with tau so that the sum is one.

    By sorting (Held, Wolfe & Crowder 1974); differentiable almost everywhere.
    """
    values = kernel.flatten(1)
    descending = values.sort(1, descending=True).values
    excess = descending.cumsum(1) - 1  # of the sum of the j largest over one
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    kept = (descending * count > excess).sum(1, keepdim=True)
    tau = excess.gather(1, kept - 1) / kept
    return (values - tau).clamp(min=0).reshape(kernel.shape)
