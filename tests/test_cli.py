"""The command line as people use it: what a run leaves, what it says when something is wrong, and that it goes on.

Most runs happen in this process, through the entry points themselves; a few start the real program.
"""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import assert_same_rows, picture

from codiffuse import cli
from codiffuse.inference import scoring
from codiffuse.methods.fast_em import FastEM

ROOT = Path(__file__).parents[1]
QUICK = ["kernel_size=9", "method.process.num_steps=2", "lpips=false"]


def once(settings) -> list[str]:
    """A single run of Fast EM, unless the settings name a method."""
    return [] if any(str(setting).startswith("method=") for setting in settings) else ["method=fast_em_once"]


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    def rows(self) -> list[dict]:
        """The lines of `results.jsonl`."""
        return [json.loads(line) for line in (self.folder / "results.jsonl").read_text().splitlines()]

    @property
    def folder(self) -> Path:
        """The run folder that it names."""
        page = next(line for line in self.out.splitlines() if line.startswith("report:"))
        return Path(page.removeprefix("report:").strip()).parent


@pytest.fixture
def program(tmp_path, monkeypatch, capsys, use_tiny_zoo):
    """Calls an entry point with arguments, in a folder of its own: `program(cli.main, "doctor")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: the entry points set it
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path / "data"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(entry, *arguments) -> Ended:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        code, last_words = 0, ""
        try:
            entry()
        except SystemExit as end:  # what the interpreter makes of it
            code, last_words = (1, f"{end.code}\n") if isinstance(end.code, str) else (end.code or 0, "")
        out, err = capsys.readouterr()
        return Ended(code, out, err + last_words)

    yield call
    for handler in root.handlers[:]:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def infer(program):
    """Calls `infer.py` with settings that take no time."""
    return lambda *settings: program(cli.infer, *QUICK, *once(settings), *settings)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, `pictures/a.png` to `c.png`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        Image.fromarray(picture(seed)).save(folder / f"{name}.png")
    return folder


def says(ended: Ended, *words: str) -> None:
    """One line on stderr with these words, and a code that scripts understand."""
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert ended.err.startswith("error: ")
    for word in words:
        assert word in ended.err, ended.err


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


def test_the_default_method(program, pictures):
    short = ["method.first.process.num_steps=2", "method.refine.process.num_steps=1"]
    ended = program(cli.infer, "input=pictures/a.png", "kernel_size=9", "lpips=false", *short)
    assert (ended.code, ended.err) == (0, "")
    row = ended.rows()[0]
    assert (row["method"], row["status"], row["nfe"]) == ("fast_em", "ok", 4 * 2 + 2 * 1)


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
        (["method=pigdm", "boundary=unknown"], (32, 32, 3)),  # what a kernel of 9 px leaves in view
        (["method=diffusion_em", "method.num_iterations=2", "method.e_step.process.num_steps=8"], (40, 40, 3)),
    ],
)
def test_pictures_blurred_here(program, pictures, settings, shape):
    steps = [] if "method=diffusion_em" in settings else ["method.process.num_steps=8"]
    blurred = ["data=blurred", "input=pictures", "sigma=5/255", "crop=40", "kernel_size=9", "lpips=false", "limit=2"]
    ended = program(cli.infer, *blurred, *steps, *once(settings), *settings)
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


# What it says when something is wrong


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
        (["input=pictures/a.png", "method=nope"], ["method/nope", "fast_em", "pigdm"]),
        (["input=pictures/a.png", "experiment=nope"], ["experiment/nope", "demo"]),
        (["input=pictures/a.png", "sgima=0.1"], ["sgima"]),
        (["input=pictures/a.png", "method.process.steps=3"], ["method.process.steps"]),
        (["input=pictures/a.png", "+method.process.steps=3"], ["ReverseProcess", "steps"]),
        (["input=pictures/a.png", "method.guidance._target_=codiffuse.nope.Nope"], ["codiffuse.nope.Nope"]),
        (["input=pictures/a.png", "method.process.num_steps=0"], ["between 1 and 1000"]),
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


def test_interrupting_is_no_error(infer, pictures, monkeypatch):
    def interrupt(self, measurement, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FastEM, "__call__", interrupt)
    ended = infer("input=pictures")
    assert ended.code == 130
    assert ended.err == "interrupted; the same command continues from here\n"


def test_a_bug_keeps_its_traceback(infer, pictures, monkeypatch):
    def fault(self, measurement, **_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(FastEM, "__call__", fault)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        infer("input=pictures")


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model=nope"], ["model/nope", "image_score"]),
        (["data=bsds400"], ["data/bsds400", "CODIFFUSE_DATA"]),
        (["learning_rate=1"], ["learning_rate"]),
        (["data=motion_kernels", "model=kernel_denoiser", "resume=perhaps"], ["auto", "'perhaps'"]),
    ],
)
def test_bad_settings_of_train(program, settings, words):
    says(program(cli.train, *settings), *words)


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
