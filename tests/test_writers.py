"""What an inference run leaves behind: files, rows, resuming, panel, animation."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import make_outcome

from codiffuse.errors import InputError
from codiffuse.inference import writers
from codiffuse.inference.summary import summarize
from codiffuse.inference.uncertainty import FACTORS
from codiffuse.inference.writers import Outcome, RunFolder
from codiffuse.metrics.uncertainty import predictive_std

HEADER = {"method": "fast_em", "experiment": None, "run_id": "r1", "device": "cpu", "commit": None, "versions": {}}
BASE_FILES = {"measurement.png", "restored.png", "kernel.png", "kernel.npy", "panel.png", "trace.json"}


def lines(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.root / "results.jsonl").read_text().splitlines()]


def files_of(folder: RunFolder, name: str) -> set[str]:
    return {path.name for path in (folder.root / "images" / name).iterdir()}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "outputs" / "run")


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"n": 1}, set()),
        ({"n": 4}, {"mean.png", "std.png"}),
        ({"n": 1, "frames": 3}, {"trace.gif"}),
        ({"n": 1, "truth": True}, {"truth.png", "true_kernel.png"}),
        ({"n": 1, "channels": 1}, set()),
        ({"more": {"std": torch.rand(3, 40, 48)}}, {"mean.png", "std.png"}),
        ({"more": {"residual": torch.randn(3, 40, 48)}}, {"residual.png"}),
        ({"more": {"tilt": torch.randn(2, 40, 48)}}, {"tilt.png", "tilt.npy"}),
        ({"more": {"true_tilt": torch.randn(2, 40, 48)}}, {"true_tilt.png"}),
        ({"more": {"restart_kernels": torch.rand(3, 9, 9), "restart_residuals": [1, 2, 3]}}, {"restarts.png"}),
        ({"more": {"restart_kernels": torch.rand(1, 9, 9), "restart_residuals": [1]}}, set()),
        ({"more": {"windows": [(0, 0, 20, 20)]}}, {"windows.png"}),
        ({"more": {"mask": torch.eye(48)[None, :40]}}, {"saturated.png"}),
        ({"more": {"mask": torch.ones(1, 40, 48)}}, set()),
    ],
)
def test_files_of_an_image(folder, options, more):
    folder.write(make_outcome("a", **options))
    assert files_of(folder, "a") == BASE_FILES | more


@pytest.mark.parametrize("origin", FACTORS)
def test_contents_are_what_was_restored(folder, origin):
    outcome = replace(make_outcome("a", n=4), origin=origin)
    folder.write(outcome)
    images = folder.root / "images" / "a"
    array = np.load(images / "kernel.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, outcome.kernel[0].numpy())
    restored = np.asarray(Image.open(images / "restored.png"), float) / 255
    np.testing.assert_allclose(restored, outcome.image.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)
    spread = np.asarray(Image.open(images / "std.png"), float) / 255
    expected = predictive_std(outcome.samples, FACTORS[origin])[0].numpy() / 0.2
    np.testing.assert_allclose(spread, expected.clip(0, 1), atol=0.5 / 255 + 1e-6)
    kernel = np.asarray(Image.open(images / "kernel.png"))
    assert kernel.shape == (261, 261)  # 29 times 9
    assert kernel.max() == 255
    assert json.loads((images / "trace.json").read_text()) == outcome.trace


def test_a_tilt_is_kept_as_it_is_and_drawn_without_its_mean(folder):
    tilt, shift = torch.randn(2, 40, 48), torch.tensor([3.0, -1.0]).view(2, 1, 1)
    drawn = []
    for name, field in (("a", tilt), ("b", tilt + shift)):
        folder.write(make_outcome(name, more={"tilt": field, "true_tilt": tilt}))
        images = folder.root / "images" / name
        np.testing.assert_array_equal(np.load(images / "tilt.npy"), field.numpy())
        drawn += [np.asarray(Image.open(images / f"{which}.png"), int) for which in ("tilt", "true_tilt")]
    assert drawn[0].shape == (240, 288, 3)
    assert all(abs(each - drawn[0]).max() <= 1 for each in drawn)


def test_rows_are_strict_json(folder):
    folder.write(make_outcome("a", lpips=float("nan"), psnr=float("inf"), ssim=0.5))
    text = (folder.root / "results.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (row["lpips"], row["psnr"], row["ssim"]) == (None, None, 0.5)


def test_row_comes_after_the_files(folder, monkeypatch):
    folder.write(make_outcome("a"))

    def crash(outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers, "panel", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.write(make_outcome("b"))
    assert [row["id"] for row in lines(folder)] == ["a"]
    assert set(folder.done()) == {"a"}


def test_other_files_in_the_folder_of_an_image_stay(folder):
    images = folder.root / "images" / "a"
    (images / "mine").mkdir(parents=True)
    (images / "mine" / "precious.txt").write_text("precious")
    (images / "notes.txt").write_text("notes")
    for outcome in (make_outcome("a"), make_outcome("a"), Outcome("a", {"id": "a", "status": "failed: gone"})):
        folder.write(outcome)
    assert files_of(folder, "a") == {"mine", "notes.txt"}
    assert (images / "mine" / "precious.txt").read_text() == "precious"


def test_every_file_of_a_run_is_replaced(folder):
    more = {
        "residual": torch.randn(3, 40, 2000),
        "restart_kernels": torch.rand(3, 9, 9),
        "restart_residuals": [1, 2, 3],
        "windows": [(0, 0, 20, 20)],
        "mask": torch.eye(2000)[None, :40],
        "tilt": torch.randn(2, 40, 2000),
        "true_tilt": torch.randn(2, 40, 2000),
    }
    folder.write(make_outcome("a", n=4, size=(40, 2000), frames=2, truth=True, more=more))
    assert len(files_of(folder, "a")) > 20
    (folder.root / "images" / "a" / ".0f.partial").touch()  # of a program that was killed
    folder.write(Outcome("a", {"id": "a", "status": "failed: gone"}))
    assert not (folder.root / "images" / "a").exists()


@pytest.mark.parametrize("task", [lambda f: f.write(make_outcome("a")), lambda f: f.finish(["a"], HEADER)])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, task):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can be written, got .*file.*: .+; set hydra\.run\.dir="):
        task(RunFolder(tmp_path / "file" / "run"))


def test_image_interrupted_while_it_is_redone_is_not_done(folder, monkeypatch):
    folder.write(make_outcome("a"))
    monkeypatch.setattr(writers, "panel", lambda outcome: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.write(make_outcome("a"))
    assert folder.done() == {}


def test_done_needs_an_ok_row_and_the_files(folder):
    assert folder.done() == {}
    for name, status in (("a", "ok"), ("b", "failed: diverged"), ("c", "ok")):
        folder.write(make_outcome(name, status=status))
    (folder.root / "images" / "c" / "restored.png").unlink()
    done = RunFolder(folder.root).done()
    assert list(done) == ["a"]
    assert done["a"] == make_outcome("a").row


def test_torn_last_line_is_ignored_and_then_removed(folder):
    for name in ("a", "b"):
        folder.write(make_outcome(name))
    results = folder.root / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-20])
    assert set(folder.done()) == {"a"}
    folder.write(make_outcome("c"))
    assert [row["id"] for row in lines(folder)] == ["a", "c"]


def test_first_line_torn(folder):
    folder.root.mkdir(parents=True)
    (folder.root / "results.jsonl").write_text('{"id": "a", "sta')
    assert folder.done() == {}
    folder.write(make_outcome("a"))
    assert [row["id"] for row in lines(folder)] == ["a"]


def test_retry_replaces_row_and_files(folder):
    folder.write(make_outcome("a", status="failed: NaN or infinite values", n=4, frames=2))
    folder.write(make_outcome("a", psnr=30.0))
    assert folder.done()["a"]["psnr"] == 30.0
    assert files_of(folder, "a") == BASE_FILES
    summary = folder.finish(["a"], HEADER)
    assert (summary["n"], summary["failed"]) == (1, 0)
    assert len(lines(folder)) == 1


def test_failed_image_keeps_what_can_be_drawn(folder):
    outcome = make_outcome("a", status="failed: NaN or infinite values", n=2, frames=2)
    outcome.image[0, 3, 4] = float("nan")
    outcome.kernel.fill_(float("inf"))
    outcome = dataclasses.replace(outcome, tilt=torch.full((2, 40, 48), float("nan")))
    outcome.frames[1][0].fill_(float("nan"))
    folder.write(outcome)
    expected = {"measurement.png", "mean.png", "std.png", "trace.json", "trace.gif", "panel.png"}
    assert files_of(folder, "a") == expected
    folder.write(Outcome("b", {"id": "b", "status": "failed: cannot be decoded"}))
    assert not (folder.root / "images" / "b").exists()
    assert [row["id"] for row in lines(folder)] == ["a", "b"]


def test_restoration_with_nan_is_not_passed_off_as_ok(folder):
    outcome = make_outcome("a")
    outcome.image[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        folder.write(outcome)
    assert folder.done() == {}


@pytest.mark.parametrize("name", ["../a", "a/b", "..", "."])
def test_id_cannot_leave_the_folder(folder, name):
    with pytest.raises(InputError, match="safe"):
        folder.write(make_outcome(name))


def test_finish_orders_rows_keeps_others_and_is_idempotent(folder):
    for name in ("b", "x", "a"):
        folder.write(make_outcome(name, psnr=20.0))
    summary = folder.finish(["a", "b", "not run"], HEADER)
    assert [row["id"] for row in lines(folder)] == ["a", "b", "x"]
    assert summary["n"] == 2
    assert json.loads((folder.root / "summary.json").read_text()) == summary
    before = {path: path.read_bytes() for path in folder.root.glob("*.*")}
    assert {path.name for path in before} == {"results.jsonl", "summary.json", "report.html"}
    assert folder.finish(["a", "b", "not run"], HEADER) == summary
    assert {path: path.read_bytes() for path in folder.root.glob("*.*")} == before


def test_no_temporary_files_remain(folder):
    folder.write(make_outcome("a", n=2, frames=2))
    folder.finish(["a"], HEADER)
    assert list(folder.root.rglob("*.partial")) == []


def test_summary_numbers():
    rng = np.random.default_rng(0)
    before, after, mnc = rng.normal(22, 2, 30), rng.normal(26, 3, 30), rng.uniform(0.6, 1, 30)
    rows = [
        {"id": str(i), "status": "ok", "sigma": 0.02, "seconds": float(i), "nfe": 25, "lpips": None}
        | {"psnr_measurement_aligned": before[i], "psnr_aligned": after[i], "kernel_mnc": mnc[i]}
        for i in range(30)
    ]
    rows[3]["kernel_mnc"] = None
    rows.append({"id": "bad", "status": "failed: diverged", "seconds": 1e6, "psnr_aligned": -1e6, "nfe": 3})
    summary = summarize(rows, HEADER | {"settings": {"seed": 0}})
    assert list(summary) == (
        "method experiment run_id n failed metrics seconds_per_image nfe device commit versions".split()
    )
    assert (summary["n"], summary["failed"], summary["nfe"]) == (31, 1, 25)
    assert summary["seconds_per_image"] == pytest.approx(np.arange(30).mean())
    assert set(summary["metrics"]) == {"psnr_measurement_aligned", "psnr_aligned", "kernel_mnc", "gain"}
    gain = summary["metrics"]["gain"]
    assert gain["mean"] == pytest.approx((after - before).mean())
    standard_error = (after - before).std() / 30**0.5
    np.testing.assert_allclose(
        np.array(gain["ci95"]) - gain["mean"], 1.96 * standard_error * np.array([-1, 1]), rtol=0.15
    )
    assert gain["n"] == 30
    assert summary["metrics"]["kernel_mnc"]["n"] == 29
    assert summary["metrics"]["kernel_mnc"]["mean"] == pytest.approx(np.delete(mnc, 3).mean())


def test_summary_of_failures_only():
    summary = summarize([{"id": "a", "status": "failed: x", "psnr": 3.0}], HEADER)
    assert summary["metrics"] == {}
    assert summary["seconds_per_image"] is None


def test_large_pictures_get_a_small_copy(folder):
    residual = torch.zeros(3, 40, 2000)
    folder.write(make_outcome("a", n=2, size=(40, 2000), more={"residual": residual}))
    copies = {name for name in files_of(folder, "a") if "preview" in name}
    assert copies == {f"{name}_preview.jpg" for name in ("measurement", "restored", "mean", "std", "residual")}
    with Image.open(folder.root / "images" / "a" / "restored_preview.jpg") as image:
        assert image.size == (1600, 32)
    folder.write(make_outcome("b", size=(40, 1600)))
    assert not any("preview" in name for name in files_of(folder, "b"))


def test_failed_image_with_a_broken_residual(folder):
    folder.write(make_outcome("a", status="failed: diverged", more={"residual": torch.full((3, 40, 48), torch.inf)}))
    assert "residual.png" not in files_of(folder, "a")


def colour_share(pixels: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    return ((pixels - colour.view(3, 1, 1)).abs().amax(0) < 0.01).float()
