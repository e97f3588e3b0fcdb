"""ILVR: samples of an image whose low frequencies are those of the measurement (Choi et al., ICCV 2021).

A baseline that knows nothing of the operator: what it takes over from y is whatever a blur and a tilt leave as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.methods.base import Callback, Measurement, Restoration, StepInfo, restoration
from codiffuse.methods.steps import ReverseProcess, check_counts, delta_kernel, denoise, lift, lower, start_particles
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.priors.prior import Prior
from codiffuse.randomness import NoiseSource


@dataclass(frozen=True)
class ILVR:
    """Iterative latent variable refinement.

    Attributes:
        prior: of the image.
        factor: N of the low-pass filter; the larger, the less is taken over from the measurement.
        process: the reverse chain.
        num_particles: n samples an image; the restoration is their mean.
    """

    prior: Prior
    factor: int = 8
    process: ReverseProcess = field(default_factory=ReverseProcess)
    num_particles: int = 1
    needs: ClassVar[tuple[str, ...]] = ()
    ignores_operator: ClassVar[bool] = True
    knows_photon_noise: ClassVar[bool] = True  # of noise it knows nothing either

    def __post_init__(self) -> None:
        check_counts(factor=self.factor, num_particles=self.num_particles)

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.process.schedule())

    def supports(self, operator: BlurOperator | TurbulenceOperator) -> str | None:
        """`None`, or why not."""
        unknown = set(operator.params) - {"kernel", "tilt"}
        return f"has no value for {', '.join(sorted(unknown))} that changes nothing" if unknown else None

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y`.

        Args:
            measurement: a batch.
            noise: asked for `init` and, once a step, for `step` and `measurement`.
            init: not used.
            callback: called after each step.

        Returns:
            Samples of the size of y, with a kernel of one pixel, and a tilt of zero where the operator has one.
        """
        y = self.prior.space.encode(lift(measurement.y, self.prior))
        nothing = {"kernel": delta_kernel(y, (1, 1)), "tilt": y.new_zeros(len(y), 2, *y.shape[-2:])}
        params = {name: nothing[name] for name in measurement.operator.params}
        shape = (len(y), self.num_particles, *y.shape[1:])
        schedule = self.process.schedule()

        # ILVR, Alg. 1: x_T ~ N(0, I).
        x_t = start_particles(self.process, schedule, y, shape, noise)
        steps = schedule.steps()
        for number, step in enumerate(steps, 1):
            # x'_{t-1} ~ p(x'_{t-1} | x_t): the unconditional proposal.
            x0, fraction, _ = denoise(self.prior, x_t, step, clip=self.process.clip == "denoised")
            proposal = self.process.advance(x_t, x0, step, noise.normal("step", shape, x_t), fraction)
            # y_{t-1} ~ q(y_{t-1} | y); the last one is y.
            signal, spread = math.sqrt(step.alpha_bar_prev), math.sqrt(1 - step.alpha_bar_prev)
            noisy = signal * y.unsqueeze(1) + spread * noise.normal("measurement", shape, x_t)
            # x_{t-1} = phi_N(y_{t-1}) + x'_{t-1} - phi_N(x'_{t-1}).
            x_t = proposal + self.low_pass(noisy - proposal)
            if callback:
                image = self.prior.space.decode(x0).clamp(0, 1)
                callback(StepInfo(number, len(steps), step.alpha_bar, image, params))

        return restoration(measurement, lower(self.prior.space.decode(x_t), measurement.y), params, len(steps))

    def low_pass(self, images: Tensor) -> Tensor:
        """phi_N: `(..., C, H, W)` reduced by N and enlarged again, both by cubic interpolation."""
        planes, size = images.flatten(0, -4), images.shape[-2:]
        small = [math.ceil(side / self.factor) for side in size]
        reduced = F.interpolate(planes, small, mode="bicubic", antialias=True, align_corners=False)
        return F.interpolate(reduced, size, mode="bicubic", align_corners=False).reshape(images.shape)
