"""Random numbers: seeds derived from names, and the noise that a sampler draws, one stream an image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from codiffuse.errors import InputError


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mixture of numbers and names; the same on every machine and version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class NoiseSource(Protocol):
    """Where a sampler's Gaussian noise comes from."""

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers of `shape`, whose first axis is the images, in the dtype and on the device of `like`.

        Args:
            name: what they are for (`init`, `step`): recorded noise is looked up by it.
        """
        ...


class GeneratorNoise:
    """One generator an image: what an image receives does not depend on its batch neighbours.

    Numbers are drawn on the CPU, so that a result does not depend on the device either, up to rounding.

    Args:
        seeds: one an image.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        if shape[0] != len(self.generators):
            raise InputError(f"Expected noise for {len(self.generators)} images (one seed each), got {shape[0]}.")
        drawn = torch.stack([torch.randn(*shape[1:], generator=g) for g in self.generators])
        if like.is_cuda:
            drawn = drawn.pin_memory()  # so that the copy does not wait for the device
        return drawn.to(like, non_blocking=True)


class RecordedNoise:
    """Noise from arrays, handed out in order: for comparison with other programs.

    Args:
        arrays: for each name, the arrays in order of use, `(calls, B, ...)`.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self.arrays = {name: iter(values) for name, values in arrays.items()}

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        return next(self.arrays[name]).to(like).reshape(tuple(shape))
