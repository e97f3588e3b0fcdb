"""The joint Gram matrix of a blur whose image and kernel are both uncertain, on a periodic grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse import fourier
from codiffuse.fourier import Size, abs2, over_batch
from codiffuse.operators.covariance import Covariance, filtered, image_power, kernel_power


@dataclass(frozen=True)
class JointSpectrum:
    """S frequency by frequency: `a I + q X X^H` over the channels; exact when the kernel is as large as the grid.

    Attributes:
        X: `(B, C, H, W // 2 + 1)`, the image.
        a: `(B, 1, H, W // 2 + 1)`, what is alike in all channels: errors of the image, those of both, and noise.
        along: likewise, `q / (a + q |X|^2)`, where q are errors of the kernel, which all channels share.
        both: likewise, the product of both errors alone.
        grid: `(H, W)`.
    """

    X: Tensor
    a: Tensor
    along: Tensor
    both: Tensor
    grid: Size

    @classmethod
    def of(
        cls, r2: Mapping[str, Covariance], sigma2: Tensor, image: Tensor, kernel: Tensor, grid: Size
    ) -> JointSpectrum:
        """Arguments as for `BlurOperator.solve_joint_gram`."""
        X = rfft2(image, s=grid)
        of_image = image_power(r2["image"], grid)
        of_kernel = kernel_power(kernel, r2["kernel"], grid)
        both = of_image * of_kernel
        a = of_image * abs2(fourier.kernel_otf(kernel, grid)) + both + over_batch(sigma2, X)
        q = of_kernel / (grid[0] * grid[1])
        return cls(X, a, q / (a + q * abs2(X).sum(1, keepdim=True)), both, grid)

    @staticmethod
    def of_kernel(v: Tensor, image: Tensor, kernel: Tensor, r2: Tensor, grid: Size) -> Tensor:
        """`q X X^H v`, the part of S that is due to errors of the kernel alone; arguments as there."""
        X, V = rfft2(image, s=grid), rfft2(v, s=grid)
        q = kernel_power(kernel, r2, grid) / (grid[0] * grid[1])
        return irfft2(q * (X.conj() * V).sum(1, keepdim=True) * X, s=grid)[..., : v.shape[-2], : v.shape[-1]]

    def divide(self, v: Tensor) -> Tensor:
        """`S^-1 v` of `(B, C, H', W')`, filled up with zeros; Sherman & Morrison's formula."""
        V = rfft2(v, s=self.grid)
        V = (V - self.along * (self.X.conj() * V).sum(1, keepdim=True) * self.X) / self.a
        return irfft2(V, s=self.grid)[..., : v.shape[-2], : v.shape[-1]]

    def of_both(self, v: Tensor) -> Tensor:
        """`Cov(dk * dx) v`, of the blur of one error with the other."""
        return filtered(v, self.both, self.grid)
