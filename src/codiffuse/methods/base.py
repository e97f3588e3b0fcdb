"""What methods exchange with the rest: the measurement, the record of a step, the restoration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.operators.noise import Noise
from codiffuse.operators.operator import Operator, support_of
from codiffuse.randomness import NoiseSource

if TYPE_CHECKING:
    from codiffuse.methods.windows import Window


@dataclass(frozen=True)
class Measurement:
    """y = A(x; params) + n.

    Attributes:
        y: `(B, C, H, W)`, [0, 1] units, not clipped.
        noise: its noise model, with the level inference assumes.
        operator: A, without its unknown parameters.
        known: parameters that a method with `needs` may use: the true kernel of an oracle row.
        mask: `(B, 1, H, W)`, 1 for the pixels of y that follow the model, 0 for those that do not (saturated ones);
            `None` trusts all.
    """

    y: Tensor
    noise: Noise
    operator: Operator
    known: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.y.ndim != 4:
            raise InputError(f"Expected a measurement of shape (B, C, H, W), got {tuple(self.y.shape)}.")
        if not bool(torch.isfinite(self.y).all()):
            raise InputError("Expected a finite measurement, got NaN or infinite values.")
        if not bool((self.sigma > 0).all()):
            raise InputError(f"Expected sigma > 0 in [0, 1] units (5/255 = 0.0196), got {self.sigma.tolist()}.")
        if self.mask is not None and self.mask.shape != (len(self.y), 1, *self.y.shape[-2:]):
            raise InputError(
                f"Expected a mask of shape {(len(self.y), 1, *self.y.shape[-2:])}, got {tuple(self.mask.shape)}."
            )

    @property
    def sigma(self) -> Tensor:
        """`(B,)` noise level."""
        return self.noise.level(self.y)

    def through(self, window: Window) -> Measurement:
        """What a window shows: the scene goes on beyond it, whatever is known of the border of the whole."""
        return replace(
            self,
            y=window.crop(self.y),
            mask=None if self.mask is None else window.crop(self.mask),
            operator=replace(self.operator, boundary="unknown", pad_value=0.0),
        )

    def misfit(self, image: Tensor, params: dict[str, Tensor]) -> Tensor:
        """`(B,)` mean square of y - A x over the pixels that count.

        Args:
            image: `(B, C, H, W)` in [0, 1], on the operator's canvas.
            params: parameters of the operator.
        """
        square = (self.operator(image, **params) - self.y).square().mean(1, keepdim=True)
        if self.mask is None:
            return square.flatten(1).mean(1)
        return (self.mask * square).flatten(1).sum(1) / self.mask.flatten(1).sum(1).clamp_min(1)


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after each step; tensors stay on the device.

    Attributes:
        number: steps done, 1 .. `total`.
        total: steps of the whole run.
        alpha_bar: of the step just done.
        x0: `(B, n, C, H, W)` current x0-hat in [0, 1].
        params: current operator parameters.
        part: the measurement behind `x0` where that is only a part of the picture, or a coarse version of it; `None`
            for the picture as it is.
        factor: side of the blocks of pixels whose means the part consists of, px; 1 for the pixels themselves.
        tile: whether it is one of many parts, restored in turn with a kernel that stands.
    """

    number: int
    total: int
    alpha_bar: float
    x0: Tensor
    params: dict[str, Tensor]
    part: Measurement | None = None
    factor: int = 1
    tile: bool = False


Callback = Callable[[StepInfo], None]


@dataclass(frozen=True)
class Restarts:
    """Where the runs of a method ended, from which it went on.

    Attributes:
        kernels: `(B, R, h, w)`, one a run, for blocks of `factor` x `factor` pixels of y.
        residuals: `(B, R)` rms of y - A x at that resolution, in units of sigma; infinite for a failed run.
        factor: side of these blocks, px.
    """

    kernels: Tensor
    residuals: Tensor
    factor: int = 1


@dataclass(frozen=True)
class Windows:
    """The parts of one picture that its kernel was found from.

    Attributes:
        places: one a window.
        kernels: `(W, h, w)`, the kernel of each window alone.
    """

    places: tuple[Window, ...]
    kernels: Tensor


