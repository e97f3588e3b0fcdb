"""Coarse to fine: the block means, the way back of a kernel, and the order of the runs."""

from dataclasses import replace

import pytest
import skimage
import torch
from toys import blurred_toy, tiny_prior

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.methods.base import Measurement
from codiffuse.methods.coarse import CoarseToFine, coarse_size, coarser, downsampled, largest_factor, upsampled
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.restarts import BestOfRestarts
from codiffuse.methods.steps import ReverseProcess
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise
from codiffuse.simulate.gaussian import gaussian_kernel


def picture(height, width, boundary="unknown", mask=None):
    y = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    return Measurement(y, GaussianNoise(0.02), BlurOperator(boundary), mask=mask)


def method(kernel_size=33, coarse_kernel=9):
    em = FastEM(tiny_prior(), HQS(NoRegularizer(), iterations=2), process=ReverseProcess(3), kernel_size=7)
    return CoarseToFine(BestOfRestarts(em, em, 7, (0.1, 0.2), 1), em, kernel_size, coarse_kernel)


@pytest.mark.parametrize(
    ("size", "factor", "coarse"), [(33, 2, 17), (33, 1, 33), (49, 2, 25), (35, 2, 19), (65, 4, 17)]
)
def test_a_coarse_kernel_covers_the_fine_one(size, factor, coarse):
    assert coarse_size(size, factor) == coarse
    assert coarse % 2 == 1
    assert factor * (coarse - 1) + 1 >= size - factor


def test_at_full_resolution_a_size_stays_what_it_is():
    assert coarse_size(36, 1) == 36


def test_masked_pixels_do_not_enter_the_mean_of_a_block_which_counts_if_most_of_it_does():
    mask = torch.ones(1, 1, 64, 66)
    mask[..., 5, 7] = 0
    mask[..., 8, 8:10] = 0
    seen = coarser(picture(64, 66, mask=mask), 2)
    assert seen.y.shape == (1, 3, 32, 33)
    y = picture(64, 66).y[0, 0]
    torch.testing.assert_close(seen.y[0, 0, 1, 1], y[2:4, 2:4].mean())
    torch.testing.assert_close(seen.y[0, 0, 2, 3], (y[4, 6] + y[4, 7] + y[5, 6]) / 3)
    assert seen.mask[0, 0, 2, 3] == 1
    assert seen.mask[0, 0, 4, 4] == 0
    assert float((1 - seen.mask).sum()) == 1


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_noise_level_stays(factor):
    """The two sides of the model agree only up to aliasing, so a mean with less noise is told the same."""
    assert float(coarser(picture(64, 64), factor).sigma) == pytest.approx(0.02)


@pytest.mark.parametrize(("side", "boundary"), [(64, "circular"), (65, "unknown")])
def test_a_period_that_is_cut_is_none(side, boundary):
    assert coarser(picture(64, side, "circular"), 2).operator.boundary == boundary


@pytest.mark.parametrize(
    ("sides", "kernel_size", "factor"),
    [((33, 47), 9, 1), ((64, 1000), 33, 2), ((300, 256), 33, 8), ((64, 64), 63, 1), ((600, 600), 33, 8)],
)
def test_a_coarse_picture_is_not_too_small_and_holds_its_kernel(sides, kernel_size, factor):
    assert largest_factor(picture(*sides), kernel_size) == factor


@pytest.mark.parametrize("size", [33, 35, 36])
def test_a_kernel_comes_back_to_its_centre_and_width(size):
    factor, width = 2, 2.5
    coarse = gaussian_kernel(coarse_size(size, factor), width / factor)[None]
    fine = upsampled(coarse, factor, size)
    torch.testing.assert_close(fine[0], gaussian_kernel(size, width), atol=4e-4, rtol=0)
    assert float(fine.sum()) == pytest.approx(1, abs=1e-6)
    assert float(fine.min()) >= 0


