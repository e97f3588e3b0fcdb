"""What the benchmarks of photographs compute, on toys."""

import re
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks import blurriness, coverage, photographs
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


def test_the_calibration_curve_shows_what_was_measured(tmp_path):
    found = [1 - (1 - level) ** 2 for level in coverage.LEVELS]
    root = ElementTree.fromstring(coverage.plot(found))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    diagonal, curve = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in list(root.iter("{http://www.w3.org/2000/svg}polyline"))[1:]
    )
    assert len(dots) == len(found)
    assert curve == [diagonal[0], *dots, diagonal[1]]
    (left, bottom), (right, top) = diagonal
    for (x, y), level, value in zip(dots, coverage.LEVELS, found, strict=True):
        assert (x - left) / (right - left) == pytest.approx(level, abs=1e-3)
        assert (bottom - y) / (bottom - top) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(("factor", "inside"), [(1, 0.9), (2, 0.999)])
def test_coverage_is_measured_with_a_factor(tmp_path, monkeypatch, capsys, factor, inside):
    """On pictures of which the samples are draws of the posterior themselves."""

    def restorer(_, __):
        def restore(batch):
            generator = torch.Generator().manual_seed(0)
            samples, truth = (0.5 + 0.05 * torch.randn(count, 3, 60, 60, generator=generator) for count in (400, 1))
            row, kernel = {"status": "ok"}, torch.ones(1, 3, 3)
            yield SimpleNamespace(id="a", row=row, samples=samples, truth=truth[0], true_kernel=kernel)

        return restore

    monkeypatch.setattr(coverage.cli, "restorer_of", restorer)
    monkeypatch.setattr(coverage, "align", lambda truth, estimate, **_: (truth, None))
    words = ["coverage", "sample", "--limit=1", f"--factor={factor}", f"--plot={tmp_path / 'curve.svg'}"]
    monkeypatch.setattr(sys, "argv", [*words, "--crop=64"])
    coverage.main()
    shown = re.search(r"nominal 0.90: ([\d.]+) with factor (\d)", capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(inside, abs=0.005)
    assert int(shown[2]) == factor
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")
