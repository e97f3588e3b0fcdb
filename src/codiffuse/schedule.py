"""Variance-preserving diffusion tables: betas, respacing, the DDPM posterior, Tweedie's formula.

Shapes: tables are `(T,)` float64; `alpha_bar` arguments are `(B,)` and are spread over the image axes of `x` here.
References: Ho et al. 2020 (DDPM); Nichol & Dhariwal 2021 (cosine, respacing); Song et al. 2021 (DDIM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from codiffuse.errors import InputError


@dataclass(frozen=True)
class Step:
    """The numbers of one reverse step t -> t - 1, as plain floats: a sampler's loop asks no device for them.

    Attributes:
        index: t in the running chain; 0 is the last step.
        beta: beta_t of the running chain.
        alpha_bar: alpha_bar_t.
        alpha_bar_prev: alpha_bar_{t-1}; 1 at t = 0.
        posterior_log_variance: log beta~_t, at t = 0 that of t = 1, as learned-variance networks were trained.
    """

    index: int
    beta: float
    alpha_bar: float
    alpha_bar_prev: float
    posterior_log_variance: float

    @property
    def posterior_variance(self) -> float:
        """beta~_t."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @property
    def x0_weight(self) -> float:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.beta * math.sqrt(self.alpha_bar_prev) / (1 - self.alpha_bar)

    @property
    def score_weight(self) -> float:
        """Weight of the score in x0-hat (Tweedie's formula), (1 - alpha_bar_t) / sqrt(alpha_bar_t)."""
        return (1 - self.alpha_bar) / math.sqrt(self.alpha_bar)

    def gaussian_variance(self, data_variance: float | Tensor) -> float | Tensor:
        """Variance of x_0 given x_t, for Gaussian data of a variance v: (1 - abar) v / (1 - abar + abar v).

        Without an end to v, of data about which nothing is known, it is (1 - abar) / abar.
        """
        noise = 1 - self.alpha_bar
        return noise / (noise / data_variance + self.alpha_bar)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete VP chain x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t = 0 .. T - 1.

    Attributes:
        betas: `(T,)` float64, the variance added at each step of *this* chain.
        original_steps: `(T,)` int64, the step of the training chain behind each step; it grows with t.
        num_original: length of the training chain.
    """

    betas: Tensor
    original_steps: Tensor
    num_original: int

    def __post_init__(self) -> None:
        if self.betas.dtype != torch.float64 or self.betas.ndim != 1:
            raise InputError(f"Expected 1-D float64 betas, got {self.betas.ndim}-D {self.betas.dtype}.")
        if not bool(((self.betas > 0) & (self.betas <= 1)).all()):
            raise InputError("Expected every beta in (0, 1]; check the schedule's end points.")

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alpha_bar(self) -> Tensor:
        """`(T,)` cumulative product of 1 - beta."""
        return torch.cumprod(1 - self.betas, 0)

    @property
    def alpha_bar_prev(self) -> Tensor:
        """`(T,)` alpha_bar one step nearer to the data; 1 at t = 0."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        """`(T,)` beta~_t, the variance of q(x_{t-1} | x_t, x_0); 0 at t = 0."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    def steps(self) -> list[Step]:
        """The reverse steps, from t = T - 1 down to 0."""
        tables = (self.betas, self.alpha_bar, self.alpha_bar_prev, self.posterior_log_variance_clipped)
        columns = zip(*(table.tolist() for table in tables), strict=True)
        return [Step(t, *column) for t, column in enumerate(columns)][::-1]

    @property
    def posterior_log_variance_clipped(self) -> Tensor:
        """`(T,)` log beta~_t with t = 0 replaced by t = 1, as the learned-variance networks were trained."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2] if len(self) > 1 else self.betas[:1], variance[1:]]).log()

    def respaced(self, steps: int | str, power: float = 1.0) -> Schedule:
        """A shorter chain through a subset of these steps, with the same alpha_bar there.

        Args:
            steps: a number: spread from the first to the last step, rounded half to even; `"ddimN"`: N steps at
                a constant integer stride from 0 (may stop short of the last).
            power: step i of n is at (i / (n - 1))^power of the chain: 1 spreads them evenly, more brings them closer to
                each other where there is little noise (2: the quadratic spacing of Song et al. 2021, appendix D.2).
        """
        if isinstance(steps, str) and power != 1:
            raise InputError(f"Expected a number of steps for a spacing of power {power}, got {steps!r}.")
        kept = torch.tensor(
            _ddim_steps(steps, len(self)) if isinstance(steps, str) else _spread_steps(steps, len(self), power)
        )
        bar = self.alpha_bar[kept]
        previous = torch.cat([bar.new_ones(1), bar[:-1]])
        return Schedule(1 - bar / previous, self.original_steps[kept], self.num_original)


def linear_schedule(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The linear schedule of DDPM; the end points are those of 1000 steps and scale with 1000 / num_steps."""
    scale = 1000 / num_steps
    return _full(torch.linspace(scale * beta_start, scale * beta_end, num_steps, dtype=torch.float64, device="cpu"))


