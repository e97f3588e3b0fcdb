"""Where a number came from: device, commit, versions."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from codiffuse import __version__
from codiffuse.errors import InputError

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "timm",
    "torchmetrics",
    "lpips",
    "scikit-image",
    "numpy",
)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        InputError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"Expected device=auto, cpu, cuda or cuda:N, got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"Expected device=auto, cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Expected a CUDA GPU for device={name}, found none; use device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"Expected a GPU below cuda:{torch.cuda.device_count()}, got {name}; nvidia-smi lists them.")
    return device


def header(device: str, **names: Any) -> dict[str, Any]:
    """What `summary.json` says of a run beside its numbers."""
    return {**names, "device": device_name(device), "commit": commit(), "versions": versions()}


def device_name(device: str) -> str:
    """The device in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {"codiffuse": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` when it has changes; `None` outside one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
