"""Kernels from files: what is read, where it is looked for, how sizes become one."""

import numpy as np
import pytest
import torch
from PIL import Image

from codiffuse.data.kernels import FileKernels
from codiffuse.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Two kernels of 5 and 9 px, `data/bank/k1.png` and `k2.png`, and a picture beside them."""
    folder = tmp_path / "data/bank"
    folder.mkdir(parents=True)
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    line, corner = np.zeros((5, 5), np.uint8), np.zeros((9, 9), np.uint8)
    line[2, 1:4] = 200
    corner[0:3, 0:2] = 100
    Image.fromarray(line).save(folder / "k1.png")
    Image.fromarray(corner).convert("RGB").save(folder / "k2.png")
    Image.fromarray(np.zeros((7, 7), np.uint8)).save(folder / "black.png")
    return folder


@pytest.mark.parametrize("path", ["bank/k*.png", "data/bank/k*.png", "{}/k*.png"])
def test_a_draw_is_one_of_the_files(kernels, path):
    law = FileKernels(path.format(kernels))
    drawn = [law(rng(seed)) for seed in range(20)]
    assert {tuple(kernel.shape) for kernel in drawn} == {(1, 5, 5), (1, 9, 9)}
    assert all(float(kernel.sum()) == pytest.approx(1, abs=1e-6) for kernel in drawn)
    small = next(kernel for kernel in drawn if kernel.shape[-1] == 5)
    torch.testing.assert_close(small[0, 2], torch.tensor([0, 1, 1, 1, 0]) / 3)
    torch.testing.assert_close(law(rng(3)), law(rng(3)), rtol=0, atol=0)


def test_on_one_support_they_are_centred_and_of_one_size(kernels):
    law = FileKernels("bank/k*.png", size=13)
    for seed in range(8):
        kernel = law(rng(seed))[0]
        assert kernel.shape == (13, 13)
        rows, columns = (kernel.sum(axis) @ torch.arange(13.0) - 6 for axis in (1, 0))
        assert max(abs(float(rows)), abs(float(columns))) <= 0.5


def test_what_is_no_kernel_is_refused(kernels):
    for law, words in [
        (FileKernels("bank/k*.png", size=7), "enlarge the canvas"),
        (FileKernels("bank/black.png"), "got a black one"),
        (FileKernels("bank/none*.png"), "expected picture files that match"),
    ]:
        with pytest.raises(InputError, match=words):
            [law(rng(seed)) for seed in range(8)]


def test_those_that_were_measured(data_dir):
    kernels = [FileKernels("levin09/gt/kernel*.png", size=33)(rng(seed)) for seed in range(40)]
    assert len({tuple(kernel.flatten().tolist()) for kernel in kernels}) == 8
    widths = [int((kernel[0].sum(0) > 1e-3).sum()) for kernel in kernels]
    assert 5 <= min(widths) < max(widths) <= 27
