"""What a learned variance adds to the training loss: the variational bound (Nichol & Dhariwal 2021, Eqs. 15 and 16).

Shapes: `x0`, `x_t` and the variance fraction `(B, C, H, W)` in diffusion coordinates, steps `(B,)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codiffuse.priors.prior import StepIndexTime
from codiffuse.schedule import Schedule, spread

BIN = 1 / 255  # half the distance of two gray levels in [-1, 1]


@dataclass(eq=False)
class VariationalBound:
    """L_vb of one step of a chain, in bits per value: it trains the variance alone, as x0-hat is taken as given.

    Attributes:
        schedule: the chain, of which each training sample sees one step.
    """

    schedule: Schedule
    _index: StepIndexTime = field(init=False, repr=False)
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._index = StepIndexTime(self.schedule)

    def nearest(self, alpha_bar: Tensor) -> Tensor:
        """`(B,)` the steps whose noise-to-signal ratio is closest to that of `alpha_bar`, on a log scale."""
        return self._index(alpha_bar).round().long()

    def alpha_bar(self, steps: Tensor) -> Tensor:
        """`(B,)` float64, of the steps."""
        return self._columns(steps)[1]

    def __call__(self, x0: Tensor, x_t: Tensor, x0_hat: Tensor, fraction: Tensor, steps: Tensor) -> Tensor:
        """`(B,)` KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)); at t = 0 the negative log-likelihood of x0's gray level.

        Args:
            x0: the clean variable.
            x_t: its noisy version at `steps`.
            x0_hat: the prior's estimate, not clipped; no gradient goes back through it.
            fraction: where between log beta~_t (0) and log beta_t (1) the log-variance lies.
            steps: t.
        """
        beta, bar, bar_prev, posterior = self._columns(steps)
        # The weights of x0 and of x_t in the mean of the posterior, in float64: 1 - alpha_bar has few digits else.
        weight = spread(beta * bar_prev.sqrt() / (1 - bar), x0)
        weight_t = spread((1 - beta).sqrt() * (1 - bar_prev) / (1 - bar), x0)
        log_beta, posterior = spread(beta.log(), x0), spread(posterior, x0)
        log_variance = fraction * log_beta + (1 - fraction) * posterior
        # Both means share what x_t contributes.
        gap = weight * (x0 - x0_hat.detach())
        kl = 0.5 * (log_variance - posterior + (posterior - log_variance).exp() - 1)
        kl = kl + 0.5 * gap.square() * (-log_variance).exp()
        mean = weight * x0_hat.detach() + weight_t * x_t
        decoded = -_log_likelihood_of_level(x0, mean, (0.5 * log_variance).exp())
        first = spread(steps == 0, x0).bool()
        return torch.where(first, decoded, kl).flatten(1).mean(1) / math.log(2)

    def _columns(self, steps: Tensor) -> Tensor:
        if steps.device not in self._tables:
            chain = self.schedule
            columns = (chain.betas, chain.alpha_bar, chain.alpha_bar_prev, chain.posterior_log_variance_clipped)
            self._tables[steps.device] = torch.stack(columns).to(steps.device)
        return self._tables[steps.device][:, steps]


def _log_likelihood_of_level(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log of a Gaussian's mass within half a gray level of `x`; the levels at -1 and 1 take all that is beyond."""
    upper, lower = _normal_cdf((x - mean + BIN) / std), _normal_cdf((x - mean - BIN) / std)
    ends = torch.where(x > 1 - BIN, 1 - lower, upper - lower)
    return torch.where(x < BIN - 1, upper, ends).clamp_min(1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Page's approximation (1977), with which the published networks were trained; it is off by 2e-4 at most."""
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
