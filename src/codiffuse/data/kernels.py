"""Kernels that are kept as pictures, such as those that were measured (Levin et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from codiffuse.data.crops import luma
from codiffuse.data.images import read_picture
from codiffuse.data.sources import data_root, sources
from codiffuse.errors import InputError
from codiffuse.simulate.support import Size, centre_kernel, pad_kernel

LEAST_SIDE = 3  # px


@dataclass(frozen=True)
class FileKernels:
    """Law of kernels in files: each draw is one of them, all being equally likely.

    Attributes:
        path: picture file, folder or glob, here or below the folder of data sets. Values are divided by their sum.
        size: support that each kernel is moved to the centre of, so that all have one size; `None` leaves them.
    """

    path: str
    size: Size | None = None

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, h, w)`; raises InputError where there is none, or it does not fit the size."""
        path = self._files[rng.integers(len(self._files))]
        pixels = read_picture(path, min_side=LEAST_SIDE).pixels
        kernel = (luma(pixels) if len(pixels) == 3 else pixels).clamp_min(0)
        if not kernel.sum() > 0:
            raise InputError(f"{path}: expected the picture of a kernel, got a black one; choose other files")
        kernel = kernel / kernel.sum()
        return kernel if self.size is None else centre_kernel(pad_kernel(kernel, self.size))

    @cached_property
    def _files(self) -> list[Path]:
        here = sources(data_root() / self.path if _is_relative(self.path) else self.path)
        return [source.path for source in here]


def _is_relative(path: str) -> bool:
    """Whether a path is not found here, and so may be one below the folder of data sets."""
    pattern = Path(path).expanduser()
    return not pattern.is_absolute() and not pattern.exists() and not any(Path().glob(path))
