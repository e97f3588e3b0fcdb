"""Spaces: the one place where physical quantities and diffusion coordinates are exchanged.

A network sees variables in about [-1, 1]; measurements, operators and metrics see images in [0, 1] and kernels that are
non-negative and sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

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


@dataclass(frozen=True)
class ImageSpace:
    """Images: [0, 1] <-> [-1, 1]. `decode` does not clip: whether x0-hat is clipped is a method's choice."""

    def encode(self, physical: Tensor) -> Tensor:
        return 2 * physical - 1

    def decode(self, coordinates: Tensor) -> Tensor:
        return (coordinates + 1) / 2

    def decode_gradient(self, cotangent: Tensor) -> Tensor:
        """A gradient with respect to physical values, taken back through `decode`."""
        return cotangent / 2


@dataclass(frozen=True)
class KernelSpace:
    """Kernels `(B, 1, h, w)` on the simplex <-> [-1, 1].

    Attributes:
        scaling: `max` divides by the largest value, so that every kernel fills the range; `sum` keeps the sum-one
            scale, 2 k - 1, as the published kernel networks do. Both decode alike: the absolute scale is free.
    """

    scaling: Literal["max", "sum"] = "max"

    def __post_init__(self) -> None:
        if self.scaling not in ("max", "sum"):
            raise InputError(f"Expected scaling max or sum, got {self.scaling!r}.")

    def encode(self, physical: Tensor) -> Tensor:
        scaled = physical / physical.amax((-2, -1), keepdim=True) if self.scaling == "max" else physical
        return 2 * scaled - 1

    def decode(self, coordinates: Tensor) -> Tensor:
        return shift_and_divide((coordinates + 1) / 2)


@dataclass(frozen=True)
class TiltSpace:
    """Tilt fields `(B, 2, H, W)` in pixels <-> units of `max_tilt_px`."""

    max_tilt_px: float = 1.0

    def encode(self, physical: Tensor) -> Tensor:
        return physical / self.max_tilt_px

    def decode(self, coordinates: Tensor) -> Tensor:
        return coordinates * self.max_tilt_px


def shift_and_divide(kernel: Tensor) -> Tensor:
    """Clip at zero and divide each kernel of a batch by its own sum (the published projection onto the simplex)."""
    positive = kernel.clamp(min=0)
    return positive / positive.sum((-2, -1), keepdim=True).clamp(min=1e-12)
