"""Pieces that the samplers share: the reverse process and the denoiser with its vector-Jacobian product.

Shapes: particles `(B, n, C, H, W)`; folded to `(B n, C, H, W)` only inside a call of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import pad, reach
from codiffuse.methods.base import Callback, Measurement
from codiffuse.operators.blur import BlurOperator
from codiffuse.priors.prior import Denoised, Prior
from codiffuse.randomness import NoiseSource
from codiffuse.schedule import Schedule, Step, linear_schedule

PullBack = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ReverseProcess:
    """How x_t becomes x_{t-1}, given x0-hat.

    Attributes:
        num_steps: steps kept of the 1000 of the linear chain; `"ddimN"` keeps a constant integer stride.
        spacing: power by which they crowd where there is little noise (`Schedule.respaced`): 1 spreads them evenly.
        start: share of the chain that is run: 1 starts from pure noise; less starts from a noisy version of `y`.
        eta: 1 is ancestral sampling (DDPM), 0 deterministic (DDIM).
        variance: sigma~_t^2 = `small` beta~_t, `large` beta_t, or `learned` by the network (BlindDPS: by each that
            learned one, beta~_t for the others).
        clip: where x0-hat is clipped to [-1, 1]: `denoised` before guidance, with the clip inside the gradient
            (released), `guided` after guidance is added, `none`.
    """

    num_steps: int | str = 100
    spacing: float = 1.0
    start: float = 1.0
    eta: float = 1.0
    variance: Literal["small", "large", "learned"] = "small"
    clip: Literal["denoised", "guided", "none"] = "denoised"

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int | str):
            raise InputError(f"Expected a whole number of steps or 'ddimN' for num_steps, got {self.num_steps!r}.")
        if not 0 < self.start <= 1 or not 0 <= self.eta <= 1:
            raise InputError(f"Expected start in (0, 1] and eta in [0, 1], got {self.start} and {self.eta}.")
        if not isinstance(self.num_steps, str) and not 1 <= self.num_steps <= len(self._chain()):
            raise InputError(
                f"Expected num_steps from 1 to {len(self._chain())}, which start={self.start:g} leaves of the chain, "
                f"got {self.num_steps}; set method.process.start=1 for all of it."
            )
        if not self.spacing >= 1 or (self.spacing != 1 and isinstance(self.num_steps, str)):
            raise InputError(
                f"Expected spacing >= 1, and 1 for num_steps in words, got {self.spacing} for {self.num_steps!r}; "
                "set spacing=1."
            )
        if self.variance not in ("small", "large", "learned"):
            raise InputError(f"Expected variance small, large or learned, got {self.variance!r}.")
        if 0 < self.eta < 1 and self.variance != "small":
            raise InputError(f"Expected variance=small for eta between 0 and 1, got {self.variance!r}.")
        if self.clip not in ("denoised", "guided", "none"):
            raise InputError(f"Expected clip denoised, guided or none, got {self.clip!r}.")

    def schedule(self) -> Schedule:
        """The running chain."""
        return self._chain().respaced(self.num_steps, self.spacing)

    def _chain(self) -> Schedule:
        """The part of the linear chain that is run, all of its steps."""
        chain = linear_schedule()
        kept = round(self.start * len(chain))
        return Schedule(chain.betas[:kept], chain.original_steps[:kept], chain.num_original)

    def advance(
        self, x_t: Tensor, x0: Tensor, step: Step, z: Tensor, variance_fraction: Tensor | None = None
    ) -> Tensor:
        """x_{t-1} from x_t and the (guided) x0-hat, all in diffusion coordinates; z is standard normal noise."""
        if self.clip == "guided":
            x0 = x0.clamp(-1, 1)
        spread = self.eta**2 * step.posterior_variance
        eps = (x_t - math.sqrt(step.alpha_bar) * x0) / math.sqrt(1 - step.alpha_bar)
        mean = math.sqrt(step.alpha_bar_prev) * x0 + math.sqrt(max(1 - step.alpha_bar_prev - spread, 0)) * eps
        if step.index == 0:
            return mean
        return mean + self._noise_std(step, variance_fraction) * z

    def _noise_std(self, step: Step, variance_fraction: Tensor | None) -> float | Tensor:
        if self.variance == "learned":
            if variance_fraction is None:
                raise InputError("Expected a prior with learned variance, got one without; use variance=small.")
            return self.eta * (0.5 * learned_log_variance(variance_fraction, step)).exp()
        return self.eta * math.sqrt(step.beta if self.variance == "large" else step.posterior_variance)


def learned_log_variance(variance_fraction: Tensor, step: Step) -> Tensor:
    """The log-variance of a network that interpolates between log beta~_t (0) and log beta_t (1)."""
    return variance_fraction * math.log(step.beta) + (1 - variance_fraction) * step.posterior_log_variance


def denoise(
    prior: Prior, x_t: Tensor, step: Step, *, clip: bool, chunk: int | None = None
) -> tuple[Tensor, Tensor | None, PullBack]:
    """x0-hat of every particle, and its vector-Jacobian product.

    Args:
        prior: of the image.
        x_t: `(B, n, C, H, W)`.
        step: where in the chain.
        clip: clip x0-hat to [-1, 1], inside the gradient.
        chunk: particles a network call; fewer hold less memory, at the cost of a second forward pass each.

    Returns:
        x0-hat `(B, n, C, H, W)` in diffusion coordinates, the variance fraction likewise or `None`, and a function that
        maps a cotangent of x0-hat in diffusion coordinates to the gradient with respect to `x_t`.
    """
    shape, particles = x_t.shape, x_t.flatten(0, 1)

    def run(x: Tensor) -> Denoised:
        alpha_bar = torch.full((len(x),), step.alpha_bar, dtype=torch.float64, device=x.device)
        denoised = prior.denoise(x, alpha_bar)
        return Denoised(denoised.x0.clamp(-1, 1), denoised.variance_fraction) if clip else denoised

    if chunk is None or chunk >= len(particles):
        leaf = particles.detach().requires_grad_()
        with torch.enable_grad():
            denoised = run(leaf)

        def pull_back(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(denoised.x0, leaf, cotangent.flatten(0, 1))[0].reshape(shape)

        return *_unfold(denoised, shape), pull_back

    with torch.no_grad():
        parts = [run(part) for part in particles.split(chunk)]
    fractions = None if parts[0].variance_fraction is None else torch.cat([p.variance_fraction for p in parts])

    def pull_back_in_chunks(cotangent: Tensor) -> Tensor:
        gradients = []
        for part, weight in zip(particles.split(chunk), cotangent.flatten(0, 1).split(chunk), strict=True):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                x0 = run(leaf).x0
            gradients.append(torch.autograd.grad(x0, leaf, weight)[0])
        return torch.cat(gradients).reshape(shape)

    return *_unfold(Denoised(torch.cat([p.x0 for p in parts]), fractions), shape), pull_back_in_chunks


def start_particles(
    process: ReverseProcess, schedule: Schedule, start: Tensor, shape: tuple[int, ...], noise: NoiseSource
) -> Tensor:
    """x_T of shape `(B, n, C, H, W)`: pure noise, or, when the chain is cut, the noisy version of a picture.

    Args:
        process: says whether the chain is cut.
        schedule: the running chain.
        start: `(B, C, H', W')` in diffusion coordinates; a smaller one is continued by its edge to H x W.
        shape: of the particles.
        noise: asked for `init`.
    """
    x_T = noise.normal("init", shape, start)
    return x_T if process.start == 1 else noisy(start.unsqueeze(1), x_T, schedule)


def noisy(start: Tensor, x_T: Tensor, schedule: Schedule) -> Tensor:
    """What a cut chain starts from: `start` `(..., H', W')`, continued by its edge to the size of the noise `x_T`."""
    missing = x_T.shape[-2] - start.shape[-2], x_T.shape[-1] - start.shape[-1]
    if any(missing):
        margins = reach((missing[0] + 1, missing[1] + 1))
        start = pad(start, margins, "replicate")
    alpha_bar = float(schedule.alpha_bar[-1])
    return math.sqrt(alpha_bar) * start + math.sqrt(1 - alpha_bar) * x_T


def _unfold(denoised: Denoised, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    fraction = denoised.variance_fraction
    return denoised.x0.detach().reshape(shape), None if fraction is None else fraction.detach().reshape(shape)


def delta_kernel(y: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, 1, h, w)`: no blur, where every blind method starts unless told otherwise."""
    kernel = y.new_zeros(len(y), 1, *size)
    kernel[..., size[0] // 2, size[1] // 2] = 1
    return kernel


def lift(y: Tensor, prior: Prior) -> Tensor:
    """A measurement in the prior's number of channels: a gray one is repeated over the channels of a colour prior."""
    if y.shape[1] == prior.channels:
        return y
    if y.shape[1] == 1:
        return y.expand(-1, prior.channels, -1, -1)
    raise InputError(f"Expected a measurement of 1 or {prior.channels} channels for this prior, got {y.shape[1]}.")


def lower(x: Tensor, y: Tensor) -> Tensor:
    """Samples `(B, n, C, H, W)` in the measurement's channels: the inverse of `lift`, by the mean."""
    return x if x.shape[2] == y.shape[1] else x.mean(2, keepdim=True)


def part_of_run(callback: Callback | None, done: int, total: int) -> Callback | None:
    """The same callback for a run within a run: it counts the steps of all of them."""
    if callback is None:
        return None
    return lambda info: callback(replace(info, number=done + info.number, total=total))


def of_part(callback: Callback | None, part: Measurement, *, factor: int = 1, tile: bool = False) -> Callback | None:
    """The same callback, told what part of the picture a step was on, unless that is known already."""
    if callback is None:
        return None
    return lambda info: callback(info if info.part else replace(info, part=part, factor=factor, tile=tile))


def check_counts(**counts: int) -> None:
    """Refuse hyper-parameters that count something and are below 1, or no whole numbers."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise InputError(f"Expected {name} >= 1, a whole number, got {count!r}; set {name}=.")


def check_kernel_fits(size: tuple[int, int], y: Tensor) -> None:
    """Refuse a kernel that is larger than the picture."""
    if size[0] > y.shape[-2] or size[1] > y.shape[-1]:
        raise InputError(
            f"Expected a kernel no larger than the picture of {y.shape[-2]} x {y.shape[-1]} px, "
            f"got {size[0]} x {size[1]}; use a smaller kernel (kernel_size=)."
        )


def supports_blur(operator: object) -> str | None:
    """`None` for a blur, else the reason why these samplers cannot use the operator."""
    return None if isinstance(operator, BlurOperator) else f"needs a blur operator, got {type(operator).__name__}"
