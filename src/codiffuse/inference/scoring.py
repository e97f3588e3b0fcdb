"""The numbers of one restoration: DESIGN's evaluation protocol, a null where something cannot be computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from codiffuse.data.measurements import Sample
from codiffuse.errors import InputError
from codiffuse.metrics.consistency import kernel_std
from codiffuse.metrics.field import endpoint_error
from codiffuse.metrics.image import psnr, psnr_aligned, reblur, ssim
from codiffuse.metrics.kernel import kernel_mse, mnc
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.turbulence import TurbulenceOperator

logger = logging.getLogger(__name__)

NAMES = (  # of a row, null where they cannot be told
    "psnr_measurement psnr_measurement_aligned psnr psnr_aligned ssim lpips "
    "kernel_mnc kernel_mse kernel_std kernel_std_true tilt_epe tilt_epe_zero"
).split()


class Scorer:
    """Scores restorations of one run; says once why a metric cannot be computed.

    Args:
        operator: of the measurements.
        lpips: `(estimate, truth) -> (B,)`, or `None`.
    """

    def __init__(
        self,
        operator: BlurOperator | TurbulenceOperator,
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.operator, self.lpips = operator, lpips
        self._said: set[str] = set()

    def __call__(self, sample: Sample, image: Tensor, params: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Metrics of one image.

        Args:
            sample: the measurement, with the truth if it is known.
            image: `(C, H, W)` restored.
            params: of the operator, estimated or given, within the frame: `kernel` `(1, h, w)`, `tilt` `(2, H, W)`.
        """
        scores: dict[str, float | None] = dict.fromkeys(NAMES)
        radius = max(sample.kernel.shape[-2:]) // 2 if sample.kernel is not None else 0
        if sample.truth is not None:
            scores |= self._of_image(sample.y[None], image[None], sample.truth[None], radius)
        if sample.kernel is not None and "kernel" in params:
            scores |= self._of_kernel(params["kernel"][None], sample.kernel[None])
        if sample.tilt is not None:
            scores |= self._of_tilt(params.get("tilt"), sample.tilt, radius)
        if "kernel" in params:
            scores["reblur"] = self._reblur(sample, image, params)
        return scores

    def _of_image(self, y: Tensor, estimate: Tensor, truth: Tensor, radius: int) -> dict[str, float | None]:
        clipped, shifts = y.clamp(0, 1), {"max_shift": radius, "border": radius}
        scores = {
            "psnr_measurement": self._value("psnr", psnr, clipped, truth),
            "psnr": self._value("psnr", psnr, estimate, truth),
            "psnr_measurement_aligned": self._value("psnr_aligned", psnr_aligned, clipped, truth, **shifts),
            "psnr_aligned": self._value("psnr_aligned", psnr_aligned, estimate, truth, **shifts),
            "ssim": self._value("ssim", ssim, estimate, truth),
        }
        return scores | ({"lpips": self._value("lpips", self.lpips, estimate, truth)} if self.lpips else {})

    def _of_kernel(self, estimate: Tensor, truth: Tensor) -> dict[str, float | None]:
        return {
            "kernel_mnc": self._value("kernel_mnc", mnc, estimate, truth),
            "kernel_mse": self._value("kernel_mse", kernel_mse, estimate, truth),
            "kernel_std": self._value("kernel_std", kernel_std, estimate),
            "kernel_std_true": self._value("kernel_std", kernel_std, truth),
        }

    def _of_tilt(self, estimate: Tensor | None, truth: Tensor, radius: int) -> dict[str, float | None]:
        """Error of the estimate, if there is one, and of no tilt, where all that the blur mixes in is in the frame."""
        fields = {"tilt_epe": estimate, "tilt_epe_zero": torch.zeros_like(truth)}
        return {
            name: self._value("tilt_epe", endpoint_error, field[None], truth[None], radius)
            for name, field in fields.items()
            if field is not None
        }

    def _reblur(self, sample: Sample, image: Tensor, params: Mapping[str, Tensor]) -> float | None:
        kernel, sigma = params["kernel"][None], torch.tensor([sample.sigma])
        others = {name: value[None] for name, value in params.items() if name != "kernel"}
        # Where the scene goes on beyond the frame, only the inner part of y follows from what the frame shows.
        inner = self.operator.crop_to_frame(sample.y[None], kernel_size=kernel.shape[-2:])
        return self._value("reblur", reblur, inner, image[None], kernel, sigma, partial(self.operator, **others))

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
