"""The presets of BlindDPS: the released program's recorded run, the values that they state, what may be set in them."""

from dataclasses import fields, replace

import hydra
import numpy as np
import pytest
import torch
import yaml
from programs import says

from codiffuse import cli
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM, PowerLaw
from codiffuse.methods.base import Measurement
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import L1Penalty
from codiffuse.networks.unet import UNet
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors.parameterizations import EpsPrediction
from codiffuse.priors.prior import Prior, published_time
from codiffuse.randomness import RecordedNoise
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace

PUBLISHED_KERNEL = KernelSpace(rotated=True)  # the released program blurs by cross-correlation
RELEASED_BLUR = BlurOperator("zero", pad_value=0.5)  # of pictures in [-1, 1], padded with 0


def preset(name, *overrides) -> BlindDPS:
    given = {"method": name, "input": "sample", "kernel_size": 9, "pipeline": None, "device": "cpu"}
    settings, _ = cli.compose_infer(given, overrides)
    return hydra.utils.instantiate(settings["method"])


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).float()


def small_prior(recorded, channels, space) -> Prior:
    network = UNet(channels, 2 * channels, channels=32, channel_mult=(1, 1), attention_levels=(1,), head_channels=16)
    network.load_state_dict({key[2:]: tensor(value) for key, value in recorded.items() if key.startswith("w/")})
    return Prior(network, EpsPrediction(), published_time(), space, learned_variance=True).frozen()


