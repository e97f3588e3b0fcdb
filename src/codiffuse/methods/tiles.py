"""Pictures of any size, restored with a known kernel in the memory that there is.

The network sees the picture by tiles (`priors.tiled`), while guidance couples the whole of it: that leaves no seams,
however long the kernel. Where memory is too short even for that, the picture is divided into windows that overlap by
several times the kernel. A window is solved on its own with the boundary `unknown`: its canvas is larger than itself by
the kernel, as a whole photograph's is. That is right whatever the picture's boundary, of which it leaves unused what
that says of the outside. Windows receive the same noise where their canvases overlap, and so about the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.fourier import Size, crop_to_frame
from codiffuse.methods.base import Callback, Measurement, Restoration, restoration
from codiffuse.methods.memory import SHARE, Estimate, bytes_per_pixel, estimate, free_bytes
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import of_part, part_of_run
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator
from codiffuse.priors.tiled import Axis, TiledPrior, boxes, tile_axis
from codiffuse.randomness import FieldNoise, GeneratorNoise, NoiseSource

SMALLEST_TILE = 128  # px
SOLVE = 36  # pictures that exist, beside the activations of tiles, while a window is solved
CLOSING = 6  # those beside the samples, raw and clipped, while the residual of the whole is computed
WINDOW_OVERLAP = 4  # times the side of the kernel, px, that windows share: near its rim a window lacks surroundings


@dataclass(frozen=True)
class Plan:
    """How a picture is restored.

    Attributes:
        windows: along the height and the width of the measurement; their starts are where their canvases begin, too.
        prior: which sees the canvas of a window by tiles.
        tiles: the largest of them, along the height and the width of a canvas.
        num_samples: n.
        together: samples in a network call; where there are several tiles, one sample is restored after the other.
        bytes: memory at the peak, beyond what the process and the measurement take already.
    """

    windows: tuple[Axis, Axis]
    prior: TiledPrior
    tiles: tuple[Axis, Axis]
    num_samples: int
    together: int
    bytes: int

    @property
    def num_windows(self) -> int:
        """Parts of the picture that are solved on their own."""
        return math.prod(len(axis.starts) for axis in self.windows)

    @property
    def num_tiles(self) -> int:
        """Parts of a window that the network sees at a time."""
        return math.prod(len(axis.starts) for axis in self.tiles)

    @property
    def tile(self) -> Size:
        """Height and width of a tile, px."""
        return self.tiles[0].side, self.tiles[1].side

    @property
    def at_once(self) -> bool:
        """Whether the network sees the whole picture."""
        return self.num_windows * self.num_tiles == 1

    @property
    def num_solves(self) -> int:
        """Runs of the sampler."""
        return 1 if self.at_once else self.num_windows * self.num_samples


@dataclass(frozen=True)
class Tiled:
    """A non-blind method for one picture of any size.

    Attributes:
        non_blind: what restores it.
        tile: largest side of what the network sees at a time, px.
        overlap: px that neighbouring tiles share at least; they give way to each other over half of it.
        max_memory: bytes that a run may take, beyond what the process and the measurement take already; `None` for half
            of what is free. Where they are few, a run takes longer, then tiles are smaller, then the picture is
            divided.
    """

    non_blind: NonBlind
    tile: int = 384
    overlap: int = 64
    max_memory: int | None = None
    needs: ClassVar[tuple[str, ...]] = ("kernel",)

    def __post_init__(self) -> None:
        least = 2 * self._stride
        if self.overlap < least:
            raise InputError(f"Expected an overlap of at least {least} px, got {self.overlap}; set overlap={least}.")
        if self.tile < 2 * self.overlap:
            least = 2 * self.overlap
            raise InputError(f"Expected a tile of at least {least} px, got {self.tile}; set tile={least}.")

    @property
    def num_steps(self) -> int:
        """Steps of one solve; `plan` says how many there are."""
        return self.non_blind.num_steps

    @property
    def _stride(self) -> int:
        return TiledPrior(self.non_blind.prior, self.tile, self.overlap).stride

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        return self.non_blind.supports(operator)

    def plan(self, frame: Size, kernel_size: Size) -> Plan:
        """How a measurement of `frame`, height and width in px, is restored.

        Raises:
            InputError: not even the smallest tiles, or windows, fit the memory.
        """
        prior, n = self.non_blind.prior, self.non_blind.num_particles
        memory, each = self.memory, bytes_per_pixel(prior)
        tile, windows = self._divide(frame, kernel_size, memory, each)
        tiled, canvas = TiledPrior(prior, tile, self.overlap), _canvas((windows[0].side, windows[1].side), kernel_size)
        plan = Plan(windows, tiled, tiled.axes(canvas), n, together=1, bytes=0)
        kept = each * math.prod(plan.tile)
        needed = n * self._bytes(_canvas(frame, kernel_size)) + SOLVE * self._bytes(canvas) + kept / SHARE
        # What is left holds more samples at a time, or activations that would be computed again.
        most, cost = (n - 1, kept / SHARE) if plan.at_once else (plan.num_tiles, kept)
        more = min(max(int((memory - needed) / cost), 0), most)
        peak = round(max(needed + more * cost, self._closing_bytes(frame, kernel_size)))
        if plan.at_once:
            return replace(plan, together=1 + more, bytes=peak)
        return replace(plan, prior=replace(tiled, kept=more), bytes=peak)

    def estimate(self, frame: Size, kernel_size: Size) -> Estimate:
        """Time and memory of a run on a measurement of `frame`, before it starts."""
        plan, prior = self.plan(frame, kernel_size), self.non_blind.prior
        calls = plan.num_windows * plan.num_samples * plan.num_tiles * self.num_steps
        once = estimate(prior, (1, 1, prior.channels, *plan.tile), calls).seconds
        again = 1 - plan.prior.kept / plan.num_tiles  # a forward pass takes as long as the backward pass after it
        return Estimate(once * (1 + again / 2), plan.bytes)

    def describe(self, frame: Size, kernel_size: Size) -> str:
        """The plan in words."""
        plan = self.plan(frame, kernel_size)
        tiles = _counted(plan.num_windows * plan.num_tiles, "tile")
        samples = _counted(plan.num_samples, "sample")
        return f"{tiles} of {plan.tile[1]} x {plan.tile[0]} px, {_counted(self.num_steps, 'step')}, {samples}"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore one picture with `measurement.known["kernel"]`.

        A picture that one tile holds is left to `non_blind`.

        Args:
            measurement: of one picture.
            noise: a `GeneratorNoise`, so that streams for samples and windows can be derived from it.
            init: not used.
            callback: called after each step of each solve, with its measurement as the `part` that is shown.

        Raises:
            InputError: no kernel is known, there are several pictures, the noise cannot be divided, or the memory is
                too short.
        """
        if "kernel" not in measurement.known:
            raise InputError("Expected a known kernel for a non-blind method, got none; use a blind method.")
        y, kernel = measurement.y, measurement.known["kernel"]
        frame, kernel_size = tuple(y.shape[-2:]), tuple(kernel.shape[-2:])
        if len(y) != 1:
            raise InputError(f"Expected one picture to restore by tiles, got {len(y)}; set batch_size=1.")
        plan = self.plan(frame, kernel_size)
        # One field of noise for the picture, so that a sample does not depend on the tiles that the memory allows.
        seed = noise.spawn("tiles").seeds[0] if isinstance(noise, GeneratorNoise) else None
        if plan.at_once:
            chunk = self.non_blind.particle_chunk or plan.together
            noise = noise if seed is None else FieldNoise(seed)
            return replace(self.non_blind, particle_chunk=chunk)(measurement, noise=noise, init=init, callback=callback)
        if seed is None:
            raise InputError(f"Expected noise from a seed (GeneratorNoise) for tiles, got {type(noise).__name__}.")
        x = self._solve(measurement, plan, seed, callback)
        if plan.num_windows > 1 and measurement.operator.image_shape(frame, kernel_size=kernel_size) == frame:
            x = crop_to_frame(x, kernel_size)
        return restoration(measurement, x, {"kernel": kernel}, plan.num_windows * plan.num_tiles * self.num_steps)

    def _solve(self, measurement: Measurement, plan: Plan, seed: int, callback: Callback | None) -> Tensor:
        """`(1, n, C, H, W)` samples on the canvas of the operator, or, from windows, on that of a whole photograph."""
        y, kernel_size = measurement.y, measurement.known["kernel"].shape[-2:]
        method = replace(self.non_blind, prior=plan.prior, num_particles=1, particle_chunk=1)
        canvas = measurement.operator.image_shape(y.shape[-2:], kernel_size=kernel_size)
        if plan.num_windows > 1:
            canvas = _canvas(y.shape[-2:], kernel_size)
        x = y.new_zeros(1, plan.num_samples, y.shape[1], *canvas)
        total = plan.num_solves * self.num_steps
        solves = product(range(plan.num_samples), _parts(measurement, plan, kernel_size))
        for number, (sample, (part, origin, share)) in enumerate(solves):
            seen = of_part(part_of_run(callback, number * self.num_steps, total), part, tile=True)
            found = method(part, noise=FieldNoise(seed, origin, sample), callback=seen).raw["x"]
            place = Window(*origin, *found.shape[-2:])
            place.crop(x[:, sample]).addcmul_(found[:, 0], share.to(found))
        return x

    def _divide(self, frame: Size, kernel_size: Size, memory: int, each: float) -> tuple[int, tuple[Axis, Axis]]:
        """The largest tile, and the windows, that the memory allows; activations take `each` bytes a pixel."""
        canvas = _canvas(frame, kernel_size)
        whole = self.non_blind.num_particles * self._bytes(canvas)
        smallest = min(max(SMALLEST_TILE, 2 * self.overlap), self.tile, max(canvas))
        tile = min(self.tile, _side((memory - whole - SOLVE * self._bytes(canvas)) * SHARE / each))
        if tile >= smallest:
            return tile, (Axis(frame[0], (0,)), Axis(frame[1], (0,)))
        shared = max(WINDOW_OVERLAP * max(kernel_size), 2 * self._stride)
        smallest_window = SOLVE * self._bytes(_canvas((2 * shared, 2 * shared), kernel_size))
        least = max(whole + each / SHARE * smallest**2 + smallest_window, self._closing_bytes(frame, kernel_size))
        if memory < least:
            samples = _counted(self.non_blind.num_particles, "sample")
            raise InputError(
                f"Expected {least / 2**30:.3g} GiB or more for {samples} of {frame[0]} x {frame[1]} px, "
                f"got {memory / 2**30:.3g} GiB; set max_memory= higher, or take fewer samples."
            )
        # Small tiles and small windows both take time: they share what there is.
        for_tile = min((memory - whole) / 2, memory - whole - smallest_window)
        tile = max(min(self.tile, _side(for_tile * SHARE / each)), smallest)
        for_window = memory - whole - each / SHARE * tile**2
        side = _side(for_window / (SOLVE * self._bytes((1, 1)))) - max(kernel_size) + 1
        rows, columns = (tile_axis(length, side, shared, self._stride) for length in frame)
        return tile, (rows, columns)

    @property
    def memory(self) -> int:
        """Bytes that a run may take."""
        if self.max_memory is not None:
            return self.max_memory
        return free_bytes(next(self.non_blind.prior.parameters()).device) // 2

    def _bytes(self, canvas: Size) -> int:
        return 4 * self.non_blind.prior.channels * math.prod(canvas)

    def _closing_bytes(self, frame: Size, kernel_size: Size) -> int:
        """At the end of a run, when the whole picture is looked at."""
        return (2 * self.non_blind.num_particles + CLOSING) * self._bytes(_canvas(frame, kernel_size))


def _parts(measurement: Measurement, plan: Plan, kernel_size: Size) -> Iterator[tuple[Measurement, Size, Tensor]]:
    """The measurement of each window, where its canvas begins on the whole one, and what it contributes there."""
    if plan.num_windows == 1:
        yield measurement, (0, 0), torch.ones(())
        return
    rows, columns = (
        Axis(axis.side + side - 1, axis.starts) for axis, side in zip(plan.windows, kernel_size, strict=True)
    )
    for (along, across), share in boxes(rows, columns, max(kernel_size)):
        window = Window(along.start, across.start, plan.windows[0].side, plan.windows[1].side)
        yield measurement.through(window), (window.top, window.left), share


def _canvas(frame: Size, kernel_size: Size) -> Size:
    """The canvas of a photograph of this size: no other boundary has a larger one."""
    return frame[0] + kernel_size[0] - 1, frame[1] + kernel_size[1] - 1


def _side(area: float) -> int:
    return math.isqrt(max(int(area), 0))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
