"""Random numbers: seeds derived from names, and the noise that a sampler draws, one stream an image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from codiffuse.errors import InputError

BLOCK = (
    64  # side, px, of what `FieldNoise` draws at once: larger blocks draw more beyond a crop, smaller ones seed more
)


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
        self.seeds = tuple(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        if shape[0] != len(self.generators):
            raise InputError(f"Expected noise for {len(self.generators)} images (one seed each), got {shape[0]}.")
        return _moved(torch.stack([torch.randn(*shape[1:], generator=g) for g in self.generators]), like)

    def spawn(self, *names: int | str, count: int = 1) -> GeneratorNoise:
        """Streams for the parts of a run on one image: they depend on its seed and on `names`, not on what was drawn.

        Args:
            names: what they are for.
            count: of the streams.

        Raises:
            InputError: this source has not one image.
        """
        if len(self.seeds) != 1:
            raise InputError(f"Expected the noise of one image to divide, got that of {len(self.seeds)}; use batch 1.")
        return GeneratorNoise([derive_seed(*self.seeds, *names, index) for index in range(count)])


class FieldNoise:
    """Crops of unbounded noise fields, one a call: sources with one seed agree wherever their crops overlap.

    Args:
        seed: of the fields.
        origin: row and column of the crop in the fields, px.
        first: index of the first particle; each particle has its own field.
    """

    def __init__(self, seed: int, origin: tuple[int, int] = (0, 0), first: int = 0) -> None:
        self.seed, self.origin, self.first = seed, origin, first
        self._calls: Counter[str] = Counter()

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """The crop of the next field of `name`, of shape `(1, n, C, H, W)`; see `NoiseSource`."""
        if len(shape) != 5 or shape[0] != 1:
            raise InputError(f"Expected particles of one image, (1, n, C, H, W), got {tuple(shape)}; use batch 1.")
        call = self._calls[name]
        self._calls[name] += 1
        crops = [self._crop(name, call, self.first + index, shape[2:]) for index in range(shape[1])]
        return _moved(torch.stack(crops).unsqueeze(0), like)

    def _crop(self, name: str, call: int, particle: int, shape: Sequence[int]) -> Tensor:
        (channels, height, width), (top, left) = shape, self.origin
        rows = range(top // BLOCK, (top + height - 1) // BLOCK + 1)
        columns = range(left // BLOCK, (left + width - 1) // BLOCK + 1)
        generator = torch.Generator()

        def block(row: int, column: int) -> Tensor:
            generator.manual_seed(derive_seed(self.seed, name, call, particle, row, column))
            return torch.randn(channels, BLOCK, BLOCK, generator=generator)

        field = torch.cat([torch.cat([block(row, column) for column in columns], -1) for row in rows], -2)
        y, x = top % BLOCK, left % BLOCK
        return field[:, y : y + height, x : x + width]


class RecordedNoise:
    """Noise from arrays, handed out in order: for comparison with other programs.

    Args:
        arrays: for each name, the arrays in order of use, `(calls, B, ...)`.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self.arrays = {name: iter(values) for name, values in arrays.items()}

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        return next(self.arrays[name]).to(like).reshape(tuple(shape))


def _moved(drawn: Tensor, like: Tensor) -> Tensor:
    if like.is_cuda:
        drawn = drawn.pin_memory()  # so that the copy does not wait for the device
    return drawn.to(like, non_blocking=True)
