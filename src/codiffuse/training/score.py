"""Training of diffusion priors by denoising score matching."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.schedule import add_noise, linear_schedule
from codiffuse.training.module import TrainingModule
from codiffuse.training.variance import VariationalBound

VALIDATION_SIGMAS = (0.02, 0.1, 0.3, 1.0, 5.0, 50.0)


class ScoreModule(TrainingModule):
    """Denoising score matching in the units of the network's output, for any parameterisation.

    The noise-to-signal ratio sigma = sqrt((1 - alpha_bar) / alpha_bar) is log-normal where pictures are made, and
    log-uniform over the sampler's whole chain for the rest: a VP chain of 1000 linear steps runs from 157 to 0.01.
    A prior with learned variance is trained at the steps of this chain, by the hybrid loss: the variational bound,
    which trains the variance alone, is added (Nichol & Dhariwal 2021, Eq. 16).

    Args:
        spec: the prior, as in a zoo `config.yaml`.
        noise_law: `log_normal`, as above, or `uniform_steps` of the chain, as published networks were trained.
        log_sigma_mean: mean of ln sigma in the log-normal part (sigma in diffusion coordinates, images in [-1, 1]).
        log_sigma_std: its standard deviation.
        uniform_share: share of samples from the log-uniform part.
        sigma_range: range of the log-uniform part.
        learning_rate: see `TrainingModule`, like the arguments after it.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        noise_law: Literal["log_normal", "uniform_steps"] = "log_normal",
        log_sigma_mean: float = -1.2,
        log_sigma_std: float = 1.4,
        uniform_share: float = 0.2,
        sigma_range: tuple[float, float] = (0.008, 160.0),
        learning_rate: float = 1e-3,
        warmup_steps: int = 500,
        weight_decay: float = 0.0,
        optimizer: str = "adamw",
        seed: int = 0,
        init: str | None = None,
    ) -> None:
        super().__init__(spec, learning_rate, warmup_steps, weight_decay, optimizer, seed, init)
        self.save_hyperparameters()
        if noise_law not in ("log_normal", "uniform_steps"):
            raise InputError(f"Expected noise_law log_normal or uniform_steps, got {noise_law!r}.")
        self.noise_law = noise_law
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.uniform_share, self.sigma_range = uniform_share, sigma_range

    @cached_property
    def bound(self) -> VariationalBound:
        """Of the chain that samplers run."""
        return VariationalBound(linear_schedule())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        generator = self.step_generator(batch_idx)
        loss = self.loss(batch, self.draw_alpha_bar(len(batch), generator), generator).mean()
        self.log_loss(loss, len(batch))
        return loss

    def draw_alpha_bar(self, count: int, generator: torch.Generator) -> Tensor:
        """`(count,)` float64 alpha_bar from the noise law, stratified over the batch; at steps where these matter."""
        on = {"device": generator.device, "dtype": torch.float64}
        u = (torch.arange(count, **on) + torch.rand(count, generator=generator, **on)) / count
        u = u[torch.randperm(count, generator=generator, device=generator.device)]
        if self.noise_law == "uniform_steps":
            return self.bound.alpha_bar((u * len(self.bound.schedule)).long())
        normal = self.log_sigma_mean + self.log_sigma_std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        low, high = torch.tensor(self.sigma_range, **on).log()
        uniform = torch.rand(count, generator=generator, **on) < self.uniform_share
        log_sigma = torch.where(uniform, low + u * (high - low), normal.clamp(low, high))
        alpha_bar = 1 / (1 + (2 * log_sigma).exp())
        return self.bound.alpha_bar(self.bound.nearest(alpha_bar)) if self.model.learned_variance else alpha_bar

    def loss(self, physical: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
        """`(B,)` mean squared error of the network's output; where it learns a variance, with the bound."""
        x0, eps, x_t = self._noisy(physical, alpha_bar, generator)
        output, fraction = self.model.split(self.model.output(x_t, alpha_bar).float())
        target = self.model.parameterization.target(x0, eps, alpha_bar)
        loss = (output - target).square().flatten(1).mean(1)
        if fraction is None:
            return loss
        x0_hat = self.model.parameterization.x0(x_t, output, alpha_bar)
        return loss + self.bound(x0, x_t, x0_hat, fraction, self.bound.nearest(alpha_bar))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Loss and denoising PSNR (of coordinates in [-1, 1]) in each noise band, on the same noise every time.

        Of a learned variance also the variational bound, in bits a value, and how many of them it saves over beta~_t:
        below 0 it is worse than what is known without a network.
        """
        total = 0.0
        for sigma in VALIDATION_SIGMAS:
            generator = torch.Generator(batch.device).manual_seed(batch_idx)
            alpha_bar = torch.full((len(batch),), 1 / (1 + sigma**2), dtype=torch.float64, device=batch.device)
            x0, eps, x_t = self._noisy(batch, alpha_bar, generator)
            output, fraction = self.model.split(self.model.output(x_t, alpha_bar).float())
            loss = (output - self.model.parameterization.target(x0, eps, alpha_bar)).square().mean()
            x0_hat = self.model.parameterization.x0(x_t, output, alpha_bar)
            denoised = x0_hat.clamp(x0.amin(), x0.amax())
            psnr = -10 * ((denoised - x0) / 2).square().flatten(1).mean(1).log10().mean()
            self.log(f"val/loss_sigma_{sigma:g}", loss, batch_size=len(batch))
            self.log(f"val/psnr_sigma_{sigma:g}", psnr, batch_size=len(batch))
            if fraction is not None:
                steps = self.bound.nearest(alpha_bar)
                learned, known = (self.bound(x0, x_t, x0_hat, v, steps).mean() for v in (fraction, 0 * fraction))
                self.log(f"val/bound_sigma_{sigma:g}", learned, batch_size=len(batch))
                self.log(f"val/bound_saved_sigma_{sigma:g}", known - learned, batch_size=len(batch))
            total = total + loss / len(VALIDATION_SIGMAS)
        self.log("val/loss", total, prog_bar=True, batch_size=len(batch))

    def _noisy(self, physical: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.model.space.encode(physical)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return x0, eps, add_noise(x0, eps, alpha_bar)
