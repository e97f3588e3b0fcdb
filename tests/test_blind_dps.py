"""BlindDPS: the released gradients, one loop for any variables, and what happens when a run diverges."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from toys import blurred_toy, gaussian_kernel_prior, gaussian_prior

from benchmarks.blind_toy import Filter
from codiffuse.errors import InputError
from codiffuse.estimation.consensus import match_central
from codiffuse.fourier import convolve
from codiffuse.guidance.coupled import Estimates, Pull
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.methods.base import Measurement
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import L0Penalty, L1Penalty, Variable
from codiffuse.metrics.kernel import mnc
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.linear_light import LinearLightBlur
from codiffuse.operators.noise import GaussianNoise
from codiffuse.operators.warp import warp
from codiffuse.priors.parameterizations import X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.randomness import GeneratorNoise
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace

ONES = {"image": 1.0, "kernel": 1.0}
JOINT = JointPiGDM({"image": 0.25, "kernel": 0.05}, lengths="joint")
PUBLISHED_KERNEL = KernelSpace(rotated=True)  # the released program blurs by cross-correlation
RELEASED_BLUR = BlurOperator("zero", pad_value=0.5)  # of pictures in [-1, 1], padded with 0


def blind(guidance=JOINT, kernel=None, **options) -> BlindDPS:
    kernel = kernel or Variable(gaussian_kernel_prior(), size=7)
    process = options.pop("process", None) or ReverseProcess(num_steps=options.pop("steps", 20))
    return BlindDPS(Variable(gaussian_prior(0.25)), {"kernel": kernel}, guidance, process, **options)


def run(method, measurement, seeds=(0,), **options):
    return method(measurement, noise=GeneratorNoise(list(seeds)), **options)


class Mixing(nn.Module):
    """A linear map of the channels that stands for a network."""

    def __init__(self, matrix) -> None:
        super().__init__()
        self.matrix, self.in_channels = nn.Parameter(matrix), len(matrix)

    def forward(self, x, time):
        return torch.einsum("ij,bjhw->bihw", self.matrix, x)


def test_the_released_gradients(fixture_npz):
    """Alg. 1, lines 7 and 11 to 13, with a network M x_t for the image and 0.7 k_t for the kernel."""
    recorded = {
        name: torch.from_numpy(value).float() for name, value in fixture_npz("numeric/blinddps_guidance.npz").items()
    }

    def prior(matrix, space):
        return Prior(Mixing(matrix), X0Prediction(), LogSigmaTime(), space).frozen()

    variables = {
        "image": Variable(prior(recorded["M"], ImageSpace())),
        "kernel": Variable(prior(torch.tensor([[0.7]]), PUBLISHED_KERNEL), size=8),
    }
    method = BlindDPS(variables["image"], {"kernel": variables["kernel"]}, DPS("norm"))
    step = linear_schedule().steps()[500]
    x_t = {"image": recorded["x_t"], "kernel": recorded["k_t"]}
    denoised = {name: variables[name].denoise(value, step, clip=True) for name, value in x_t.items()}
    torch.testing.assert_close(denoised["image"][0], recorded["x0_hat"], atol=1e-6, rtol=0)
    measurement = Measurement((recorded["y"] + 1) / 2, GaussianNoise(0.01), RELEASED_BLUR)
    x0 = {name: found[0] for name, found in denoised.items()}
    pull = method._pull(measurement, variables, x0, step)
    gradients, values = pull.gradients, pull.at.values
    for name, expected in (("image", recorded["grad_x"]), ("kernel", recorded["grad_k"])):
        torch.testing.assert_close(-denoised[name][2](gradients[name]), expected, atol=1e-5, rtol=1e-4)
    residual = measurement.y - RELEASED_BLUR(values["image"], kernel=values["kernel"])
    assert 2 * float(residual.norm()) == pytest.approx(float(recorded["norm"]), rel=1e-5)


@pytest.mark.parametrize("penalty", [L1Penalty(0.5), L0Penalty(0.5)])
def test_sparsity_acts_before_the_kernel_is_normalised(penalty):
    x0 = {"image": torch.zeros(1, 3, 32, 32), "kernel": torch.linspace(-0.9, 0.9, 49).reshape(1, 1, 7, 7)}
    step, toy = linear_schedule().steps()[500], blurred_toy()
    plain, sparse = (blind(DPS(), Variable(gaussian_kernel_prior(), size=7, penalty=each)) for each in (None, penalty))
    without, with_ = (
        each._pull(toy, {"image": each.image, **each.parameters}, x0, step).gradients for each in (plain, sparse)
    )
    torch.testing.assert_close(without["image"], with_["image"])
    assert bool((with_["kernel"] < without["kernel"]).all())  # guidance goes along it, so every value falls


def test_a_cut_chain_starts_from_the_measurement_and_the_mean_kernel():
    """Its last step alone, with hardly any guidance: what comes out is what it started from."""
    toy, nudge = blurred_toy(2), DPS(scale=1e-6)
    found = run(blind(nudge, process=ReverseProcess(1, start=0.001)), toy, seeds=(0, 1))
    torch.testing.assert_close(found.image, toy.y, atol=0.05, rtol=0)
    flat = torch.full((2, 1, 7, 7), 1 / 49)
    torch.testing.assert_close(found.params["kernel"], flat, atol=0.005, rtol=0)
    uniform = Variable(space=KernelSpace(), size=7)  # which has no mean: it starts from noise
    found = run(blind(nudge, uniform, process=ReverseProcess(1, start=0.001)), toy, seeds=(0, 1))
    assert float(found.params["kernel"].std()) > 0.01


def line_prior() -> Prior:
    """A prior that knows the toy's kernel up to a few percent."""
    known = KernelSpace().encode(blurred_toy().known["kernel"])

    class Known(nn.Module):
        in_channels = 1

        def forward(self, x_t, time):
            return known + 0.05 * x_t

    return Prior(Known(), X0Prediction(), LogSigmaTime(), KernelSpace()).frozen()