def cosine_schedule(num_steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """The cosine schedule of improved DDPM: alpha_bar(s) = cos^2((s + 0.008) / 1.008 * pi / 2)."""

    def alpha_bar(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((i + 1) / num_steps) / alpha_bar(i / num_steps), max_beta) for i in range(num_steps)]
    return _full(torch.tensor(betas, dtype=torch.float64, device="cpu"))


def spread(per_image: Tensor, like: Tensor) -> Tensor:
    """`(B,)` -> `(B, 1, ..., 1)` in the dtype and on the device of `like`."""
    return per_image.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def signal_and_noise(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), `(B,)`, spread like `like`.

    Both are taken in the precision of `alpha_bar`: in float32, 1 - alpha_bar has only three digits near the data.
    """
    return spread(alpha_bar.sqrt(), like), spread((1 - alpha_bar).sqrt(), like)


def tweedie_x0(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0-hat = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)  (Fast EM, Eq. 12 with the bar restored)."""
    signal, noise = signal_and_noise(alpha_bar, x_t)
    return (x_t - noise * eps) / signal


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that `x0` implies in `x_t`; the inverse of `tweedie_x0`."""
    signal, noise = signal_and_noise(alpha_bar, x_t)
    return (x_t - signal * x0) / noise


def score_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """grad log p(x_t) = (sqrt(alpha_bar) x0 - x_t) / (1 - alpha_bar)  (Tweedie; Fast EM, Eq. 13)."""
    signal, noise = signal_and_noise(alpha_bar, x_t)
    return (signal * x0 - x_t) / noise.square()


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(x_t | x_0): sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps  (Fast EM, Eq. 11)."""
    signal, noise = signal_and_noise(alpha_bar, x0)
    return signal * x0 + noise * eps


def _full(betas: Tensor) -> Schedule:
    return Schedule(betas, torch.arange(len(betas), device=betas.device), len(betas))


def _spread_steps(steps: int, available: int, power: float) -> list[int]:
    if not 1 <= steps <= available:
        raise InputError(f"Expected between 1 and {available} steps, got {steps}.")
    if not power >= 1:
        raise InputError(f"Expected a spacing of power >= 1, got {power}.")
    last = available - 1
    stride = last / max(steps - 1, 1)
    kept: list[int] = []
    for i in range(steps):
        position = i * stride if power == 1 else last * (i / max(steps - 1, 1)) ** power
        # Python's rounding (half to even) on the running position is what the published checkpoints were sampled with.
        kept.append(max(round(position), kept[-1] + 1 if kept else 0))  # crowded steps stay distinct
    return kept


def _ddim_steps(steps: str, available: int) -> list[int]:
    count = int(steps[4:]) if steps.startswith("ddim") and steps[4:].isdigit() else 0
    for stride in range(1, available) if count else ():
        if len(range(0, available, stride)) == count:
            return list(range(0, available, stride))
    raise InputError(
        f"Expected a number of steps or 'ddimN' with an integer stride through {available}, got {steps!r}."
    )
