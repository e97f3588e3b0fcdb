"""The M-step of Diffusion EM and Fast EM: the kernel by half-quadratic splitting, Eqs. (21)-(25)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.centering import recentre_integer, recentre_spline
from codiffuse.estimation.regularizers import Regularizer
from codiffuse.operators.kernel_equations import KernelNormalEquations
from codiffuse.spaces import shift_and_divide

RECENTRING = {"none": lambda kernel: kernel, "integer": recentre_integer, "spline": recentre_spline}
BETA_REFERENCE_PIXELS = 256 * 256


@dataclass(frozen=True)
class HQS:
    """argmin_K 1 / (2 n sigma^2) sum_i ||K x_i - y||^2 + weight Phi(K) over the simplex.

    Attributes:
        regularizer: Phi.
        iterations: of (24) and (25).
        beta: of the splitting; belongs to kernels of sum one.
        weight: lambda; the denoiser works at level sqrt(weight / beta).
        scale_beta: `none`, or `pixels`: beta H W / 256^2, because the data term grows with the number of pixels.
        anchor_per_particle: weigh the anchor by n beta sigma^2 as Eq. (24) does; off is beta sigma^2, as released.
        pooling: colour channels solved jointly, or alone and averaged (released).
        project_first: clip and normalise before the denoiser too (released), not only after it.
        second_moment: weight of the spread r_t^2 of the images about their estimates, appendix D; 1 is the paper.
        blurred_spread: share of the images' spread r_t that their blur passes on to y: the M-step assumes the noise
            level sqrt(sigma^2 + blurred_spread^2 r_t^2). It keeps an early M-step, whose images are wrong, from
            fitting the kernel to their errors. The paper has 0.
        recentring: after the last iteration: `integer`, `spline` (released), `none` (paper).
    """

    regularizer: Regularizer
    iterations: int = 10
    beta: float = 1e5
    weight: float = 1.0
    scale_beta: Literal["none", "pixels"] = "none"
    anchor_per_particle: bool = True
    pooling: Literal["joint", "mean"] = "joint"
    project_first: bool = False
    second_moment: float = 0.0
    blurred_spread: float = 0.0
    recentring: Literal["none", "integer", "spline"] = "integer"

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.beta <= 0 or self.weight < 0:
            raise InputError(
                f"Expected iterations >= 1, beta > 0, weight >= 0; got {self.iterations}, {self.beta}, {self.weight}."
            )
        if self.scale_beta not in ("none", "pixels") or self.pooling not in ("joint", "mean") or self.second_moment < 0:
            raise InputError(
                "Expected scale_beta none or pixels, pooling joint or mean, second_moment >= 0; "
                f"got {self.scale_beta!r}, {self.pooling!r}, {self.second_moment}."
            )
        if self.blurred_spread < 0:
            raise InputError(f"Expected blurred_spread >= 0, got {self.blurred_spread}.")
        if self.recentring not in RECENTRING:
            raise InputError(f"Expected recentring among {', '.join(RECENTRING)}, got {self.recentring!r}.")

    def __call__(self, equations: KernelNormalEquations, sigma: Tensor, kernel: Tensor, r2: float = 0.0) -> Tensor:
        """One M-step.

        Args:
            equations: what the operator makes of y and the images.
            sigma: `(B,)` noise level in [0, 1] units.
            kernel: `(B, 1, h, w)` where to start.
            r2: r_t^2, variance of the images about their estimates, in [0, 1]^2 units; used by `second_moment` and
                `blurred_spread`.

        Returns:
            `(B, 1, h, w)`, non-negative and of sum one (`recentring="spline"` may break both, as released).
        """
        n = equations.num_images
        beta = self._beta(equations)
        # y - K x0-hat is noise plus the blurred error of x0-hat, whose variance is about r_t^2 ||K||^2.
        sigma2 = sigma.square() + self.blurred_spread**2 * r2
        alpha = beta * sigma2 * (n if self.anchor_per_particle else 1)
        solve = equations.prepare(alpha, self._spread_of_images(equations, alpha, r2), self.pooling)
        for _ in range(self.iterations):
            z = solve(kernel)  # Eq. 24
            if self.project_first:
                z = shift_and_divide(z)
            z = shift_and_divide(self.regularizer(z, self.weight, beta))  # Eq. 25
            # A regulariser that leaves nothing (a large l1 weight) must not leave a kernel of sum zero.
            kernel = torch.where(z.sum((-2, -1), keepdim=True) > 0, z, kernel)
        return RECENTRING[self.recentring](kernel)

    def _beta(self, equations: KernelNormalEquations) -> float:
        if self.scale_beta == "none":
            return self.beta
        height, width = equations.shape
        return self.beta * height * width / BETA_REFERENCE_PIXELS

    def _spread_of_images(self, equations: KernelNormalEquations, alpha: Tensor, r2: float) -> Tensor | None:
        # Appendix D: E ||K x - y||^2 = ||K x0-hat - y||^2 + r_t^2 N ||K||^2.
        if self.second_moment == 0:
            return None
        height, width = equations.shape
        channels = equations.num_channels if self.pooling == "joint" else 1
        return alpha.new_full(alpha.shape, self.second_moment * equations.num_images * height * width * channels * r2)
