"""What the command line says when something is wrong: one line, and a code that scripts understand."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import QUICK, once, says
from toys import picture

from codiffuse import cli
from codiffuse.methods.fast_em import FastEM


def write(name: str) -> None:
    """A file that cannot be restored, for the reason in its name."""
    match Path(name):
        case Path(stem="empty"):
            Path(name).touch()
        case Path(stem="text"):
            Path(name).write_text("no picture\n")
        case Path(stem="truncated"):
            Image.fromarray(picture(0)).save(name)
            Path(name).write_bytes(Path(name).read_bytes()[:300])
        case Path(stem="pixel"):
            Image.fromarray(picture(0)[:1, :1]).save(name)
        case Path(stem="nothing"):
            np.save(name, np.zeros((0, 48, 3), np.float32))
        case Path(stem="nan" | "inf" as value):
            np.save(name, np.full((40, 48), float(value), np.float32))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", ["nothing is there", "check the path"]),
        ("empty.png", ["got an empty file", "again"]),
        ("truncated.jpg", ["cannot be decoded", "get it again"]),
        ("text.png", ["cannot be decoded", "convert it to PNG"]),
        ("nan.npy", ["expected finite values", "replace"]),
        ("inf.npy", ["expected finite values", "replace"]),
        ("nothing.npy", ["at least 32 x 32", "0 x 48"]),
        ("pixel.png", ["at least 32 x 32", "1 x 1", "larger"]),
    ],
)
def test_bad_pictures(infer, name, words):
    write(name)
    says(infer(f"input={name}"), name, "xpected", *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["input"]),
        (["input=2024"], ["file, folder", "2024"]),
        (["input=null"], ["file, folder", "None"]),
        (["input=pictures/a.png,pictures/b.png"], ["list"]),
        (["input=pictures (1)/a.png"], ["mismatched"]),
        (["input=pictures/a.png", "kernel_size=51"], ["40 x 48", "51 x 51", "smaller kernel"]),
        (["input=pictures/a.png", "kernel_size=0"], ["at least 1", "kernel_size"]),
        (["input=pictures/a.png", "kernel_size=abc"], ["whole number", "'abc'"]),
        (["input=pictures/a.png", "num_particles=0"], ["at least 1", "num_particles"]),
        (["input=pictures/a.png", "batch_size=-1"], ["at least 1", "batch_size"]),
        (["input=pictures/a.png", "threads=-1"], ["at least 1", "threads"]),
        (["input=pictures/a.png", "limit=0"], ["at least 1", "limit"]),
        (["input=pictures/a.png", "sigma=0"], ["0 < sigma < 1", "sigma="]),
        (["input=pictures/a.png", "sigma=-1"], ["0 < sigma < 1", "-1"]),
        (["input=pictures/a.png", "sigma=nan"], ["0 < sigma < 1", "nan"]),
        (["input=pictures/a.png", "sigma=abc"], ["5/255", "'abc'"]),
        (["input=pictures/a.png", "sigma=5/0"], ["5/255", "'5/0'"]),
        (["input=pictures/a.png", "boundary=round"], ["circular", "'round'"]),
        (["input=pictures/a.png", "precision=float8"], ["bfloat16", "'float8'"]),
        (["input=pictures/a.png", "device=tpu"], ["cuda:N", "'tpu'"]),
        (["input=pictures/a.png", "device=meta"], ["cuda:N", "'meta'"]),
        (["input=pictures/a.png", "method=nope"], ["error: In 'infer'", "method/nope", "fast_em", "pigdm"]),
        (["input=pictures/a.png", "method=3"], ["error: In 'infer'", "method/3", "fast_em", "pigdm"]),
        (["input=pictures/a.png", "pipeline=true"], ["error: In 'infer'", "pipeline/true", "photograph"]),
        (["input=pictures/a.png", "+experiment=1e3"], ["experiment/1e3"]),
        (["input=pictures/a.png", "guidance@method.guidance=-1"], ["guidance/-1", "dps"]),
        (["input=pictures/a.png", "prior@prior=null"], ["names of options", "NoneType"]),
        (["input=pictures/a.png", "experiment=nope"], ["error: In 'infer'", "experiment/nope", "demo"]),
        (["input=pictures/a.png", "sgima=0.1"], ["sgima"]),
        (["input=pictures/a.png", "method.process.steps=3"], ["method.process.steps"]),
        (["input=pictures/a.png", "+method.process.steps=3"], ["ReverseProcess", "steps"]),
        (["input=pictures/a.png", "method.guidance._target_=codiffuse.nope.Nope"], ["codiffuse.nope.Nope"]),
        (["input=pictures/a.png", "method.process.num_steps=0"], ["from 1 to 1000"]),
        (["input=pictures/a.png", "method=blind_dps", "method.process.num_steps=1000"], ["1 to 600", "start=1"]),
        (["input=pictures/a.png", "method=blind_dps", "method.guidance.data_variance=3"], ["of each unknown", "got 3"]),
        (["input=pictures/a.png", "method=pigdm"], ["true kernel", "blind method"]),
        (["input=pictures/a.png", "prior.image.name=nope"], ["natural_image", "'nope'"]),
        (["input=pictures/a.png", "prior.image.name=kernel_denoiser"], ["kind 'prior'", "kernel_denoiser"]),
        (["data=blurred", "input=pictures/a.png"], ["noise level", "sigma=5/255"]),
        (["data=blurred", "input=pictures/a.png", "sigma=0.1", "crop=0"], ["at least 1", "crop"]),
        (["data=blurred", "input=pictures/a.png", "sigma=0.1", "crop=64"], ["64 x 64", "40 x 48", "smaller crop"]),
        (["data=blurred", "input=pictures/a.png", "sigma=0.1", "kernel_size=1"], ["at least 3", "size=1"]),
        (["experiment=bench/bsd100_motion"], ["bsd100"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if value and "=" in value[-1] else "",
)
def test_bad_settings(infer, pictures, settings, words):
    says(infer(*settings), *words)


def test_a_sweep_over_what_is_no_name(program, pictures):
    says(program(cli.infer, "-m", "input=pictures/a.png", "pipeline=3,photograph"), "names of options", "int")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(infer, pictures):
    says(infer("input=pictures/a.png", "device=cuda"), "device=cuda", "device=cpu")


def test_a_gpu_that_is_not_there(infer, pictures, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    says(infer("input=pictures/a.png", "device=cuda:2"), "below cuda:2", "got cuda:2")


def test_a_prior_whose_weights_do_not_fit(infer, pictures, use_tiny_zoo, tmp_path):
    from codiffuse.priors import zoo

    spec = zoo.read_spec(use_tiny_zoo / "natural_image")
    spec["network"]["channels"] = 16
    zoo.save(tmp_path / "wide", spec, zoo.read_weights(use_tiny_zoo / "natural_image"), "# Wide\n")
    says(infer("input=pictures/a.png", f"prior.image.name={tmp_path / 'wide'}"), "of shape", "another architecture")


def test_a_run_folder_keeps_its_settings(infer, pictures):
    first = infer("input=pictures/a.png", "run_id=mine")
    before = (first.folder / "config.yaml").read_text()
    says(infer("input=pictures/a.png", "run_id=mine", "seed=1", "sigma=0.1"), "data, seed, sigma", "another run_id")
    assert (first.folder / "config.yaml").read_text() == before


@pytest.mark.parametrize("foreign", ["images/a/precious.txt", "config.yaml", "report.html", "results.jsonl"])
def test_a_folder_of_something_else_is_left_alone(infer, pictures, tmp_path, foreign):
    path = tmp_path / "proj" / foreign
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}\n')
    says(infer("input=pictures/a.png", "hydra.run.dir=proj"), "proj", foreign.partition("/")[0], "hydra.run.dir=")
    assert path.read_text() == '{"mine": 1}\n'
    ours = {"config.yaml", "images", "results.jsonl", "summary.json", "report.html"}
    assert {each.name for each in (tmp_path / "proj").iterdir()} & ours == {foreign.partition("/")[0]}


@pytest.mark.parametrize("name", ["/dev/null/x", "/proc/foo", "pictures/a.png", "logless"])
def test_a_run_folder_that_cannot_be_made(infer, pictures, tmp_path, name):
    (tmp_path / "logless" / "infer.log").mkdir(parents=True)
    reasons = ("Not a directory", "No such file", "File exists", "Is a directory")
    ended = infer("input=pictures/a.png", f"hydra.run.dir={name}")
    says(ended, name, "can be written", "set hydra.run.dir=")
    assert any(reason in ended.err for reason in reasons)


@pytest.mark.parametrize("name", ["images", "config.yaml", "summary.json"])
def test_a_run_folder_that_cannot_be_written(infer, pictures, name):
    first = infer("input=pictures/a.png", "run_id=mine")
    for path in sorted((first.folder / name).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (first.folder / name).rmdir() if name == "images" else (first.folder / name).unlink()
    (first.folder / name).mkdir() if name != "images" else (first.folder / name).touch()
    ended = infer("input=pictures/a.png", "run_id=mine")
    says(ended, "set hydra.run.dir=")


def test_other_weights_of_the_same_name_are_other_settings(infer, pictures, use_tiny_zoo, tmp_path, monkeypatch):
    from codiffuse.priors import zoo

    infer("input=pictures/a.png", "run_id=mine")
    shutil.copytree(use_tiny_zoo, tmp_path / "zoo")
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path / "zoo"))
    assert "1 of 1 images are done already" in infer("input=pictures/a.png", "run_id=mine").out
    weights = {name: 2 * value for name, value in zoo.read_weights(tmp_path / "zoo/natural_image").items()}
    zoo.save(tmp_path / "zoo/natural_image", zoo.read_spec(tmp_path / "zoo/natural_image"), weights, "# Other\n")
    says(infer("input=pictures/a.png", "run_id=mine"), "others for weights", "another run_id")


@pytest.mark.parametrize(("sizes", "words"), [("0,9", "at least 1"), ("51,9", "a failed: .*smaller kernel")])
def test_a_sweep_goes_on_after_a_job_that_failed(program, pictures, tmp_path, sizes, words):
    settings = [*once(()), *QUICK, "input=pictures/a.png", "run_id=sweep-${kernel_size}", f"kernel_size={sizes}"]
    ended = program(cli.infer, "-m", *settings)
    says(ended, "error: job #0: ")
    assert re.search(words, ended.err)
    folder = tmp_path / "outputs/infer/sweep-9"
    assert json.loads((folder / "results.jsonl").read_text())["status"] == "ok"
    assert (folder / "report.html").exists()


def test_interrupting_is_no_error(infer, pictures, monkeypatch):
    def interrupt(self, measurement, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FastEM, "__call__", interrupt)
        ended = infer("input=pictures", "run_id=mine")
    assert ended.code == 130
    assert ended.err == "interrupted; the same command continues from here\n"
    assert infer("input=pictures", "run_id=mine", "seed=1").code == 0  # nothing was made with the other seed


@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError, ValueError])
def test_a_bug_keeps_its_traceback(infer, pictures, monkeypatch, kind):
    def fault(self, measurement, **_):
        raise kind("a bug")

    monkeypatch.setattr(FastEM, "__call__", fault)
    with pytest.raises(kind, match="a bug"):
        infer("input=pictures")


class Unsafe:
    def __reduce__(self):
        return os.mkdir, ("broken_in",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["found none"]),
        (b"", ["damaged or other file"]),
        (b"no checkpoint", ["damaged or other file"]),
        ({"state_dict": {}, "callbacks": Unsafe()}, ["was not loaded"]),
        ({"state_dict": {}}, ["train.py", "without model and weights"]),
    ],
    ids=["missing", "empty", "text", "unsafe", "foreign"],
)
def test_export_refuses_what_it_cannot_trust(program, tmp_path, content, words):
    if isinstance(content, dict):
        torch.save(content, tmp_path / "last.ckpt")
    elif content is not None:
        (tmp_path / "last.ckpt").write_bytes(content)
    says(program(cli.main, "export", "last.ckpt", "mine"), "Expected", "last.ckpt", *words)
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model=nope"], ["model/nope", "image_score"]),
        (["experiment=zoo/nope"], ["error: In 'train'", "experiment/zoo/nope"]),
        (["data=bsds400"], ["data/bsds400", "CODIFFUSE_DATA"]),
        (["learning_rate=1"], ["learning_rate"]),
        (["data=motion_kernels", "model=kernel_denoiser", "resume=perhaps"], ["auto", "'perhaps'"]),
    ],
)
def test_bad_settings_of_train(program, settings, words):
    says(program(cli.train, *settings), *words)
