"""The command line as people use it: what a run leaves, that it goes on, and the other commands.

Most runs happen in this process, through the entry points themselves; a few start the real program.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import QUICK, once, says
from toys import SHORT_RUN, SHORT_RUN_STEPS, assert_same_rows, picture

from codiffuse import cli
from codiffuse.inference import scoring
from codiffuse.methods.fast_em import FastEM

ROOT = Path(__file__).parents[1]


# What a run leaves


def test_a_photograph(infer, pictures):
    ended = infer("input=pictures/a.png")
    assert (ended.code, ended.err) == (0, "")
    assert "1 of 1 images restored" in ended.out
    files = {path.relative_to(ended.folder).as_posix() for path in ended.folder.rglob("*") if path.is_file()}
    made = "measurement.png restored.png kernel.png kernel.npy panel.png trace.json trace.gif".split()
    assert {f"images/a/{name}" for name in made} < files
    assert {"config.yaml", "results.jsonl", "summary.json", "report.html"} < files
    row = ended.rows()[0]
    assert (row["id"], row["method"], row["status"], row["nfe"]) == ("a", "fast_em_once", "ok", 2)
    summary = json.loads((ended.folder / "summary.json").read_text())
    assert (summary["n"], summary["failed"], summary["method"]) == (1, 0, "fast_em_once")


def test_the_defaults(program, pictures):
    ended = program(cli.infer, "input=pictures/a.png", "kernel_size=17", "lpips=false", *SHORT_RUN)
    assert (ended.code, ended.err) == (0, "")
    row = ended.rows()[0]
    assert (row["method"], row["status"], row["nfe"]) == ("fast_em", "ok", SHORT_RUN_STEPS)
    assert 0 <= row["trust"] <= 1
    assert isinstance(row["flags"], list)
    assert (ended.folder / "images/a/std.png").exists()


def test_the_same_command_again_does_nothing(infer, pictures, monkeypatch):
    first = infer("input=pictures")
    files = sorted(first.folder.glob("images/*/*"))
    before = [path.stat().st_mtime_ns for path in files]
    monkeypatch.setattr(FastEM, "__call__", None)  # calling it would raise
    second = infer("input=pictures")
    assert (second.code, second.folder) == (0, first.folder)
    assert "3 of 3 images are done already" in second.out
    assert [path.stat().st_mtime_ns for path in files] == before
    assert len(second.rows()) == 3


def test_a_run_goes_on_with_other_means(infer, pictures):
    one = infer("input=pictures", "limit=1")
    rest = infer("input=pictures", "batch_size=2", "animate=false")
    assert rest.folder == one.folder
    assert "1 of 3 images are done already" in rest.out
    assert [row["id"] for row in rest.rows()] == ["a", "b", "c"]


def test_a_limit_takes_no_picture_out_of_the_report(infer, pictures):
    whole = infer("input=pictures")
    summary = json.loads((whole.folder / "summary.json").read_text())
    one = infer("input=pictures", "limit=1")
    assert (one.code, one.folder) == (0, whole.folder)
    assert "1 of 1 images are done already" in one.out
    assert json.loads((whole.folder / "summary.json").read_text()) == summary
    assert summary["n"] == 3
    page = (whole.folder / "report.html").read_text()
    assert all(f"images/{name}/restored.png" in page for name in "abc")


def test_a_failure_beyond_the_limit_is_no_failure_of_this_run(infer, pictures):
    (pictures / "c.png").write_bytes(b"")
    assert infer("input=pictures").code == 1
    again = infer("input=pictures", "limit=1")
    assert (again.code, again.err) == (0, "")
    assert "2 of 3 images restored" in again.out


def test_a_replaced_picture_is_restored_again(infer, pictures):
    first = infer("input=pictures/a.png")
    before = np.asarray(Image.open(first.folder / "images/a/restored.png"), float)
    Image.fromarray(255 - picture(0)).save(pictures / "a.png")
    second = infer("input=pictures/a.png")
    assert (second.code, second.folder) == (0, first.folder)
    assert "a: the picture has changed" in second.out
    assert "done already" not in second.out
    after = np.asarray(Image.open(first.folder / "images/a/restored.png"), float)
    assert np.abs(after - before).mean() > 30
    assert len(second.rows()) == 1


def test_a_folder_with_a_bad_picture(infer, pictures):
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    ended = infer("input=pictures")
    says(ended, "b failed", "b.png", "truncated", "get it again")
    assert "2 of 3 images restored" in ended.out
    assert [row["status"] == "ok" for row in ended.rows()] == [True, False, True]
    assert (ended.folder / "images/c/restored.png").exists()
    assert "truncated" in (ended.folder / "report.html").read_text()
    assert json.loads((ended.folder / "summary.json").read_text())["failed"] == 1


@pytest.mark.parametrize("name", ["IMG (1), it's [me].jpg", "2024", "null", "Füße=a b#c.png"])
def test_names_that_mean_something_to_hydra(infer, pictures, name):
    Image.fromarray(picture(0)).save(name, format="PNG")
    ended = infer(f"input={name}")
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.rows()) == 1


def test_particles_have_a_mean_and_a_spread(infer, pictures):
    ended = infer("input=pictures/a.png", "num_particles=4")
    assert ended.code == 0
    assert Image.open(ended.folder / "images/a/mean.png").size == (48, 40)
    assert np.asarray(Image.open(ended.folder / "images/a/std.png")).max() > 0


@pytest.mark.parametrize("boundary", ["unknown", "reflect"])
def test_boundaries(infer, pictures, boundary):
    ended = infer("input=pictures/a.png", f"boundary={boundary}")
    assert ended.code == 0
    assert Image.open(ended.folder / "images/a/restored.png").size == (48, 40)


@pytest.mark.parametrize("size", [3, 8])
def test_kernels_may_be_even_or_tiny(infer, pictures, size):
    ended = infer("input=pictures/a.png", f"kernel_size={size}")
    assert ended.code == 0
    assert np.load(ended.folder / "images/a/kernel.npy").shape == (size, size)


def test_a_metric_without_its_weights_is_null_and_said_once(infer, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("CODIFFUSE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    scoring._lpips.cache_clear()
    blurred = infer("data=blurred", "input=pictures", "sigma=0.02", "lpips=true", "method.process.num_steps=8")
    assert [row["lpips"] for row in blurred.rows()] == [None] * 3
    assert blurred.out.count("lpips is null") == 1
    assert "lpips" not in infer("input=pictures", "lpips=true").out  # nothing to compare with


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (["data.law._target_=codiffuse.simulate.gaussian.GaussianKernels"], (40, 40, 3)),
        (["data.law._target_=codiffuse.simulate.motion.CameraShakeKernels", "data.gray=true"], (40, 40, 1)),
        (["method=pigdm", "boundary=unknown", "crop=32"], (32, 32, 3)),  # 40 px are there, for a kernel of 9 px
        (["method=diffusion_em", "method.num_iterations=2", "method.e_step.process.num_steps=8"], (40, 40, 3)),
    ],
)
def test_pictures_blurred_here(program, pictures, settings, shape):
    quick = [setting for setting in QUICK if "num_steps" not in setting]
    steps = [] if "method=diffusion_em" in settings else ["method.process.num_steps=8"]
    blurred = ["data=blurred", "input=pictures", "sigma=5/255", "crop=40", "limit=2"]
    ended = program(cli.infer, *quick, *blurred, *steps, *once(settings), *settings)
    assert (ended.code, ended.err) == (0, "")
    assert "PSNR before" in ended.out
    for row in ended.rows():
        assert row["psnr_aligned"] > 5
        assert row["kernel_mnc"] > 0
        truth = Image.open(ended.folder / "images" / row["id"] / "truth.png")
        assert (*truth.size[::-1], len(truth.getbands())) == shape


def test_a_benchmark(infer, tmp_path):
    (tmp_path / "data/bsd100").mkdir(parents=True)
    for seed in range(3):
        Image.fromarray(picture(seed, (70, 80))).save(tmp_path / f"data/bsd100/{seed}.png")
    ended = infer("experiment=bench/bsd100_motion", "limit=2", "crop=64")
    assert (ended.code, ended.err) == (0, "")
    summary = json.loads((ended.folder / "summary.json").read_text())
    assert (summary["experiment"], summary["n"]) == ("bsd100_motion", 2)
    low, high = summary["metrics"]["psnr_aligned"]["ci95"]
    assert low <= summary["metrics"]["psnr_aligned"]["mean"] <= high
    assert summary["run_id"].startswith("bsd100_motion/fast_em_once-")


# The other commands


def test_doctor(program, use_tiny_zoo):
    ended = program(cli.main, "doctor")
    assert (ended.code, ended.err) == (0, "")
    assert f"torch {torch.__version__.partition('+')[0]}" in ended.out
    assert "natural_image: ok" in ended.out
    assert str(use_tiny_zoo) in ended.out
    assert "no data set found" in ended.out
    assert "CODIFFUSE_DATA" in ended.out


def test_doctor_finds_what_is_broken(program, tmp_path, monkeypatch):
    broken = tmp_path / "own/broken"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("kind: nothing")
    (tmp_path / "data/bsd100").mkdir(parents=True)
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path / "own"))
    ended = program(cli.main, "doctor")
    assert "broken: unusable: Expected kind" in ended.out
    assert f"{tmp_path / 'data'}: bsd100" in ended.out


def test_zoo_lists_names_and_folders(program, use_tiny_zoo):
    lines = program(cli.main, "zoo").out.splitlines()
    assert ["natural_image", str(use_tiny_zoo / "natural_image")] in [line.split() for line in lines]


def test_infer_by_its_other_name(program, pictures):
    assert program(cli.main, "infer", "input=pictures/a.png", *once(()), *QUICK).code == 0


def test_train_then_export_then_infer(program, infer, pictures, tmp_path, monkeypatch, use_tiny_zoo):
    small = [
        "model.spec.network.width=8",
        "model.spec.network.depth=3",
        "data.batch_size=2",
        "+data.validation_samples=2",
    ]
    trainer = ["trainer=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    command = ["model=kernel_denoiser", "data=motion_kernels", "callbacks=none", *small, *trainer]
    assert program(cli.train, *command).code == 0
    run = tmp_path / "outputs/train/kernel_denoiser"
    again = program(cli.train, *command)  # the same name resumes
    assert (again.code, "Resuming from" in again.out) == (0, True)
    exported = program(cli.main, "export", run / "checkpoints/last.ckpt", tmp_path / "mine")
    assert (exported.code, exported.out) == (0, f"{tmp_path / 'mine'}\n")
    assert "2 training steps" in (tmp_path / "mine/README.md").read_text()
    ended = infer("input=pictures/a.png", f"prior.kernel_denoiser.name={tmp_path / 'mine'}")
    assert (ended.code, ended.err) == (0, "")


# The real program


@pytest.mark.parametrize("name", ["infer.py", "train.py"])
def test_help_is_quick(name, tmp_path):
    command = [sys.executable, "-X", "importtime", ROOT / name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "Groups (group=option)" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "codiffuse.cli" in imported
    assert imported.isdisjoint({"torchmetrics", "timm", "pytorch_lightning", "lpips", "skimage", "matplotlib"})


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_run_goes_on(infer, pictures, tmp_path, use_tiny_zoo):
    settings = ["input=pictures", "method=fast_em_once", "method.process.num_steps=50", "threads=1", "animate=false"]
    whole = infer(*settings, "run_id=whole").rows()

    results = tmp_path / "outputs/infer/killed/results.jsonl"
    command = [sys.executable, ROOT / "infer.py", *QUICK, *settings, "run_id=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and not whole_lines(results):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = whole_lines(results)
    assert 1 <= done < 3

    ended = infer(*settings, "run_id=killed")
    assert f"{done} of 3 images are done already" in ended.out
    assert_same_rows(ended.rows(), whole, 1e-4)
