"""The zoo: priors as folders of `model.safetensors`, `config.yaml` (a spec) and a model card, loaded by name.

The same functions take the file of a published checkpoint for a name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codiffuse.errors import InputError
from codiffuse.priors import checkpoints
from codiffuse.priors.prior import Prior
from codiffuse.priors.spec import SCHEMA, build, load_weights, network_of


def zoo_dirs() -> list[Path]:
    """Folders searched for names, first match wins: `CODIFFUSE_ZOO`, then the shipped ones."""
    own = os.environ.get("CODIFFUSE_ZOO")
    return [*([Path(own)] if own else []), Path(__file__).parent.parent / "zoo"]


def zoo_names() -> list[str]:
    """Every name that `load` accepts."""
    return sorted({d.parent.name for root in zoo_dirs() if root.is_dir() for d in root.glob("*/config.yaml")})


def find(name: str | Path) -> Path:
    """The folder of a zoo entry, by name or path, or the file of a published checkpoint.

    Raises:
        InputError: no such entry; the message lists the known ones, or tells who publishes files of this name.
    """
    for folder in [root / str(name) for root in zoo_dirs()] + [Path(name)]:
        if (folder / "config.yaml").is_file():
            return folder
    if checkpoints.is_name(name):
        return checkpoints.find(name)
    known = ", ".join(zoo_names()) or "none"
    raise InputError(
        f"Expected a zoo name ({known}), a folder with config.yaml or a published checkpoint (.pt, .pth), got "
        f"{str(name)!r}."
    )


def files(source: Path) -> list[Path]:
    """The files that decide what `find` has found."""
    return [source / "config.yaml", source / "model.safetensors"] if source.is_dir() else [source]


def read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Spec and weights, float32, of what `find` has found."""
    if (source / "config.yaml").is_file():
        return read_spec(source), read_weights(source)
    return checkpoints.spec_and_weights(source)


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
    """Load a zoo entry or a published checkpoint, frozen and in evaluation mode.

    Args:
        name: a shipped name, a folder made by `codiffuse export`, or a file such as `ffhq_10m.pt`.
        kind: `prior` or `kernel_denoiser` where only that will do.
        device: where its weights go.
        precision: `float32` or `bfloat16`, of a prior's network; everything around it stays float32.

    Raises:
        InputError: unknown name, wrong kind, or weights that do not fit the config.
    """
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"Expected precision float32 or bfloat16, got {precision!r}.")
    model = _loaded(find(name), kind)
    if isinstance(model, Prior):
        model.autocast = precision == "bfloat16"
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def _loaded(source: Path, kind: str | None) -> nn.Module:
    """On the CPU, and the only holder of its weights: published ones have up to 2.2 GB."""
    is_entry = (source / "config.yaml").is_file()
    spec, weights = (read_spec(source), None) if is_entry else checkpoints.spec_and_weights(source)
    if kind and spec.get("kind") != kind:
        raise InputError(
            f"Expected a zoo entry or checkpoint of kind {kind!r}, got {source.name!r} of kind {spec.get('kind')!r}."
        )
    model = build(spec, network_device="meta")
    load_weights(network_of(model), read_weights(source) if weights is None else weights, source)
    return model


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


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


def checkpoint_spec_and_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Spec, averaged network weights and hyper-parameters of a training checkpoint.

    Raises:
        InputError: the file is missing, is not one of this project's, or holds pickled objects.
    """
    checkpoint = checkpoints.load_plain(path, "make another with train.py")
    hyper = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not isinstance(hyper.get("spec"), dict) or "state_dict" not in checkpoint:
        raise InputError(f"Expected a checkpoint written by train.py at {path}, got one without model and weights.")
    model = build(hyper["spec"], network_device="meta")  # to see whether the weights fit
    prefix = "model.network." if isinstance(model, Prior) else "model."
    state = checkpoint["state_dict"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    load_weights(network_of(model), weights, path)
    return hyper["spec"], weights, {"global_step": checkpoint.get("global_step", 0), **hyper}
