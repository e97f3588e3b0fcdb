"""Imaging through turbulence, `y = k * T_phi(x)`: a tilt field moves the pixels about, and a blur follows.

The tilt is the first-order part of what the atmosphere does to each point of a scene, the blur what is left on average
(BlindDPS, Eq. 13). Which of the two comes first matters, as they do not commute (Chan, IEEE SPL 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from codiffuse import fourier
from codiffuse.errors import InputError
from codiffuse.fourier import Size, over_batch
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.covariance import Covariance
from codiffuse.operators.warp import warp, warp_adjoint

ORDERS = ("tilt_then_blur", "blur_then_tilt")


@dataclass(frozen=True)
class TurbulenceOperator:
    """`y = A(k, phi) x`, with `A = K T_phi` (`tilt_then_blur`) or `A = T_phi K` (`blur_then_tilt`).

    Differentiable in image, kernel and tilt. K is the convolution of `codiffuse.fourier` and T_phi the warp of
    `codiffuse.operators.warp`, both at the same boundary: each continues the picture that it is given.

    With `valid` and `unknown` the image lives on a canvas larger than the measurement, and so does the tilt, which
    moves the scene before it is blurred: it has the size that `image_shape` says. The warp then goes on beyond the
    canvas with the edge pixel (`replicate`); only pixels that lie within the tilt's length from the edge of the canvas
    depend on that, and the measurement sees these with the outermost values of the kernel alone. The other order is
    refused there: it would need the blurred scene up to the tilt's length beyond the frame, which no canvas of this
    size determines, and at the frame itself, where nothing weighs it down.

    Args:
        boundary: one of `codiffuse.fourier.BOUNDARIES`.
        pad_value: the constant outside the frame for `zero`; the operator is then affine, and `adjoint` is that of its
            linear part.
        order: what comes first.

    Raises:
        InputError: an unknown boundary or order, a pad value for a boundary other than `zero`, or `blur_then_tilt` with
            `valid` or `unknown`.
    """

    boundary: str = "circular"
    pad_value: float = 0.0
    order: Literal["tilt_then_blur", "blur_then_tilt"] = "tilt_then_blur"
    params: ClassVar[tuple[str, ...]] = ("kernel", "tilt")

    def __post_init__(self) -> None:
        BlurOperator(self.boundary, self.pad_value)  # refuses what a blur refuses
        if self.order not in ORDERS:
            raise InputError(f"expected an order among {', '.join(ORDERS)}, got {self.order!r}")
        if self.order == "blur_then_tilt" and self.has_canvas:
            raise InputError(
                f"expected order 'tilt_then_blur' with boundary {self.boundary!r}, got 'blur_then_tilt', which reads "
                "blurred pixels beyond the frame; use boundary=reflect"
            )

    def __call__(self, image: Tensor, *, kernel: Tensor, tilt: Tensor) -> Tensor:
        """The measurement without its noise.

        Args:
            image: `(B, *, H, W)`.
            kernel: `(B, 1, h, w)`.
            tilt: `(B, 2, H, W)` in pixels; see `codiffuse.operators.warp`.

        Returns:
            As `codiffuse.fourier.convolve`: `(B, *, H, W)`, less for `valid` and `unknown`.

        Raises:
            InputError: batches that differ, or a tilt of another size than the image.
        """
        if self.order == "tilt_then_blur":
            warped = warp(image, tilt, self._warp_boundary, self.pad_value)
            return fourier.convolve(warped, kernel, self.boundary, self.pad_value)
        blurred = fourier.convolve(image, kernel, self.boundary, self.pad_value)
        return warp(blurred, tilt, self._warp_boundary, self.pad_value)

    def adjoint(self, residual: Tensor, *, kernel: Tensor, tilt: Tensor) -> Tensor:
        """`A^T r`, shaped like the image; not differentiable itself."""
        if self.order == "tilt_then_blur":
            return warp_adjoint(fourier.correlate(residual, kernel, self.boundary), tilt, self._warp_boundary)
        return fourier.correlate(warp_adjoint(residual, tilt, self._warp_boundary), kernel, self.boundary)

    def solve_joint_gram(
        self,
        residual: Tensor,
        r2: Mapping[str, Covariance],
        sigma2: Tensor,
        *,
        image: Tensor,
        kernel: Tensor,
        tilt: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """About `S^-1 r`, where that of a blur gains `r_phi^2 C C^T`; by the system of a blur.

        C is the derivative in the tilt. For `tilt_then_blur` the kernel acts on the picture `T_phi x`, and two
        approximations remain. T_phi, which moves pixels about, is taken to leave the image's covariance as it is:
        `A Cov(dx) A^T ~ K Cov(dx) K^T`. A tilt off by d changes `T_phi x` by g . d, with g its gradient, so that
        `C C^T = K diag(g . g) K^T`; there the mean of g . g over pixels and channels stands for each of its values, as
        if the channels had a tilt of their own each: Cov(dx) grows by r_phi^2 times it. For `blur_then_tilt` T_phi is
        taken to commute with the blur as well, and C acts on the blurred picture: the noise grows instead.

        Args:
            residual: `(B, C, H', W')`, shaped like the measurement.
            r2: given their estimates, the covariance of `image`, and variances `(B,)` of `kernel` and `tilt` (px^2),
                a pixel.
            sigma2: `(B,)`, variance of the noise, positive.
            image: `(B, C, H, W)`, the estimate.
            kernel: `(B, 1, h, w)`, the estimate.
            tilt: `(B, 2, H, W)` in pixels, the estimate.
            mask: `(B, 1, H', W')`, 1 for the pixels that count, 0 for the others; `None` counts all.

        Returns:
            Shaped like `residual`; 0 where the mask is 0. A symmetric, positive definite map of the residual, up to
            the tolerance of conjugate gradients.
        """
        blur, warped, of_tilt = self._linearised(r2["tilt"], image, kernel, tilt)
        of_image = r2["image"]
        if self.order == "tilt_then_blur":
            of_image = of_image + of_tilt
        else:
            sigma2 = sigma2 + of_tilt
        variances = {"image": of_image, "kernel": r2["kernel"]}
        return blur.solve_joint_gram(residual, variances, sigma2, image=warped, kernel=kernel, mask=mask)

    def parameter_gram(
        self,
        v: Tensor,
        r2: Mapping[str, Covariance],
        *,
        image: Tensor,
        kernel: Tensor,
        tilt: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What errors of kernel and tilt alone add to `S v`, with the approximations of `solve_joint_gram`."""
        blur, warped, of_tilt = self._linearised(r2["tilt"], image, kernel, tilt)
        kept = 1 if mask is None else mask
        moved = v
        if self.order == "tilt_then_blur":
            moved = fourier.convolve(fourier.correlate(v, kernel, self.boundary), kernel, self.boundary)
        of_kernel = blur.parameter_gram(v, r2, image=warped, kernel=kernel, mask=mask)
        return of_kernel + kept * over_batch(of_tilt, v) * moved

    def _linearised(
        self, r2: Tensor, image: Tensor, kernel: Tensor, tilt: Tensor
    ) -> tuple[BlurOperator, Tensor, Tensor]:
        """The blur, the picture that the tilt moved, and by how much errors r2 of the tilt vary what follows, `(B,)`.

        What follows is that picture for `tilt_then_blur`, for `blur_then_tilt` its blur.
        """
        blur = BlurOperator(self.boundary, self.pad_value)
        warped = warp(image, tilt, self._warp_boundary, self.pad_value)
        changed = warped if self.order == "tilt_then_blur" else blur(warped, kernel=kernel)
        return blur, warped, r2 * _mean_square_gradient(changed)

    def image_shape(self, y_shape: Size, *, kernel_size: Size) -> Size:
        """The `(H, W)` of the image, and of the tilt, behind a measurement of this size."""
        return BlurOperator(self.boundary).image_shape(y_shape, kernel_size=kernel_size)

    def crop_to_frame(self, image: Tensor, *, kernel_size: Size) -> Tensor:
        """The part of an image or a tilt `(..., H, W)` that the measurement shows; see `BlurOperator`."""
        return BlurOperator(self.boundary).crop_to_frame(image, kernel_size=kernel_size)

    @property
    def has_canvas(self) -> bool:
        """Whether image and tilt go on beyond the frame."""
        return self.boundary in ("valid", "unknown")

    @property
    def _warp_boundary(self) -> str:
        return "replicate" if self.has_canvas else self.boundary


def _mean_square_gradient(image: Tensor) -> Tensor:
    """`(B,)`: mean over pixels and channels of the squared length of the gradient, a pixel, of `(B, C, H, W)`."""
    return sum(image.diff(dim=axis).square().mean((1, 2, 3)) for axis in (-2, -1))
