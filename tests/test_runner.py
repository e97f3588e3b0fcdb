"""The runner: batches, failures of single images, resuming, and what a row says."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import assert_same_rows, picture, tiny_prior, without_timing

from codiffuse.data.measurements import Photographs, SimulatedBlur, estimate_sigma
from codiffuse.data.sources import sources
from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import L1
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.runner import Runner
from codiffuse.inference.scoring import Scorer
from codiffuse.inference.writers import RunFolder
from codiffuse.methods.base import Measurement, Restoration, StepInfo
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess, delta_kernel, supports_blur
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.gaussian import GaussianKernels


@dataclass(frozen=True)
class Copy:
    """Returns y plus a little of its own noise, and remembers the shapes of its batches.

    Attributes:
        spoil: what becomes of the restored images `(B, C, H, W)`, given them and y.
        stop_at: raises KeyboardInterrupt within this call.
    """

    batches: list[tuple[int, ...]] = field(default_factory=list)
    spoil: Callable[[Tensor, Tensor], Tensor] = lambda image, y: image
    stop_at: int | None = None
    needs: ClassVar[tuple[str, ...]] = ()

    def supports(self, operator) -> str | None:
        return supports_blur(operator)

    def __call__(self, measurement: Measurement, *, noise, init=None, callback=None) -> Restoration:
        y, kernel = measurement.y, delta_kernel(measurement.y, (5, 5))
        self.batches.append(tuple(y.shape))
        image = (y + 0.01 * noise.normal("init", y.shape, y)).clamp(0, 1)
        for number in (1, 2, 3):
            if number == 2 and len(self.batches) == self.stop_at:
                raise KeyboardInterrupt
            callback(StepInfo(number, 3, 0.5, image[:, None], {"kernel": kernel}))
        image = self.spoil(image, y)
        return Restoration(image, {"kernel": kernel}, image[:, None], {"x": image[:, None]}, 3, ("ok",) * len(y))


def fast_em(**options) -> FastEM:
    return FastEM(tiny_prior(), HQS(L1()), process=ReverseProcess(4), kernel_size=7, **options)


@pytest.fixture
def folder(tmp_path):
    """Four pictures of one size: `a` to `d`."""
    for seed, name in enumerate("abcd"):
        Image.fromarray(picture(seed)).save(tmp_path / f"{name}.png")
    return tmp_path


def blurred(folder, **options) -> SimulatedBlur:
    return SimulatedBlur(sources(folder), GaussianKernels(7), 0.02, BlurOperator(), **options)


def runner(root, method=None, name="toy", operator=None, seed=0, batch_size=1) -> Runner:
    operator = operator or BlurOperator()
    restorer = Restorer(method or Copy(), name, operator, Scorer(operator), seed=seed, num_frames=0)
    return Runner(restorer, RunFolder(root), batch_size)


def written(root) -> list[dict]:
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


# Batches


def test_batches_hold_equal_shapes_in_order(folder, tmp_path):
    Image.fromarray(picture(9, (48, 40))).save(folder / "b.png")  # portrait among landscape
    method = Copy()
    rows = runner(tmp_path / "run", method, batch_size=3).run(Photographs(str(folder)))
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert method.batches == [(1, 3, 40, 48), (1, 3, 48, 40), (2, 3, 40, 48)]


def test_kernels_of_two_sizes_do_not_share_a_batch(folder, tmp_path):
    source = blurred(folder)
    source.law = lambda rng: GaussianKernels(int(rng.choice([5, 7])))(rng)
    sizes = [source.load(index).kernel.shape[-1] for index in range(4)]
    assert len(set(sizes)) == 2
    oracle = NonBlind(tiny_prior(), process=ReverseProcess(2))
    rows = runner(tmp_path / "run", oracle, batch_size=4).run(source)
    assert len(rows) == 4


@pytest.mark.parametrize("batch_size", [2, 4])
def test_results_do_not_depend_on_the_batch(folder, tmp_path, batch_size):
    method = fast_em(num_particles=2)
    alone = runner(tmp_path / "1", method).run(blurred(folder))
    together = runner(tmp_path / "n", method, batch_size=batch_size).run(blurred(folder))
    assert {row["status"] for row in alone} == {"ok"}
    assert_same_rows(alone, together, 1e-3)


def test_results_do_not_depend_on_the_neighbours_but_on_the_seed(folder, tmp_path):
    everything = runner(tmp_path / "all").run(blurred(folder))
    one = runner(tmp_path / "one").run(
        SimulatedBlur(sources(folder / "c.png"), GaussianKernels(7), 0.02, BlurOperator())
    )
    assert without_timing(one) == without_timing(everything[2:3])
    other = runner(tmp_path / "seed", seed=1).run(blurred(folder))
    assert other[2]["psnr"] != everything[2]["psnr"]


def test_noise_levels_spread_evenly_over_their_decades(folder):
    levels = []
    for seed in range(50):
        source = SimulatedBlur(sources(folder), GaussianKernels(7), (0.01, 0.1), BlurOperator(), seed=seed)
        levels += [source.load(index).sigma for index in range(4)]
    assert min(levels) > 0.01
    assert max(levels) < 0.1
    assert np.mean(np.log10(levels)) == pytest.approx(-1.5, abs=0.07)  # three times the error of the mean
    assert np.std(np.log10(levels)) == pytest.approx(12**-0.5, abs=0.04)
    sample = source.load(0)
    assert sample.sigma == source.load(0).sigma
    noise = sample.y - BlurOperator()(sample.truth[None], kernel=sample.kernel[None])[0]
    assert float(noise.std()) == pytest.approx(sample.sigma, rel=0.05)


@pytest.mark.parametrize("sigma", [(0.1, 0.01), (0.01,), (0.01, 2.0), (0.0, 0.1)])
def test_noise_levels_out_of_order_or_range(folder, sigma):
    with pytest.raises(InputError, match="sigma"):
        SimulatedBlur(sources(folder), GaussianKernels(7), sigma, BlurOperator())


# Images that fail


def test_an_unreadable_picture_fails_alone_and_says_why(folder, tmp_path, caplog):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    rows = runner(tmp_path / "run", batch_size=4).run(Photographs(str(folder)))
    assert [row["status"] == "ok" for row in rows] == [True, False, True, True]
    assert "b.png" in rows[1]["status"]
    assert "truncated" in rows[1]["status"]
    assert f"b {rows[1]['status']}" in caplog.text
    assert {row["id"]: row["status"] for row in written(tmp_path / "run")} == {row["id"]: row["status"] for row in rows}
    assert not (tmp_path / "run/images/b").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_restoration_that_is_not_finite_fails_alone(folder, tmp_path, value):
    def spoil(image, y):
        image = image.clone()
        image[1, 0, 3, 3] = value
        return image

    rows = runner(tmp_path / "run", Copy(spoil=spoil), batch_size=4).run(blurred(folder))
    assert [row["status"] for row in rows] == ["ok", "failed: NaN or infinite values", "ok", "ok"]
    assert (tmp_path / "run/images/b/measurement.png").exists()
    assert not (tmp_path / "run/images/b/restored.png").exists()


def test_a_batch_that_is_refused_is_tried_one_by_one(folder, tmp_path):
    def refuse(image, y):
        if len(y) > 1 or y.mean() == means[2]:
            raise InputError("expected less light, got more; close the curtain")
        return image

    means = [Photographs(str(folder)).load(index).y.mean() for index in range(4)]
    method = Copy(spoil=refuse)
    rows = runner(tmp_path / "run", method, batch_size=4).run(Photographs(str(folder)))
    assert [shape[0] for shape in method.batches] == [4, 1, 1, 1, 1]
    assert [row["status"] == "ok" for row in rows] == [True, True, False, True]
    assert "close the curtain" in rows[2]["status"]


def test_without_memory_the_row_says_what_to_do(folder, tmp_path):
    def full(image, y):
        raise torch.cuda.OutOfMemoryError("2 GiB")

    rows = runner(tmp_path / "run", Copy(spoil=full)).run(Photographs(str(folder), limit=1))
    assert "device=cpu" in rows[0]["status"]


def test_an_oracle_needs_the_true_kernel(folder, tmp_path):
    oracle = NonBlind(tiny_prior(), process=ReverseProcess(2))
    rows = runner(tmp_path / "run", oracle, "pigdm", batch_size=2).run(Photographs(str(folder)))
    assert len(rows) == 4
    for row in rows:
        assert "true kernel" in row["status"]
        assert "blind method" in row["status"]
    rows = runner(tmp_path / "known", oracle, "pigdm").run(blurred(folder))
    assert not any("kernel" in row["status"] for row in rows)


def test_an_operator_that_the_method_cannot_use_is_refused_at_once(folder, tmp_path):
    with pytest.raises(InputError, match=r"blur operator.*another method"):
        runner(tmp_path / "run", operator=object())
    assert not (tmp_path / "run").exists()


# Resuming


@pytest.fixture
def uninterrupted(folder, tmp_path):
    return runner(tmp_path / "whole").run(blurred(folder))


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_does_only_what_is_missing(folder, tmp_path, uninterrupted, torn):
    root = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        runner(root, Copy(stop_at=3)).run(blurred(folder))
    assert [row["id"] for row in written(root)] == ["a", "b"]
    if torn:  # killed while the second row was written
        whole = (root / "results.jsonl").read_bytes()
        (root / "results.jsonl").write_bytes(whole[:-20])
    method = Copy()
    rows = runner(root, method).run(blurred(folder))
    assert len(method.batches) == (3 if torn else 2)
    assert without_timing(rows) == without_timing(uninterrupted)
    RunFolder(root).finish([row["id"] for row in rows], {"method": "toy"})
    assert without_timing(written(root)) == without_timing(uninterrupted)


def test_interrupted_at_the_first_image_nothing_is_left(folder, tmp_path, uninterrupted):
    root = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        runner(root, Copy(stop_at=1)).run(blurred(folder))
    assert not (root / "results.jsonl").exists()
    assert without_timing(runner(root).run(blurred(folder))) == without_timing(uninterrupted)


def test_a_finished_run_is_left_alone(folder, tmp_path, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
    method = Copy()
    assert runner(tmp_path / "whole", method).run(blurred(folder)) == uninterrupted
    assert method.batches == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")} == before


def test_failed_images_are_tried_again(folder, tmp_path):
    root, whole = tmp_path / "run", (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"")
    runner(root).run(Photographs(str(folder)))
    (folder / "b.png").write_bytes(whole)
    method = Copy()
    rows = runner(root, method).run(Photographs(str(folder)))
    assert len(method.batches) == 1
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("make", [blurred, lambda folder: Photographs(str(folder))])
def test_a_picture_that_was_replaced_is_restored_again(folder, tmp_path, caplog, make):
    caplog.set_level(logging.INFO)
    root = tmp_path / "run"
    before = runner(root).run(make(folder))
    Image.fromarray(255 - picture(1)).save(folder / "b.png")
    caplog.clear()
    method = Copy()
    after = runner(root, method).run(make(folder))
    assert len(method.batches) == 1
    assert "b: the picture has changed" in caplog.text
    assert "3 of 4 images are done already" in caplog.text
    assert [row == old for row, old in zip(after, before, strict=True)] == [True, False, True, True]
    assert {row["id"]: row for row in written(root)} == {row["id"]: row for row in after}
    left = Image.open(root / "images/b/restored.png")
    assert np.asarray(left, float).mean() == pytest.approx(255 - picture(1).mean(), abs=5)


def test_a_picture_replaced_while_it_is_restored_is_restored_again(folder, tmp_path):
    def replace(image, y):
        Image.fromarray(picture(9)).save(folder / "a.png")
        return image

    source = Photographs(str(folder), limit=1)
    runner(tmp_path / "run", Copy(spoil=replace)).run(source)
    method = Copy()
    runner(tmp_path / "run", method).run(source)
    assert len(method.batches) == 1


# What a row and a folder say


def test_photographs_have_no_truth_but_a_residual(folder, tmp_path):
    rows = runner(tmp_path / "run").run(Photographs(str(folder), sigma=0.02, limit=1))
    assert len(rows) == 1
    assert rows[0]["sigma"] == 0.02
    for name in "psnr_measurement psnr_measurement_aligned psnr psnr_aligned ssim lpips kernel_mnc kernel_mse".split():
        assert rows[0][name] is None, name
    assert rows[0]["reblur"] == pytest.approx(0.01**2 - 0.02**2, abs=2e-5)  # what Copy adds, beyond the noise
    assert not (tmp_path / "run/images/a/truth.png").exists()


def test_sigma_is_estimated_where_nobody_says_it(tmp_path):
    clean = picture(0, (96, 96)) / 255 * 0.5 + 0.25
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)
    np.save(tmp_path / "noisy.npy", noisy.astype(np.float32))
    row = runner(tmp_path / "run").run(Photographs(str(tmp_path / "noisy.npy")))[0]
    assert row["sigma"] == pytest.approx(0.05, rel=0.1)


def test_a_flat_picture_has_the_noise_of_its_rounding():
    assert estimate_sigma(torch.full((3, 40, 40), 0.5)) == 0.5 / 255


@pytest.mark.filterwarnings("error")
def test_the_noise_of_what_is_black_is_asked_of_nobody():
    pixels = torch.zeros(3, 96, 96)
    assert estimate_sigma(pixels) == 0.5 / 255
    pixels[0] = 0.5 + 0.05 * torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    assert estimate_sigma(pixels) == pytest.approx(0.05, rel=0.05)


def test_the_estimate_is_that_of_scikit_image():
    from skimage.restoration import estimate_sigma as reference

    pixels = torch.rand(3, 50, 61, generator=torch.Generator().manual_seed(0))
    expected = reference(pixels.numpy(), channel_axis=0, average_sigmas=True)
    assert estimate_sigma(pixels) == pytest.approx(expected, rel=1e-6)


def test_gray_16_bit_and_transparent_pictures_run_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    gray = picture(0, channels=1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    opaque = np.full((40, 48), 255, np.uint8)
    opaque[:8, :8] = 100
    Image.fromarray(np.dstack([picture(1), opaque])).save(tmp_path / "alpha.png")
    rows = runner(tmp_path / "run", fast_em()).run(Photographs(str(tmp_path), sigma=0.02))
    assert [row["id"] for row in rows] == ["alpha", "deep", "gray"]
    assert {row["status"] for row in rows} == {"ok"}
    assert "alpha: alpha composited over white." in caplog.text
    assert "deep: 16 bit." in caplog.text
    modes = [Image.open(tmp_path / f"run/images/{row['id']}/restored.png").mode for row in rows]
    assert modes == ["RGB", "L", "L"]


def test_the_trace_has_a_record_a_step(folder, tmp_path):
    runner(tmp_path / "run", fast_em(), batch_size=2).run(blurred(folder))
    for name in "abcd":
        trace = json.loads((tmp_path / f"run/images/{name}/trace.json").read_text())
        assert [record["step"] for record in trace] == [1, 2, 3, 4]
        assert all(record["residual"] > 0 for record in trace)
        assert [record["alpha_bar"] for record in trace] == sorted(record["alpha_bar"] for record in trace)


def test_truth_and_kernel_are_scored(folder, tmp_path):
    row = runner(tmp_path / "run", fast_em()).run(blurred(folder, crop=36))[0]
    assert row["nfe"] == 4
    assert 0 < row["kernel_mnc"] <= 1
    assert row["psnr_aligned"] >= row["psnr"] - 0.5  # another border, but the best shift
    assert Image.open(tmp_path / "run/images/a/truth.png").size == (36, 36)
    assert np.load(tmp_path / "run/images/a/kernel.npy").sum() == pytest.approx(1, abs=1e-4)


def test_out_of_memory_fails_the_image_that_is_too_large_and_a_bug_is_no_memory(folder, tmp_path):
    def too_large(image, y):
        if len(image) > 1 or y.mean() > means[2]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return image

    means = sorted(Photographs(str(folder)).load(index).y.mean() for index in range(4))
    rows = runner(tmp_path / "run", Copy(spoil=too_large), batch_size=4).run(Photographs(str(folder)))
    failed = [row["status"] for row in rows if row["status"] != "ok"]
    assert len(failed) == 1
    assert "out of memory" in failed[0]

    def bug(image, y):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        runner(tmp_path / "bug", Copy(spoil=bug)).run(Photographs(str(folder)))
