"""What the benchmarks of photographs compute, on toys."""

import argparse
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from toys import gaussian_prior, make_outcome

from benchmarks import blurriness, coverage, photographs, tiles
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.tiles import Axis, Tiled
from codiffuse.methods.windows import Window
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


# Tiles


def test_seams_are_in_the_middle_of_what_tiles_share():
    """Tiles of 48 px share 16: from 32 to 48 and from 64 to 80; the frame begins 3 px later than the canvas."""
    assert tiles.seams_of(Axis(48, (0, 32, 64)), 0) == [40, 72]
    assert tiles.seams_of(Axis(48, (0, 32, 64)), 3) == [37, 69]
    assert tiles.seams_of(Axis(48, (0,)), 3) == []


def test_what_is_near_a_seam_is_a_band_to_either_side():
    near = tiles.near_a_seam(([50], [30]), (120, 90))
    rows, columns = torch.arange(120)[:, None], torch.arange(90)
    expected = ((rows >= 34) & (rows < 66)) | ((columns >= 14) & (columns < 46))
    assert torch.equal(near, expected)
    assert not tiles.near_a_seam(([], []), (40, 40)).any()


def test_a_window_around_a_place_stays_inside_and_on_the_grid():
    window = tiles.window_around((50, 10), 30, (60, 100))
    assert (window.top, window.left, window.height, window.width) == (16, 0, 44, 40)


def test_decibels_are_those_of_the_mean_square():
    assert tiles.decibels(torch.tensor([0.1, -0.1])) == pytest.approx(20)


def test_a_large_picture_is_mirrored_and_blurred():
    arguments = argparse.Namespace(size=[500, 80], input="sample:coffee", kernel=9, seed=0, device="cpu")
    truth, measurement = tiles.blurred(arguments)
    assert truth.shape == measurement.y.shape == (1, 3, 500, 80)
    assert torch.equal(truth[..., 396, :], truth[..., 395, :])  # 400 rows less the 4 before the frame, and the mirror
    residual = measurement.y[..., 4:-4, 4:-4] - BlurOperator("valid")(truth, kernel=measurement.known["kernel"])
    assert float(residual.std()) == pytest.approx(tiles.SIGMA, rel=0.02)
    assert abs(float(residual.mean())) < 1e-3


NOWHERE = Window(0, 0, 0, 0)


@dataclass(frozen=True)
class Marked(Tiled):
    """Tiles whose result is wrong in one place."""

    place: Window = NOWHERE

    def __call__(self, measurement, **options):
        found = super().__call__(measurement, **options)
        self.place.crop(found.image).add_(0.2)
        return found


SEAM = 134 // 2 - 3  # where two tiles meet on a canvas of 134 px, which begins 3 px before the frame


@pytest.mark.parametrize(
    ("place", "code", "least", "most"),
    [
        (NOWHERE, 0, -0.05, 0.05),
        (Window(SEAM - 2, 0, 4, 128), 1, 1.0, 20.0),
        (Window(SEAM - 16, SEAM - 22, 2, 5), 1, 0.1, 1.0),
        (Window(SEAM - 22, SEAM - 22, 5, 5), 0, -0.05, 0.05),
    ],
    ids=["none", "seam", "beside a seam", "elsewhere"],
)
def test_a_seam_is_found_and_nothing_else(monkeypatch, capsys, place, code, least, most):
    """The prior looks at single pixels: what tiles it sees makes no difference, unless it is made on purpose."""
    guidance = PiGDM(r2_rule="vp", data_variance=0.1, zeta="one")
    exact = NonBlind(gaussian_prior(0.1), guidance, ReverseProcess(num_steps=3, clip="none"), 1)
    monkeypatch.setattr(tiles, "finishing", lambda arguments: Marked(exact, 80, 16, 2**30, place))
    monkeypatch.setattr(tiles, "LOOK", 24)
    monkeypatch.setattr("sys.argv", ["tiles", "--size", "128", "--kernel", "7", "--overlap", "16", "--places", "1"])
    assert tiles.main() == code
    said = capsys.readouterr().out
    assert "4 tiles of 75 x 75 px" in said
    loss = float(re.search(r"loss (\S+) dB;", said)[1])
    assert least < loss < most
    assert float(re.search(r"worst loss (\S+) dB", said)[1]) == loss
    near, elsewhere = (float(value) for value in re.search(r"difference (\S+), elsewhere (\S+)", said).groups())
    assert (near > 2) == (code == 1)
    assert (elsewhere > 2) == (code == 0 and place.width == 5)
    assert min(near, elsewhere) < 0.1  # where nothing was spoilt the same noise makes the same picture


