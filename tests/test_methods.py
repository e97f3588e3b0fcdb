"""Laws of the samplers: a known posterior, seeds, particles, chunks, failures."""

from dataclasses import replace

import pytest
import torch
from toys import blurred_toy, gaussian_prior, tiny_prior

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.fourier import kernel_otf
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.base import Measurement
from codiffuse.methods.diffusion_em import DiffusionEM
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.ilvr import ILVR
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise, derive_seed

SHORT = ReverseProcess(num_steps=4)
M_STEP = HQS(NoRegularizer(), iterations=3)


def methods(prior):
    return {
        "fast_em": FastEM(prior, M_STEP, process=SHORT, kernel_size=7),
        "fast_em_dps": FastEM(prior, M_STEP, DPS(), SHORT, kernel_size=7),
        "pigdm": NonBlind(prior, process=SHORT),
        "dps": NonBlind(prior, DPS(), SHORT),
        "dps_likelihood": NonBlind(prior, DPS("likelihood", 0.01), SHORT),
        "ilvr": ILVR(prior, 2, SHORT),
        "diffusion_em": DiffusionEM(NonBlind(prior, process=SHORT), M_STEP, num_iterations=2, kernel_size=7),
    }


@pytest.mark.parametrize("sigma", [0.04, 0.1])
def test_pigdm_samples_the_posterior_of_a_gaussian_prior(sigma):
    """Mean and variance at every frequency; theory: x | y is Gaussian and independent over frequencies."""
    side, n, variance = 16, 96, 0.04  # variance in [-1, 1]^2 units: pixels stay well inside [0, 1]
    s2 = variance / 4
    kernel = torch.zeros(1, 1, 5, 5)
    kernel[0, 0, 2, :4] = 0.25
    operator = BlurOperator()
    truth = 0.5 + s2**0.5 * torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    y = GaussianNoise(sigma)(operator(truth, kernel=kernel), torch.Generator().manual_seed(2))
    method = NonBlind(
        gaussian_prior(variance),
        PiGDM(r2_rule="vp", data_variance=variance, zeta="one"),
        ReverseProcess(num_steps=1000, clip="none"),
        num_particles=n,
    )
    drawn = method(Measurement(y, GaussianNoise(sigma), operator, {"kernel": kernel}), noise=GeneratorNoise([0]))

    K = kernel_otf(kernel, (side, side))[0, 0]
    precision = K.abs().square() / sigma**2 + 1 / s2
    expected_mean = torch.fft.rfft2(torch.full_like(y, 0.5)) + K.conj() / sigma**2 / precision * torch.fft.rfft2(
        y - operator(torch.full_like(y, 0.5), kernel=kernel)
    )
    spectrum = torch.fft.rfft2(drawn.raw["x"][0])  # (n, C, H, W // 2 + 1)
    pixels = side * side
    # The Monte-Carlo error of a mean over n particles is sqrt(variance / n) at each frequency.
    deviation = (spectrum.mean(0) - expected_mean[0]).abs() / (pixels / precision / n).sqrt()
    assert deviation.square().mean().sqrt() < 1.3
    measured = (spectrum - spectrum.mean(0)).abs().square().sum(0) / (n - 1) / pixels
    ratio = (measured * precision).mean(0)  # over channels
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    strong, weak = K.abs() > 0.8, K.abs() < 0.2
    assert ratio[strong].mean() == pytest.approx(1, abs=0.15)
    assert ratio[weak].mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", list(methods(None)))
def test_an_image_does_not_depend_on_its_batch_neighbours(name):
    method = methods(tiny_prior())[name]
    measurement = blurred_toy(3)
    seeds = [derive_seed(0, name) for name in ("a", "b", "c")]
    together = method(measurement, noise=GeneratorNoise(seeds))
    order = [2, 0]
    part = Measurement(
        measurement.y[order], measurement.noise, measurement.operator, {"kernel": measurement.known["kernel"][order]}
    )
    apart = method(part, noise=GeneratorNoise([seeds[i] for i in order]))
    torch.testing.assert_close(apart.image, together.image[order], atol=1e-3, rtol=0)
    torch.testing.assert_close(apart.params["kernel"], together.params["kernel"][order], atol=1e-3, rtol=0)
    assert (together.image[0] - together.image[2]).abs().max() > 1e-2


