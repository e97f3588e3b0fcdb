"""The mean of the kernels that agree: shifts do not matter, and who disagrees is left out."""

import torch

from codiffuse.estimation.centering import recentre_integer
from codiffuse.estimation.consensus import consensus
from codiffuse.simulate.gaussian import gaussian_kernel


def blob(seed=0, side=21):
    """A kernel with some structure, well inside its support."""
    kernel = torch.zeros(1, 1, side, side, dtype=torch.float64)
    inner = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    kernel[..., 7:14, 7:14] = inner
    return recentre_integer(kernel / kernel.sum())


def runs(*kernels):
    return torch.cat(kernels, 1), torch.ones(1, len(kernels), dtype=torch.bool)


def test_shifted_copies_merge_into_the_kernel():
    kernel = blob()
    merged = consensus(*runs(kernel.roll((2, -3), (-2, -1)), kernel, kernel.roll((-4, 1), (-2, -1))), 0.6)
    torch.testing.assert_close(merged, kernel)


def test_the_mean_is_nearer_than_the_runs():
    kernel, generator = blob(), torch.Generator().manual_seed(1)
    noisy = [kernel * (1 + torch.rand(kernel.shape, generator=generator, dtype=kernel.dtype)) for _ in range(8)]
    noisy = [each / each.sum() for each in noisy]
    errors = [float((each - kernel).norm()) for each in noisy]
    assert (consensus(*runs(*noisy), 0.6) - kernel).norm() < 0.7 * min(errors)


def test_who_disagrees_is_left_out():
    kernel, other = blob(), gaussian_kernel(21, 4.0)[None].double()
    merged = consensus(*runs(other, kernel, kernel), 0.9)
    torch.testing.assert_close(merged, kernel)
    assert (consensus(*runs(other, kernel, kernel), 0.0) - kernel).abs().max() > 0.01


def test_failed_runs_do_not_count_unless_all_failed():
    kernel, other = blob(), blob(5)
    kernels, _ = runs(other, other, kernel)
    torch.testing.assert_close(consensus(kernels, torch.tensor([[False, False, True]]), 0.6), kernel)
    torch.testing.assert_close(consensus(kernels, torch.zeros(1, 3, dtype=torch.bool), 0.99), other)


def test_a_kernel_that_is_not_a_number_agrees_with_none():
    kernel = blob()
    kernels, counts = runs(kernel, kernel * float("nan"), kernel)
    torch.testing.assert_close(consensus(kernels, torch.zeros_like(counts), 0.6), kernel)


def test_images_of_a_batch_do_not_mix():
    first, second = blob(), blob(3)
    kernels = torch.cat([torch.cat([first, first], 1), torch.cat([second, second], 1)])
    merged = consensus(kernels, torch.ones(2, 2, dtype=torch.bool), 0.6)
    torch.testing.assert_close(merged, torch.cat([first, second]))
