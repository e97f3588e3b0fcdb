"""Non-blind diffusion deblurring with PiGDM or DPS guidance (Fast EM, Alg. 1): the oracles of the blind methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.base import Callback, Measurement, Restoration, StepInfo, restoration
from codiffuse.methods.memory import particles_that_fit
from codiffuse.methods.steps import ReverseProcess, check_counts, denoise, lift, lower, start_particles, supports_blur
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import PoissonNoise
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.priors.prior import Prior
from codiffuse.randomness import NoiseSource


@dataclass(frozen=True)
class NonBlind:
    """Posterior samples of the image, the parameters of the operator being known.

    Attributes:
        prior: of the image.
        guidance: approximation of grad log p(y | x_t, K).
        process: the reverse chain.
        num_particles: n samples an image; the restoration is their mean.
        particle_chunk: particles a network call; `None` takes as many as the free memory holds.
    """

    prior: Prior
    guidance: PiGDM | DPS = field(default_factory=PiGDM)
    process: ReverseProcess = field(default_factory=ReverseProcess)
    num_particles: int = 1
    particle_chunk: int | None = None
    needs: ClassVar[tuple[str, ...]] = ("kernel",)

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.process.schedule())

    @property
    def knows_photon_noise(self) -> bool:
        """PiGDM takes one level for all pixels."""
        return isinstance(self.guidance, DPS)

    def supports(self, operator: BlurOperator | TurbulenceOperator) -> str | None:
        """`None`, or why not."""
        if not isinstance(operator, TurbulenceOperator) or not isinstance(self.guidance, DPS):
            return supports_blur(operator)
        # The true tilt of a picture is known for the frame.
        return "needs the tilt beyond the frame (boundary=circular does not)" if operator.has_canvas else None

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y` with the parameters `measurement.known` of its operator, such as `kernel`.

        Raises:
            InputError: one of them is not known.
        """
        operator = measurement.operator
        for name in operator.params:
            if name not in measurement.known:
                raise InputError(f"Expected a known {name} for a non-blind method, got none; use a blind method.")
        params = {name: measurement.known[name] for name in operator.params}
        y, sigma = lift(measurement.y, self.prior), measurement.sigma
        if isinstance(measurement.noise, PoissonNoise) and self.knows_photon_noise:
            sigma = measurement.noise.variance(y).sqrt().unsqueeze(1)
        size = params["kernel"].shape[-2:]
        shape = (len(y), self.num_particles, y.shape[1], *operator.image_shape(y.shape[-2:], kernel_size=size))
        y_hat = torch.fft.rfft2(y).unsqueeze(1)
        chunk = self.particle_chunk or particles_that_fit(self.prior, shape)
        schedule = self.process.schedule()

        # Fast EM, Alg. 1: x_T ~ N(0, I).
        x_t = start_particles(self.process, schedule, self.prior.space.encode(y), shape, noise)
        steps = schedule.steps()
        for number, step in enumerate(steps, 1):
            # Alg. 1, lines 2-3: eps-hat and x0-hat.
            x0, fraction, pull_back = denoise(self.prior, x_t, step, clip=self.process.clip == "denoised", chunk=chunk)
            image = self.prior.space.decode(x0).clamp(0, 1)
            # Alg. 1, line 4: g = grad log p(y | x_t, K), Eq. 16 or 17.
            cotangent = self.guidance.cotangent(
                operator, y.unsqueeze(1), image, sigma, step, **params, mask=measurement.mask, y_hat=y_hat
            )
            gradient = pull_back(self.prior.space.decode_gradient(cotangent))
            # Alg. 1, lines 5-7: the DDPM update with the conditional score.
            z = noise.normal("step", shape, x_t)
            x_t = self.process.advance(x_t, x0 + self.guidance.x0_shift(gradient, step), step, z, fraction)
            if callback:
                callback(StepInfo(number, len(steps), step.alpha_bar, image, params))

        return restoration(measurement, lower(self.prior.space.decode(x_t), measurement.y), params, len(steps))
