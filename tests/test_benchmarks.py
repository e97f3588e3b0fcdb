"""What the benchmarks of photographs compute, on toys."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks import blurriness, photographs
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.motion import RandomPathKernels

SIGMA = 2 / 255


def numbers(cell):
    return [float(value) for value in cell.split(" -> ")]


def test_a_right_restoration_is_sharper_and_leaves_noise_alone(tmp_path):
    sharp = torch.from_numpy(data.coffee()[100:228, 200:328].copy()).permute(2, 0, 1)[None] / 255
    kernel = RandomPathKernels(9)(np.random.default_rng(0))[None]
    noise = SIGMA * torch.randn(1, 3, 120, 120, generator=torch.Generator().manual_seed(0))
    y = BlurOperator("valid")(sharp, kernel=kernel) + noise
    for name, image in (("measurement", y), ("restored", sharp[..., 4:-4, 4:-4])):
        pixels = (255 * image[0].clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "kernel.npy", kernel[0].numpy())
    line = photographs.table_row({"id": "a", "sigma": SIGMA, "trust": None, "flags": ["sharp"]}, tmp_path)
    name, blur, ratio, correlation, trust, flags = (cell.strip() for cell in line.strip("|").split("|"))
    assert (name, trust, flags) == ("a", "", "sharp")
    assert numbers(blur)[1] < numbers(blur)[0] - 0.05
    assert numbers(ratio)[1] == pytest.approx(1, abs=0.11)
    assert numbers(ratio)[0] > 1.3
    assert numbers(correlation)[1] < 0.1 < numbers(correlation)[0]


def test_simulated_pictures_are_what_they_are_said_to_be(monkeypatch):
    picture, rng = torch.rand(3, 150, 160), np.random.default_rng(0)
    for name in ("SHARE_REDUCED", "SHARE_GRAY", "SHARE_JPEG"):
        monkeypatch.setattr(blurriness, name, 0.0)
    cases = [blurriness.simulated(picture, rng) for _ in range(40)]
    assert {case.size for case in cases} > {1}
    assert all((case.size == 1) == (case.spread == 0) for case in cases)
    assert all(60 < min(case.y.shape[-2:]) <= 128 for case in cases)  # 150 less the largest kernel's border
    monkeypatch.setattr(blurriness, "SHARE_GRAY", 1.0)
    gray = blurriness.simulated(picture, rng).y
    assert (gray == gray[:1]).all()


def test_the_fit_finds_what_the_values_say():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3))
    goal = 0.5 + values @ [1.0, -2.0, 0.0]
    weights = blurriness.solve(values, goal, np.arange(40) % 4 != 0)
    assert weights == pytest.approx([0.5, 1, -2, 0], abs=1e-9)
    assert np.abs(blurriness.errors(values, goal, np.arange(40) % 4 != 0)).max() < 1e-9
