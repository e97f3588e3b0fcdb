"""Any photograph: its kernel from textured windows by a blind method, then all of it, by tiles, with that kernel."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.spectrum import expected_spread
from codiffuse.estimation.support import border_mass, grown
from codiffuse.methods.base import BlindMethod, Callback, Measurement, Restoration, Windows
from codiffuse.methods.coarse import upsampled
from codiffuse.methods.memory import estimate
from codiffuse.methods.mosaic import Mosaic
from codiffuse.methods.steps import check_counts, delta_kernel, of_part, part_of_run
from codiffuse.methods.tiles import Tiled
from codiffuse.methods.windows import Window, choose_windows
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import NoiseSource

logger = logging.getLogger(__name__)

WINDOW_OVER_KERNEL = 4  # a window tells little about a kernel that is nearly as large as itself
SHARP_KERNEL_SIZE = 9  # px, of the delta that stands for no blur: people look at it
SHARP_START = 0.1  # share of the reverse process that removes noise alone: it begins at 42 gray levels
SHARP_STEPS = 12
MAX_SHARP_SIGMA = 15 / 255  # above it the spectrum does not tell
STRIP = 128  # px, of the height: as much of a picture as is sorted at once


@dataclass(frozen=True)
class Photograph:
    """Kernel, then picture.

    Attributes:
        blind: finds the kernel, from the windows side by side.
        finish: restores the whole picture with that kernel.
        m_step: finds the kernel of each window alone, to see whether the blur is the same everywhere.
        window: side of a window, px.
        num_windows: windows of a picture that is larger than one.
        kernel_size: side of the kernel, px; `None` starts at `first_kernel_size` and grows it while it is too small,
            unless the spectrum of the picture (`expected_spread`) suggests less.
        first_kernel_size: see `kernel_size`.
        max_kernel_size: see `kernel_size`.
        sharp_spread: rms radius of the blur, px, below which a picture is taken for sharp and not deblurred at all:
            what a blind method finds there is wrong. 0 tries every picture.
        small_spread: likewise, below which a kernel of `small_kernel_size` is looked for first: with more room that
            of a slight blur comes out too long.
        small_kernel_size: see `small_spread`.
        border_limit: share of the kernel at the border of its support above which the support is too small.
        small_border_limit: likewise for `small_kernel_size`, of which the border is a larger part; what does not fit is
            given `first_kernel_size`.
        least_sigma: noise level, in [0, 1] units, that the choice of windows and the search for a kernel of
            `first_kernel_size` or more assume at least. What the model of a real photograph leaves out (the camera's
            curve, compression, blur that varies) is more than its noise: told that alone, the search explains it by a
            kernel of a few bright pixels.
        max_noise_correction: the noise level of the last step is raised by the square of the ratio of the residual that
            the blind method leaves to the level, but not more than this many times; 1 leaves it as it is.
        reach: of a sample in [0, 1] units from the median of all: the mean takes it to be no further off, so that what
            only one of them imagines does not show. Infinite takes the plain mean.
    """

    blind: BlindMethod
    finish: Tiled
    m_step: HQS
    window: int = 160
    num_windows: int = 3
    kernel_size: int | None = None
    first_kernel_size: int = 33
    max_kernel_size: int = 97
    sharp_spread: float = 0.55
    small_spread: float = 1.0
    small_kernel_size: int = 9
    border_limit: float = 0.02
    small_border_limit: float = 0.05
    least_sigma: float = 5 / 255
    max_noise_correction: float = 8.0
    reach: float = 0.15
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(
            window=self.window,
            num_windows=self.num_windows,
            first_kernel_size=self.first_kernel_size,
            small_kernel_size=self.small_kernel_size,
            kernel_size=1 if self.kernel_size is None else self.kernel_size,
        )
        if self.max_noise_correction < 1:
            raise InputError(f"Expected max_noise_correction >= 1, got {self.max_noise_correction}.")
        if self.least_sigma < 0:
            raise InputError(f"Expected least_sigma >= 0 in [0, 1] units, got {self.least_sigma}.")
        if not self.reach > 0:
            raise InputError(f"Expected reach > 0 in [0, 1] units, got {self.reach}.")

    @property
    def num_steps(self) -> int:
        """Steps of a run whose kernel needs not grow."""
        return self.blind.num_steps + self.finish.num_steps

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        if "tilt" in operator.params and self.blind.supports(operator) is None:
            return "restores photographs by a kernel alone, unless pipeline=null"
        return self.blind.supports(operator)

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore one photograph; arguments as for the methods inside, of an `init` its kernel alone.

        Raises:
            InputError: more than one picture.
        """
        if len(measurement.y) != 1:
            raise InputError(f"Expected one photograph at a time, got {len(measurement.y)}; set batch_size=1.")
        spread = self._spread(measurement, init)
        if spread < self.sharp_spread:
            return self._without_noise(measurement, noise, callback)
        mosaic, found, done = self._find_kernel(measurement, noise, init, callback, spread < self.small_spread)
        if found.status[0] != "ok":
            return _unrestored(measurement, found)
        kernel, level = found.params["kernel"], self._noise_level(mosaic.measurement, found)
        finished = self.finish(
            replace(measurement, known={"kernel": kernel}, noise=GaussianNoise(level)),
            noise=noise,
            callback=part_of_run(callback, done, done + self._finishing_steps(measurement, kernel.shape[-1])),
        )
        return replace(
            finished,
            image=_clipped_mean(finished.samples, self.reach),
            nfe=found.nfe + finished.nfe,
            restarts=found.restarts,
            windows=Windows(mosaic.windows, self._kernel_of_each(mosaic, found)),
            noise_level=level,
        )

    def _spread(self, measurement: Measurement, init: dict[str, Tensor] | None) -> float:
        """What the spectrum suggests; infinite where it does not tell, or somebody knows how large the kernel is."""
        sigma, mask = float(measurement.sigma), measurement.mask
        if self.kernel_size is not None or init or sigma > MAX_SHARP_SIGMA:
            return math.inf
        return expected_spread(measurement.y[0], sigma, None if mask is None else mask[0])

    def _without_noise(self, measurement: Measurement, noise: NoiseSource, callback: Callback | None) -> Restoration:
        """The picture as the prior sees it through its noise, no blur assumed: the end of the reverse process."""
        process = self.finish.non_blind.process
        process = replace(process, num_steps=SHARP_STEPS, start=SHARP_START)
        finish = replace(self.finish, non_blind=replace(self.finish.non_blind, process=process))
        frame, size = tuple(measurement.y.shape[-2:]), (SHARP_KERNEL_SIZE, SHARP_KERNEL_SIZE)
        logger.info(
            "The picture looks sharp, so only its noise is removed (kernel_size=33 deblurs it all the same): %s, %s.",
            finish.estimate(frame, size),
            finish.describe(frame, size),
        )
        known = {"kernel": delta_kernel(measurement.y, size)}
        return replace(finish(replace(measurement, known=known), noise=noise, callback=callback), is_sharp=True)

    def _find_kernel(
        self,
        measurement: Measurement,
        noise: NoiseSource,
        init: dict[str, Tensor] | None,
        callback: Callback | None,
        is_small: bool,
    ) -> tuple[Mosaic, Restoration, int]:
        """The kernel from the windows, in a support that grows until the kernel fits it; and the steps that took."""
        largest = (min(measurement.y.shape[-2:]) // 2 - 1) | 1
        first = min(self.first_kernel_size, self.max_kernel_size, largest)
        size, done = self.kernel_size or (min(self.small_kernel_size, first) if is_small else first), 0
        while True:
            blind, mosaic = self.blind.with_kernel_size(size), self._mosaic(measurement, size)
            if not done:
                logger.info("%s.", self._describe(measurement, mosaic, size))
            total = done + blind.num_steps + self._finishing_steps(measurement, size)
            seen = part_of_run(callback, done, total)
            if mosaic.measurement is not measurement:
                seen = of_part(seen, mosaic.measurement)
            start = init and {"kernel": upsampled(init["kernel"], 1, size)}
            found = blind(self._searched(mosaic, size), noise=noise, init=start, callback=seen)
            done += blind.num_steps
            share = float(border_mass(found.params["kernel"]))
            larger = min(grown(size), self.max_kernel_size, largest) if size >= first else first
            limit = self.border_limit if size >= first else self.small_border_limit
            if self.kernel_size or larger <= size or not share > limit:
                return mosaic, found, done
            logger.info("%.0f %% of the kernel is at its border: %d px instead of %d.", 100 * share, larger, size)
            size = larger

    def _searched(self, mosaic: Mosaic, kernel_size: int) -> Measurement:
        """What the blind method is shown, with the noise level that it is told."""
        if kernel_size <= self.small_kernel_size:
            return mosaic.measurement
        level = mosaic.measurement.sigma.clamp_min(self.least_sigma)
        return replace(mosaic.measurement, noise=GaussianNoise(level))

    def _finishing_steps(self, measurement: Measurement, kernel_size: int) -> int:
        plan = self.finish.plan(tuple(measurement.y.shape[-2:]), (kernel_size, kernel_size))
        return plan.num_solves * self.finish.num_steps

    def _describe(self, measurement: Measurement, seen: Mosaic, kernel_size: int) -> str:
        """What the run takes, unless the kernel grows."""
        frame, size = tuple(measurement.y.shape[-2:]), (kernel_size, kernel_size)
        canvas = seen.measurement.operator.image_shape(tuple(seen.measurement.y.shape[-2:]), kernel_size=size)
        prior = self.finish.non_blind.prior
        cost = estimate(prior, (1, 1, prior.channels, *canvas), self.blind.with_kernel_size(kernel_size).work)
        count = len(seen.windows)
        looked_at = f"{count} windows of {seen.windows[0].width} px" if count > 1 else "1 window"
        return (
            f"{cost + self.finish.estimate(frame, size)}: kernel from {looked_at}, {self.finish.describe(frame, size)}"
        )

    def _mosaic(self, measurement: Measurement, kernel_size: int) -> Mosaic:
        side = max(self.window, WINDOW_OVER_KERNEL * kernel_size)
        height, width = measurement.y.shape[-2:]
        if height * width <= self.num_windows * side**2:
            return Mosaic.of(measurement, [Window(0, 0, height, width)], kernel_size)
        mask = None if measurement.mask is None else measurement.mask[0]
        told = max(float(measurement.sigma), self.least_sigma)  # texture below it tells the search nothing
        windows = choose_windows(measurement.y[0], side, self.num_windows, told, mask)
        return Mosaic.of(measurement, windows, kernel_size)

    def _noise_level(self, seen: Measurement, found: Restoration) -> Tensor:
        """`(1,)` noise level, raised for what the blind method could not explain.

        What is left beyond the noise is the error of the model, the kernel's first. It is not white, and a picture that
        explains it rings; so it counts for more than noise of its size would.
        """
        ratio2 = seen.misfit(found.canvas(), found.params).nan_to_num(0.0) / seen.sigma.square()
        return seen.sigma * ratio2.clamp(1.0, self.max_noise_correction)

    def _kernel_of_each(self, mosaic: Mosaic, found: Restoration) -> Tensor:
        """`(W, h, w)`: what one M-step makes of each window of the restored mosaic."""
        kernel, count = found.params["kernel"], len(mosaic.windows)
        y, image, mask = mosaic.split(found.canvas())
        equations = mosaic.measurement.operator.normal_equations(
            y, image.unsqueeze(1), kernel_size=tuple(kernel.shape[-2:]), mask=mask
        )
        sigma = self._searched(mosaic, kernel.shape[-1]).sigma.expand(count)
        return self.m_step(equations, sigma, kernel.expand(count, -1, -1, -1))[:, 0]


def _clipped_mean(samples: Tensor, reach: float) -> Tensor:
    """Mean `(B, C, H, W)` of samples `(B, n, C, H, W)`, each clipped to within `reach` of their median."""
    mean = torch.empty_like(samples[:, 0])
    for strip, out in zip(samples.split(STRIP, -2), mean.split(STRIP, -2), strict=True):
        middle = strip.sort(1).values[:, (strip.shape[1] - 1) // 2 : strip.shape[1] // 2 + 1]
        median = middle.mean(1, keepdim=True)  # torch's own takes the lower of the middle two
        out.copy_(strip.clamp(median - reach, median + reach).mean(1))
    return mean


def _unrestored(measurement: Measurement, found: Restoration) -> Restoration:
    """The picture as it was, with the status of the blind method that failed."""
    y = measurement.y.clamp(0, 1)
    return replace(found, image=y, samples=y[:, None], raw={"x": y[:, None], **found.params})
