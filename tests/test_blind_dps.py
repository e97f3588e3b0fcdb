"""BlindDPS: the released program's numbers, one loop for any variables, and what happens when a run diverges."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from toys import blurred_toy, gaussian_kernel_prior, gaussian_prior

from codiffuse.errors import InputError
from codiffuse.fourier import convolve
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.methods.base import Measurement
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import L0Penalty, L1Penalty, Variable
from codiffuse.metrics.kernel import mnc
from codiffuse.networks.unet import UNet
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise, PoissonNoise
from codiffuse.priors.parameterizations import EpsPrediction, X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior, published_time
from codiffuse.randomness import GeneratorNoise, RecordedNoise
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace

JOINT = JointPiGDM({"image": 0.25, "kernel": 0.05})
PUBLISHED_KERNEL = KernelSpace(rotated=True)  # the released program blurs by cross-correlation
RELEASED_BLUR = BlurOperator("zero", pad_value=0.5)  # of pictures in [-1, 1], padded with 0


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).float()


def small_prior(recorded, channels, space) -> Prior:
    network = UNet(
        channels, 2 * channels, channels=32, channel_mult=(1, 1), attention_levels=ATTENTION[channels], head_channels=16
    )
    network.load_state_dict({key[2:]: tensor(value) for key, value in recorded.items() if key.startswith("w/")})
    return Prior(network, EpsPrediction(), published_time(), space, learned_variance=True).frozen()


ATTENTION = {3: (1,), 1: (1,)}  # levels, by the channels of the recorded networks


def blind(guidance=JOINT, kernel=None, **options) -> BlindDPS:
    kernel = kernel or Variable(gaussian_kernel_prior(), size=7)
    process = ReverseProcess(num_steps=options.pop("steps", 20))
    return BlindDPS(Variable(gaussian_prior(0.25)), {"kernel": kernel}, guidance, process, **options)


def run(method, measurement, seeds=(0,), **options):
    return method(measurement, noise=GeneratorNoise(list(seeds)), **options)


def test_the_released_loop(fixture_npz):
    recorded = fixture_npz("e2e/blinddps_10steps.npz")
    image = small_prior(fixture_npz("small_nets/unet_img_small.npz"), 3, ImageSpace())
    kernel = small_prior(fixture_npz("small_nets/unet_kernel_small.npz"), 1, PUBLISHED_KERNEL)
    method = BlindDPS(
        Variable(image),
        {"kernel": Variable(kernel, size=16)},
        DPS("norm"),
        ReverseProcess(10, variance="learned"),
        max_retries=0,  # the recorded run, of untrained networks, explains nothing
    )
    noise = RecordedNoise(
        {
            "image/init": tensor(recorded["x_T"])[None],
            "kernel/init": tensor(recorded["k_T"])[None],
            "image/step": tensor(recorded["noise_img"])[:, None],
            "kernel/step": tensor(recorded["noise_kernel"])[:, None],
        }
    )
    y = (tensor(recorded["y"]) + 1) / 2
    found = method(Measurement(y, GaussianNoise(0.01), RELEASED_BLUR), noise=noise)
    torch.testing.assert_close(2 * found.raw["x"][0] - 1, tensor(recorded["x_out"]), atol=1e-4, rtol=0)
    expected = PUBLISHED_KERNEL.decode(tensor(recorded["k_out"]))
    torch.testing.assert_close(found.params["kernel"], expected, atol=1e-6, rtol=0)


class Mixing(nn.Module):
    """A linear map of the channels that stands for a network."""

    def __init__(self, matrix) -> None:
        super().__init__()
        self.matrix, self.in_channels = nn.Parameter(matrix), len(matrix)

    def forward(self, x, time):
        return torch.einsum("ij,bjhw->bihw", self.matrix, x)


def test_the_released_gradients(fixture_npz):
    """Alg. 1, lines 7 and 11 to 13, with a network M x_t for the image and 0.7 k_t for the kernel."""
    recorded = {name: tensor(value) for name, value in fixture_npz("numeric/blinddps_guidance.npz").items()}

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
    gradients, values = method._gradients(measurement, variables, x0, step)
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
        each._gradients(toy, {"image": each.image, **each.parameters}, x0, step)[0] for each in (plain, sparse)
    )
    torch.testing.assert_close(without["image"], with_["image"])
    assert bool((with_["kernel"] < without["kernel"]).all())  # guidance goes along it, so every value falls


def test_l0_counts_what_exceeds_its_width():
    x0 = 2 * torch.tensor([0.0, 0.001, 0.9, 1.0]).reshape(1, 1, 2, 2) - 1
    assert float(L0Penalty(2.0, width=0.05)(x0)) == pytest.approx(2 * 2, rel=0.01)
    assert float(L1Penalty(2.0)(x0)) == pytest.approx(2 * 1.901, rel=1e-5)


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
    moved = [mnc(each[None], kernels[:1]) for each in kernels]
    centred = [float((each * kernels[0]).sum() / each.norm() / kernels[0].norm()) for each in kernels]
    assert found.samples.shape == (1, 3, 3, 32, 32)
    # Against one of them at least there is nothing left to gain by a shift; all were moved to match the same one.
    assert max(abs(float(best) - at_rest) for best, at_rest in zip(moved, centred, strict=True)) < 0.3
    torch.testing.assert_close(found.params["kernel"][0], kernels.mean(0))


def test_aligned_samples_explain_the_measurement_as_before():
    from codiffuse.methods.blind_dps import _aligned

    generator = torch.Generator().manual_seed(0)
    kernel = torch.zeros(1, 2, 1, 9, 9)
    kernel[0, 0, 0, 4, 3:6] = 1 / 3
    kernel[0, 1, 0, 6, 2:5] = 1 / 3  # the same, two down and one to the left
    x = torch.rand(1, 1, 3, 16, 16, generator=generator).expand(1, 2, 3, 16, 16)
    parts = _aligned({"image": x, "kernel": kernel})
    torch.testing.assert_close(parts["kernel"][0, 0], parts["kernel"][0, 1])
    for index in range(2):
        before = convolve(x[:, index], kernel[:, index], "circular")
        after = convolve(parts["image"][:, index], parts["kernel"][:, index], "circular")
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown", "valid"])
@pytest.mark.parametrize(("before", "size"), [(9, 5), (10, 5), (10, 6), (9, 6)])
def test_the_centre_of_a_kernel_blurs_as_the_whole(boundary, before, size):
    from codiffuse.methods.blind_dps import _cropped

    kernel, operator = torch.zeros(1, 2, 1, before, before), BlurOperator(boundary)
    middle = slice(before // 2 - 2, before // 2 + 3)
    kernel[..., middle, middle] = torch.rand(1, 2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    kernel = kernel / kernel.sum((-2, -1), keepdim=True)
    canvas = operator.image_shape((24, 20), kernel_size=(before, before))
    x = torch.rand(1, 2, 3, *canvas, generator=torch.Generator().manual_seed(1))
    toy = Measurement(torch.zeros(1, 3, 24, 20), GaussianNoise(0.1), operator)
    parts = _cropped({"image": x, "kernel": kernel}, toy, (size, size))
    assert parts["kernel"].shape == (1, 2, 1, size, size)
    for index in range(2):
        whole = operator(x[:, index], kernel=kernel[:, index])
        centre = operator(parts["image"][:, index], kernel=parts["kernel"][:, index])
        torch.testing.assert_close(whole, centre, atol=1e-6, rtol=0)


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_a_small_kernel_is_cut_from_a_larger_one(boundary):
    toy = replace(blurred_toy(), operator=BlurOperator(boundary), known={})
    kernel = Variable(gaussian_kernel_prior(), size=9)
    whole, part = (run(blind(kernel=kernel, kernel_crop=each, num_particles=2), toy) for each in (None, 5))
    assert part.params["kernel"].shape == (1, 1, 5, 5)
    assert float(part.params["kernel"].sum()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(part.image, whole.image)


def test_a_run_that_diverges_is_repeated_with_a_smaller_step():
    toy = replace(blurred_toy(), known={})
    wild = DPS(scale=100.0)
    failed, retried = run(blind(wild, max_retries=0), toy), run(blind(wild, max_retries=2), toy)
    assert failed.status[0].startswith("failed")
    assert float(failed.step_factor) == 1
    assert float(retried.step_factor) in (0.5, 0.25)
    assert run(blind(DPS(scale=1.0)), toy).step_factor.tolist() == [1.0]


def test_only_what_diverged_is_repeated():
    toy = replace(blurred_toy(2), known={})
    y = toy.y.clone()
    y[1] = 0.5 + 1e-4 * (y[1] - 0.5)  # flat: any error exceeds its signal
    method = blind(DPS(scale=200.0), max_retries=1)
    found = run(method, replace(toy, y=y), seeds=(0, 1))
    alone = run(replace(method, max_retries=0), replace(toy, y=y), seeds=(0, 1))
    assert alone.status[1].startswith("failed")
    repeated = [status != "ok" for status in alone.status]
    assert found.step_factor.tolist() == [0.5 if each else 1.0 for each in repeated]


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


def test_photon_noise_weighs_dark_pixels_more():
    residual = torch.ones(1, 1, 1, 2)
    variance = PoissonNoise(100.0).variance(torch.tensor([[[[0.1, 0.9]]]]))
    weighed = DPS().weigh(residual, variance)
    assert float(weighed[..., 0] / weighed[..., 1]) == pytest.approx(9)
    equal = DPS().weigh(residual, torch.full_like(variance, 0.01))
    torch.testing.assert_close(equal, torch.full_like(equal, 2 / 2**0.5))


def test_the_uniform_prior_descends_without_noise():
    toy = replace(blurred_toy(), known={})
    found = run(blind(DPS(), Variable(space=KernelSpace(), size=7)), toy)
    assert found.params["kernel"].shape == (1, 1, 7, 7)
    assert bool((found.params["kernel"] >= 0).all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Variable(), "Expected a prior or a space"),
        (lambda: Variable(space=KernelSpace(), step=0), "step > 0, got 0"),
        (lambda: blind(max_retries=-1), "max_retries >= 0"),
        (lambda: blind(num_particles=0), "num_particles >= 1"),
        (lambda: JointPiGDM({"image": 0.25}, zeta="two"), "zeta"),
        (lambda: run(blind(JointPiGDM({"image": 0.25})), blurred_toy()), "guidance.data_variance.kernel="),
        (lambda: DPS("sometimes"), "rule norm, constant or likelihood"),
        (lambda: run(blind(kernel=Variable(gaussian_kernel_prior(), size=33)), blurred_toy()), "kernel no larger"),
        (lambda: run(blind(kernel_crop=9), blurred_toy()), "kernel_crop from 1 to the 7 px"),
    ],
)
def test_what_cannot_work_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