def test_another_seed_gives_another_sample():
    method, measurement = methods(tiny_prior())["fast_em"], blurred_toy()
    first, second = (method(measurement, noise=GeneratorNoise([seed])).image for seed in (0, 1))
    assert (first - second).abs().max() > 1e-3


def test_particles_share_one_kernel_and_their_mean_is_the_image():
    method = replace(methods(tiny_prior())["fast_em"], num_particles=4)
    found = method(blurred_toy(2), noise=GeneratorNoise([0, 1]))
    assert found.samples.shape == (2, 4, 3, 32, 32)
    assert found.params["kernel"].shape == (2, 1, 7, 7)
    torch.testing.assert_close(found.image, found.samples.mean(1))
    assert found.samples.std(1).max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_of_particles_change_nothing(chunk):
    method = replace(methods(tiny_prior())["fast_em"], num_particles=4)
    whole = method(blurred_toy(), noise=GeneratorNoise([0]))
    parts = replace(method, particle_chunk=chunk)(blurred_toy(), noise=GeneratorNoise([0]))
    torch.testing.assert_close(parts.samples, whole.samples, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["fast_em", "pigdm", "diffusion_em"])
@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown"])
def test_boundaries_and_gray(name, boundary):
    measurement = blurred_toy(channels=1)
    measurement = Measurement(measurement.y, measurement.noise, BlurOperator(boundary), measurement.known)
    found = methods(tiny_prior())[name](measurement, noise=GeneratorNoise([0]))
    assert found.image.shape == measurement.y.shape
    kernel = found.params["kernel"]
    assert kernel.shape == (1, 1, 7, 7)
    assert kernel.min() >= 0
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-4)


def test_callback_sees_every_step():
    seen = []
    methods(tiny_prior())["diffusion_em"](blurred_toy(), noise=GeneratorNoise([0]), callback=seen.append)
    assert [info.number for info in seen] == list(range(1, 9))
    assert {info.total for info in seen} == {8}
    assert seen[0].params["kernel"].shape == (1, 1, 7, 7)


def test_nan_marks_that_image_failed_and_no_other():
    prior = tiny_prior()
    broken = prior.network.forward

    def forward(x, time):
        out = broken(x, time)
        out[0] = float("nan")
        return out

    prior.network.forward = forward
    found = methods(prior)["fast_em"](blurred_toy(2), noise=GeneratorNoise([0, 1]))
    assert found.status[0].startswith("failed: NaN")
    assert not found.status[1].startswith("failed: NaN")


def test_a_held_kernel_stays_until_it_is_released():
    toy, seen = blurred_toy(), []
    method = FastEM(tiny_prior(), HQS(NoRegularizer(), 2), process=ReverseProcess(4), kernel_size=7, held_steps=2)
    start = toy.known["kernel"]
    method(toy, noise=GeneratorNoise([0]), init={"kernel": start}, callback=lambda i: seen.append(i.params["kernel"]))
    assert [torch.equal(kernel, start) for kernel in seen] == [True, True, False, False]


@pytest.mark.parametrize("held", [-1, 4])
def test_a_kernel_that_is_always_held_is_refused(held):
    with pytest.raises(InputError, match="held_steps"):
        FastEM(tiny_prior(), HQS(NoRegularizer(), 2), process=ReverseProcess(4), held_steps=held)


def test_kernel_can_be_handed_on():
    method = replace(methods(tiny_prior())["fast_em"], m_step=replace(M_STEP, iterations=1, beta=1e12))
    measurement = blurred_toy()
    start = measurement.known["kernel"]
    found = method(measurement, noise=GeneratorNoise([0]), init={"kernel": start})
    torch.testing.assert_close(found.params["kernel"], start, atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, -0.1])
def test_noise_level_must_be_positive(sigma):
    with pytest.raises(InputError, match="sigma"):
        Measurement(torch.zeros(1, 3, 32, 32), GaussianNoise(sigma), BlurOperator())


def test_measurement_must_be_finite():
    with pytest.raises(InputError, match="finite"):
        Measurement(torch.full((1, 3, 32, 32), float("nan")), GaussianNoise(0.1), BlurOperator())


def test_non_blind_needs_the_kernel():
    measurement = replace(blurred_toy(), known={})
    with pytest.raises(InputError, match="known kernel"):
        methods(tiny_prior())["pigdm"](measurement, noise=GeneratorNoise([0]))
