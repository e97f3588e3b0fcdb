"""Blur with an unknown kernel, `y = k * x`, and the linear systems that restoring `x` and estimating `k` need.

Shapes: image `(B, *, H, W)` with any axes `*` (channels, particles), kernel `(B, 1, h, w)`; see `codiffuse.fourier` for
the boundaries. A mask `(B, 1, H', W')` of zeros and ones takes pixels of the measurement out of the likelihood.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse import fourier
from codiffuse.errors import InputError
from codiffuse.fourier import Size, abs2, over_batch, over_image
from codiffuse.operators.conjugate_gradients import conjugate_gradients
from codiffuse.operators.covariance import Covariance, covary, image_power, zero_sum
from codiffuse.operators.joint_spectrum import JointSpectrum
from codiffuse.operators.kernel_equations import CircularKernelEquations, KernelEquations, KernelNormalEquations

LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlurOperator:
    """`y = A(k) x = k * x`: true convolution at a named boundary.

    Args:
        boundary: one of `codiffuse.fourier.BOUNDARIES`.
        pad_value: the constant outside the frame for `zero`; the operator is then affine, and `adjoint` and
            `solve_gram` are those of its linear part.
        cg_iterations: most conjugate-gradient steps of `solve_gram` where it has no closed form: with a mask, or at any
            boundary but `circular`.
        cg_tolerance: relative error, in the energy norm of the system, at which such a solve stops.
        kernel_cg_iterations: the same for a solve of the kernel, of which an M-step makes several, each from the last.
        kernel_cg_tolerance: likewise.

    Raises:
        InputError: an unknown boundary, or a pad value for a boundary other than `zero`.
    """

    boundary: str = "circular"
    pad_value: float = 0.0
    cg_iterations: int = 10
    cg_tolerance: float = 1e-3
    kernel_cg_iterations: int = 10
    kernel_cg_tolerance: float = 1e-5
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

    def solve_gram(
        self, residual: Tensor, r2: Tensor, sigma2: Tensor, *, kernel: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """`(r2 A A^T + sigma2 I)^-1 r`, over the pixels that the mask keeps.

        Args:
            residual: `(B, *, H', W')`, shaped like the measurement.
            r2: `(B,)`, variance of the image given its estimate.
            sigma2: `(B,)`, variance of the noise, positive.
            kernel: `(B, 1, h, w)`.
            mask: `(B, 1, H', W')`, 1 for the pixels that count, 0 for the others; `None` counts all.

        Returns:
            Shaped like `residual`; 0 where the mask is 0.
        """
        divide = self._inverse_spectrum(residual, r2, sigma2, kernel)
        if self.boundary == "circular" and mask is None:
            return divide(residual)
        kept = 1 if mask is None else over_image(mask, residual)

        def gram(v: Tensor) -> Tensor:
            backprojected = self.adjoint(v, kernel=kernel)
            blurred = fourier.convolve(backprojected, kernel, self.boundary)
            return kept * (over_batch(r2, v) * blurred) + over_batch(sigma2, v) * v

        return self._iterate(gram, kept * residual, lambda v: kept * divide(v))

    def _inverse_spectrum(self, residual: Tensor, r2: Tensor, sigma2: Tensor, kernel: Tensor) -> LinearMap:
        """`(r2 A A^T + sigma2 I)^-1` by FFT: exact when circular, without a mask; else close to it."""
        shape = residual.shape[-2:]
        grid = self._grid(shape, kernel.shape[-2:])
        spectrum = _gram_spectrum(over_image(fourier.kernel_otf(kernel, grid), residual), r2, sigma2)
        return lambda v: irfft2(rfft2(v, s=grid) / spectrum, s=grid)[..., : shape[0], : shape[1]]

    def _grid(self, shape: Size, kernel_size: Size) -> Size:
        """Of the FFTs that invert a Gram matrix: beyond the frame there is the closest to a scene without bounds."""
        (height, width), (h, w) = shape, kernel_size
        if self.boundary == "circular":
            return height, width
        return fourier.fast_shape((height + h - 1, width + w - 1))

    def _iterate(self, gram: LinearMap, residual: Tensor, precondition: LinearMap, axes: int = 2) -> Tensor:
        """Solves a Gram system that has no closed form, whose planes, or with 3 axes pictures, are independent."""
        return conjugate_gradients(
            gram,
            residual,
            start=torch.zeros_like(residual),
            precondition=precondition,
            iterations=self.cg_iterations,
            tolerance=self.cg_tolerance,
            axes=axes,
        )

    def solve_joint_gram(
        self,
        residual: Tensor,
        r2: Mapping[str, Covariance],
        sigma2: Tensor,
        *,
        image: Tensor,
        kernel: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`S^-1 r`, S being the covariance of the residual when image and kernel are both uncertain.

        With the errors dx and dk, `(k + dk) * (x + dx) - k * x` is `A dx + B dk + dk * dx`, and

            S = A Cov(dx) A^T + r_k^2 B Z B^T + Cov(dk * dx) + sigma2 I,

        where `B` is the blur as a map of the kernel and `Z` leaves the kernel's sum at one (`covariance.zero_sum`).
        With a circular boundary and no mask S is taken apart by FFT, as if the kernel were free on the whole picture
        (`JointSpectrum`): exact for a kernel of that size, and elsewhere an approximation of its part.

        Args:
            residual: `(B, C, H', W')`, shaped like the measurement.
            r2: given their estimates, the covariance of `image`, and the variance `(B,)` of a pixel of `kernel`.
            sigma2: `(B,)`, variance of the noise, positive.
            image: `(B, C, H, W)`, the estimate.
            kernel: `(B, 1, h, w)`, the estimate.
            mask: `(B, 1, H', W')`, as for `solve_gram`.

        Returns:
            Shaped like `residual`; 0 where the mask is 0.
        """
        joint = self._joint_spectrum(residual, r2, sigma2, image, kernel)
        if self.boundary == "circular" and mask is None:
            return joint.divide(residual)
        kept = 1 if mask is None else mask
        of_image = image_power(r2["image"], (image.shape[-2], image.shape[-1]))

        def gram(v: Tensor) -> Tensor:
            blurred = fourier.convolve(covary(of_image, self.adjoint(v, kernel=kernel)), kernel, self.boundary)
            shaken = self._shake(image, v, kernel, r2["kernel"])
            return kept * (blurred + shaken + joint.of_both(v)) + over_batch(sigma2, v) * v

        return self._iterate(gram, kept * residual, lambda v: kept * joint.divide(v), axes=3)

    def parameter_gram(
        self,
        v: Tensor,
        r2: Mapping[str, Covariance],
        *,
        image: Tensor,
        kernel: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What errors of the kernel alone add to `S v`, as `solve_joint_gram`, whose arguments these are, takes S."""
        if self.boundary == "circular" and mask is None:
            return JointSpectrum.of_kernel(v, image, kernel, r2["kernel"], (v.shape[-2], v.shape[-1]))
        kept = 1 if mask is None else mask
        return kept * self._shake(image, v, kernel, r2["kernel"])

    def _shake(self, image: Tensor, v: Tensor, kernel: Tensor, r2: Tensor) -> Tensor:
        """`r2 B Z B^T v`: what errors of the kernel do, of variance r2 `(B,)`, which leave its sum at one."""
        size = (kernel.shape[-2], kernel.shape[-1])
        change = zero_sum(fourier.kernel_adjoint(image, v, self.boundary, size, self.pad_value))
        return over_batch(r2, v) * fourier.convolve(image, change, self.boundary, self.pad_value)

    def _joint_spectrum(
        self, residual: Tensor, r2: Mapping[str, Covariance], sigma2: Tensor, image: Tensor, kernel: Tensor
    ) -> JointSpectrum:
        grid = self._grid((residual.shape[-2], residual.shape[-1]), (kernel.shape[-2], kernel.shape[-1]))
        return JointSpectrum.of(r2, sigma2, image, kernel, grid)

    def guidance_direction(
        self,
        y: Tensor,
        image: Tensor,
        r2: Tensor,
        sigma2: Tensor,
        *,
        kernel: Tensor,
        mask: Tensor | None = None,
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
            mask: `(B, 1, H', W')`, as for `solve_gram`.
            y_hat: `rfft2(y)` when it is at hand; used in the closed form only.
            image_hat: `rfft2(image)` likewise.

        Returns:
            Shaped like the image.
        """
        if self.boundary != "circular" or mask is not None:
            residual = y - self(image, kernel=kernel)
            return self.adjoint(self.solve_gram(residual, r2, sigma2, kernel=kernel, mask=mask), kernel=kernel)
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
        mask: Tensor | None = None,
        y_hat: Tensor | None = None,
        images_hat: Tensor | None = None,
    ) -> KernelNormalEquations:
        """The least-squares problem of the M-step for the kernel (Fast EM, Eq. 24).

        Args:
            y: `(B, C, H', W')`.
            images: `(B, n, C, H, W)`, n particles.
            kernel_size: `(h, w)` of the unknown kernel.
            mask: `(B, 1, H', W')`, 1 for the pixels of y that count, 0 for the others; `None` counts all.
            y_hat: `rfft2(y)` when it is at hand; used in the closed form only.
            images_hat: `rfft2(images)` likewise.
        """
        y = y.unsqueeze(1)
        if self.boundary == "circular" and mask is None:
            Y = rfft2(y) if y_hat is None else y_hat.unsqueeze(1)
            X = rfft2(images) if images_hat is None else images_hat
            return CircularKernelEquations(
                numerator=(X.conj() * Y).sum(1),
                denominator=abs2(X).sum(1),
                num_images=images.shape[1],
                shape=images.shape[-2:],
                kernel_size=kernel_size,
            )
        extended = fourier.extend(images, kernel_size, self.boundary, self.pad_value)
        kept = y.new_ones(len(y), 1, *y.shape[-2:]) if mask is None else mask
        return KernelEquations(
            extended=extended,
            correlation=fourier.kernel_adjoint(
                images, over_image(kept, y) * y, self.boundary, kernel_size, self.pad_value
            ),
            mask=kept,
            cg_iterations=self.kernel_cg_iterations,
            cg_tolerance=self.kernel_cg_tolerance,
        )


def _gram_spectrum(K: Tensor, r2: Tensor, sigma2: Tensor) -> Tensor:
    """`r2 |K|^2 + sigma2`, the eigenvalues of the Gram matrix on a periodic grid, for transfer functions `(B, ...)`."""
    return over_batch(r2, K) * abs2(K) + over_batch(sigma2, K)
