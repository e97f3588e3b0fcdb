"""Samples of image and operator: moved to match, cut to the centre of a kernel, and judged one by one."""

from dataclasses import replace

import pytest
import torch
from toys import blurred_toy

from codiffuse.fourier import convolve
from codiffuse.methods.base import Measurement
from codiffuse.methods.samples import aligned, close, cropped, fold
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.spaces import shift_and_divide


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def two_shifted_kernels() -> torch.Tensor:
    kernel = torch.zeros(1, 2, 1, 9, 9)
    kernel[0, 0, 0, 4, 3:6] = 1 / 3
    kernel[0, 1, 0, 6, 2:5] = 1 / 3  # the same, two down and one to the left
    return kernel


def test_aligned_samples_explain_the_measurement_as_before():
    kernel, x = two_shifted_kernels(), rand(1, 1, 3, 16, 16).expand(1, 2, 3, 16, 16)
    parts = aligned({"image": x, "kernel": kernel})
    torch.testing.assert_close(parts["kernel"][0, 0], parts["kernel"][0, 1])
    for index in range(2):
        before = convolve(x[:, index], kernel[:, index], "circular")
        after = convolve(parts["image"][:, index], parts["kernel"][:, index], "circular")
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def test_a_tilt_goes_with_the_image_that_it_moves():
    kernel, x, tilt = two_shifted_kernels(), rand(1, 2, 3, 16, 16), 2 * rand(1, 2, 2, 16, 16, seed=1) - 1
    parts = aligned({"image": x, "kernel": kernel, "tilt": tilt})
    assert (parts["tilt"] - tilt).abs().max() > 0.1
    for index in range(2):
        before, after = (
            TurbulenceOperator()(each["image"][:, index], kernel=each["kernel"][:, index], tilt=each["tilt"][:, index])
            for each in ({"image": x, "kernel": kernel, "tilt": tilt}, parts)
        )
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_a_parameter_of_another_size_stays_where_it_is():
    gain = rand(1, 2, 1, 4, 4, seed=2)
    parts = aligned({"image": rand(1, 2, 3, 16, 16), "kernel": two_shifted_kernels(), "gain": gain})
    torch.testing.assert_close(parts["gain"], gain)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown", "valid"])
@pytest.mark.parametrize(("before", "size"), [(9, 5), (10, 5), (10, 6), (9, 6)])
def test_the_centre_of_a_kernel_blurs_as_the_whole(boundary, before, size):
    kernel, operator = torch.zeros(1, 2, 1, before, before), BlurOperator(boundary)
    middle = slice(before // 2 - 2, before // 2 + 3)
    kernel[..., middle, middle] = rand(1, 2, 1, 5, 5)
    kernel = kernel / kernel.sum((-2, -1), keepdim=True)
    canvas = operator.image_shape((24, 20), kernel_size=(before, before))
    x = rand(1, 2, 3, *canvas, seed=1)
    toy = Measurement(torch.zeros(1, 3, 24, 20), GaussianNoise(0.1), operator)
    parts = cropped({"image": x, "kernel": kernel}, toy, (size, size))
    assert parts["kernel"].shape == (1, 2, 1, size, size)
    for index in range(2):
        whole = operator(x[:, index], kernel=kernel[:, index])
        centre = operator(parts["image"][:, index], kernel=parts["kernel"][:, index])
        torch.testing.assert_close(whole, centre, atol=1e-6, rtol=0)


def test_folding_repeats_each_image():
    toy = replace(blurred_toy(2), noise=GaussianNoise(torch.tensor([0.1, 0.2])), mask=torch.ones(2, 1, 32, 32))
    folded = fold(toy, 2)
    torch.testing.assert_close(folded.y, toy.y[[0, 0, 1, 1]])
    assert folded.sigma.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert len(folded.mask) == 4


@pytest.mark.parametrize("how", ["noise", "nan", "kernel"])
def test_one_sample_that_ran_away_fails_its_image_and_no_other(how):
    """The mean of four hides it."""
    toy, n = blurred_toy(2), 4
    kernel = torch.zeros(2 * n, 1, 7, 7)
    kernel[..., 3, 3] = 1
    x = toy.y.repeat_interleave(n, 0)
    assert close(toy, {"image": x, "kernel": kernel}, n, 10).status == ("ok", "ok")
    if how == "kernel":  # which alone is wrong: y is not what an image that is sharp looks like through it
        x[6] = (rand(3, 32, 32) > 0.5).float()
        kernel[6] = shift_and_divide(rand(1, 1, 7, 7) ** 9)[0]
    else:
        x[6] = torch.nan if how == "nan" else 2.5 * (rand(3, 32, 32) > 0.5) - 0.5
    status = close(toy, {"image": x, "kernel": kernel}, n, 10).status
    assert status[0] == "ok"
    assert status[1].startswith("failed: NaN" if how == "nan" else "failed: diverged")
