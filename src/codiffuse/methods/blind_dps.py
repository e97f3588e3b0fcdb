"""BlindDPS: image and operator diffuse side by side, coupled by the measurement (Chung et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.centering import moved
from codiffuse.estimation.consensus import match_central
from codiffuse.fourier import Size, reach
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.methods.base import Callback, Measurement, Restoration, StepInfo, choose, restoration
from codiffuse.methods.steps import ReverseProcess, check_counts, check_kernel_fits, lift, lower, part_of_run
from codiffuse.methods.variables import Variable
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource
from codiffuse.schedule import Step
from codiffuse.spaces import shift_and_divide

IMAGE = "image"


@dataclass(frozen=True)
class BlindDPS:
    """Samples image and operator parameters together.

    Attributes:
        image: the image and its prior.
        parameters: those of the operator, by its names for them, such as `kernel`; each with its own prior.
        guidance: approximation of the gradients of log p(y | x_t, k_t) (Theorem 1).
        process: the reverse chain, of all variables.
        num_particles: n samples an image, each with its own parameters.
        kernel_crop: side of the centre of each kernel that is kept in the end, px, where kernels are smaller than those
            that the prior knows (Fig. 5); `None` keeps all.
        max_retries: how often an image whose run diverged is run again, each time with half the step of guidance.
    """

    image: Variable
    parameters: Mapping[str, Variable]
    guidance: DPS | JointPiGDM = field(default_factory=DPS)
    process: ReverseProcess = field(default_factory=ReverseProcess)
    num_particles: int = 1
    kernel_crop: int | None = None
    max_retries: int = 2
    needs: ClassVar[tuple[str, ...]] = ()
    knows_photon_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)
        if self.max_retries < 0:
            raise InputError(f"Expected max_retries >= 0, got {self.max_retries}.")
        if self.image.prior is None:
            raise InputError("Expected a prior of the image, got none; set method.image.prior.")

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return len(self.process.schedule())

    @property
    def work(self) -> float:
        """Time of a whole run, in steps of one particle."""
        return self.num_particles * self.num_steps

    def with_kernel_size(self, size: int) -> BlindDPS:
        """The same method for another kernel size."""
        kernel = replace(self.parameters["kernel"], size=size)
        return replace(self, parameters={**self.parameters, "kernel": kernel})

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        if set(operator.params) != set(self.parameters):
            return f"estimates {', '.join(self.parameters)}, not {', '.join(operator.params)}"
        return None

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y` and estimate the operator's parameters.

        Args:
            measurement: a batch; each particle of each image has its own parameters.
            noise: asked for `init` and, once a step, for `step`, for the image, then for the parameters in their order.
            init: not used.
            callback: called after each step.
        """
        found = self._run(measurement, noise, 1.0, callback)
        for retry in range(1, self.max_retries + 1):
            if not bool(found.failed.any()):
                break
            told = part_of_run(callback, retry * self.num_steps, (retry + 1) * self.num_steps)
            found = choose(found.failed, self._run(measurement, noise, 0.5**retry, told), found)
        return found

    def _run(
        self, measurement: Measurement, noise: NoiseSource, factor: float, callback: Callback | None
    ) -> Restoration:
        """One reverse diffusion of all variables, with `factor` times the step of guidance."""
        y = lift(measurement.y, self.image.prior)
        n = self.num_particles
        variables = {IMAGE: self.image, **self.parameters}
        shapes = self._shapes(measurement)
        folded = _fold(measurement, y, n)
        steps = self.process.schedule().steps()

        # BlindDPS, Alg. 1, line 1: x_N, k_N ~ N(0, I).
        x_t = {name: _draw(noise, f"{name}/init", shapes[name], y) for name in variables}
        for number, step in enumerate(steps, 1):
            # Lines 3-6: scores and x0-hat, of each variable by its own network.
            denoised = {
                name: variable.denoise(x_t[name], step, clip=self.process.clip == "denoised")
                for name, variable in variables.items()
            }
            x0 = {name: found[0] for name, found in denoised.items()}
            # Lines 7, 11, 12: the residual couples all x0-hats.
            gradients, values = self._gradients(folded, variables, x0, step)
            for name, variable in variables.items():
                _, fraction, pull_back = denoised[name]
                shift = factor * variable.step * self.guidance.x0_shift(pull_back(gradients[name]), step)
                z = _draw(noise, f"{name}/step", shapes[name], y)
                # Lines 8-11 and 13: ancestral sampling, and the step along the gradient.
                x_t[name] = variable.advance(self.process, x_t[name], x0[name], shift, step, z, fraction)
            if callback:
                callback(self._info(values, y, n, number, len(steps), step))

        values = {name: variables[name].coordinates.decode(value) for name, value in x_t.items()}
        found = _restoration(measurement, values, n, len(steps), self.kernel_crop)
        return replace(found, step_factor=torch.full((len(y),), factor, device=y.device))

    def _gradients(
        self, data: Measurement, variables: Mapping[str, Variable], x0: Mapping[str, Tensor], step: Step
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the data term with respect to each x0-hat, turned; and the values that they stand for."""
        leaves = {name: value.detach().requires_grad_() for name, value in x0.items()}
        with torch.enable_grad():
            # Line 7: the projection onto {k >= 0, sum k = 1} belongs to the kernel's space.
            values = {name: variables[name].coordinates.decode(leaf) for name, leaf in leaves.items()}
            predicted = _apply(data.operator, values)
        residual = data.y - predicted.detach()
        if data.mask is not None:
            residual = data.mask * residual
        fixed = {name: value.detach() for name, value in values.items()}
        weighed = self.guidance.weigh(
            residual,
            data.noise.variance(data.y),
            operator=data.operator,
            values=fixed,
            units={name: variables[name].coordinates.unit(x0[name]) for name in variables},
            step=step,
            mask=data.mask,
        )
        with torch.enable_grad():
            objective = (weighed * predicted).sum()
            for name, variable in variables.items():
                if variable.penalty is not None:  # Eq. 20
                    objective = objective - variable.penalty(leaves[name]).sum()
            gradients = torch.autograd.grad(objective, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True)), fixed

    def _shapes(self, measurement: Measurement) -> dict[str, tuple[int, ...]]:
        """`(B, n, C, H, W)` of each variable."""
        y = measurement.y
        _, *size = self.parameters["kernel"].shape(tuple(y.shape[-2:]))
        check_kernel_fits(tuple(size), y)
        if self.kernel_crop is not None and not 1 <= self.kernel_crop <= min(size):
            raise InputError(
                f"Expected kernel_crop from 1 to the {min(size)} px of the kernel, got {self.kernel_crop}; "
                "set method.kernel_crop=null to keep all of it."
            )
        canvas = measurement.operator.image_shape(tuple(y.shape[-2:]), kernel_size=tuple(size))
        shapes = {IMAGE: (self.image.prior.channels, *canvas)}
        shapes |= {name: variable.shape(canvas) for name, variable in self.parameters.items()}
        return {name: (len(y), self.num_particles, *shape) for name, shape in shapes.items()}

    def _info(self, values: Mapping[str, Tensor], y: Tensor, n: int, number: int, total: int, step: Step) -> StepInfo:
        image = values[IMAGE].unflatten(0, (len(y), n)).clamp(0, 1)
        # What is shown of the parameters is those of the first particle.
        params = {name: values[name].unflatten(0, (len(y), n))[:, 0] for name in self.parameters}
        return StepInfo(number, total, step.alpha_bar, image, params)


def _apply(operator: BlurOperator, values: Mapping[str, Tensor]) -> Tensor:
    return operator(values[IMAGE], **{name: value for name, value in values.items() if name != IMAGE})


def _fold(measurement: Measurement, y: Tensor, n: int) -> Measurement:
    """The measurement of every particle: `(B n, C, H, W)`."""

    def repeat(each: Tensor) -> Tensor:
        return each.repeat_interleave(n, 0)

    mask = None if measurement.mask is None else repeat(measurement.mask)
    noise = measurement.noise.repeated(n)
    return replace(measurement, y=repeat(y), noise=noise, mask=mask)


def _draw(noise: NoiseSource, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return noise.normal(name, shape, like).flatten(0, 1)


def _restoration(
    measurement: Measurement, values: Mapping[str, Tensor], n: int, nfe: int, kernel_crop: int | None = None
) -> Restoration:
    """Closes a run: the samples of an image are moved to where their kernels match, as are the maps of its operator."""
    parts = {name: value.unflatten(0, (len(measurement.y), n)) for name, value in values.items()}
    if n > 1 and "kernel" in parts:
        parts = _aligned(parts)
    if kernel_crop is not None:
        parts = _cropped(parts, measurement, (kernel_crop, kernel_crop))
    x = lower(parts.pop(IMAGE), measurement.y)
    found = restoration(measurement, x, {name: value.mean(1) for name, value in parts.items()}, nfe)
    return replace(found, raw={**found.raw, **{f"{name}_samples": value for name, value in parts.items()}})


def _aligned(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Image and kernel are defined up to opposite shifts: whole pixels here, in which the maps go with the image."""
    matched = [[*match_central(kernels[:, 0])[1:]] for kernels in parts["kernel"]]

    def shifted(name: str, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if name == "kernel":
            return moved(value, rows, columns)
        shifts = zip(rows.tolist(), columns.tolist(), strict=True)
        return torch.stack([each.roll((-r, -c), (-2, -1)) for each, (r, c) in zip(value, shifts, strict=True)])

    return {
        name: torch.stack([shifted(name, each, *at) for each, at in zip(value, matched, strict=True)])
        for name, value in parts.items()
    }


def _cropped(parts: Mapping[str, Tensor], measurement: Measurement, size: Size) -> dict[str, Tensor]:
    """The centre of each kernel, of `size`, and what it reads of the canvas."""
    before, frame = tuple(parts["kernel"].shape[-2:]), tuple(measurement.y.shape[-2:])
    canvas, needed = (measurement.operator.image_shape(frame, kernel_size=each) for each in (before, size))
    top, _, left, _ = (more - less for more, less in zip(reach(before), reach(size), strict=True))
    down, right = (more // 2 - less // 2 for more, less in zip(before, size, strict=True))
    cropped = dict(parts)
    for name, value in parts.items():
        if name == "kernel":
            cropped[name] = shift_and_divide(value[..., down : down + size[0], right : right + size[1]])
        elif canvas != needed and tuple(value.shape[-2:]) == canvas:
            cropped[name] = value[..., top : top + needed[0], left : left + needed[1]]
    return cropped
