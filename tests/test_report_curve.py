"""The residual over the steps: one scale for all resolutions."""

import pytest
import torch

from codiffuse.estimation.support import grown
from codiffuse.inference.progress import StepRecorder, _block_sides
from codiffuse.methods.base import Measurement, StepInfo
from codiffuse.methods.coarse import CoarseToFine, coarse_size, coarser
from codiffuse.methods.steps import delta_kernel
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_noise_alone_is_at_the_noise_level_at_each_resolution(boundary):
    y = 0.5 + 0.04 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    fine = Measurement(y, GaussianNoise(0.04), BlurOperator(boundary))
    recorder = StepRecorder(fine)
    for number, (factor, size) in enumerate([(4, 19), (2, 37), (1, 73)], 1):
        part = coarser(fine, factor)
        canvas = part.operator.image_shape(part.y.shape[-2:], kernel_size=(size, size))
        params = {"kernel": delta_kernel(y, (size, size))}
        recorder(StepInfo(number, 3, 0.5, torch.full((1, 1, 3, *canvas), 0.5), params, None if factor == 1 else part))
    assert [record["residual"] for record in recorder.trace(0)] == pytest.approx([0.04] * 3, rel=0.03)


@pytest.mark.parametrize("first", range(5, 98))
def test_blocks_are_told_however_often_the_kernel_grew(first):
    steps, blocks, size = [], [], first
    while size <= 97:
        height, width = (4 * size, 12 * size) if size > 40 else (161, 483)  # windows side by side
        for _, factor in CoarseToFine(None, None, kernel_size=size)._runs():
            steps += [(height // factor, width // factor, coarse_size(size, factor))] * 2
            blocks += [factor] * 2
        size = grown(size)
    assert _block_sides(steps) == blocks
    assert _block_sides([*steps, (322, 966, steps[-1][-1])]) == [*blocks, 1]  # and the whole picture in the end


def test_runs_at_one_resolution_are_taken_as_they_are():
    assert _block_sides([(64, 80, 33)] * 5) == [1] * 5
    assert _block_sides([]) == []
