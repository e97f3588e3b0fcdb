"""The least-squares problem of the M-step for the kernel: in closed form, or by conjugate gradients.

Shapes: images `(B, n, C, H, W)`, measurement `(B, C, H', W')`, kernel `(B, 1, h, w)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse import fourier
from codiffuse.errors import InputError
from codiffuse.fourier import Size, abs2, over_batch, over_image, sum_middle
from codiffuse.operators.conjugate_gradients import conjugate_gradients

Pooling = Literal["joint", "mean"]
KernelSolver = Callable[[Tensor], Tensor]  # anchor (B, 1, h, w) -> kernel (B, 1, h, w)


class KernelNormalEquations(Protocol):
    """`min_k sum_ic ||k * x_ic - y_c||^2 + alpha ||k - anchor||^2 + extra ||k||^2`, over images i and channels c."""

    @property
    def num_images(self) -> int:
        """The number n of images."""
        ...

    @property
    def num_channels(self) -> int:
        """The number C of channels."""
        ...

    @property
    def shape(self) -> Size:
        """`(H', W')` of the measurement."""
        ...

    def prepare(self, alpha: Tensor, extra: Tensor | None = None, pooling: Pooling = "joint") -> KernelSolver:
        """Does all that does not depend on the anchor.

        Args:
            alpha: `(B,)`, weight of the anchor.
            extra: `(B,)`, for the spread of the images about their estimates (Fast EM, appendix D): `n N r^2` with N
                pixels in y for `mean`, C times as much for `joint`.
            pooling: `joint` fits one kernel to all channels; `mean` fits one to each and averages them, as the released
                Fast EM does.

        Returns:
            A function from the anchor `(B, 1, h, w)` to the kernel `(B, 1, h, w)`, neither projected nor normalised.

        Raises:
            InputError: another pooling, or `mean` for a boundary other than `circular`.
        """
        ...


@dataclass(frozen=True, eq=False)
class CircularKernelEquations:
    """`KernelNormalEquations` in closed form: solved on the whole periodic grid, then cropped (Fast EM, Eq. 24).

    Args:
        numerator: complex `(B, C, H, W // 2 + 1)`, `sum_i conj(X_ic) Y_c` of unnormalised FFTs.
        denominator: real, same shape, `sum_i |X_ic|^2`.
        num_images: the number n of images.
        shape: the grid `(H, W)`.
        kernel_size: `(h, w)`.
    """

    numerator: Tensor
    denominator: Tensor
    num_images: int
    shape: Size
    kernel_size: Size

    @property
    def num_channels(self) -> int:
        """The number C of channels."""
        return self.numerator.shape[1]

    def prepare(self, alpha: Tensor, extra: Tensor | None = None, pooling: Pooling = "joint") -> KernelSolver:
        """See `KernelNormalEquations`; every solve costs one FFT and one inverse FFT of a single channel."""
        if pooling not in ("joint", "mean"):
            raise InputError(f"expected pooling 'joint' or 'mean', got {pooling!r}")
        numerator, denominator = self.numerator, self.denominator
        if pooling == "joint":
            numerator, denominator = sum_middle(numerator), sum_middle(denominator)
        denominator = denominator + over_batch(alpha if extra is None else alpha + extra, denominator)
        # Eq. 24 is affine in the anchor, so the mean over channels can be taken in the Fourier domain, once.
        offset = (numerator / denominator).mean(1, keepdim=True)
        slope = (over_batch(alpha, denominator) / denominator).mean(1, keepdim=True)

        def solve(anchor: Tensor) -> Tensor:
            otf = offset + slope * fourier.kernel_otf(anchor, self.shape)
            return fourier.otf_to_kernel(otf, self.shape, self.kernel_size)

        return solve


@dataclass(frozen=True, eq=False)
class KernelEquations:
    """`KernelNormalEquations` where there is no closed form: confined to the support, by conjugate gradients.

    Args:
        extended: `(B, n, C, H' + h - 1, W' + w - 1)`, the images with what the convolution reads beyond their frame.
        correlation: `(B, 1, h, w)`, `sum_ic A(x_ic)^T M y_c`, where `A(x) k = k * x` and M is the mask.
        mask: `(B, 1, H', W')`, 1 for the pixels of y that count, 0 for the others.
        cg_iterations: most conjugate-gradient steps.
        cg_tolerance: relative error in the energy norm at which to stop.
    """

    extended: Tensor
    correlation: Tensor
    mask: Tensor
    cg_iterations: int
    cg_tolerance: float

    @property
    def num_images(self) -> int:
        """The number n of images."""
        return self.extended.shape[1]

    @property
    def num_channels(self) -> int:
        """The number C of channels."""
        return self.extended.shape[2]

    @property
    def shape(self) -> Size:
        """`(H', W')` of the measurement."""
        return self.mask.shape[-2:]

    def prepare(self, alpha: Tensor, extra: Tensor | None = None, pooling: Pooling = "joint") -> KernelSolver:
        """See `KernelNormalEquations`; joint pooling only, and every solve starts from the anchor."""
        if pooling != "joint":
            raise InputError(f"expected pooling 'joint' for a boundary other than 'circular', got {pooling!r}")
        (h, w), (height, width) = self.correlation.shape[-2:], self.extended.shape[-2:]
        grid = fourier.fast_shape((height, width))
        X = rfft2(self.extended, s=grid)
        ridge = over_batch(alpha if extra is None else alpha + extra, self.correlation)
        # On the grid a convolution equals that on the unbounded plane from pixel (h - 1, w - 1) on.
        kept = over_image(F.pad(self.mask, (w - 1, grid[1] - width, h - 1, grid[0] - height)), X)
        power = sum_middle(abs2(X)) + ridge

        def normal_matrix(kernel: Tensor) -> Tensor:
            residual = kept * irfft2(over_image(rfft2(kernel, s=grid), X) * X, s=grid)
            cross = sum_middle(X.conj() * rfft2(residual))
            return irfft2(cross, s=grid)[..., :h, :w] + ridge * kernel

        def precondition(kernel: Tensor) -> Tensor:
            return irfft2(rfft2(kernel, s=grid) / power, s=grid)[..., :h, :w]

        def solve(anchor: Tensor) -> Tensor:
            return conjugate_gradients(
                normal_matrix,
                self.correlation + over_batch(alpha, anchor) * anchor,
                start=anchor,
                precondition=precondition,
                iterations=self.cg_iterations,
                tolerance=self.cg_tolerance,
            )

        return solve
