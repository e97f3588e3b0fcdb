"""The numbers of one restoration: DESIGN's evaluation protocol, a null where something cannot be computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from codiffuse.data.measurements import Sample
from codiffuse.errors import InputError
from codiffuse.metrics.image import psnr, psnr_aligned, reblur, ssim
from codiffuse.metrics.kernel import kernel_mse, mnc
from codiffuse.operators.blur import BlurOperator

logger = logging.getLogger(__name__)


class Scorer:
    """Scores restorations of one run; says once why a metric cannot be computed.

    Args:
        operator: of the measurements.
        lpips: `(estimate, truth) -> (B,)`, or `None`.
    """

    def __init__(self, operator: BlurOperator, lpips: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self.operator, self.lpips = operator, lpips
        self._said: set[str] = set()

    def __call__(self, sample: Sample, image: Tensor, kernel: Tensor | None) -> dict[str, float | None]:
        """Metrics of one image.

        Args:
            sample: the measurement, with the truth if it is known.
            image: `(C, H, W)` restored.
            kernel: `(1, h, w)` estimated or given.
        """
        y, estimate = sample.y[None], image[None]
        names = "psnr_measurement psnr_measurement_aligned psnr psnr_aligned ssim lpips kernel_mnc kernel_mse".split()
        scores: dict[str, float | None] = dict.fromkeys(names)
        if sample.truth is not None:
            truth = sample.truth[None]
            radius = max(sample.kernel.shape[-2:]) // 2 if sample.kernel is not None else 0
            clipped = y.clamp(0, 1)
            scores["psnr_measurement"] = self._value("psnr", psnr, clipped, truth)
            scores["psnr"] = self._value("psnr", psnr, estimate, truth)
            shifts = {"max_shift": radius, "border": radius}
            scores["psnr_measurement_aligned"] = self._value("psnr_aligned", psnr_aligned, clipped, truth, **shifts)
            scores["psnr_aligned"] = self._value("psnr_aligned", psnr_aligned, estimate, truth, **shifts)
            scores["ssim"] = self._value("ssim", ssim, estimate, truth)
            if self.lpips:
                scores["lpips"] = self._value("lpips", self.lpips, estimate, truth)
        if kernel is not None and sample.kernel is not None:
            scores["kernel_mnc"] = self._value("kernel_mnc", mnc, kernel[None], sample.kernel[None])
            scores["kernel_mse"] = self._value("kernel_mse", kernel_mse, kernel[None], sample.kernel[None])
        if kernel is not None:
            sigma = torch.tensor([sample.sigma])
            # Where the scene goes on beyond the frame, only the inner part of y follows from what the frame shows.
            inner = self.operator.crop_to_frame(y, kernel_size=kernel.shape[-2:])
            scores["reblur"] = self._value("reblur", reblur, inner, estimate, kernel[None], sigma, self.operator)
        return scores

    def _value(self, name: str, metric: Callable[..., Tensor], *arguments: Any, **options: Any) -> float | None:
        try:
            return float(metric(*arguments, **options)[0])
        except InputError as error:
            if name not in self._said:
                self._said.add(name)
                logger.warning("%s is null: %s", name, error)
            return None


def lpips(estimate: Tensor, truth: Tensor) -> Tensor:
    """LPIPS `(B,)`, its network loaded when the first truth needs it.

    Raises:
        InputError: its weights are not on this machine.
    """
    return _lpips()(estimate, truth)


@cache
def _lpips() -> Callable[[Tensor, Tensor], Tensor]:
    from codiffuse.metrics.perceptual import Lpips

    return Lpips()
