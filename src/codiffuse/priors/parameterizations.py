"""What a score network predicts, and how x0-hat follows from it.

Every parameterisation is three maps over `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`; this is the only place
where eps, v, x0 and EDM networks differ. `alpha_bar` is `(B,)`, everything else `(B, C, H, W)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from codiffuse.schedule import signal_and_noise, spread, tweedie_x0


class Parameterization(Protocol):
    """Maps between a network's output and x0-hat."""

    def network_input(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network is fed."""
        ...

    def x0(self, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
        """x0-hat from the network's output."""
        ...

    def target(self, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        """The output that a perfect network would give; training minimises the squared distance to it."""
        ...


class _PlainInput:
    def network_input(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return x_t


@dataclass(frozen=True)
class EpsPrediction(_PlainInput):
    """The network predicts the noise (Ho et al. 2020)."""

    def x0(self, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
        return tweedie_x0(x_t, output, alpha_bar)

    def target(self, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return eps


@dataclass(frozen=True)
class VPrediction(_PlainInput):
    """The network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022)."""

    def x0(self, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
        signal, noise = signal_and_noise(alpha_bar, x_t)
        return signal * x_t - noise * output

    def target(self, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        signal, noise = signal_and_noise(alpha_bar, x0)
        return signal * eps - noise * x0


@dataclass(frozen=True)
class X0Prediction(_PlainInput):
    """The network predicts the clean variable."""

    def x0(self, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
        return output

    def target(self, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return x0


@dataclass(frozen=True)
class EdmPrediction:
    """EDM preconditioning (Karras et al. 2022, Table 1) of x_t / sqrt(alpha_bar) = x0 + sigma n.

    sigma = sqrt((1 - alpha_bar) / alpha_bar); x0-hat = c_skip x + c_out F(c_in x). The unit-weight loss on F is EDM's.

    Attributes:
        sigma_data: standard deviation of the data in diffusion coordinates.
    """

    sigma_data: float = 0.5

    def network_input(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return x_t / self._std(alpha_bar, x_t)  # c_in x_t / sqrt(alpha_bar)

    def x0(self, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
        (signal, noise), std = signal_and_noise(alpha_bar, x_t), self._std(alpha_bar, x_t)
        return self.sigma_data**2 * signal / std.square() * x_t + self.sigma_data * noise / std * output

    def target(self, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        (signal, noise), std = signal_and_noise(alpha_bar, x0), self._std(alpha_bar, x0)
        # (x0 - c_skip x_t / sqrt(alpha_bar)) / c_out, written without its cancellation at small noise.
        return (noise / self.sigma_data * x0 - signal * self.sigma_data * eps) / std

    def _std(self, alpha_bar: Tensor, like: Tensor) -> Tensor:
        """Standard deviation of x_t when that of x0 is sigma_data."""
        return spread((1 - alpha_bar + alpha_bar * self.sigma_data**2).sqrt(), like)
