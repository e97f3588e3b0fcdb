"""Fast Diffusion EM: blind deconvolution within one reverse diffusion (Laroche et al., WACV 2024, Alg. 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.base import Callback, Measurement, Restoration, StepInfo, restoration
from codiffuse.methods.memory import particles_that_fit
from codiffuse.methods.steps import (
    ReverseProcess,
    check_counts,
    check_kernel_fits,
    delta_kernel,
    denoise,
    lift,
    lower,
    start_particles,
    supports_blur,
)
from codiffuse.operators.blur import BlurOperator
from codiffuse.priors.prior import Prior
from codiffuse.randomness import NoiseSource


@dataclass(frozen=True)
class FastEM:
    """Alternates one denoising step of n particles with one M-step for their common kernel.

    Attributes:
        prior: of the image.
        m_step: estimates the kernel from y and the particles' x0-hat.
        guidance: approximation of grad log p(y | x_t, K).
        process: the reverse chain.
        num_particles: n; the restoration is the mean of the n samples.
        kernel_size: side of the unknown kernel, px.
        held_steps: first steps of a run, during which the kernel stays what it was given: an M-step there, from images
            that are still coarse, would spoil a kernel that is good already.
        particle_chunk: particles a network call; `None` takes as many as the free memory holds.
    """

    prior: Prior
    m_step: HQS
    guidance: PiGDM | DPS = field(default_factory=PiGDM)
    process: ReverseProcess = field(default_factory=ReverseProcess)
    num_particles: int = 1
    kernel_size: int = 33
    held_steps: int = 0
    particle_chunk: int | None = None
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles, kernel_size=self.kernel_size)
        if not 0 <= self.held_steps < max(self.num_steps, 1):
            raise InputError(
                f"Expected held_steps from 0 to below the {self.num_steps} steps of the run, got {self.held_steps}."
            )

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.process.schedule())

    @property
    def work(self) -> float:
        """Time of a whole run, in steps of one particle."""
        return self.num_particles * self.num_steps

    def with_kernel_size(self, size: int) -> FastEM:
        """The same method for another kernel size."""
        return replace(self, kernel_size=size)

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        if self.m_step.pooling == "mean" and getattr(operator, "boundary", "circular") != "circular":
            return "needs boundary=circular for m_step.pooling=mean"
        return supports_blur(operator)

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y` and estimate its kernel.

        Args:
            measurement: a batch; each image has its own kernel.
            noise: asked for `init` and, once a step, for `step`.
            init: `kernel` `(B, 1, h, w)` to start from, and `image` `(B, C, H, W)` in [0, 1] whose noisy version a
                cut chain (`process.start` < 1) starts from instead of that of y.
            callback: called after each step.
        """
        operator, y = measurement.operator, lift(measurement.y, self.prior)
        # The copies of a gray measurement share one noise, so together they weigh as one observation. (Each weighing
        # as one, the image gains, but kernels are found less often: docs/methods.md.)
        sigma = measurement.sigma * math.sqrt(y.shape[1] / measurement.y.shape[1])
        size = (self.kernel_size, self.kernel_size)
        check_kernel_fits(size, y)
        kernel = (init or {}).get("kernel")
        kernel = delta_kernel(y, size) if kernel is None else kernel.to(y)
        shape = (len(y), self.num_particles, y.shape[1], *operator.image_shape(y.shape[-2:], kernel_size=size))
        y_hat = torch.fft.rfft2(y)
        chunk = self.particle_chunk or particles_that_fit(self.prior, shape)
        schedule = self.process.schedule()

        # Fast EM, Alg. 2: x_T ~ N(0, I), n particles.
        start = (init or {}).get("image")
        start = self.prior.space.encode(y if start is None else lift(start.to(y), self.prior))
        x_t = start_particles(self.process, schedule, start, shape, noise)
        steps = schedule.steps()
        for number, step in enumerate(steps, 1):
            # Alg. 2, lines 2-3: eps-hat and x0-hat.
            x0, fraction, pull_back = denoise(self.prior, x_t, step, clip=self.process.clip == "denoised", chunk=chunk)
            image = self.prior.space.decode(x0).clamp(0, 1)
            image_hat = torch.fft.rfft2(image)
            # Alg. 2, line 4: K_{t-1} = M-step(y, x0-hat, sigma), Eqs. 24 and 25.
            if number > self.held_steps:
                equations = operator.normal_equations(
                    y, image, kernel_size=size, mask=measurement.mask, y_hat=y_hat, images_hat=image_hat
                )
                kernel = self.m_step(equations, sigma, kernel, self.guidance.r2(step))
            # Alg. 2, line 5: g = grad log p(y | x_t, K_{t-1}), Eq. 16 or 17.
            cotangent = self.guidance.cotangent(
                operator,
                y.unsqueeze(1),
                image,
                sigma,
                step,
                kernel=kernel,
                mask=measurement.mask,
                y_hat=y_hat.unsqueeze(1),
                x0_hat=image_hat,
            )
            gradient = pull_back(self.prior.space.decode_gradient(cotangent))
            # Alg. 2, lines 6-8: the DDPM update with the conditional score.
            z = noise.normal("step", shape, x_t)
            x_t = self.process.advance(x_t, x0 + self.guidance.x0_shift(gradient, step), step, z, fraction)
            if callback:
                callback(StepInfo(number, len(steps), step.alpha_bar, image, {"kernel": kernel}))

        return restoration(
            measurement, lower(self.prior.space.decode(x_t), measurement.y), {"kernel": kernel}, len(steps)
        )
