"""What a training shows: pictures of its progress, in the run folder and in the logger."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from codiffuse.schedule import add_noise
from codiffuse.training.score import ScoreModule


class DenoisingPictures(pl.Callback):
    """After each validation of a prior, a sheet of noisy | denoised | clean samples at growing noise.

    What is drawn are diffusion coordinates, -1 black and 1 white; the two of a tilt are red and green.

    Args:
        sigmas: noise-to-signal ratios, one column pair each.
        count: pictures shown.
    """

    def __init__(self, sigmas: tuple[float, ...] = (0.2, 1.0, 5.0), count: int = 4) -> None:
        self.sigmas, self.count = tuple(sigmas), count

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(module, ScoreModule):
            return
        dataset = trainer.datamodule.validation
        clean = torch.stack([dataset[i] for i in range(min(self.count, len(dataset)))]).to(module.device)
        sheet = _as_rgb((self._sheet(module, clean).clamp(-1, 1).cpu() + 1) / 2)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        _save_png(folder / f"step_{trainer.global_step:07d}.png", sheet)
        if isinstance(trainer.logger, pl.loggers.WandbLogger):
            trainer.logger.log_image("samples/denoising", [sheet.permute(1, 2, 0).numpy()])

    def _sheet(self, module: ScoreModule, clean: Tensor) -> Tensor:
        columns = []
        x0 = module.model.space.encode(clean)
        for sigma in self.sigmas:
            alpha_bar = torch.full((len(clean),), 1 / (1 + sigma**2), dtype=torch.float64, device=clean.device)
            eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
            x_t = add_noise(x0, eps, alpha_bar)
            denoised = module.model.denoise(x_t, alpha_bar).x0
            columns += [x_t / alpha_bar[0].sqrt().float(), denoised]
        return torch.cat([torch.cat([*c, t], -1) for *c, t in zip(*columns, x0, strict=True)], -2)


def _as_rgb(picture: Tensor) -> Tensor:
    """`(C, H, W)` in [0, 1] of 1, 2 or 3 channels."""
    if len(picture) == 2:
        return torch.cat([picture, torch.full_like(picture[:1], 0.5)])
    return picture.expand(3, -1, -1)


def _save_png(path: Path, picture: Tensor) -> None:
    from PIL import Image

    Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