@pytest.mark.parametrize("guidance", [JointPiGDM({"image": 0.25, "kernel": 1e-4}), DPS(scale=4.0)])
def test_with_a_prior_that_knows_the_kernel_it_restores(guidance):
    toy = blurred_toy()
    found = run(blind(guidance, Variable(line_prior(), size=7), steps=100), replace(toy, known={}))
    assert found.status == ("ok",)
    assert found.image.shape == toy.y.shape
    assert found.params["kernel"].shape == (1, 1, 7, 7)
    assert float(found.params["kernel"].sum()) == pytest.approx(1, rel=1e-4)
    assert float(mnc(found.params["kernel"], toy.known["kernel"])) > 0.95
    assert float(toy.misfit(found.canvas(), found.params).sqrt()) < 2 * float(toy.sigma)


def test_an_image_does_not_depend_on_its_neighbours():
    toy = blurred_toy(2)
    both = run(blind(num_particles=2), toy, seeds=(0, 1))
    alone = run(blind(num_particles=2), replace(blurred_toy(2), y=toy.y[1:], known={}), seeds=(1,))
    torch.testing.assert_close(both.samples[1:], alone.samples, atol=1e-4, rtol=0)
    torch.testing.assert_close(both.params["kernel"][1:], alone.params["kernel"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("boundary", ["circular", "unknown", "reflect"])
def test_samples_are_moved_to_where_their_kernels_match(boundary):
    toy = replace(blurred_toy(), operator=BlurOperator(boundary), known={})
    found = run(blind(num_particles=3), toy)
    kernels = found.raw["kernel_samples"][0]  # (3, 1, 7, 7)
    assert found.samples.shape == (1, 3, 3, 32, 32)
    _, rows, columns = match_central(kernels[:, 0])
    assert (rows.tolist(), columns.tolist()) == ([0] * 3, [0] * 3)  # nothing is left to gain by a shift
    torch.testing.assert_close(found.params["kernel"][0], kernels.mean(0))


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_a_small_kernel_is_cut_from_a_larger_one(boundary):
    toy = replace(blurred_toy(), operator=BlurOperator(boundary), known={})
    kernel = Variable(gaussian_kernel_prior(), size=9)
    whole, part = (run(blind(kernel=kernel, kernel_crop=each, num_particles=2), toy) for each in (None, 5))
    assert part.params["kernel"].shape == (1, 1, 5, 5)
    assert float(part.params["kernel"].sum()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(part.image, whole.image)


@dataclass(frozen=True)
class DimmedBlur:
    """A blur behind a filter of unknown density: an operator with a parameter of its own."""

    params: ClassVar = ("kernel", "gain")

    def __call__(self, image, *, kernel, gain):
        return gain * convolve(image, kernel, "circular")

    def image_shape(self, y_shape, *, kernel_size):
        return y_shape

    def crop_to_frame(self, image, *, kernel_size):
        return image


@dataclass(frozen=True)
class GainSpace:
    """0.5 about 1: a gain of -1 is 0.5, one of 1 is 1.5."""

    def encode(self, physical):
        return 2 * (physical - 1)

    def decode(self, coordinates):
        return 1 + coordinates / 2

    def unit(self, coordinates):
        return coordinates.new_full(coordinates.shape[:1], 0.5)


def test_a_further_parameter_needs_a_space_and_an_operator_only():
    toy = blurred_toy()
    dimmed = replace(toy, y=0.7 * toy.y, operator=DimmedBlur(), known={})
    gain = Variable(space=GainSpace(), size=1, step=0.001)
    kernel = Variable(line_prior(), size=7)
    method = replace(blind(DPS(scale=4.0), kernel, steps=100), parameters={"kernel": kernel, "gain": gain})
    assert method.supports(DimmedBlur()) is None
    assert "not kernel" in method.supports(BlurOperator())
    found = run(method, dimmed)
    assert found.params["gain"].item() == pytest.approx(0.7, abs=0.1)
    left = float((dimmed.operator(found.canvas(), **found.params) - dimmed.y).square().mean().sqrt())
    assert left < 0.05


@dataclass(frozen=True)
class Warp:
    """A tilt and nothing else: an operator without a kernel."""

    params: ClassVar = ("tilt",)

    def __call__(self, image, *, tilt):
        return warp(image, tilt, "circular")

    def image_shape(self, y_shape):
        return y_shape

    def crop_to_frame(self, image):
        return image


def test_an_operator_needs_no_kernel():
    toy = blurred_toy(2)
    tilt = Variable(space=TiltSpace(0.01), channels=2)
    method = BlindDPS(Variable(gaussian_prior(0.25)), {"tilt": tilt}, DPS(scale=4.0), ReverseProcess(100))
    assert method.supports(Warp()) is None
    found = run(method, replace(toy, operator=Warp(), known={}), seeds=(0, 1))
    assert found.status == ("ok", "ok")
    assert found.params["tilt"].shape == (2, 2, 32, 32)
    joint = replace(method, guidance=JointPiGDM({"image": 0.25, "tilt": 0.1}))
    assert "solve_joint_gram" in joint.supports(Warp())
    with pytest.raises(InputError, match="dark for a kernel alone"):
        replace(method, parameters={"tilt": replace(tilt, dark=0.1)})
    first = blind(replace(JOINT, lengths="parameters_first"))
    assert first.supports(BlurOperator()) is None
    assert "parameter_gram" in first.supports(Filter())
    assert blind().supports(BlurOperator()) is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boundary", ["circular", "unknown", "reflect"])
def test_it_restores_what_was_blurred_in_light(boundary, masked):
    toy = blurred_toy()
    operator = LinearLightBlur(boundary)
    y = toy.y.clamp(0.02, 0.98)  # blurred in encoded values: close to the same, as the scene is smooth
    mask = torch.ones(1, 1, 32, 32) if masked else None
    method = blind(JointPiGDM({"image": 0.25, "kernel": 1e-4}), Variable(line_prior(), size=7))
    found = run(method, replace(toy, y=y, operator=operator, mask=mask, known={}))
    assert found.status == ("ok",)
    assert method.supports(operator) is None


class Sum:
    """y = image + kernel, pixel by pixel, whose errors are independent and white."""

    def solve_joint_gram(self, residual, r2, sigma2, *, image, kernel, mask):
        return residual / (r2["image"] + r2["kernel"] + sigma2).reshape(-1, 1, 1, 1)

    def parameter_gram(self, v, r2, *, image, kernel, mask):
        return r2["kernel"].reshape(-1, 1, 1, 1) * v


def pull_of_sum(guidance, really, noise):
    """A residual, and shifts C J^T w of networks whose errors are `really` times what the guidance takes them for."""
    residual = torch.tensor([1.0, -2.0, 3.0, 1.0]).reshape(1, 1, 2, 2)
    values, ones = {"image": residual, "kernel": residual}, {name: torch.ones(1) for name in ("image", "kernel")}
    at = Estimates(Sum(), values, ones, linear_schedule().steps()[500])
    variance = torch.full_like(residual, noise)
    weighed = guidance.weigh(residual, variance, at)
    r2 = {name: float(guidance.covariance(name, at.step, ones[name])) for name in values}
    shifts = {name: really[name] * r2[name] * weighed for name in values}
    return shifts, Pull(at, residual, variance, weighed, {}, lambda some: sum(some.values())), r2


def test_a_measured_step_goes_as_far_as_the_networks_do():
    """In a linear problem whose errors are twice what S takes them for, one step is about half as long."""
    guidance, noise = replace(JOINT, zeta="one"), 0.01
    for times, factor in ((1, lambda v: 1.0), (2, lambda v: (v + noise) / (2 * v + noise)), (-1, lambda v: 0.0)):
        shifts, pull, r2 = pull_of_sum(guidance, {"image": times, "kernel": times}, noise)
        for name, found in guidance.measured(shifts, pull, ONES).items():
            torch.testing.assert_close(found, factor(sum(r2.values())) * shifts[name])


def test_the_image_explains_what_the_operators_parameters_leave():
    """In this problem both lengths together give the mean of the posterior, however wrong S is about the kernel."""
    guidance, noise = replace(JOINT, lengths="parameters_first", zeta="one"), 0.01
    for times in (0.1, 1, 30):
        shifts, pull, r2 = pull_of_sum(guidance, {"image": 1, "kernel": times}, noise)
        found = guidance.measured(shifts, pull, ONES)
        really = {"image": r2["image"], "kernel": times * r2["kernel"]}
        for name, variance in really.items():
            torch.testing.assert_close(found[name], variance / (sum(really.values()) + noise) * pull.residual)
    shifts, pull, _ = pull_of_sum(guidance, {"image": 1, "kernel": -30}, noise)
    # What goes the wrong way is not taken.
    assert float(guidance.measured(shifts, pull, ONES)["kernel"].abs().max()) == 0


def test_the_image_explains_what_a_shorter_step_of_the_kernel_leaves():
    """zeta and the steps scale what was measured, and the image's length knows how far the kernel really goes."""
    guidance, noise = replace(JOINT, lengths="parameters_first", zeta="sqrt_alpha_bar"), 0.01
    shifts, pull, r2 = pull_of_sum(guidance, {"image": 1, "kernel": 1}, noise)
    zeta = math.sqrt(pull.at.step.alpha_bar)
    found = guidance.measured(shifts, pull, {"image": 1.0, "kernel": 0.25})
    kernel = zeta * 0.25 * r2["kernel"] / (sum(r2.values()) + noise)
    image = zeta * r2["image"] / (r2["image"] + noise) * (1 - kernel)
    torch.testing.assert_close(found["kernel"], kernel * pull.residual)
    torch.testing.assert_close(found["image"], image * pull.residual)


def test_pixels_that_do_not_count_change_nothing_where_a_chain_is_cut():
    toy = blurred_toy()
    mask = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    method = blind(process=ReverseProcess(5, start=0.5))
    good, bad = (run(method, replace(toy, y=y, mask=mask)) for y in (toy.y, torch.where(mask > 0, toy.y, 1 - toy.y)))
    torch.testing.assert_close(good.image, bad.image)


def test_a_step_that_explains_too_much_is_shortened():
    """The denoiser's derivative is a hundred times what the guidance takes for the spread of the kernel."""
    toy, process = blurred_toy(), ReverseProcess(1, start=0.5)
    small = JointPiGDM({"image": 0.25, "kernel": 5e-4}, zeta="one")
    plain, *measured = (
        run(blind(replace(small, lengths=each), process=process), toy).params["kernel"]
        for each in ("assumed", "joint", "parameters_first")
    )
    for each in measured:
        assert (each - 1 / 49).abs().max() < (plain - 1 / 49).abs().max()


@pytest.mark.parametrize("guidance", [DPS("norm"), DPS("likelihood"), JOINT])
def test_masked_pixels_pull_nothing(guidance):
    toy, method = blurred_toy(), blind(guidance)
    mask = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x0 = {"image": image, "kernel": KernelSpace().encode(toy.known["kernel"])}
    spoiled = torch.where(mask > 0, toy.y, 1 - toy.y)
    good, bad = (
        method._pull(
            replace(toy, y=y, mask=mask), {"image": method.image, **method.parameters}, x0, linear_schedule().steps()[9]
        ).gradients
        for y in (toy.y, spoiled)
    )
    for name, gradient in good.items():
        torch.testing.assert_close(gradient, bad[name])
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("clip", "inside"), [("denoised", True), ("none", False)])
def test_the_clip_is_a_choice(clip, inside):
    """One step from pure noise ends at x0-hat, here 3 x_t."""
    threefold = Prior(Mixing(3 * torch.eye(3)), X0Prediction(), LogSigmaTime(), ImageSpace()).frozen()
    method = replace(blind(DPS(scale=1e-9), process=ReverseProcess(1, clip=clip)), image=Variable(threefold))
    x = run(method, blurred_toy()).raw["x"]
    assert bool(((x > -1e-3) & (x < 1 + 1e-3)).all()) == inside


def test_the_uniform_prior_descends():
    toy = replace(blurred_toy(), known={})
    uniform, known = Variable(space=KernelSpace(), size=7), blurred_toy().known["kernel"]
    still, found = (
        run(blind(DPS(scale=4.0), replace(uniform, step=step), steps=100), toy, seeds=(1,)) for step in (1e-6, 1.0)
    )
    assert found.params["kernel"].shape == (1, 1, 7, 7)
    assert bool((found.params["kernel"] >= 0).all())
    assert float(mnc(found.params["kernel"], known) - mnc(still.params["kernel"], known)) > 0.15
    before, after = (float(toy.misfit(each.canvas(), each.params)) for each in (still, found))
    assert after < 0.5 * before


def test_another_kernel_size_keeps_what_of_the_crop_fits():
    method = blind(kernel_crop=5)
    assert method.with_kernel_size(9).kernel_crop == 5
    assert method.with_kernel_size(3).kernel_crop == 3
    assert blind().with_kernel_size(3).kernel_crop is None
    assert method.with_kernel_size(3).parameters["kernel"].size == 3
