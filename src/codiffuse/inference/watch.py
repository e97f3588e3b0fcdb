"""A restoration that is watched while it runs, in a thread of its own, and can be stopped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from codiffuse import fourier
from codiffuse.data.sources import downscale
from codiffuse.methods.base import StepInfo

LOOK_SIDE = 512  # longer side of the estimates that are shown
LOOK_SECONDS = 0.4  # between two of them


@dataclass(frozen=True)
class Look:
    """What is seen of a run on the way.

    Attributes:
        number: steps done, 1 .. `total`.
        total: steps of the whole run.
        image: (C, H, W) current estimate in [0, 1], reduced to `LOOK_SIDE`; of a part of the picture, where the
            method works on parts.
        kernel: (1, h, w).
        residual: rms of y - A x in [0, 1] units; None where it cannot be told from the step.
        samples: estimates that the step carried along.
        whole: whether they are of the whole picture, at its resolution.
        tile: whether the picture is being restored in parts, with a kernel that stands.
        step_seconds: mean time of the steps so far that were of the size of this one; None of the first of them.
    """

    number: int
    total: int
    image: Tensor
    kernel: Tensor
    residual: float | None
    samples: int
    whole: bool
    tile: bool
    step_seconds: float | None


class _Cancelled(Exception):
    """Ends a run from inside its callback."""


@dataclass
class _Watcher:
    """Callback: ends a cancelled run, else tells what is seen, now and then."""

    y: Tensor
    tell: Callable[[Look], None]
    cancelled: threading.Event
    interval: float
    _last: float = field(default=-float("inf"), init=False)
    _size: Any = field(default=None, init=False)
    _first: tuple[float, int] = field(default=(0.0, 0), init=False)  # time and number of the first step of this size

    def __call__(self, info: StepInfo) -> None:
        if self.cancelled.is_set():
            raise _Cancelled
        now = time.monotonic()
        size = "tile" if info.tile else info.x0.shape
        if size != self._size:
            self._size, self._first = size, (now, info.number)
        if now - self._last < self.interval and info.number < info.total:
            return
        self._last = now
        image = downscale(info.x0[0].mean(0), LOOK_SIDE).float().cpu()
        kernel = info.params["kernel"][0].float().cpu()
        started, first = self._first
        self.tell(
            Look(
                number=info.number,
                total=info.total,
                image=image,
                kernel=kernel,
                residual=step_residual(info, self.y),
                samples=info.x0.shape[1],
                whole=info.part is None,
                tile=info.tile,
                step_seconds=(now - started) / (info.number - first) if info.number > first else None,
            )
        )


def watch(
    restore: Callable[..., Any],
    image: str | np.ndarray,
    y: Tensor,
    cancelled: threading.Event,
    *,
    interval: float = LOOK_SECONDS,
    **settings: Any,
) -> Iterator[Any]:
    """Runs `restore(image, callback=..., **settings)` and yields looks while it runs, then its result.

    A cancelled run ends without a result, and so does one whose iterator is closed.

    Args:
        restore: such as `codiffuse.restore`.
        image: its first argument: a file or an array.
        y: `(C, H, W)` in [0, 1]: the pixels of `image`.
        cancelled: set it, from any thread, to stop the run after its current step.
        interval: least time between two looks, s.
        settings: of `restore`.

    Yields:
        `Look`s, then what `restore` returned.

    Raises:
        Exception: what `restore` raised.
    """
    news: queue.Queue[tuple[str, Any]] = queue.Queue()

    def tell(look: Look) -> None:
        news.put(("look", look))

    def work() -> None:
        try:
            watcher = _Watcher(y, tell, cancelled, interval)
            news.put(("result", restore(image, callback=watcher, **settings)))
        except _Cancelled:
            news.put(("cancelled", None))
        except Exception as error:  # it belongs to whoever iterates
            news.put(("error", error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            kind, value = news.get()
            if kind == "error":
                raise value
            if kind != "cancelled":
                yield value
            if kind != "look":
                return
    finally:
        cancelled.set()


def step_residual(info: StepInfo, y: Tensor) -> float | None:
    """Rms of y - A x0 after a step, of the first picture of a batch.

    A step on a part of the picture knows its measurement. Of others the operator is not known, so the estimate is
    blurred as it is and compared where no boundary plays a role; `None` where it has more parameters than a kernel.

    Args:
        info: the step.
        y: `(C, H, W)` measurement.
    """
    image, kernel = info.x0.mean(1), info.params["kernel"]
    target = y[None].to(image) if info.part is None else info.part.y
    if image.shape[1] != target.shape[1]:
        image = image.mean(1, keepdim=True)
    if info.part is not None:
        return float(info.part.misfit(image, info.params)[0].sqrt())
    if set(info.params) != {"kernel"}:
        return None
    if image.shape[-2:] == target.shape[-2:]:
        target = fourier.crop_to_frame(target, tuple(kernel.shape[-2:]))
    if any(side < part for side, part in zip(image.shape[-2:], kernel.shape[-2:], strict=True)):
        return None
    blurred = fourier.convolve(image[:1], kernel[:1], "valid")
    return float((blurred - target).square().mean().sqrt()) if blurred.shape == target.shape else None
