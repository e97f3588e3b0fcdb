"""The zoo: priors as folders of `model.safetensors`, `config.yaml` and a model card.

A `spec` is the plain dictionary in `config.yaml`: it names a class for each part of a prior and its arguments. Classes
are looked up in the tables below, never imported from a path, so a downloaded folder cannot run code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codiffuse.errors import InputError
from codiffuse.networks.dncnn import DnCNN, FFDNet
from codiffuse.networks.unet import UNet
from codiffuse.priors.parameterizations import EdmPrediction, EpsPrediction, VPrediction, X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior, StepIndexTime
from codiffuse.schedule import cosine_schedule, linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace

SCHEMA = 1
NETWORKS = {cls.__name__: cls for cls in (UNet, DnCNN, FFDNet)}
PARAMETERIZATIONS = {cls.__name__: cls for cls in (EpsPrediction, VPrediction, X0Prediction, EdmPrediction)}
SPACES = {cls.__name__: cls for cls in (ImageSpace, KernelSpace, TiltSpace)}
TIMES = {
    "LogSigmaTime": LogSigmaTime,
    "LinearStepTime": lambda num_steps=1000: StepIndexTime(linear_schedule(num_steps)),
    "CosineStepTime": lambda num_steps=1000: StepIndexTime(cosine_schedule(num_steps)),
}


def build(spec: Mapping[str, Any]) -> nn.Module:
    """An untrained prior or kernel denoiser.

    Args:
        spec: `kind` is `prior` (a `Prior`, from `network`, `parameterization`, `time`, `space`, `learned_variance`) or
            `kernel_denoiser` (a network `(kernel, sigma) -> kernel`, from `network`). Each part is a mapping with the
            class's `name` and its arguments.

    Raises:
        InputError: unknown kind, name or argument, or a newer schema.
    """
    if spec.get("schema", SCHEMA) not in range(1, SCHEMA + 1):
        raise InputError(f"Expected a zoo config of schema <= {SCHEMA}, got {spec['schema']!r}; update codiffuse.")
    kind = spec.get("kind")
    if kind == "kernel_denoiser":
        return _part(NETWORKS, spec, "network")
    if kind == "prior":
        return Prior(
            _part(NETWORKS, spec, "network"),
            _part(PARAMETERIZATIONS, spec, "parameterization"),
            _part(TIMES, spec, "time"),
            _part(SPACES, spec, "space"),
            bool(spec.get("learned_variance", False)),
        )
    raise InputError(f"Expected kind 'prior' or 'kernel_denoiser' in a zoo config, got {kind!r}.")


def network_of(model: nn.Module) -> nn.Module:
    """The network whose weights a zoo folder holds."""
    return model.network if isinstance(model, Prior) else model


def zoo_dirs() -> list[Path]:
    """Folders searched for names, first match wins: `CODIFFUSE_ZOO`, then the shipped ones."""
    own = os.environ.get("CODIFFUSE_ZOO")
    return [*([Path(own)] if own else []), Path(__file__).parent.parent / "zoo"]


def zoo_names() -> list[str]:
    """Every name that `load` accepts."""
    return sorted({d.parent.name for root in zoo_dirs() if root.is_dir() for d in root.glob("*/config.yaml")})


def find(name: str | Path) -> Path:
    """The folder of a zoo entry, by name or path.

    Raises:
        InputError: no such entry; the message lists the known ones.
    """
    for folder in [root / str(name) for root in zoo_dirs()] + [Path(name)]:
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(zoo_names()) or "none"
    raise InputError(f"Expected a zoo name ({known}) or a folder with config.yaml, got {str(name)!r}.")


def read_spec(folder: Path) -> dict[str, Any]:
    """The spec of a zoo folder."""
    import yaml

    try:
        spec = yaml.safe_load((folder / "config.yaml").read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"Expected readable YAML in {folder / 'config.yaml'}: {reason}") from error
    if not isinstance(spec, dict):
        raise InputError(f"Expected a mapping in {folder / 'config.yaml'}, got {type(spec).__name__}.")
    return spec


def load(
    name: str | Path, kind: str | None = None, device: str | torch.device = "cpu", precision: str = "float32"
) -> nn.Module:
    """Load a zoo entry, frozen and in evaluation mode.

    Args:
        name: a shipped name, or a folder made by `codiffuse export`.
        kind: `prior` or `kernel_denoiser` where only that will do.
        device: where its weights go.
        precision: `float32` or `bfloat16`, of a prior's network; everything around it stays float32.

    Raises:
        InputError: unknown name, wrong kind, or weights that do not fit the config.
    """
    folder = find(name)
    spec = read_spec(folder)
    if kind and spec.get("kind") != kind:
        raise InputError(f"Expected a zoo entry of kind {kind!r}, got {folder.name!r} of kind {spec.get('kind')!r}.")
    model = build(spec)
    load_weights(network_of(model), read_weights(folder), folder)
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"Expected precision float32 or bfloat16, got {precision!r}.")
    if isinstance(model, Prior):
        model.autocast = precision == "bfloat16"
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a zoo folder as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except FileNotFoundError:
        raise InputError(f"Expected weights at {path}, found none; make them with `codiffuse export`.") from None
    except SafetensorError as error:
        raise InputError(f"Expected a safetensors file at {path}, got an unreadable one ({error}).") from error


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Strict load that names the first key which does not fit."""
    own = network.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if key not in weights or key not in own:
            where = "is missing in" if key not in weights else "is not part of the network but in"
            raise InputError(f"Expected matching weights: {key!r} {where} {origin}; is it another architecture?")
        if own[key].shape != weights[key].shape:
            expected, got = tuple(own[key].shape), tuple(weights[key].shape)
            raise InputError(f"Expected {key!r} of shape {expected}, got {got} in {origin}: another architecture?")
    network.load_state_dict(weights)


