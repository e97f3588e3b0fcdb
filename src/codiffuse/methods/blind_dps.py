"""BlindDPS: image and operator diffuse side by side, coupled by the measurement (Chung et al., CVPR 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from codiffuse.errors import InputError
from codiffuse.fourier import Size
from codiffuse.guidance.coupled import CoupledGuidance, Estimates, Pull
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.methods.base import Callback, Measurement, Restoration, StepInfo, choose
from codiffuse.methods.samples import IMAGE, close, fold
from codiffuse.methods.steps import ReverseProcess, check_counts, check_kernel_fits, lift, noisy, part_of_run
from codiffuse.methods.variables import Variable
from codiffuse.operators.operator import Operator, support
from codiffuse.randomness import NoiseSource
from codiffuse.schedule import Schedule, Step, linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace

KINDS = {IMAGE: ImageSpace, "kernel": KernelSpace, "tilt": TiltSpace}  # whose coordinates these are
STEPS_BETWEEN_LOOKS = 10  # each look at whether a run goes on asks the device for a number


@dataclass(frozen=True)
class BlindDPS:
    """Samples image and operator parameters together.

    Attributes:
        image: the image and its prior.
        parameters: those of the operator, by its names for them, such as `kernel`; each with its own prior.
        guidance: approximation of the gradients of log p(y | x_t, k_t) (Theorem 1).
        process: the reverse chain, of all variables. A cut one (`start` < 1) begins with noisy versions of the
            measurement and of the mean of each parameter's prior.
        num_particles: n samples an image, each with its own parameters.
        kernel_crop: side of the centre of each kernel that is kept in the end, px, where kernels are smaller than those
            that the prior knows (Fig. 5); `None` keeps all.
        max_retries: how often an image whose run diverged is run again, each time with half the step of guidance.
    """

    image: Variable
    parameters: Mapping[str, Variable]
    guidance: CoupledGuidance = field(default_factory=DPS)
    process: ReverseProcess = field(default_factory=ReverseProcess)
    num_particles: int = 1
    kernel_crop: int | None = None
    max_retries: int = 2
    needs: ClassVar[tuple[str, ...]] = ()
    knows_photon_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise InputError(f"Expected max_retries >= 0, a whole number, got {self.max_retries!r}.")
        if self.kernel_crop is not None:
            check_counts(kernel_crop=self.kernel_crop)
        if not hasattr(self.guidance, "weigh"):
            raise InputError(
                f"Expected guidance of all unknowns, got {type(self.guidance).__name__}; use "
                "guidance@method.guidance=joint_pigdm or dps."
            )
        self._check_variables()

    def _check_variables(self) -> None:
        if self.image.prior is None:
            raise InputError("Expected a prior of the image, got none; set method.image.prior.")
        if not self.parameters or IMAGE in self.parameters:
            given = ", ".join(self.parameters) or "none"
            raise InputError(f"Expected parameters of an operator by their names, such as kernel, got {given}.")
        for name, variable in {IMAGE: self.image, **self.parameters}.items():
            _check_kind(name, variable)
        if "kernel" not in self.parameters and self.kernel_crop is not None:
            raise InputError("Expected a kernel for kernel_crop, got none; set method.kernel_crop=null.")
        if "kernel" in self.parameters and self.parameters["kernel"].size is None:
            raise InputError("Expected a size of the kernel, got none; set method.parameters.kernel.size=.")

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
        crop = None if self.kernel_crop is None else min(self.kernel_crop, size)
        return replace(self, parameters={**self.parameters, "kernel": kernel}, kernel_crop=crop)

    def supports(self, operator: Operator) -> str | None:
        """`None`, or why not."""
        if set(operator.params) != set(self.parameters):
            return f"estimates {', '.join(self.parameters)}, not {', '.join(operator.params)}"
        if not isinstance(self.guidance, JointPiGDM):
            return None
        if not hasattr(operator, "solve_joint_gram"):
            return "needs solve_joint_gram of it for joint PiGDM (guidance@method.guidance=dps does not)"
        if self.guidance.lengths == "parameters_first" and not hasattr(operator, "parameter_gram"):
            return "needs parameter_gram of it for step_lengths=parameters_first (joint does not)"
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
        # NOTE(paper vs code): neither the paper nor the released program looks for runs that diverge; max_retries=0.
        found = self._run(measurement, noise, 1.0, callback)
        for retry in range(1, self.max_retries + 1):
            failed = found.failed
            if not bool(failed.any()):
                break
            told = part_of_run(callback, retry * self.num_steps, (retry + 1) * self.num_steps)
            again = self._run(measurement, noise, 0.5**retry, told)
            # The others of the batch are run along, but keep what they have.
            found = replace(choose(failed, again, found), nfe=found.nfe + failed * again.nfe)
        return found

    def _run(
        self, measurement: Measurement, noise: NoiseSource, factor: float, callback: Callback | None
    ) -> Restoration:
        """One reverse diffusion of all variables, with `factor` times the step of guidance; ends where all is lost."""
        y = lift(measurement.y, self.image.prior)
        n = self.num_particles
        variables = {IMAGE: self.image, **self.parameters}
        shapes = self._shapes(measurement)
        folded = fold(replace(measurement, y=y), n)
        schedule = self.process.schedule()
        steps = schedule.steps()

        # BlindDPS, Alg. 1, line 1: x_N, k_N ~ N(0, I).
        x_t = {name: _draw(noise, f"{name}/init", shapes[name], y) for name in variables}
        if self.process.start < 1:
            x_t = self._cut_start(x_t, self.image.coordinates.encode(_filled(folded)), schedule)
        for number, step in enumerate(steps, 1):
            # Lines 3-6: scores and x0-hat, of each variable by its own network.
            denoised = {
                name: variable.denoise(x_t[name], step, clip=self.process.clip == "denoised")
                for name, variable in variables.items()
            }
            x0 = {name: found[0] for name, found in denoised.items()}
            # Lines 7, 11, 12: the residual couples all x0-hats.
            pull = self._pull(folded, variables, x0, step)
            shifts = {name: self.guidance.x0_shift(denoised[name][2](pull.gradients[name]), step) for name in variables}
            shifts = self.guidance.measured(shifts, pull, {name: factor * v.step for name, v in variables.items()})
            for name, variable in variables.items():
                z = _draw(noise, f"{name}/step", shapes[name], y)
                # Lines 8-11 and 13: ancestral sampling, and the step along the gradient.
                fraction = denoised[name][1]
                x_t[name] = variable.advance(self.process, x_t[name], x0[name], shifts[name], step, z, fraction)
            if callback:
                callback(self._info(pull.at.values, y, n, number, len(steps), step))
            if number % STEPS_BETWEEN_LOOKS == 0 and not bool(torch.isfinite(x_t[IMAGE]).any()):
                break

        values = {name: variables[name].coordinates.decode(value) for name, value in x_t.items()}
        found = close(measurement, values, n, number, self.kernel_crop)
        return replace(found, step_factor=torch.full((len(y),), factor, device=y.device))

    def _cut_start(self, x_T: Mapping[str, Tensor], y: Tensor, schedule: Schedule) -> dict[str, Tensor]:
        """Where a cut chain starts; what has no prior still starts from noise."""
        first = linear_schedule().steps()[0]
        found = {**x_T, IMAGE: noisy(y, x_T[IMAGE], schedule)}
        for name, variable in self.parameters.items():
            if variable.prior is not None:
                # Of pure noise, a denoiser makes the mean of its prior.
                mean = variable.denoise(x_T[name], first, clip=True)[0]
                found[name] = noisy(mean, x_T[name], schedule)
        return found

    def _pull(self, data: Measurement, variables: Mapping[str, Variable], x0: dict[str, Tensor], step: Step) -> Pull:
        """What y asks of the x0-hats at a step."""
        leaves = {name: value.detach().requires_grad_() for name, value in x0.items()}
        with torch.enable_grad():
            # Line 7: the projection onto {k >= 0, sum k = 1} belongs to the kernel's space.
            values, predicted = _predict(data.operator, variables, leaves)
        residual = data.y - predicted.detach()
        if data.mask is not None:
            residual = data.mask * residual
        fixed = {name: value.detach() for name, value in values.items()}
        units = {name: variables[name].coordinates.unit(x0[name]) for name in variables}
        at = Estimates(data.operator, fixed, units, step, data.mask)
        variance = data.noise.variance(data.y)
        weighed = self.guidance.weigh(residual, variance, at)
        with torch.enable_grad():
            objective = (weighed * predicted).sum()
            for name, variable in variables.items():
                if variable.penalty is not None:  # Eq. 20
                    objective = objective - variable.penalty(leaves[name]).sum()
            gradients = torch.autograd.grad(objective, list(leaves.values()))

        def explained(shifts: Mapping[str, Tensor]) -> Tensor:
            with warnings.catch_warnings(), forward_ad.dual_level():
                # Torch's own, when the first dual number is made.
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                moved = {name: forward_ad.make_dual(x0[name], shift) for name, shift in shifts.items()}
                return forward_ad.unpack_dual(_predict(data.operator, variables, {**x0, **moved})[1]).tangent

        return Pull(at, residual, variance, weighed, dict(zip(leaves, gradients, strict=True)), explained)

    def _shapes(self, measurement: Measurement) -> dict[str, tuple[int, ...]]:
        """`(B, n, C, H, W)` of each variable."""
        y = measurement.y
        frame: Size = (y.shape[-2], y.shape[-1])
        sizes = {name: variable.shape(frame)[1:] for name, variable in self.parameters.items()}
        if "kernel" in sizes:
            self._check_kernel(sizes["kernel"], y)
        canvas = measurement.operator.image_shape(frame, **support(sizes))
        shapes = {IMAGE: (self.image.prior.channels, *canvas)}
        shapes |= {name: variable.shape(canvas) for name, variable in self.parameters.items()}
        return {name: (len(y), self.num_particles, *shape) for name, shape in shapes.items()}

    def _check_kernel(self, size: Size, y: Tensor) -> None:
        check_kernel_fits(size, y)
        if self.kernel_crop is not None and self.kernel_crop > min(size):
            raise InputError(
                f"Expected kernel_crop from 1 to the {min(size)} px of the kernel, got {self.kernel_crop}; "
                "set method.kernel_crop=null to keep all of it."
            )

    def _info(self, values: Mapping[str, Tensor], y: Tensor, n: int, number: int, total: int, step: Step) -> StepInfo:
        image = values[IMAGE].unflatten(0, (len(y), n)).clamp(0, 1)
        # What is shown of the parameters is those of the first particle.
        params = {name: values[name].unflatten(0, (len(y), n))[:, 0] for name in self.parameters}
        return StepInfo(number, total, step.alpha_bar, image, params)


def _predict(
    operator: Operator, variables: Mapping[str, Variable], x0: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The values that coordinates stand for, and the measurement of them."""
    values = {name: variables[name].coordinates.decode(each) for name, each in x0.items()}
    return values, operator(values[IMAGE], **{name: value for name, value in values.items() if name != IMAGE})


def _filled(data: Measurement) -> Tensor:
    """y, with the mean of the others in the place of pixels that do not count."""
    if data.mask is None:
        return data.y
    mean = (data.mask * data.y).sum((-2, -1), keepdim=True) / data.mask.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(data.mask > 0, data.y, mean)


def _draw(noise: NoiseSource, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return noise.normal(name, shape, like).flatten(0, 1)


def _check_kind(name: str, variable: Variable) -> None:
    """Refuse a prior of something else: its coordinates would be taken for what they are not."""
    spaces = [variable.coordinates] if variable.prior is None else [variable.coordinates, variable.prior.space]
    for kind, space in KINDS.items():
        if name in KINDS and name != kind and any(isinstance(each, space) for each in spaces):
            raise InputError(f"Expected a prior of {name}s for the {name}, got one of {kind}s; set prior.{name}.name=.")
    if variable.dark is not None and not isinstance(variable.coordinates, KernelSpace):
        raise InputError(f"Expected dark for a kernel alone, got it for the {name}; leave it out.")
