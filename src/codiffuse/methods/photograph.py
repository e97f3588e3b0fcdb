"""Any photograph: its kernel from textured windows by a blind method, then all of it, by tiles, with that kernel."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.spectrum import expected_spread
from codiffuse.estimation.support import border_mass, grown, kernel_pixels
from codiffuse.methods.base import BlindMethod, Callback, Measurement, Restoration, Windows
from codiffuse.methods.coarse import upsampled
from codiffuse.methods.memory import estimate, peak_bytes
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
HARDLY_BLURRED = 4.0  # px that a kernel's mass is spread over (`kernel_pixels`), up to which it undoes hardly anything
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
        places: `(top, left)` of each window, px, chosen by hand; `None` chooses those that tell most about a blur.
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
    places: Sequence[tuple[int, int]] | None = None
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
        mask = measurement.mask if float(kernel_pixels(kernel)) > HARDLY_BLURRED else None  # as for a sharp picture
        finished = self.finish(
            replace(measurement, known={"kernel": kernel}, noise=GaussianNoise(level), mask=mask),
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
        # What is clipped but not blurred is as bright as it is shown.
        plain = replace(measurement, known={"kernel": delta_kernel(measurement.y, size)}, mask=None)
        return replace(finish(plain, noise=noise, callback=callback), is_sharp=True)

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
        size = self.kernel_size or (min(self.small_kernel_size, first) if is_small else first)
        mosaic, done, nfe = self._mosaic(measurement, size), 0, 0
        while True:
            blind = self.blind.with_kernel_size(size)
            logger.info("%s.", self._describe(measurement, mosaic, size))
            total = done + blind.num_steps + self._finishing_steps(measurement, size)
            seen = part_of_run(callback, done, total)
            if mosaic.measurement is not measurement:
                seen = of_part(seen, mosaic.measurement)
            start = init and {"kernel": upsampled(init["kernel"], 1, size)}
            found = blind(self._searched(mosaic, size), noise=noise, init=start, callback=seen)
            done, nfe = done + blind.num_steps, nfe + found.nfe
            found = replace(found, nfe=nfe)
            share = float(border_mass(found.params["kernel"]))
            larger = min(grown(size), self.max_kernel_size, largest) if size >= first else first
            limit = self.border_limit if size >= first else self.small_border_limit
            if self.kernel_size or larger <= size or not share > limit:
                return mosaic, found, done
            try:
                wider = self._mosaic(measurement, larger)
            except InputError as error:  # of memory
                logger.warning("%.0f %% of the kernel is at its border, and it stays there: %s", 100 * share, error)
                return mosaic, found, done
            logger.info("%.0f %% of the kernel is at its border: %d px instead of %d.", 100 * share, larger, size)
            mosaic, size = wider, larger

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
        """What is left of the run takes, unless the kernel grows."""
        frame, size = tuple(measurement.y.shape[-2:]), (kernel_size, kernel_size)
        work = self.blind.with_kernel_size(kernel_size).work
        cost = estimate(self.finish.non_blind.prior, self._searched_shape(seen, kernel_size), work)
        count = len(seen.windows)
        looked_at = f"{count} windows of {seen.windows[0].width} px" if count > 1 else "1 window"
        return (
            f"{cost + self.finish.estimate(frame, size)}: kernel from {looked_at}, {self.finish.describe(frame, size)}"
        )

    def _searched_shape(self, seen: Mosaic, kernel_size: int) -> tuple[int, ...]:
        """`(B, n, C, H, W)` that the network sees of the windows."""
        y, size = seen.measurement.y, (kernel_size, kernel_size)
        canvas = seen.measurement.operator.image_shape(tuple(y.shape[-2:]), kernel_size=size)
        return 1, 1, self.finish.non_blind.prior.channels, *canvas

    def _mosaic(self, measurement: Measurement, kernel_size: int) -> Mosaic:
        """The picture, or as many windows as the memory allows; raises InputError where not even one fits."""
        memory = self.finish.memory
        for windows in self._choices(measurement, kernel_size):
            seen = Mosaic.of(measurement, windows, kernel_size)
            needed = peak_bytes(self.finish.non_blind.prior, self._searched_shape(seen, kernel_size))
            if needed <= memory:
                return seen
        raise InputError(
            f"Expected {needed / 2**30:.3g} GiB or more to find a kernel of {kernel_size} px in a window of "
            f"{windows[0].width} x {windows[0].height} px, got {memory / 2**30:.3g} GiB; set max_memory= higher, or "
            "kernel_size= or window= smaller."
        )

    def _choices(self, measurement: Measurement, kernel_size: int) -> Iterator[list[Window]]:
        """Where the kernel may be looked for, the best choice first."""
        side, (height, width) = max(self.window, WINDOW_OVER_KERNEL * kernel_size), measurement.y.shape[-2:]
        if self.places is not None:
            windows = [Window(*place, min(side, height), min(side, width)) for place in self.places]
            self._check_places(windows, height, width)
        else:
            if height * width <= self.num_windows * side**2:
                yield [Window(0, 0, height, width)]
            mask = None if measurement.mask is None else measurement.mask[0]
            told = max(float(measurement.sigma), self.least_sigma)  # texture below it tells the search nothing
            windows = choose_windows(measurement.y[0], side, self.num_windows, told, mask)
        for fewer in range(len(windows), 0, -1):
            yield windows[:fewer]

    def _check_places(self, windows: Sequence[Window], height: int, width: int) -> None:
        for each in windows:
            if min(each.top, each.left) < 0 or each.top + each.height > height or each.left + each.width > width:
                raise InputError(
                    f"Expected windows of {each.width} x {each.height} px within the picture of {width} x {height} px, "
                    f"got one at [top, left] = [{each.top}, {each.left}]; set pipeline.places= or window=."
                )

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
