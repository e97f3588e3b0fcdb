"""Checkpoints that the authors of papers publish, as priors: `.pt` and `.pth` files with the weights of one network.

Such a file does not say what network it is of. It is recognised by names and shapes of all of its weights, strictly: it
either is one of `PUBLISHED`, or it is refused. The networks take any size of input, as they are convolutional, but for
their attention: they were trained on images of 256 px and kernels of 64 px, and attend where the feature maps are 16 px
wide then (ImageNet: 32, 16 and 8 px). A `UNet` does so at these levels, whatever the size of its input.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.priors.spec import build, misfits, network_of

SUFFIXES = (".pt", ".pth")
TABLES = ("sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod")  # of the schedule, which deepinv keeps among the weights
AGAIN = "download it again, with a browser"  # what mends a bad file


@dataclass(frozen=True)
class Published:
    """A network whose weights are published.

    Attributes:
        title: what it is.
        files: names that its file goes by.
        part: `prior.PART.name` is the setting it is for.
        page: that links to the file.
        spec: of the prior or kernel denoiser.
    """

    title: str
    files: tuple[str, ...]
    part: str
    page: str
    spec: Mapping[str, Any]


def _prior(
    space: Mapping[str, Any],
    channels: int,
    width: int,
    attention_levels: Sequence[int],
    channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
    num_res_blocks: int = 1,
) -> dict[str, Any]:
    """A guided-diffusion UNet that predicts noise and variance, trained on the 1000 steps of the linear chain."""
    network = {
        "name": "UNet",
        "in_channels": channels,
        "out_channels": 2 * channels,
        "channels": width,
        "channel_mult": channel_mult,
        "num_res_blocks": num_res_blocks,
        "attention_levels": attention_levels,
        "head_channels": 64,
    }
    return {
        "kind": "prior",
        "network": network,
        "parameterization": {"name": "EpsPrediction"},
        "time": {"name": "LinearStepTime", "num_steps": 1000},
        "space": space,
        "learned_variance": True,
    }


def _denoiser(bias: bool) -> dict[str, Any]:
    return {
        "kind": "kernel_denoiser",
        "network": {"name": "DnCNN", "channels": 1, "width": 32, "depth": 5, "bias": bias},
    }


IMAGE = {"name": "ImageSpace"}
# The released sampler divides (k0 + 1) / 2 by its sum, so whatever scale kernels had in training is as good; blurs by
# cross-correlation; clips tilts to +-1 and takes them for pixels.
KERNEL = {"name": "KernelSpace", "scaling": "max", "rotated": True}
TILT = {"name": "TiltSpace", "max_tilt_px": 1.0}
DPS = "github.com/DPS2022/diffusion-posterior-sampling"
BLIND_DPS = "github.com/BlindDPS/blind-dps"
FAST_EM = "github.com/claroche-r/FastDiffusionEM"
KERNEL_DENOISERS = ("kernel_denoiser.pth", "kernel_denoiser_33.pth", "kernel_denoiser_64.pth")

PUBLISHED: tuple[Published, ...] = (
    Published("FFHQ image network", ("ffhq_10m.pt",), "image", DPS, _prior(IMAGE, 3, 128, (4,))),
    Published(
        "ImageNet image network",
        ("imagenet256.pt",),
        "image",
        DPS,
        _prior(IMAGE, 3, 256, (3, 4, 5), num_res_blocks=2),
    ),
    Published(
        "BlindDPS kernel network",
        ("kernel_checkpoint.pt",),
        "kernel",
        BLIND_DPS,
        _prior(KERNEL, 1, 64, (2,), channel_mult=(1, 2, 3, 4)),
    ),
    Published("BlindDPS tilt network", ("tilt_checkpoint.pt",), "tilt", BLIND_DPS, _prior(TILT, 2, 64, (4,))),
    Published("Fast EM kernel denoiser", KERNEL_DENOISERS, "kernel_denoiser", FAST_EM, _denoiser(True)),
    Published("Fast EM kernel denoiser without biases", (), "kernel_denoiser", FAST_EM, _denoiser(False)),
)


def is_name(name: str | Path) -> bool:
    """Whether a prior's name is that of a checkpoint's file."""
    return Path(name).suffix.lower() in SUFFIXES


def find(name: str | Path) -> Path:
    """The file of a checkpoint.

    Raises:
        InputError: there is none; the message tells who publishes files of this name.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    for each in PUBLISHED:
        if path.name in each.files:
            where = f"the README of {each.page} links to it; set prior.{each.part}.name= to where it lies"
            raise InputError(f"Expected the {each.title} at {path}, found none; {where}.")
    known = ", ".join(file for each in PUBLISHED for file in each.files)
    raise InputError(f"Expected a published checkpoint ({known}) at {path}, found none; check the path.")


def spec_and_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Spec and network weights, float32, of a published checkpoint.

    Raises:
        InputError: the file is missing, damaged, something else, holds pickled objects, or is of an unknown network.
    """
    state = load_plain(path, AGAIN)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"Expected nothing but the weights of a network in {path}, got {_described(state)}.")
    weights = {str(key): value.float() for key, value in state.items() if key not in TABLES}
    return dict(recognise(weights, path).spec), weights


def recognise(weights: Mapping[str, Tensor], origin: Path) -> Published:
    """The published network that has these weights.

    Raises:
        InputError: none has exactly these; the message says what the nearest one has not, or has in another shape.
    """
    differing: list[tuple[Published, list[str]]] = []
    for each in PUBLISHED:
        found = list(misfits(network_of(build(each.spec, "meta")), weights))
        if not found:
            return each
        differing.append((each, found))
    nearest, (first, *others) = min(differing, key=lambda pair: len(pair[1]))
    count = f" and {len(others)} more do not fit" if others else ""
    raise InputError(
        f"Expected the weights of a published network in {origin}, nearest is the {nearest.title}, but {first}{count}; "
        "another network needs a folder with config.yaml."
    )


def load_plain(path: Path, again: str) -> Any:
    """What `torch.save` wrote into a file, if these are plain tensors and containers, on the CPU; no code is run.

    Args:
        path: of the file.
        again: what mends a bad file, the end of the message.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    wrong = _wrong(path)
    if wrong:
        raise InputError(f"Expected a checkpoint at {path}, {wrong}; {again}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of nearly any kind, depending on which bytes are not what they should be
        raise InputError(
            f"Expected a checkpoint of plain tensors at {path}; it is damaged or holds pickled objects, which could "
            f"run code, so it was not loaded; {again}."
        ) from error


def _wrong(path: Path) -> str | None:
    """Why a file cannot be one of `torch.save`, as far as its ends tell."""
    if path.is_dir():
        return "got a folder"
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError as error:
        return "found none" if isinstance(error, FileNotFoundError) else f"got {error.strerror}"
    if not start:
        return "got an empty file"
    if start.lstrip().startswith(b"<"):
        return "got what looks like a web page"
    if start.startswith(b"PK"):
        return None if zipfile.is_zipfile(path) else "got only a part of one"
    return None if start.startswith(b"\x80") else "got a file of another kind"  # a pickle, as torch wrote before 1.6


def _described(state: Any) -> str:
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    if "state_dict" in state:
        return "a checkpoint of a training; if it is of train.py, `codiffuse export` makes a folder of it"
    return f"a mapping with {', '.join(str(key) for key in list(state)[:5])}; save the weights alone"
