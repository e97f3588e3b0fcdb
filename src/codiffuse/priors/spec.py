"""Specs: priors and kernel denoisers as plain dictionaries, which name a class for each part and its arguments.

Classes are looked up in the tables below, never imported from a path, so a downloaded file cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
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


def build(spec: Mapping[str, Any], network_device: str | None = None) -> nn.Module:
    """An untrained prior or kernel denoiser.

    Args:
        spec: `kind` is `prior` (a `Prior`, from `network`, `parameterization`, `time`, `space`, `learned_variance`) or
            `kernel_denoiser` (a network `(kernel, sigma) -> kernel`, from `network`). Each part is a mapping with the
            class's `name` and its arguments.
        network_device: where the network's weights are made; `meta` makes none, for `load_weights` to fill in.

    Raises:
        InputError: unknown kind, name or argument, or a newer schema.
    """
    if spec.get("schema", SCHEMA) not in range(1, SCHEMA + 1):
        raise InputError(f"Expected a zoo config of schema <= {SCHEMA}, got {spec['schema']!r}; update codiffuse.")
    kind = spec.get("kind")
    if kind not in ("prior", "kernel_denoiser"):
        raise InputError(f"Expected kind 'prior' or 'kernel_denoiser' in a zoo config, got {kind!r}.")
    with torch.device(network_device) if network_device else nullcontext():
        network = _part(NETWORKS, spec, "network")
    if kind == "kernel_denoiser":
        return network
    return Prior(
        network,
        _part(PARAMETERIZATIONS, spec, "parameterization"),
        _part(TIMES, spec, "time"),
        _part(SPACES, spec, "space"),
        bool(spec.get("learned_variance", False)),
    )


def network_of(model: nn.Module) -> nn.Module:
    """The network whose weights a file holds."""
    return model.network if isinstance(model, Prior) else model


def misfits(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps weights from a strict load, by name of the weight, in words that go after a colon."""
    own = network.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if key not in weights:
            yield f"{key!r} is missing"
        elif key not in own:
            yield f"{key!r} is not part of the network"
        elif own[key].shape != weights[key].shape:
            yield f"{key!r} is of shape {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Strict load; a network on `meta` takes the tensors themselves, any other copies them.

    Raises:
        InputError: the first weight that does not fit.
    """
    if misfit := next(misfits(network, weights), None):
        raise InputError(f"Expected the weights of this network in {origin}: {misfit}; is it another architecture?")
    network.load_state_dict(weights, assign=any(parameter.is_meta for parameter in network.parameters()))


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
