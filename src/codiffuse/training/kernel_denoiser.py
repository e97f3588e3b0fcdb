"""Training of the kernel denoiser that the plug-and-play M-step uses (Fast EM, Eq. 25)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codiffuse.training.module import TrainingModule

VALIDATION_LEVELS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


class KernelDenoiserModule(TrainingModule):
    """Gaussian denoising of simulated kernels of sum one, at a log-uniform noise level.

    The loss is the squared error over sigma^2, summed over the kernel: every level weighs alike although kernels of
    different sizes have values of different magnitude.

    Args:
        spec: the denoiser, as in a zoo `config.yaml`.
        sigma_range: of the noise level, in the kernel's units.
        learning_rate: see `TrainingModule`, like the arguments after it.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        sigma_range: tuple[float, float] = (1e-4, 1e-1),
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.0,
        optimizer: str = "adamw",
        seed: int = 0,
        init: str | None = None,
    ) -> None:
        super().__init__(spec, learning_rate, warmup_steps, weight_decay, optimizer, seed, init)
        self.save_hyperparameters()
        self.sigma_range = sigma_range

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        generator = self.step_generator(batch_idx)
        low, high = torch.tensor(self.sigma_range, device=batch.device).log()
        sigma = (low + (high - low) * torch.rand(len(batch), generator=generator, device=batch.device)).exp()
        loss = self.relative_error(batch, sigma, generator).mean()
        self.log_loss(loss, len(batch))
        return loss

    def relative_error(self, kernel: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """`(B,)` mean squared error of the denoised kernel over sigma^2: 1 is what doing nothing gives."""
        level = sigma[:, None, None, None]
        noise = torch.randn(kernel.shape, generator=generator, device=kernel.device)
        error = (self.model(kernel + level * noise, sigma) - kernel) / level
        return error.square().flatten(1).mean(1)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Relative error at each noise level, on the same noise every time."""
        errors = []
        for level in VALIDATION_LEVELS:
            generator = torch.Generator(batch.device).manual_seed(batch_idx)
            sigma = torch.full((len(batch),), level, device=batch.device)
            errors.append(self.relative_error(batch, sigma, generator).mean())
            self.log(f"val/relative_error_sigma_{level:g}", errors[-1], batch_size=len(batch))
        self.log("val/loss", torch.stack(errors).mean(), prog_bar=True, batch_size=len(batch))
