"""`Prior`: a network, what it predicts, how it is told the time, and the space it lives in, as one denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from codiffuse.errors import InputError
from codiffuse.priors.parameterizations import Parameterization
from codiffuse.schedule import Schedule, linear_schedule
from codiffuse.spaces import Space


@dataclass(frozen=True)
class Denoised:
    """What a prior says of x_t.

    Attributes:
        x0: E[x0 | x_t] in diffusion coordinates, not clipped: that is the method's choice.
        variance_fraction: for networks that learn it, where between log beta~_t (0) and log beta_t (1) of the *running*
            chain the log-variance lies (`learned_log_variance`); otherwise `None`.
    """

    x0: Tensor
    variance_fraction: Tensor | None = None


class TimeCondition(Protocol):
    """Turns `(B,)` alpha_bar into the number that a network was trained to read."""

    def __call__(self, alpha_bar: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogSigmaTime:
    """250 ln(sigma), sigma^2 = (1 - alpha_bar) / alpha_bar: EDM's ln(sigma) / 4 at the scale of step indices."""

    def __call__(self, alpha_bar: Tensor) -> Tensor:
        return 125 * ((1 - alpha_bar) / alpha_bar).log()


@dataclass(frozen=True, eq=False)
class StepIndexTime:
    """The step of the training chain, interpolated in log signal-to-noise ratio between its entries."""

    schedule: Schedule
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, alpha_bar: Tensor) -> Tensor:
        log_noise, wanted = self._table(alpha_bar.device), _log_noise(alpha_bar.double())
        last = len(log_noise) - 1
        right = torch.searchsorted(log_noise, wanted).clamp(1, last)
        left = right - 1
        return (left + (wanted - log_noise[left]) / (log_noise[right] - log_noise[left])).clamp(0, last)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = _log_noise(self.schedule.alpha_bar).to(device)
        return self._tables[device]


class Prior(nn.Module):
    """A diffusion prior as a denoiser E[x0 | x_t].

    Args:
        network: `network(x, time) -> output`, with `condition` as a third argument when one is given.
        parameterization: what the network predicts.
        time: how it is told the time.
        space: where its coordinates lie.
        learned_variance: the network's second half of channels is the variance fraction v in [-1, 1].

    Attributes:
        autocast: run the network, and it alone, in bfloat16.
    """

    def __init__(
        self,
        network: nn.Module,
        parameterization: Parameterization,
        time: TimeCondition,
        space: Space,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.parameterization = parameterization
        self.time = time
        self.space = space
        self.learned_variance = learned_variance
        self.autocast = False

    @property
    def channels(self) -> int:
        """Channels of the variable that the prior describes."""
        return self.network.in_channels

    def output(self, x_t: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's raw output at x_t: what training compares with `parameterization.target`."""
        fed = self.parameterization.network_input(x_t, alpha_bar)
        extra = () if condition is None else (condition,)
        if not self.autocast:
            return self.network(fed, self.time(alpha_bar).to(fed.dtype), *extra)
        with torch.autocast(fed.device.type, torch.bfloat16):
            return self.network(fed, self.time(alpha_bar).to(fed.dtype), *extra)

    def denoise(self, x_t: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Denoised:
        """E[x0 | x_t], differentiable in `x_t`.

        Args:
            x_t: `(B, C, H, W)` diffusion coordinates.
            alpha_bar: `(B,)` in (0, 1), float64 where step indices must be met exactly.
            condition: a measurement, for conditional networks.

        Raises:
            InputError: `x_t` or the output has other channels than the prior.
        """
        if x_t.shape[1] != self.channels:
            raise InputError(
                f"Expected {self.channels} channels for this prior, got {x_t.shape[1]}; choose a prior of that kind."
            )
        output = self.output(x_t, alpha_bar, condition).to(x_t.dtype)
        expected = self.channels * (2 if self.learned_variance else 1)
        if output.shape[1] != expected:
            raise InputError(
                f"Expected {expected} output channels with learned_variance={self.learned_variance}, "
                f"got {output.shape[1]}; set learned_variance as the network was trained."
            )
        output, fraction = self.split(output)
        return Denoised(self.parameterization.x0(x_t, output, alpha_bar), fraction)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's raw output as what it predicts and, where it learns one, the variance fraction."""
        if not self.learned_variance:
            return output, None
        predicted, variance = output.chunk(2, 1)
        return predicted, (variance + 1) / 2

    def frozen(self) -> Prior:
        """This prior in evaluation mode, its weights without gradients: what samplers use."""
        return self.eval().requires_grad_(False)


def published_time() -> StepIndexTime:
    """Steps 0 .. 999 of the linear chain, as every published guided-diffusion checkpoint was trained."""
    return StepIndexTime(linear_schedule())


def _log_noise(alpha_bar: Tensor) -> Tensor:
    return ((1 - alpha_bar) / alpha_bar).log()
