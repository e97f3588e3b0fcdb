"""What is shipped: the wheel outside the checkout, and the quality of the priors. Minutes, not seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import SHORT_RUN

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(command: list, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content, outside the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel", ROOT], folder)
    (wheel,) = (folder / "wheel").glob("*.whl")
    run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], folder)
    return folder


def test_the_wheel_restores_a_picture_outside_the_checkout(installed):
    code = "import codiffuse, sys; from codiffuse.cli import infer; print(codiffuse.__file__); infer()"
    settings = ["input=sample", "crop=64", "kernel_size=9", "threads=1", "lpips=false", *SHORT_RUN]
    elsewhere = {"PYTHONPATH": str(installed / "site"), "CODIFFUSE_ZOO": ""}
    out = run([sys.executable, "-c", code, *settings], installed, **elsewhere)
    assert str(installed / "site") in out.splitlines()[0]
    assert "1 of 1 images restored" in out
    report = Path(next(line for line in out.splitlines() if line.startswith("report:")).removeprefix("report:").strip())
    assert (installed / report).is_file()


@pytest.mark.timeout(900)  # minutes, of which a busy machine takes many
def test_the_shipped_priors_deblur(tmp_path):
    """Four packaged pictures; a bound well below what the README states, so that only a real loss of quality fails."""
    gains, matches = [], []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        settings = [
            f"input=sample:{name}",
            "crop=128",
            "precision=bfloat16",
            "threads=1",
            "lpips=false",
            "animate=false",
        ]
        run([sys.executable, ROOT / "infer.py", *settings, f"run_id={name}"], tmp_path, CODIFFUSE_ZOO="")
        metrics = json.loads((tmp_path / "outputs/infer" / name / "summary.json").read_text())["metrics"]
        gains.append(metrics["gain"]["mean"])
        matches.append(metrics["kernel_mnc"]["mean"])
    assert sum(gains) / 4 > 1.5, gains
    assert sum(matches) / 4 > 0.75, matches