def save(folder: Path, spec: Mapping[str, Any], weights: Mapping[str, Tensor], card: str) -> None:
    """Write a zoo folder; weights are stored as float16, half the size at no measured cost."""
    import yaml
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().half().contiguous().clone() for key, value in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it readable to its owner alone
    (folder / "config.yaml").write_text(yaml.safe_dump({"schema": SCHEMA, **spec}, sort_keys=False))
    (folder / "README.md").write_text(card)


def _part(table: Mapping[str, Any], spec: Mapping[str, Any], part: str) -> Any:
    named = spec.get(part) or {}
    if not isinstance(named, Mapping):
        raise InputError(f"Expected {part} to be a mapping with a name, got {named!r}.")
    arguments = dict(named)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise InputError(f"Expected {part}.name to be one of {', '.join(table)}, got {name!r}.")
    try:
        return table[name](**arguments)
    except TypeError as error:
        raise InputError(f"Expected arguments of {name} in {part}: {error}.") from error


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


def checkpoint_spec_and_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Spec, averaged network weights and hyper-parameters of a training checkpoint.

    Raises:
        InputError: the file is missing, is not one of this project's, or holds pickled objects.
    """
    from pickle import UnpicklingError

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"Expected a checkpoint at {path}, found none.") from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"Expected a checkpoint of plain tensors at {path}; it is damaged or holds pickled objects, which could "
            "run code, so it was not loaded. Make another with train.py."
        ) from error
    hyper = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not isinstance(hyper.get("spec"), dict) or "state_dict" not in checkpoint:
        raise InputError(f"Expected a checkpoint written by train.py at {path}, got one without model and weights.")
    model = build(hyper["spec"])
    prefix = "model.network." if isinstance(model, Prior) else "model."
    state = checkpoint["state_dict"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    load_weights(network_of(model), weights, path)
    return hyper["spec"], weights, {"global_step": checkpoint.get("global_step", 0), **hyper}
