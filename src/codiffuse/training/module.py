"""What every training has in common: the model from its spec, the optimiser, the noise stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from codiffuse.priors import zoo
from codiffuse.randomness import derive_seed


class TrainingModule(pl.LightningModule):
    """A model of the zoo under training.

    Args:
        spec: what to build, as in a zoo `config.yaml`.
        learning_rate: peak of the schedule.
        warmup_steps: steps of linear warm-up; then a cosine falls to zero at the trainer's `max_steps`.
        weight_decay: of the optimiser, on matrices only.
        optimizer: any name that timm's factory knows.
        seed: of the first weights and the training noise.
        init: zoo name, folder or published checkpoint to start from (`zoo:NAME` works too).
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        learning_rate: float,
        warmup_steps: int,
        weight_decay: float,
        optimizer: str,
        seed: int,
        init: str | None,
    ) -> None:
        super().__init__()
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.weight_decay, self.optimizer, self.seed = weight_decay, optimizer, seed
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "init"))
            self.model = zoo.build(spec)
        zoo.network_of(self.model).to(memory_format=torch.channels_last)
        if init:
            source = zoo.find(init.removeprefix("zoo:"))
            zoo.load_weights(zoo.network_of(self.model), zoo.read(source)[1], source)

    def configure_optimizers(self) -> dict[str, Any]:
        from timm.optim import create_optimizer_v2

        optimizer = create_optimizer_v2(
            self.model, opt=self.optimizer, lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.trainer.max_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def step_generator(self, batch_idx: int) -> torch.Generator:
        """The random numbers of this batch: the same after a resume, different on every rank and accumulated batch."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        seed = derive_seed(self.seed, self.global_step, part, self.global_rank)
        return torch.Generator(self.device).manual_seed(seed)

    def log_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log a training loss with the number of samples seen so far."""
        self.log("train/loss", loss, prog_bar=True, batch_size=batch_size)
        batches = (self.global_step + 1) * self.trainer.accumulate_grad_batches * self.trainer.world_size
        seen = float(batches * batch_size)
        self.log("train/samples", seen, batch_size=batch_size)