def test_the_released_loop(fixture_npz, use_tiny_zoo):
    """The preset as it is, but for its priors and the number of its steps."""
    recorded = fixture_npz("e2e/blinddps_10steps.npz")
    image = small_prior(fixture_npz("small_nets/unet_img_small.npz"), 3, ImageSpace())
    kernel = small_prior(fixture_npz("small_nets/unet_kernel_small.npz"), 1, PUBLISHED_KERNEL)
    chosen = preset("blind_dps_official", "kernel_size=16")
    method = replace(
        chosen,
        image=replace(chosen.image, prior=image),
        parameters={"kernel": replace(chosen.parameters["kernel"], prior=kernel)},
        process=replace(chosen.process, num_steps=10),
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


@pytest.mark.parametrize(
    ("name", "guidance", "projected_mean", "penalty"),
    [
        ("blind_dps_official", DPS("norm", 1.0), False, None),
        ("blind_dps_paper", DPS("constant", 0.3), True, L1Penalty(1.0)),
    ],
)
def test_what_is_published_stays(use_tiny_zoo, name, guidance, projected_mean, penalty):
    found = preset(name)
    assert found.guidance == guidance
    assert found.process == ReverseProcess(1000, 1.0, 1.0, 1.0, "learned", "denoised")
    assert (found.num_particles, found.kernel_crop, found.max_retries) == (1, None, 0)
    kernel = found.parameters["kernel"]
    assert (kernel.step, kernel.projected_mean, kernel.penalty) == (1.0, projected_mean, penalty)
    assert (found.image.step, found.image.projected_mean, found.image.penalty) == (1.0, False, None)


@pytest.mark.parametrize("name", ["blind_dps_official", "blind_dps_paper"])
def test_published_presets_state_every_value(name):
    """They take nothing over from our own preset, which is tuned."""
    stated = yaml.safe_load((cli.config_dir() / f"method/{name}.yaml").read_text())
    assert [next(iter(each)) for each in stated["defaults"][:-1]] == ["/guidance@guidance", "/unknowns@parameters"]
    assert {each.name for each in fields(BlindDPS)} <= stated.keys()
    assert {each.name for each in fields(ReverseProcess)} <= stated["process"].keys()
    assert {each.name for each in fields(DPS)} <= stated["guidance"].keys()
    assert {"step", "projected_mean", "penalty", "dark"} <= stated["parameters"]["kernel"].keys()


def test_our_own_preset(use_tiny_zoo):
    found = preset("blind_dps", "method.max_retries=1", "method.process.clip=none")
    assert (found.max_retries, found.process.clip, found.process.variance) == (1, "none", "small")
    assert (found.process.start, found.process.num_steps) == (0.6, 50)
    variances = {"image": PowerLaw(), "kernel": 1.0, "tilt": 0.05}
    assert found.guidance == JointPiGDM(variances, "one", {"tilt": 2.5}, "joint")


@pytest.mark.parametrize("name", ["bench/bsd100_gaussian", "bench/bsd100_turbulence", "blinddps/gaussian"])
def test_gaussian_kernels_go_first(name, use_tiny_zoo):
    assert preset("blind_dps", f"experiment={name}").guidance.lengths == "parameters_first"


def test_the_projection_may_be_chosen(use_tiny_zoo):
    space = "{_target_: codiffuse.spaces.KernelSpace, projection: euclidean}"
    found = preset("blind_dps", f"method.parameters.kernel.space={space}")
    assert found.parameters["kernel"].coordinates == KernelSpace(projection="euclidean", dark=0.02)
    assert found.parameters["kernel"].prior is not None


def test_the_spread_of_a_tilt_is_that_of_the_scene_whatever_its_prior(use_tiny_zoo):
    """0.05 in units of 2.5 px, of which the published network knows nothing: its unit is one pixel."""
    guidance, step = preset("blind_dps", "operator=turbulence").guidance, linear_schedule().steps()[400]
    coordinates = torch.zeros(3, 2, 8, 8)
    for space in (TiltSpace(2.5), TiltSpace(1.0)):
        in_pixels = guidance.covariance("tilt", step, space.unit(coordinates))
        expected = 2.5**2 * step.gaussian_variance(0.05) if space.max_tilt_px == 2.5 else step.gaussian_variance(0.3125)
        torch.testing.assert_close(in_pixels, torch.full((3,), expected))


def test_a_uniform_prior_behind_turbulence(use_tiny_zoo):
    unknowns = "unknowns@method.parameters=uniform_for_turbulence"
    found = preset("blind_dps", "operator=turbulence", unknowns)
    assert found.parameters["kernel"].prior is None
    assert found.parameters["tilt"].prior is not None
    assert set(found.parameters) == {"kernel", "tilt"}


@pytest.fixture
def restored(infer, pictures):
    """Calls a quick run on one picture with further settings."""
    return lambda *settings: infer("input=pictures", "data=blurred", "limit=1", "sigma=5/255", *settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=blind_dps", "operator=linear_light", "boundary=unknown"],
        ["method=blind_dps", "operator=linear_light"],
        ["method=blind_dps_official", "operator=linear_light", "boundary=reflect"],
        ["method=blind_dps", "method.process.variance=learned", "method.max_retries=0"],
    ],
    ids=" ".join,
)
def test_what_may_be_asked_for(restored, settings):
    ended = restored(*settings)
    assert ended.err == ""
    [row] = ended.rows()
    assert row["status"] == "ok"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["prior.image.name=motion_kernel", "data.gray=true"], ["prior of images for the image", "prior.image.name="]),
        (["prior.kernel.name=natural_image"], ["prior of kernels for the kernel", "prior.kernel.name="]),
        (["prior.kernel.name=tilt"], ["prior of kernels for the kernel", "prior.kernel.name="]),
        (["method.guidance.data_variance.image=-1"], ["number > 0", "data_variance.image", "got -1"]),
        (["guidance@method.guidance=dps", "method.guidance.scale=-1"], ["scale > 0", "got -1"]),
        (["guidance@method.guidance=pigdm"], ["guidance of all unknowns", "got PiGDM"]),
        (["method.max_retries=2.5"], ["max_retries", "2.5"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_what_may_not(restored, settings, words):
    says(restored("method=blind_dps", *settings), "Expected", *words)
