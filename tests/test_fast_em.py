"""The M-step, the guidance and the whole loop of Fast EM against recorded numbers of the released program."""

from dataclasses import replace

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from codiffuse.cli import config_dir
from codiffuse.estimation.centering import centre_of_mass, recentre_integer, recentre_spline
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import L1, L2, NoRegularizer, PnP
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.base import Measurement
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.steps import ReverseProcess, delta_kernel
from codiffuse.networks.dncnn import DnCNN
from codiffuse.networks.unet import UNet
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors.parameterizations import EpsPrediction
from codiffuse.priors.prior import Prior, published_time
from codiffuse.randomness import RecordedNoise
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace

RELEASED_M_STEP = {"anchor_per_particle": False, "pooling": "mean", "project_first": True}


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).float()


def weights(recorded) -> dict[str, torch.Tensor]:
    return {key[2:]: tensor(value) for key, value in recorded.items() if key.startswith("w/")}


def preset(name: str, prior: Prior, regularizer) -> FastEM:
    """A shipped preset, around other networks."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose(
            "infer", [f"method={name}", "input=x", "run_id=x", "regularizer@method.m_step.regularizer=none"]
        )
    method = OmegaConf.to_container(config, resolve=False)["method"]
    built = {part: hydra.utils.instantiate(method[part]) for part in ("guidance", "process", "m_step")}
    built["m_step"] = replace(built["m_step"], regularizer=regularizer)
    return FastEM(prior, num_particles=1, kernel_size=33, **built)


def test_the_paper_preset_is_the_paper():
    method = preset("fast_em_paper", None, NoRegularizer())
    assert method.process == ReverseProcess(num_steps=100)
    assert method.guidance == PiGDM(r2_rule="one_minus_alpha_bar", zeta="sqrt_alpha_bar")
    assert method.m_step == HQS(NoRegularizer(), 10, 1e5, 1.0, second_moment=1.0, recentring="none")


@pytest.fixture
def kernel_denoiser(fixture_npz) -> DnCNN:
    network = DnCNN()
    network.load_state_dict(weights(fixture_npz("small_nets/fdncnn_full.npz")))
    return network.requires_grad_(False)


@pytest.fixture
def small_prior(fixture_npz) -> Prior:
    network = UNet(3, 6, channels=32, channel_mult=(1, 1), attention_levels=(1,), head_channels=16)
    network.load_state_dict(weights(fixture_npz("small_nets/unet_img_small.npz")))
    return Prior(network, EpsPrediction(), published_time(), ImageSpace(), learned_variance=True).frozen()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    ("name", "weight", "iterations"),
    [("identity", 1, 1), ("identity", 1, 2), ("identity", 1, 10), ("l1", 100, 10), ("l2", 1000, 10), ("fdncnn", 1, 10)],
)
def test_m_step_matches_the_released_one(fixture_npz, kernel_denoiser, n, name, weight, iterations):
    recorded = fixture_npz("numeric/mstep_hqs.npz")
    regularizers = {"identity": NoRegularizer(), "l1": L1(), "l2": L2(), "fdncnn": PnP(kernel_denoiser)}
    y = tensor(recorded["y"])
    equations = BlurOperator().normal_equations(y, tensor(recorded["x"])[None, :n], kernel_size=(9, 9))
    m_step = HQS(
        regularizers[name],
        iterations=iterations,
        beta=float(recorded["beta"]),
        weight=weight,
        recentring="none",
        **RELEASED_M_STEP,
    )
    kernel = m_step(equations, tensor([recorded["sigma"]]), delta_kernel(y, (9, 9)))
    torch.testing.assert_close(kernel, tensor(recorded[f"n{n}/{name}/iters{iterations}"]), atol=1e-6, rtol=0)


def test_m_step_with_a_large_support(fixture_npz):
    recorded = fixture_npz("numeric/mstep_hqs.npz")
    y = tensor(recorded["y"])
    equations = BlurOperator().normal_equations(y, tensor(recorded["x"])[None, :1], kernel_size=(33, 33))
    m_step = HQS(NoRegularizer(), beta=float(recorded["beta"]), recentring="none", **RELEASED_M_STEP)
    kernel = m_step(equations, tensor([recorded["sigma"]]), delta_kernel(y, (33, 33)))
    torch.testing.assert_close(kernel, tensor(recorded["ks33/n1/identity/iters10"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", ["", "8"])
def test_spline_recentring_matches_the_released_one(fixture_npz, suffix):
    recorded = fixture_npz("numeric/mstep_hqs.npz")
    shifted = recentre_spline(tensor(recorded[f"kernel_shift/in{suffix}"])[None, None])
    torch.testing.assert_close(shifted[0, 0], tensor(recorded[f"kernel_shift/out{suffix}"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("t", [99, 50, 10, 1])
def test_guidance_matches_the_released_one(fixture_npz, t):
    recorded = fixture_npz("numeric/pigdm_guidance.npz")
    step = linear_schedule().respaced(100).steps()[::-1][t]
    guidance = PiGDM(r2_rule="beta_tilde", zeta="released")
    assert guidance.r2(step) ** 0.5 == pytest.approx(float(recorded[f"t{t}/r"]), rel=1e-9)

    mixing, x_t = tensor(recorded["M"]), tensor(recorded["x_t"]).requires_grad_()
    x0 = torch.einsum("ij,njhw->nihw", mixing, x_t).clamp(-1, 1)
    image = ((x0 + 1) / 2).clamp(0, 1)[None]
    y, kernel, sigma = tensor(recorded["y"]), tensor(recorded["k"]), tensor([recorded["sigma"]])
    cotangent = guidance.cotangent(BlurOperator(), y[None], image.detach(), sigma, step, kernel=kernel)
    (gradient,) = torch.autograd.grad(image, x_t, cotangent)
    expected = tensor(recorded[f"t{t}/grad"])
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()
    moved = guidance.x0_shift(gradient, step) * step.x0_weight
    assert (moved - float(recorded[f"t{t}/coef"]) * expected).norm() <= 1e-4 * moved.norm()


@pytest.mark.parametrize("name", ["identity", "fdncnn"])
def test_released_loop_end_to_end(fixture_npz, small_prior, kernel_denoiser, name):
    recorded = fixture_npz("e2e/fastem_pigdm_10steps.npz")
    regularizer = PnP(kernel_denoiser) if name == "fdncnn" else NoRegularizer()
    method = preset("fast_em_official", small_prior, regularizer)
    assert method.process == ReverseProcess(num_steps=100)
    method = replace(method, process=ReverseProcess(num_steps=10), num_particles=2)
    noise = RecordedNoise({"init": [tensor(recorded["x_T"])], "step": list(tensor(recorded["noise"]))})
    measurement = Measurement(tensor(recorded["y"]), GaussianNoise(float(recorded["sigma"])), BlurOperator())
    found = method(measurement, noise=noise)
    torch.testing.assert_close(found.samples[0], tensor(recorded[f"x_out_{name}"]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.params["kernel"], tensor(recorded[f"k_out_{name}"]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [9, 12])
def test_integer_recentring_moves_the_mass_to_the_centre(size):
    kernel = torch.zeros(3, 1, size, size)
    kernel[0, 0, 1, 2] = 1.0
    kernel[1, 0, 2:5, 5] = 1 / 3
    kernel[2, 0, size - 2, size - 3 : size - 1] = 0.5
    centred = recentre_integer(kernel)
    assert (centre_of_mass(centred) - size // 2).abs().max() <= 0.5
    torch.testing.assert_close(centred.sum((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(centred.flatten(1).sort().values, kernel.flatten(1).sort().values)


def test_anchor_grows_with_the_particles_only_when_asked(fixture_npz):
    recorded = fixture_npz("numeric/mstep_hqs.npz")
    y, x = tensor(recorded["y"]), tensor(recorded["x"])[:1]
    sigma, delta = tensor([recorded["sigma"]]), delta_kernel(y, (9, 9))

    def kernel(copies: int, per_particle: bool) -> torch.Tensor:
        equations = BlurOperator().normal_equations(y, x.repeat(copies, 1, 1, 1)[None], kernel_size=(9, 9))
        return HQS(NoRegularizer(), iterations=1, anchor_per_particle=per_particle, recentring="none")(
            equations, sigma, delta
        )

    # Four copies of one particle say nothing new: with the factor n of Eq. 24 the kernel stays the same.
    torch.testing.assert_close(kernel(4, True), kernel(1, True), atol=1e-6, rtol=0)
    assert (kernel(4, False) - kernel(1, False)).abs().max() > 1e-4
