"""Blur with an unknown kernel, `y = k * x`, and the linear systems that restoring `x` and estimating `k` need.

Shapes: image `(B, *, H, W)` with any axes `*` (channels, particles), kernel `(B, 1, h, w)`; see `codiffuse.fourier` for
the boundaries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse import fourier
from codiffuse.errors import InputError
from codiffuse.fourier import Size, over_image, sum_middle

Pooling = Literal["joint", "mean"]
KernelSolver = Callable[[Tensor], Tensor]  # anchor (B, 1, h, w) -> kernel (B, 1, h, w)

STEPS_BETWEEN_CHECKS = 10  # conjugate gradients ask the device only this often whether every system has converged


@dataclass(frozen=True)
class BlurOperator:
    """`y = A(k) x = k * x`: true convolution at a named boundary.

    Args:
        boundary: one of `codiffuse.fourier.BOUNDARIES`.
        pad_value: the constant outside the frame for `zero`; the operator is then affine, and `adjoint` and
            `solve_gram` are those of its linear part.
        cg_iterations: most conjugate-gradient steps of a solve that has no closed form (any boundary but `circular`).
        cg_tolerance: relative error, in the energy norm of the system, at which such a solve stops.

    Raises:
        InputError: an unknown boundary, or a pad value for a boundary other than `zero`.
    """

    boundary: str = "circular"
    pad_value: float = 0.0
    cg_iterations: int = 50
    cg_tolerance: float = 1e-5
    params: ClassVar[tuple[str, ...]] = ("kernel",)

    def __post_init__(self) -> None:
        if self.boundary not in fourier.BOUNDARIES:
            raise InputError(f"expected a boundary among {', '.join(fourier.BOUNDARIES)}, got {self.boundary!r}")
        if self.pad_value != 0 and self.boundary != "zero":
            raise InputError(f"expected boundary 'zero' with pad_value = {self.pad_value}, got {self.boundary!r}")

    def __call__(self, image: Tensor, *, kernel: Tensor) -> Tensor:
        """Blurs an image; see `codiffuse.fourier.convolve`."""
        return fourier.convolve(image, kernel, self.boundary, self.pad_value)

    def adjoint(self, residual: Tensor, *, kernel: Tensor) -> Tensor:
        """`A^T r`, shaped like the image."""
        return fourier.correlate(residual, kernel, self.boundary)

    def image_shape(self, y_shape: Size, *, kernel_size: Size) -> Size:
        """The `(H, W)` of the image behind a measurement of this size."""
        if self.boundary not in ("valid", "unknown"):
            return y_shape
        return y_shape[0] + kernel_size[0] - 1, y_shape[1] + kernel_size[1] - 1

    def crop_to_frame(self, image: Tensor, *, kernel_size: Size) -> Tensor:
        """The part of an image `(..., H, W)` that the measurement shows: all of it but for `valid` and `unknown`."""
        return fourier.crop_to_frame(image, kernel_size) if self.boundary in ("valid", "unknown") else image

    def solve_gram(self, residual: Tensor, r2: Tensor, sigma2: Tensor, *, kernel: Tensor) -> Tensor:
        """`(r2 A A^T + sigma2 I)^-1 r`.

        Args:
            residual: `(B, *, H', W')`, shaped like the measurement.
            r2: `(B,)`, variance of the image given its estimate.
            sigma2: `(B,)`, variance of the noise, positive.
            kernel: `(B, 1, h, w)`.

        Returns:
            Shaped like `residual`.
        """
        shape = residual.shape[-2:]
        if self.boundary == "circular":
            K = over_image(fourier.kernel_otf(kernel, shape), residual)
            return irfft2(rfft2(residual) / _gram_spectrum(K, r2, sigma2), s=shape)

        # The frame cut out of an unbounded scene is the closest system that the FFT inverts.
        h, w = kernel.shape[-2:]
        grid = fourier.fast_shape((shape[0] + h - 1, shape[1] + w - 1))
        spectrum = _gram_spectrum(over_image(fourier.kernel_otf(kernel, grid), residual), r2, sigma2)

        def gram(v: Tensor) -> Tensor:
            backprojected = self.adjoint(v, kernel=kernel)
            blurred = fourier.convolve(backprojected, kernel, self.boundary)
            return _over(r2, v) * blurred + _over(sigma2, v) * v

        def precondition(v: Tensor) -> Tensor:
            return irfft2(rfft2(v, s=grid) / spectrum, s=grid)[..., : shape[0], : shape[1]]

        return conjugate_gradients(
            gram,
            residual,
            start=torch.zeros_like(residual),
            precondition=precondition,
            iterations=self.cg_iterations,
            tolerance=self.cg_tolerance,
        )

    def guidance_direction(
        self,
        y: Tensor,
        image: Tensor,
        r2: Tensor,
        sigma2: Tensor,
        *,
        kernel: Tensor,
        y_hat: Tensor | None = None,
        image_hat: Tensor | None = None,
    ) -> Tensor:
        """`A^T (r2 A A^T + sigma2 I)^-1 (y - A x)`, the PiGDM direction (Fast EM, Eq. 17).

        Args:
            y: the measurement, with as many axes as the image: `(B, C, H', W')`, or `(B, 1, C, H', W')` for particles.
            image: `(B, *, H, W)`.
            r2: `(B,)`, as for `solve_gram`.
            sigma2: `(B,)`, as for `solve_gram`.
            kernel: `(B, 1, h, w)`.
            y_hat: `rfft2(y)` when it is at hand; used when circular only.
            image_hat: `rfft2(image)` likewise.

        Returns:
            Shaped like the image.
        """
        if self.boundary != "circular":
            residual = y - self(image, kernel=kernel)
            return self.adjoint(self.solve_gram(residual, r2, sigma2, kernel=kernel), kernel=kernel)
        shape = image.shape[-2:]
        Y = rfft2(y) if y_hat is None else y_hat
        X = rfft2(image) if image_hat is None else image_hat
        K = over_image(fourier.kernel_otf(kernel, shape), image)
        return irfft2(K.conj() * (Y - K * X) / _gram_spectrum(K, r2, sigma2), s=shape)

    def normal_equations(
        self,
        y: Tensor,
        images: Tensor,
        *,
        kernel_size: Size,
        y_hat: Tensor | None = None,
        images_hat: Tensor | None = None,
    ) -> "KernelNormalEquations":
        """The least-squares problem of the M-step for the kernel (Fast EM, Eq. 24).

        Args:
            y: `(B, C, H', W')`.
            images: `(B, n, C, H, W)`, n particles.
            kernel_size: `(h, w)` of the unknown kernel.
            y_hat: `rfft2(y)` when it is at hand; used when circular only.
            images_hat: `rfft2(images)` likewise.
        """
        y = y.unsqueeze(1)
        if self.boundary == "circular":
            Y = rfft2(y) if y_hat is None else y_hat.unsqueeze(1)
            X = rfft2(images) if images_hat is None else images_hat
            return CircularKernelEquations(
                numerator=(X.conj() * Y).sum(1),
                denominator=_abs2(X).sum(1),
                num_images=images.shape[1],
                shape=images.shape[-2:],
                kernel_size=kernel_size,
            )
        extended = fourier.extend(images, kernel_size, self.boundary, self.pad_value)
        grid = fourier.fast_shape(extended.shape[-2:])
        return KernelEquations(
            spectrum=rfft2(extended, s=grid),
            correlation=fourier.kernel_adjoint(images, y, self.boundary, kernel_size, self.pad_value),
            extended_shape=extended.shape[-2:],
            grid=grid,
            cg_iterations=self.cg_iterations,
            cg_tolerance=self.cg_tolerance,
        )


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
        denominator = denominator + _over(alpha if extra is None else alpha + extra, denominator)
        # Eq. 24 is affine in the anchor, so the mean over channels can be taken in the Fourier domain, once.
        offset = (numerator / denominator).mean(1, keepdim=True)
        slope = (_over(alpha, denominator) / denominator).mean(1, keepdim=True)

        def solve(anchor: Tensor) -> Tensor:
            otf = offset + slope * fourier.kernel_otf(anchor, self.shape)
            return fourier.otf_to_kernel(otf, self.shape, self.kernel_size)

        return solve


@dataclass(frozen=True, eq=False)
class KernelEquations:
    """`KernelNormalEquations` for the other boundaries: the kernel is confined to its support, by conjugate gradients.

    Args:
        spectrum: complex `(B, n, C, *)`, FFT on `grid` of the images extended beyond their frame.
        correlation: `(B, 1, h, w)`, `sum_ic A(x_ic)^T y_c`, where `A(x) k = k * x`.
        extended_shape: size of the extended images.
        grid: the FFT grid, at least `extended_shape`.
        cg_iterations: most conjugate-gradient steps.
        cg_tolerance: relative error in the energy norm at which to stop.
    """

    spectrum: Tensor
    correlation: Tensor
    extended_shape: Size
    grid: Size
    cg_iterations: int
    cg_tolerance: float

    @property
    def num_images(self) -> int:
        """The number n of images."""
        return self.spectrum.shape[1]

    @property
    def num_channels(self) -> int:
        """The number C of channels."""
        return self.spectrum.shape[2]

    @property
    def shape(self) -> Size:
        """`(H', W')` of the measurement."""
        (height, width), (h, w) = self.extended_shape, self.correlation.shape[-2:]
        return height - h + 1, width - w + 1

    def prepare(self, alpha: Tensor, extra: Tensor | None = None, pooling: Pooling = "joint") -> KernelSolver:
        """See `KernelNormalEquations`; joint pooling only, and every solve starts from the anchor."""
        if pooling != "joint":
            raise InputError(f"expected pooling 'joint' for a boundary other than 'circular', got {pooling!r}")
        h, w = self.correlation.shape[-2:]
        ridge = _over(alpha if extra is None else alpha + extra, self.correlation)
        power = sum_middle(_abs2(self.spectrum)) + ridge
        in_frame = power.new_zeros(self.grid)  # where a convolution on the grid equals the one on the unbounded plane
        in_frame[h - 1 : self.extended_shape[0], w - 1 : self.extended_shape[1]] = 1

        def normal_matrix(kernel: Tensor) -> Tensor:
            K = over_image(rfft2(kernel, s=self.grid), self.spectrum)
            residual = in_frame * irfft2(K * self.spectrum, s=self.grid)
            cross = sum_middle(self.spectrum.conj() * rfft2(residual))
            return irfft2(cross, s=self.grid)[..., :h, :w] + ridge * kernel

        def precondition(kernel: Tensor) -> Tensor:
            return irfft2(rfft2(kernel, s=self.grid) / power, s=self.grid)[..., :h, :w]

        def solve(anchor: Tensor) -> Tensor:
            return conjugate_gradients(
                normal_matrix,
                self.correlation + _over(alpha, anchor) * anchor,
                start=anchor,
                precondition=precondition,
                iterations=self.cg_iterations,
                tolerance=self.cg_tolerance,
            )

        return solve


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Solves `M x = b` by preconditioned conjugate gradients, every plane `(..., H, W)` a system of its own.

    A plane that has converged stays as it is, so a result does not depend on its neighbours in the batch.

    Args:
        matrix: applies M, symmetric and positive definite on each plane.
        rhs: b, `(..., H, W)`.
        start: first guess.
        precondition: applies an approximate inverse of M, symmetric and positive definite.
        iterations: most steps.
        tolerance: stop when `r^T P r <= tolerance^2 b^T P b`, with P the approximate inverse and r the residual.
    """
    tiny = torch.finfo(rhs.dtype).tiny
    limit = tolerance**2 * _dot(rhs, precondition(rhs))
    x, residual = start, rhs - matrix(start)
    direction = preconditioned = precondition(residual)
    rho = _dot(residual, preconditioned)
    for step in range(iterations):
        active = rho > limit
        if step % STEPS_BETWEEN_CHECKS == 0 and not active.any():
            break
        product = matrix(direction)
        step_size = active * rho / _dot(direction, product).clamp_min(tiny)
        x = x + step_size * direction
        residual = residual - step_size * product
        preconditioned = precondition(residual)
        rho_next = _dot(residual, preconditioned)
        direction = preconditioned + rho_next / rho.clamp_min(tiny) * direction
        rho = rho_next
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _over(per_image: Tensor, image: Tensor) -> Tensor:
    """Views `(B,)` as `(B, 1, ..., 1)`, with as many axes as the image."""
    return per_image.reshape(-1, *[1] * (image.ndim - 1))


def _gram_spectrum(K: Tensor, r2: Tensor, sigma2: Tensor) -> Tensor:
    """`r2 |K|^2 + sigma2`, the eigenvalues of the Gram matrix on a periodic grid, for transfer functions `(B, ...)`."""
    return _over(r2, K) * _abs2(K) + _over(sigma2, K)


def _abs2(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()
