"""What is seen of a running sampler: a progress bar with the residual, the trace, and frames for the animation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codiffuse.data.sources import downscale
from codiffuse.inference.panel import FRAME_SIDE
from codiffuse.methods.base import Measurement, StepInfo

STEPS_BETWEEN_LOOKS = 5  # the bar asks the device for a number only this often


class StepRecorder:
    """Callback of one batch: records the residual of every step on the device and shows it now and then.

    Steps on a part of the picture are recorded while the kernel is being found there. Tiles, with a kernel that stands,
    are shown only: residuals of different places make no curve, nor their states an animation.

    Args:
        measurement: what is restored.
        show: called with the residual (rms of y - A x0 over sigma, mean of the batch) now and then; `None` is silent.
        num_frames: states kept for the animation; 0 keeps none.
    """

    def __init__(
        self, measurement: Measurement, show: Callable[[StepInfo, float], None] | None = None, num_frames: int = 0
    ) -> None:
        self.measurement, self.show, self.num_frames = measurement, show, num_frames
        self._numbers: list[tuple[int, float, int]] = []
        self._residuals: list[Tensor] = []
        self._frames: list[tuple[list[Tensor], Tensor]] = []

    def __call__(self, info: StepInfo) -> None:
        kernel = info.params["kernel"]
        shown = self.show and (info.number % STEPS_BETWEEN_LOOKS == 0 or info.number == info.total)
        if info.tile and not shown:
            return
        measurement = self.measurement if info.part is None else info.part
        image = info.x0.mean(1)
        if image.shape[1] != measurement.y.shape[1]:
            image = image.mean(1, keepdim=True)
        residual = measurement.misfit(image, info.params).sqrt()
        if not info.tile:
            self._numbers.append((info.number, info.alpha_bar, info.factor))
            self._residuals.append(residual)
            if self.num_frames and _is_frame(info, self.num_frames):
                self._frames.append(([downscale(each, FRAME_SIDE).half() for each in image], kernel.clone()))
        if shown:
            self.show(info, float((residual / measurement.sigma).mean()))

    def trace(self, index: int) -> list[dict[str, float]]:
        """One record a step for image `index`: step, alpha_bar, residual (rms, [0, 1] units).

        The mean of f x f pixels has 1/f of their noise. So that all steps are on one scale, residuals at such a lower
        resolution are multiplied by f: noise alone gives sigma at each of them.
        """
        residuals = torch.stack(self._residuals)[:, index].tolist() if self._residuals else []
        return [
            {"step": number, "alpha_bar": alpha_bar, "residual": factor * residual}
            for (number, alpha_bar, factor), residual in zip(self._numbers, residuals, strict=True)
        ]

    def frames(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """(x0 `(C, H, W)`, reduced to `FRAME_SIDE`; kernel `(1, h, w)`) of image `index` at some steps."""
        return [(images[index].float().cpu(), kernel[index].cpu()) for images, kernel in self._frames]


def _is_frame(info: StepInfo, num_frames: int) -> bool:
    if info.total <= num_frames:
        return True
    return (info.number * num_frames) // info.total > ((info.number - 1) * num_frames) // info.total
