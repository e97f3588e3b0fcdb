"""Shared test fixtures: where the data are, and one thread each so that parallel workers do not fight."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} does not name a folder")
    return Path(value)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with the recorded numbers of the published programs."""
    return _folder("CODIFFUSE_FIXTURES")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the data sets."""
    return _folder("CODIFFUSE_DATA")


@pytest.fixture(scope="session")
def fixture_npz(fixtures_dir):
    """Loads one recorded `.npz` file by its path below the fixtures folder."""
    return lambda name: dict(np.load(fixtures_dir / name))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that reaches for the network fails at once instead of depending on it."""

    def refuse(self, address):
        raise RuntimeError(f"network access in a test: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory) -> Path:
    """A zoo with the names of the shipped priors, all tiny and untrained."""
    from toys import TINY_KERNEL_SPEC, TINY_PRIOR_SPEC, TINY_TILT_SPEC

    from codiffuse.priors import zoo

    denoiser = {
        "kind": "kernel_denoiser",
        "network": {"name": "DnCNN", "width": 8, "depth": 3, "bias": False, "residual": True},
    }
    root = tmp_path_factory.mktemp("zoo")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, spec in {
            "natural_image": TINY_PRIOR_SPEC,
            "kernel_denoiser": denoiser,
            "motion_kernel": TINY_KERNEL_SPEC,
            "gaussian_kernel": TINY_KERNEL_SPEC,
            "tilt": TINY_TILT_SPEC,
        }.items():
            network = zoo.network_of(zoo.build(spec))
            for parameter in network.out.parameters() if spec["kind"] == "prior" else ():
                torch.nn.init.normal_(parameter, std=0.02)  # an untrained UNet gives zero
            zoo.save(root / name, spec, network.state_dict(), f"# {name}\n")
    return root


@pytest.fixture
def use_tiny_zoo(tiny_zoo, monkeypatch) -> Path:
    """Lets prior names mean those of `tiny_zoo`."""
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tiny_zoo))
    return tiny_zoo


@pytest.fixture
def program(tmp_path, monkeypatch, use_tiny_zoo):
    """Calls an entry point with arguments, in a folder of its own: `program(cli.main, "doctor")`."""
    from programs import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards: the entry points set it
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path / "data"))
    return run


@pytest.fixture
def infer(program):
    """Calls `infer.py` with settings that take no time."""
    from programs import QUICK, once

    from codiffuse import cli

    return lambda *settings: program(cli.infer, *QUICK, *once(settings), *settings)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, `pictures/a.png` to `c.png`."""
    from PIL import Image
    from toys import picture

    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        Image.fromarray(picture(seed)).save(folder / f"{name}.png")
    return folder