def test_what_one_tile_holds_has_no_seam(capsys):
    arguments = argparse.Namespace(size=[64], input="sample:coffee", kernel=7, seed=0, device="cpu", places=1)
    truth, measurement = tiles.blurred(arguments)
    method = Tiled(NonBlind(gaussian_prior(0.1), process=ReverseProcess(num_steps=2), num_particles=1))
    assert tiles.row(method, measurement, truth, arguments) == 0
    assert "1 tile of" in capsys.readouterr().out


# Coverage


def sampled(seed, scale, n=8, side=64, spread=0.01, shift=0):
    """Samples around a texture, and a truth `scale` times as far from their mean as they say it is."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.rand(3, side, side, generator=generator) + spread * torch.randn(
        n, 3, side, side, generator=generator
    )
    error = scale * (1 + 1 / n) ** 0.5 * spread * torch.randn(3, side, side, generator=generator)
    return samples, (samples.mean(0) + error).roll((shift, -shift), (-2, -1))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("shift", [0, 2])
def test_the_spread_that_was_promised_is_compared_with_the_error_that_is_made(scale, shift):
    """However the truth is shifted; the border is left out."""
    samples, truth = sampled(0, scale, shift=shift)
    parts = coverage.scored(samples, truth, 4)
    assert [len(part) for part in parts] == [3 * 56 * 56] * 3
    assert coverage.calibration_factor(*parts) == pytest.approx(scale, rel=0.04)


@pytest.fixture
def covered(monkeypatch, capsys):
    """Calls the benchmark on toys whose truth is twice as far off as promised, but of the first; tells what it says."""

    def restored(samples):
        [index] = samples
        samples, truth = sampled(index, 2.0 if index else 1.0)
        outcome = make_outcome(f"p{index}", status="failed: diverged" if index == 3 else "ok")
        return [replace(outcome, samples=samples, truth=truth, true_kernel=torch.ones(1, 9, 9) / 81)]

    source = SimpleNamespace(ids=range(6), load=lambda index: index)
    monkeypatch.setattr(coverage.cli, "compose_infer", lambda *settings: ({}, "toy"))
    monkeypatch.setattr(coverage.cli, "measurements", lambda plain: source)
    monkeypatch.setattr(coverage.cli, "restorer_of", lambda plain, method: restored)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["coverage", "toys", *map(str, arguments)])
        coverage.main()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(("factor", "half", "most"), [(2, 0.5, 0.9), (1, 0.264, 0.589)])
def test_with_the_right_factor_the_coverage_is_nominal(covered, factor, half, most):
    """Without it, the share of N(0, 1) within half the reach: 0.264 for 50 %, 0.589 for 90 %."""
    said = covered("--factor", factor, "--start", 1, "--step", 2)
    assert re.findall(r"^p(\d)", said, re.MULTILINE) == ["1", "3", "5"]
    assert "left out: failed: diverged" in said
    assert float(re.search(r"factor for 90 % over all: (\S+)", said)[1]) == pytest.approx(2, rel=0.03)
    found = {float(level): float(value) for level, value in re.findall(r"nominal (\S+): (\S+)", said)}
    assert list(found) == list(coverage.LEVELS)
    assert (found[0.5], found[0.9]) == pytest.approx((half, most), abs=0.02)
    each = [float(value) for value in re.findall(r"coverage of 90 %: ([\d.]+),", said)]
    assert each == pytest.approx([most] * 2, abs=0.02)


def test_all_pictures_count_alike(covered):
    """One of two is covered as promised."""
    said = covered("--factor", 1, "--step", 5)
    assert re.findall(r"^p(\d)", said, re.MULTILINE) == ["0", "5"]
    assert float(re.search(r"nominal 0.90: (\S+)", said)[1]) == pytest.approx((0.9 + 0.589) / 2, abs=0.02)


def test_the_curve_of_right_spreads_is_the_diagonal(covered, tmp_path):
    covered("--factor", 2, "--start", 1, "--plot", tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(\S+)" cy="(\S+)"', drawn)]
    right, up = zip(*[((x - 44) / 300, 1 - (y - 22) / 300) for x, y in points], strict=True)
    assert right == pytest.approx(coverage.LEVELS, abs=1e-3)
    assert up == pytest.approx(coverage.LEVELS, abs=0.02)


def test_no_picture_that_can_be_restored_is_an_error(covered):
    with pytest.raises(SystemExit, match="change --limit, --start or --step"):
        covered("--start", 3, "--step", 9)
