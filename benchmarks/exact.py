"""A prior whose denoiser is known in closed form, for whatever is to be compared with theory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianDenoiser(nn.Module):
    """E[x0 | x_t] of x0 ~ N(mean, variance I): the network of an exact `X0Prediction` prior.

    Args:
        variance: of each value, in diffusion coordinates.
        mean: of all values.
        channels: of the variable.
    """

    def __init__(self, variance: float, mean: float = 0.0, channels: int = 3) -> None:
        super().__init__()
        self.variance, self.mean, self.in_channels = variance, mean, channels
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_t: Tensor, log_sigma: Tensor) -> Tensor:
        """`x_t` `(B, C, H, W)`; `log_sigma` `(B,)` as `LogSigmaTime` tells it."""
        sigma2 = (log_sigma.double() / 125).exp()
        alpha_bar = (1 / (1 + sigma2)).reshape(-1, 1, 1, 1).to(x_t)
        gain = self.variance * alpha_bar.sqrt() / (1 - alpha_bar + alpha_bar * self.variance)
        return self.mean + self.weight * gain * (x_t - alpha_bar.sqrt() * self.mean)
