"""The residual over the steps: one scale for all resolutions."""

from dataclasses import dataclass, replace

import pytest
import torch

from codiffuse.estimation.support import grown
from codiffuse.inference.progress import StepRecorder
from codiffuse.methods.base import Measurement, StepInfo, restoration
from codiffuse.methods.coarse import CoarseToFine, coarser
from codiffuse.methods.steps import delta_kernel, of_part
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise


@dataclass(frozen=True)
class Step:
    """A method of a single step."""

    kernel_size: int = 5
    num_steps = work = 1

    def with_kernel_size(self, size):
        return Step(size)

    def __call__(self, measurement, *, noise=None, init=None, callback):
        kernel = delta_kernel(measurement.y, (self.kernel_size, self.kernel_size))
        callback(StepInfo(1, 1, 0.5, measurement.y.unsqueeze(1), {"kernel": kernel}))
        return restoration(
            replace(measurement, operator=BlurOperator()), measurement.y.unsqueeze(1), {"kernel": kernel}, 1
        )


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_noise_alone_is_at_the_noise_level_at_each_resolution(boundary):
    y = 0.5 + 0.04 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    fine = Measurement(y, GaussianNoise(0.04), BlurOperator(boundary))
    recorder = StepRecorder(fine)
    for number, (factor, size) in enumerate([(4, 19), (2, 37), (1, 73)], 1):
        part = coarser(fine, factor)
        canvas = part.operator.image_shape(part.y.shape[-2:], kernel_size=(size, size))
        params = {"kernel": delta_kernel(y, (size, size))}
        x0 = torch.full((1, 1, 3, *canvas), 0.5)
        recorder(StepInfo(number, 3, 0.5, x0, params, None if factor == 1 else part, factor))
    assert [record["residual"] for record in recorder.trace(0)] == pytest.approx([0.04] * 3, rel=0.03)


@pytest.mark.parametrize("first", range(5, 98))
def test_blocks_are_told_however_often_the_kernel_grew(first):
    """By a method from coarse to fine within one that looks at a part of the picture, and then at all of it."""
    whole = Measurement(torch.rand(1, 3, 400, 1200), GaussianNoise(0.04), BlurOperator("unknown"))
    mosaic, told, blocks, size = replace(whole, y=whole.y[..., :1164]), [], [], first
    seen = of_part(lambda info: told.append(info.factor), mosaic)
    while size <= 97:
        method = CoarseToFine(Step(), Step(), kernel_size=size)
        method(mosaic, noise=GeneratorNoise([0]), callback=seen)
        blocks += [factor for _, factor in method._runs()]
        size = grown(size)
    Step()(whole, callback=seen)
    assert told == [*blocks, 1]  # and the whole picture in the end