@dataclass(frozen=True)
class Restoration:
    """What a method found.

    Attributes:
        image: `(B, C, H, W)` in [0, 1]: the mean of the samples.
        params: operator parameters, such as `kernel` `(B, 1, h, w)`.
        samples: `(B, n, C, H, W)` in [0, 1].
        raw: final variables as the sampler left them, on the operator's canvas, not clipped.
        nfe: network calls an image: forward passes through the image network, each with one backward pass. `(B,)` where
            images differ, because some were run again.
        status: per image `ok`, or `failed: reason`.
        restarts: ends of all runs, of a method that makes several.
        windows: where the kernel comes from, of a method that looks at parts of the picture.
        noise_level: `(B,)` the level that the last step assumed, where it is not that of the measurement.
        is_sharp: whether the measurement was taken for sharp, so that no kernel was looked for.
        step_factor: `(B,)` by which guidance was weakened after a run that diverged, of a method that does so; 1 for
            none.
    """

    image: Tensor
    params: dict[str, Tensor]
    samples: Tensor
    raw: dict[str, Tensor]
    nfe: int | Tensor
    status: tuple[str, ...]
    restarts: Restarts | None = None
    windows: Windows | None = None
    noise_level: Tensor | None = None
    is_sharp: bool = False
    step_factor: Tensor | None = None

    @property
    def failed(self) -> Tensor:
        """`(B,)` bool."""
        return torch.tensor([status != "ok" for status in self.status], device=self.image.device)

    def canvas(self) -> Tensor:
        """`(B, C, H, W)` mean of the samples in [0, 1], on the operator's canvas."""
        return self.raw["x"].clamp(0, 1).mean(1)

    def as_init(self) -> dict[str, Tensor]:
        """What another method needs to go on from here: its `init`."""
        return {**self.params, "image": self.canvas()}


class Method(Protocol):
    """A sampler with its hyper-parameters and priors."""

    needs: ClassVar[tuple[str, ...]]

    @property
    def num_steps(self) -> int:
        """Steps of a whole run: how often the callback is called."""
        ...

    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch of measurements of one shape."""
        ...

    def supports(self, operator: Operator) -> str | None:
        """`None`, or why this operator cannot be used."""
        ...


def is_blind(method: Method | type[Method]) -> bool:
    """Whether a method finds the operator: others are told it (`needs`), or do without (`ignores_operator`)."""
    return not method.needs and not getattr(method, "ignores_operator", False)


class BlindMethod(Method, Protocol):
    """A method that finds the kernel."""

    @property
    def work(self) -> float:
        """Time of a whole run, in steps of one particle at the resolution of the picture."""
        ...

    def with_kernel_size(self, size: int) -> BlindMethod:
        """The same method for a kernel of `size` x `size` px."""
        ...


def restoration(measurement: Measurement, x: Tensor, params: dict[str, Tensor], nfe: int) -> Restoration:
    """Close a run: clip, average the samples, crop them to the frame, and mark what diverged.

    Args:
        measurement: what was restored.
        x: `(B, n, C, H, W)` final samples in [0, 1] units, not clipped, on the operator's canvas.
        params: final operator parameters.
        nfe: network calls an image.
    """
    status = statuses(measurement, x, params)  # first: it clips a copy, which is as large as all samples
    samples = measurement.operator.crop_to_frame(x.clamp(0, 1), **support_of(params))
    return Restoration(samples.mean(1), params, samples, {"x": x, **params}, nfe, status)


def statuses(measurement: Measurement, x: Tensor, params: dict[str, Tensor]) -> tuple[str, ...]:
    """Per image `ok`, or how its run failed; arguments as for `restoration`."""
    finite = torch.isfinite(x).flatten(1).all(1)
    for value in params.values():
        finite = finite & torch.isfinite(value).flatten(1).all(1)
    misfit = measurement.misfit(x.clamp(0, 1).mean(1), params)
    spread = (measurement.y - measurement.y.mean((1, 2, 3), keepdim=True)).square().flatten(1).mean(1)
    # A restoration that explains y worse than a constant picture does, beyond the noise, has run away.
    diverged = misfit > spread + 4 * measurement.sigma.square() + 1e-4
    return tuple(
        "failed: NaN or infinite values"
        if not ok
        else "failed: diverged (the residual exceeds the signal)"
        if far
        else "ok"
        for ok, far in zip(finite.tolist(), diverged.tolist(), strict=True)
    )


def choose(take: Tensor, found: Restoration, best: Restoration) -> Restoration:
    """For each image, `found` where `take` `(B,)` is true, else `best`."""

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(take.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Restoration(
        image=pick(found.image, best.image),
        params={name: pick(value, best.params[name]) for name, value in found.params.items()},
        samples=pick(found.samples, best.samples),
        raw={name: pick(value, best.raw[name]) for name, value in found.raw.items()},
        nfe=found.nfe,
        status=tuple(
            new if taken else old for new, old, taken in zip(found.status, best.status, take.tolist(), strict=True)
        ),
        step_factor=None if found.step_factor is None else pick(found.step_factor, best.step_factor),
    )
