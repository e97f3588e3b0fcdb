"""Blur of light: a camera adds up light, while files and image priors hold the gamma-encoded values of sRGB.

Image and measurement stay encoded, as everywhere in the project; only this operator knows of light. With l the sRGB
curve from values to light (IEC 61966-2-1),

    y = A(x; k) = l^-1(k * l(x)),

whose noise is white in encoded values. Guidance sees it linearised: the residual `l'(y)^-1 (l(y) - k * l(x))`, which to
first order is y - A(x; k), and the derivative in the image `J = l'(y)^-1 K l'(x)`, so that the noise level and the
spread r_t^2 of the image keep their meaning and units.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from codiffuse import fourier
from codiffuse.errors import InputError
from codiffuse.fourier import Size, over_batch, over_image
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.covariance import Covariance, covary, image_power
from codiffuse.operators.kernel_equations import KernelNormalEquations

TOE = 0.04045  # encoded value up to which the curve is a line
TOE_SLOPE = 1 / 12.92


def to_light(values: Tensor) -> Tensor:
    """sRGB values to linear light: [0, 1] onto [0, 1]; the toe goes on below 0 and the power above 1."""
    return torch.where(values <= TOE, values * TOE_SLOPE, ((values.clamp_min(TOE) + 0.055) / 1.055) ** 2.4)


def to_values(light: Tensor) -> Tensor:
    """Linear light to sRGB values: the inverse of `to_light`."""
    toe = TOE * TOE_SLOPE
    return torch.where(light <= toe, light / TOE_SLOPE, 1.055 * light.clamp_min(toe) ** (1 / 2.4) - 0.055)


def slope(values: Tensor) -> Tensor:
    """Derivative of `to_light` at sRGB values: from 0.08 for black to 2.3 for white."""
    power = (2.4 / 1.055) * ((values.clamp_min(TOE) + 0.055) / 1.055) ** 1.4
    return torch.where(values <= TOE, TOE_SLOPE, power)


@dataclass(frozen=True)
class LinearLightBlur(BlurOperator):
    """`y = A(k) x = l^-1(k * l(x))`: the blur of a camera, of sRGB pictures; arguments as for `BlurOperator`.

    There is no closed form at any boundary, and of guidance with a given kernel PiGDM alone.

    Raises:
        InputError: as for `BlurOperator`; a `pad_value` other than 0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad_value != 0:
            raise InputError(f"expected pad_value = 0 in linear light, got {self.pad_value}; use operator=blur")

    def __call__(self, image: Tensor, *, kernel: Tensor) -> Tensor:
        """Blurs the light of an image `(B, *, H, W)` of sRGB values."""
        return to_values(super().__call__(to_light(image), kernel=kernel))

    def adjoint(self, residual: Tensor, *, kernel: Tensor) -> Tensor:
        """Refused: the derivative depends on the image."""
        raise InputError("expected PiGDM guidance for a blur in linear light, got DPS; use guidance=pigdm")

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
        """`J^T (r2 J J^T + sigma2 I)^-1 (y - A x)`, linearised; arguments as for `BlurOperator`, the spectra unused."""
        kept = 1 if mask is None else over_image(mask, y)
        weight, gain = kept / slope(y), slope(image)
        residual = weight * (to_light(y) - super().__call__(to_light(image), kernel=kernel))

        def transposed(v: Tensor) -> Tensor:
            return gain * fourier.correlate(weight * v, kernel, self.boundary)

        def gram(v: Tensor) -> Tensor:
            projected = weight * fourier.convolve(gain * transposed(v), kernel, self.boundary)
            return over_batch(r2, v) * projected + over_batch(sigma2, v) * v

        balance = self._balance(slope(y), gain, kernel)
        divide = self._inverse_spectrum(residual, r2, sigma2, kernel)
        return transposed(self._iterate(gram, residual, lambda v: kept * balance * divide(balance * v)))

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
        """`S^-1 r`, linearised at the estimates; S and arguments as for `BlurOperator`.

        J = l'(A x)^-1 K l'(x) and B = l'(A x)^-1 (l(x) * .) are the derivatives in image and kernel. Of the product of
        both errors, the slopes are taken out as if they changed little under the kernel.
        """
        light, gain = to_light(image), slope(image)
        kept = 1 if mask is None else mask
        at_y = slope(self(image, kernel=kernel))
        balance = self._balance(at_y, gain, kernel)
        # Next to a pixel B is about s times the blur of the picture l(x) / l'(x).
        joint = self._joint_spectrum(residual, r2, sigma2, light / gain, kernel)
        power = image_power(r2["image"], (image.shape[-2], image.shape[-1]))

        def gram(v: Tensor) -> Tensor:
            back = v / at_y
            of_image = gain * covary(power, gain * fourier.correlate(back, kernel, self.boundary))
            varied = fourier.convolve(of_image, kernel, self.boundary)
            varied = varied + self._shake(light, back, kernel, r2["kernel"])
            of_both = joint.of_both(v / balance) / balance
            return kept * (varied / at_y + of_both) + over_batch(sigma2, v) * v

        return self._iterate(gram, kept * residual, lambda v: kept * balance * joint.divide(balance * v), axes=3)

    def parameter_gram(
        self,
        v: Tensor,
        r2: Mapping[str, Covariance],
        *,
        image: Tensor,
        kernel: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`r_k^2 B Z B^T v`, linearised; see `BlurOperator`."""
        at_y = slope(self(image, kernel=kernel))
        kept = 1 if mask is None else mask
        return kept * self._shake(to_light(image), v / at_y, kernel, r2["kernel"]) / at_y

    def _balance(self, at_y: Tensor, gain: Tensor, kernel: Tensor) -> Tensor:
        """1 / s, where J J^T is about s K K^T s: s compares the slopes under the kernel with those at y."""
        return at_y / fourier.convolve(gain.square(), kernel, self.boundary).clamp_min(TOE_SLOPE**2).sqrt()

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
        """The M-step in light, scaled so that the noise has level sigma on average; arguments as for `BlurOperator`.

        Weights `l'(y)^-2` on the pixels would be exact, but they find no better kernels and need several times the
        conjugate-gradient steps.
        """
        kept = torch.ones_like(y) if mask is None else mask.expand_as(y)
        power = (kept * slope(y).square()).sum((1, 2, 3), keepdim=True) / kept.sum((1, 2, 3), keepdim=True).clamp_min(1)
        scale = power.clamp_min(TOE_SLOPE**2).rsqrt()
        return super().normal_equations(
            scale * to_light(y), scale.unsqueeze(1) * to_light(images), kernel_size=kernel_size, mask=mask
        )
