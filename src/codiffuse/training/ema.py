"""Exponential moving average of the weights, with the warm-up that short runs need."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """w_ema <- d w_ema + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after n updates.

    Checkpoints hold the average as their `state_dict`, validation runs on it, and the raw weights travel beside it, so
    that a resumed run goes on exactly.
    """

    def __init__(self, decay: float = 0.999) -> None:
        # All weights in one fused call: the default averages tensor by tensor and is an order of magnitude slower.
        super().__init__(use_buffers=False, multi_avg_fn=_warm_average(decay))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the raw weights where they are: the base class overwrites them, and a longer run could not go on."""


def _warm_average(decay: float):
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        n = float(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update
