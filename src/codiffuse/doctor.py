"""`codiffuse doctor`: what this machine offers, in words that help when something does not work."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from codiffuse.errors import InputError
from codiffuse.inference.provenance import versions
from codiffuse.methods.memory import free_bytes
from codiffuse.priors import zoo

DATA_SETS = (
    "bsds400",
    "bsd100",
    "faces96.tar",
    "faces_eval",
    "levin09",
    "kohler",
    "real_blur",
    "turbulence",
    "kernels",
)


def report() -> str:
    """The whole report, a line each."""
    sections = {
        "versions": [f"{name} {number}" for name, number in versions().items()],
        "devices": _devices(),
        "priors": _priors(),
        "data": _data(),
        "LPIPS weights": [_lpips()],
    }
    return "\n".join(line for title, lines in sections.items() for line in [title, *(f"  {line}" for line in lines)])


def _devices() -> list[str]:
    cpu = torch.device("cpu")
    lines = [
        f"cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()}, {free_bytes(cpu) / 2**30:.1f} GiB free"
    ]
    for index in range(torch.cuda.device_count()):
        free = free_bytes(torch.device("cuda", index)) / 2**30
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, {free:.1f} GiB free")
    if not torch.cuda.is_available():
        lines.append("cuda: none; runs use the CPU")
    return lines


def _priors() -> list[str]:
    lines = []
    for name in zoo.zoo_names():
        try:
            model = zoo.load(name)
            lines.append(f"{name}: ok, {zoo.count_parameters(model) / 1e6:.2f} M weights ({zoo.find(name)})")
        except InputError as error:
            lines.append(f"{name}: unusable: {error}")
    return lines or ["none found; set CODIFFUSE_ZOO to a folder of exported priors, or reinstall codiffuse"]


def _data() -> list[str]:
    from codiffuse.data.sources import data_root

    root = data_root()
    found = [name for name in DATA_SETS if (root / name).exists()]
    lines = [f"{root.absolute()}: {', '.join(found) or 'no data set found'}"]
    if not found:
        lines.append(
            "not needed for your own pictures; set CODIFFUSE_DATA for training and benchmarks (data/README.md)"
        )
    return lines


def _lpips() -> str:
    from codiffuse.metrics.perceptual import find_lpips_weights

    path: Path | None = find_lpips_weights()
    return str(path) if path else "none found; the lpips column will be empty"
