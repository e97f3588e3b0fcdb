"""Small stand-ins that the tests share: an exact prior, tiny networks, blurred toys."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.exact import GaussianDenoiser
from codiffuse.inference.writers import Outcome
from codiffuse.methods.base import Measurement, Restoration, StepInfo, restoration
from codiffuse.methods.steps import delta_kernel
from codiffuse.networks.unet import UNet
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors.parameterizations import EdmPrediction, X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.spaces import ImageSpace, KernelSpace

# A prior small enough to train in a test, as in a zoo `config.yaml`.
TINY_PRIOR_SPEC = {
    "kind": "prior",
    "network": {
        "name": "UNet",
        "channels": 8,
        "channel_mult": [1, 2],
        "attention_levels": [],
        "middle_attention": False,
        "norm_groups": 4,
    },
    "parameterization": {"name": "EdmPrediction"},
    "time": {"name": "LogSigmaTime"},
    "space": {"name": "ImageSpace"},
}
TINY_KERNEL_SPEC = TINY_PRIOR_SPEC | {
    "network": TINY_PRIOR_SPEC["network"] | {"in_channels": 1, "out_channels": 1},
    "space": {"name": "KernelSpace"},
}
TINY_TILT_SPEC = TINY_PRIOR_SPEC | {
    "network": TINY_PRIOR_SPEC["network"] | {"in_channels": 2, "out_channels": 2},
    "parameterization": {"name": "EdmPrediction", "sigma_data": 0.22},
    "space": {"name": "TiltSpace", "max_tilt_px": 2.5},
}


# Settings that make a run of the default method and pipeline short: eight starts, two refinements, the picture.
SHORT_RUN = [
    "method.coarse.first.process.num_steps=2",
    "method.coarse.refine.process.num_steps=1",
    "method.coarse.refine.held_steps=0",
    "method.fine.process.num_steps=1",
    "method.fine.held_steps=0",
    "pipeline.finish.non_blind.process.num_steps=3",
]
SHORT_RUN_STEPS = 8 * 2 + 1 + 1 + 3


def gaussian_prior(variance: float) -> Prior:
    """The exact prior of white Gaussian images around mid-gray; `variance` in [-1, 1] units."""
    return Prior(GaussianDenoiser(variance), X0Prediction(), LogSigmaTime(), ImageSpace()).frozen()


def gaussian_kernel_prior(variance: float = 0.05, mean: float = -0.5) -> Prior:
    """A prior of kernels whose pixels are independent, in [-1, 1] units; its exact denoiser."""
    network = GaussianDenoiser(variance, mean, channels=1)
    return Prior(network, X0Prediction(), LogSigmaTime(), KernelSpace()).frozen()


def tiny_prior(seed: int = 0) -> Prior:
    """An untrained network whose output is not zero: fast, for whatever does not need quality."""
    torch.manual_seed(seed)
    network = UNet(3, 3, channels=8, channel_mult=(1, 2), attention_levels=(), middle_attention=False, norm_groups=4)
    for parameter in network.out.parameters():
        nn.init.normal_(parameter, std=0.05)
    return Prior(network, EdmPrediction(), LogSigmaTime(), ImageSpace()).frozen()


def blurred_toy(count: int = 1, side: int = 32, channels: int = 3, sigma: float = 0.02, seed: int = 0) -> Measurement:
    """Smooth random pictures, blurred by a horizontal line of 5 px in a 7 px support."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, side // 4, side // 4, generator=generator)
    x = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    kernel = torch.zeros(count, 1, 7, 7)
    kernel[:, :, 3, 1:6] = 0.2
    operator = BlurOperator()
    y = operator(x, kernel=kernel) + sigma * torch.randn(x.shape, generator=generator)
    return Measurement(y, GaussianNoise(sigma), operator, {"kernel": kernel})


def noisy_copy(self, measurement: Measurement, *, noise, init=None, callback=None) -> Restoration:
    """`FastEM.__call__` for tests that need no restoration: y plus noise of 0.01, as if nothing had blurred it."""
    size = (self.kernel_size, self.kernel_size)
    kernel = delta_kernel(measurement.y, size)
    height, width = measurement.operator.image_shape(measurement.y.shape[-2:], kernel_size=size)
    more = (width - measurement.y.shape[-1], height - measurement.y.shape[-2])
    margins = [part for side in more for part in (side // 2, side - side // 2)]
    y = nn.functional.pad(measurement.y, margins, mode="replicate")
    x = y.unsqueeze(1) + 0.01 * noise.normal("init", (len(y), self.num_particles, *y.shape[1:]), y)
    if callback:
        callback(StepInfo(1, 1, 0.5, x, {"kernel": kernel}))
    return restoration(measurement, x, {"kernel": kernel}, 1)


def picture(seed: int, shape: tuple[int, int] = (40, 48), channels: int = 3) -> np.ndarray:
    """A smooth picture of full contrast, uint8, `(H, W, 3)` or `(H, W)`."""
    coarse = np.random.default_rng(seed).integers(0, 2, (5, 6, channels), dtype=np.uint8) * 255
    return np.asarray(Image.fromarray(coarse.squeeze()).resize(shape[::-1], Image.BICUBIC))


def without_timing(rows: list[dict]) -> list[dict]:
    """Rows of `results.jsonl` without what differs from run to run."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_rows(rows: list[dict], others: list[dict], tolerance: float) -> None:
    """Equal texts and nulls, and numbers up to a tolerance; timing aside."""
    for row, other in zip(without_timing(rows), without_timing(others), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            close = isinstance(value, float) and abs(value - other[key]) <= tolerance
            assert close or other[key] == value, key


def make_outcome(
    name="a", n=1, status="ok", channels=3, size=(40, 48), frames=0, truth=False, more=None, **row
) -> Outcome:
    """An outcome of noise with n samples; `row` are columns beside the usual, `more` other fields."""
    generator = torch.Generator().manual_seed(len(name) + n)

    def random(*shape):
        return torch.rand(shape, generator=generator)

    samples = random(n, channels, *size)
    kernel = random(1, 9, 9)
    return Outcome(
        id=name,
        row={"id": name, "method": "fast_em", "sigma": 0.02, "status": status, "seconds": 2.0, "nfe": 10, **row},
        y=random(channels, *size) * 1.2 - 0.1,
        image=samples.mean(0),
        kernel=kernel / kernel.sum(),
        samples=samples,
        truth=random(channels, *size) if truth else None,
        true_kernel=kernel / kernel.sum() if truth else None,
        trace=[{"step": step, "alpha_bar": step / 5, "residual": 1 / step} for step in range(1, 6)],
        frames=[(random(channels, *size), kernel) for _ in range(frames)],
        **(more or {}),
    )


class Trap:
    """Unpickling one runs a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)