@pytest.mark.parametrize(("size", "factor"), [(33, 2), (35, 2), (36, 2), (65, 4)])
def test_a_kernel_is_seen_through_two_blocks(size, factor):
    kernel = torch.rand(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    kernel[..., :2] = kernel[..., -2:] = 0
    kernel /= kernel.sum((-2, -1), keepdim=True)
    seen = downsampled(kernel, factor)
    assert seen.shape[-1] == coarse_size(size, factor)
    torch.testing.assert_close(seen.sum((-2, -1)), torch.ones(1, 2))
    # A scene that is constant over blocks: blurred, then averaged over blocks, it is its coarse self, blurred.
    coarse = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    op = BlurOperator("circular")
    scene = coarse.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    blurred = torch.nn.functional.avg_pool2d(op(scene, kernel=kernel[:, :1]), factor)
    torch.testing.assert_close(blurred, op(coarse, kernel=seen[:, :1]), atol=1e-6, rtol=0)


def test_blur_and_block_means_nearly_commute():
    scene = torch.from_numpy(skimage.data.astronaut()[:200, :200] / 255).permute(2, 0, 1)[None].float()
    kernel = gaussian_kernel(17, 2.5)[None]
    op = BlurOperator("valid")
    fine = Measurement(op(scene, kernel=kernel), GaussianNoise(0.02), op)
    coarse = gaussian_kernel(9, 1.25)[None]
    # y has lost 8 pixels a side, of which 4 blocks.
    again = op(torch.nn.functional.avg_pool2d(scene, 2), kernel=coarse)
    assert float((again - coarser(fine, 2).y).square().mean().sqrt()) < 0.002


@pytest.mark.parametrize(("size", "runs"), [(8, 1), (9, 2)])
def test_a_small_kernel_has_a_method_of_its_own(size, runs):
    whole = method(size)
    small = replace(whole.fine, process=ReverseProcess(5))
    seen = []
    found = replace(whole, small=small)(picture(64, 64), noise=GeneratorNoise([0]), callback=seen.append)
    assert (len(seen), found.nfe) == ((5, 5) if runs == 1 else (whole.num_steps, whole.num_steps))
    assert (seen[-1].total, replace(whole, small=small).work) == (len(seen), len(seen))


def test_runs_go_from_coarse_to_fine_and_their_steps_are_counted_through():
    whole, seen = method(), []
    found = whole(picture(136, 140), noise=GeneratorNoise([0]), callback=seen.append)
    assert [info.number for info in seen] == list(range(1, whole.num_steps + 1))
    assert {info.total for info in seen} == {whole.num_steps}
    sizes = [info.params["kernel"].shape[-1] for info in seen]
    assert sizes == [9] * 9 + [17] * 3 + [33] * 3
    assert [info.part is None for info in seen] == [size == 33 for size in sizes]
    assert [info.factor for info in seen] == [4] * 9 + [2] * 3 + [1] * 3
    assert found.nfe == len(seen)
    assert found.image.shape == (1, 3, 136, 140)
    assert (found.restarts.kernels.shape, found.restarts.factor) == ((1, 2, 9, 9), 4)


def test_a_run_starts_from_the_kernel_of_the_one_before():
    held = replace(method().fine, held_steps=2)
    seen = []
    replace(method(17), fine=held)(picture(64, 64), noise=GeneratorNoise([0]), callback=seen.append)
    last_coarse, first_fine = seen[8].params["kernel"], seen[9].params["kernel"]
    assert last_coarse.shape[-1] < first_fine.shape[-1]
    torch.testing.assert_close(first_fine, upsampled(last_coarse, 2, first_fine.shape[-1]))


def test_a_coarse_step_is_worth_its_share_of_the_pixels():
    whole = method()
    assert whole.work == pytest.approx(9 / 16 + 3 / 4 + 3)
    assert method(7).work == method(7).num_steps  # all at one resolution


def test_a_small_picture_is_restored_at_its_own_resolution():
    toy = blurred_toy(2)
    found = method(17, 9)(toy, noise=GeneratorNoise([0, 1]))
    assert found.image.shape == toy.y.shape
    assert found.params["kernel"].shape[-1] == 17


@pytest.mark.parametrize("size", [10, 31])
def test_the_kernel_has_the_size_that_was_asked_for(size):
    found = method(size, 9)(blurred_toy(), noise=GeneratorNoise([0]))
    assert found.params["kernel"].shape[-1] == size


def test_an_init_keeps_all_runs_at_full_resolution():
    seen = []
    init = {"kernel": gaussian_kernel(33, 2.0)[None]}
    method()(picture(136, 140), noise=GeneratorNoise([0]), init=init, callback=seen.append)
    assert {info.params["kernel"].shape[-1] for info in seen} == {33}


def test_the_least_side_must_make_sense():
    with pytest.raises(InputError, match="coarse_kernel"):
        method(coarse_kernel=1)
