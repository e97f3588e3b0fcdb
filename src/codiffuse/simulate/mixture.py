"""Kernel laws made of other laws: a mixture, and a random size."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.simulate.gaussian import GaussianKernels
from codiffuse.simulate.motion import CameraShakeKernels, RandomPathKernels
from codiffuse.simulate.support import Size, pad_kernel, sides

KernelLaw = Callable[[np.random.Generator], Tensor]


@dataclass(frozen=True)
class MixtureKernels:
    """Each draw comes from one of `laws`, picked with probability proportional to `weights` (equal when None)."""

    laws: tuple[KernelLaw, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if len(self.weights) != len(self.laws) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise InputError(f"expected {len(self.laws)} weights >= 0, one a law and not all 0, got {self.weights}")

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, h, w)`."""
        share = None if self.weights is None else np.array(self.weights) / sum(self.weights)
        return self.laws[rng.choice(len(self.laws), p=share)](rng)


@dataclass(frozen=True)
class RandomSizeKernels:
    """Kernels of `law` at a random odd size of `sizes` (both ends included), zero-padded to `canvas` about the centre.

    For training one network on kernels of all sizes; the size in `law` itself is ignored.
    """

    law: RandomPathKernels | CameraShakeKernels | GaussianKernels
    sizes: tuple[int, int] = (9, 65)
    canvas: Size = 65

    def __post_init__(self) -> None:
        low, high = self.sizes
        if not 3 <= low <= high <= min(sides(self.canvas)) or low % 2 == 0:
            raise InputError(
                f"sizes must be (low, high) with 3 <= low <= high <= canvas={self.canvas}, low odd, got {self.sizes}"
            )

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, canvas, canvas)`."""
        low, high = self.sizes
        size = low + 2 * int(rng.integers((high - low) // 2 + 1))
        return pad_kernel(replace(self.law, size=size)(rng), self.canvas)
