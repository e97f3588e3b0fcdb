"""The paper's experiments: each is one command, runs, and differs from the next in what its figure is about."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import QUICK
from toys import picture

from codiffuse import cli

EXPERIMENTS = sorted(path.stem for path in (cli.config_dir() / "experiment/blinddps").glob("*.yaml"))
SWEEPS = {"sparsity": 4, "uniform_prior": 2}  # how many runs one command makes
SMALL = {
    "kernel_sizes": ["data.law.size=5", "method.kernel_crop=5", "crop=48"],
    "pictures": ["crop=160"],
    "scale_space": ["crop=160"],
}


@pytest.fixture
def experiment(program, tmp_path):
    """Calls a quick run of an experiment; its end, and the folders that it left with their rows."""
    for folder in ("bsd100", "levin09/gt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for seed in range(2):
        Image.fromarray(picture(seed, (64, 70))).save(tmp_path / f"data/bsd100/{seed}.png")
    Image.fromarray(np.diag([200] * 7).astype(np.uint8)).save(tmp_path / "data/levin09/gt/kernel1.png")

    def call(name, *settings) -> tuple[object, dict[Path, list[dict]]]:
        quick = [f"experiment=blinddps/{name}", *QUICK[1:], "limit=1", *SMALL.get(name, ["crop=48"])]
        ended = program(cli.infer, *quick, *settings)
        found = sorted((tmp_path / "outputs/infer").glob(f"blinddps_{name}/*/results.jsonl"))
        return ended, {file.parent: [json.loads(line) for line in file.read_text().splitlines()] for file in found}

    return call


def test_the_docs_list_every_one():
    page = (Path(__file__).parents[1] / "docs/methods.md").read_text()
    listed = re.findall(r"^\|.*\| `python infer\.py (?:-m )?experiment=blinddps/(\w+)", page, re.MULTILINE)
    assert sorted(listed) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_command(experiment, name):
    ended, runs = experiment(name)
    assert (ended.code, ended.err) == (0, "")
    assert len(runs) == SWEEPS.get(name, 1)
    for folder, [row] in runs.items():
        assert (row["status"], row["nfe"], row["sigma"]) == ("ok", 2, 0.01)
        assert row["step_factor"] <= 1
        assert row["kernel_mnc"] > 0
        assert (row["tilt_epe"] is not None) == (name == "turbulence")
        [image] = (folder / "images").iterdir()
        size = 5 if name == "kernel_sizes" else 9
        assert np.load(image / "kernel.npy").squeeze().shape == (size, size)
        assert json.loads((folder / "summary.json").read_text())["experiment"] == f"blinddps_{name}"
        with Image.open(image / "trace.gif") as trace:  # Fig. 1 (c): image and kernel side by side, at every step
            assert trace.n_frames == 2
            assert trace.width > 1.5 * trace.height
    rows = [row for [row] in runs.values()]
    assert len({row["psnr_measurement"] for row in rows}) == 1
    assert len({row["kernel_mnc"] for row in rows}) == len(rows)  # what is swept acts


def test_the_tilts_of_the_table_have_the_published_rms(monkeypatch, tmp_path):
    """0.41 px over a whole field of 256 px (blind-dps, recorded); those of the benchmark have that of its middle."""
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path))
    for name, expected in (("blinddps/turbulence", 0.41), ("bench/bsd100_turbulence", 0.55)):
        plain, _ = cli.compose_infer({}, [f"experiment={name}"])
        source = cli.measurements({"data": plain["data"] | {"input": "sample"}})
        fields = [source.tilt_law(np.random.default_rng(seed)) for seed in range(4)]
        assert float(torch.stack(fields).std()) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("method", ["ilvr", "dps", "blind_dps_paper"])
def test_what_turbulence_is_compared_with(experiment, method):
    ended, runs = experiment("turbulence", f"method={method}")
    assert (ended.code, ended.err) == (0, "")
    [[row]] = runs.values()
    assert row["method"] == method


def test_a_table_may_be_swept(experiment):
    ended, runs = experiment("motion", "hydra.mode=MULTIRUN", "noise=gaussian,poisson")
    assert (ended.code, ended.err) == (0, "")
    assert {rows[0].get("noise") for rows in runs.values()} == {None, "poisson"}
