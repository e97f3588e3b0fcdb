"""What the settings of `conf/infer.yaml`, and those inside components, may be: checked before anything is loaded."""

from __future__ import annotations

import inspect
import math
import pydoc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args

from codiffuse.errors import InputError
from codiffuse.fourier import BOUNDARIES
from codiffuse.guidance.joint import LENGTHS
from codiffuse.methods.base import is_blind


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes:
        words: this, after "Expected".
        holds: whether a value is such.
        example: a value that is.
    """

    words: str
    holds: Callable[[Any], bool]
    example: str


def number(value: Any) -> float | None:
    """A number, or a fraction as people write noise levels: `5/255`.

    Raises:
        InputError: something else.
    """
    if value is None or isinstance(value, int | float):
        return value
    above, _, below = str(value).partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"Expected a number or a fraction such as 5/255, got {value!r}.") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_level(value: Any) -> bool:
    try:
        level = number(value)
    except InputError:
        return False
    return level is None or 0 < level < 1


def _one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: value in names, names[0])


def _count(example: str) -> Kind:
    return Kind("a whole number of at least 1", _is_count, example)


_SWITCH = Kind("true or false", lambda value: isinstance(value, bool), "true")
_COUNT_OR_NULL = Kind("null or a whole number of at least 1", lambda value: value is None or _is_count(value), "null")

# By name; `device` is left to `resolve_device`, names and inputs may be anything.
SETTINGS: dict[str, Kind] = {
    "sigma": Kind("null or 0 < sigma < 1 in [0, 1] units such as 5/255", _is_level, "5/255"),
    "kernel_size": Kind(
        "auto or a whole number of at least 1", lambda value: value == "auto" or _is_count(value), "auto"
    ),
    "boundary": _one_of("unknown", *(name for name in BOUNDARIES if name != "unknown")),
    "num_samples": _count("4"),
    "num_particles": _count("1"),
    "step_lengths": _one_of(*LENGTHS),
    "window": _count("160"),
    "tile": _count("384"),
    "max_memory": Kind(
        "null or a positive number of GiB",
        lambda value: value is None or (_is_number(value) and 0 < value < math.inf),
        "4",
    ),
    "saturation": Kind(
        "null or a level in (0, 1]", lambda value: value is None or (_is_number(value) and 0 < value <= 1), "0.98"
    ),
    "crop": _COUNT_OR_NULL,
    "limit": _COUNT_OR_NULL,
    "seed": Kind("a whole number", _is_whole, "0"),
    "precision": _one_of("float32", "bfloat16"),
    "batch_size": _COUNT_OR_NULL,
    "threads": _COUNT_OR_NULL,
    "lpips": _SWITCH,
    "animate": _SWITCH,
}
# That no run goes without, each with an option.
GROUPS = {"method": "fast_em", "operator": "blur", "noise": "gaussian", "data": "files", "prior": "natural"}

# Of arguments, by their annotations.
_TYPES = {
    "int": Kind("a whole number", _is_whole, "1"),
    "float": Kind("a number", _is_number, "1.0"),
    "bool": _SWITCH,
    "str": Kind("a text", lambda value: isinstance(value, str), "NAME"),
    "Path": Kind("a text", lambda value: isinstance(value, str), "NAME"),
    "None": Kind("null", lambda value: value is None, "null"),
}


def check_groups(settings: Mapping[str, Any]) -> None:
    """Raises InputError where a group has no option that every run needs."""
    for group, option in GROUPS.items():
        if not settings.get(group):
            raise InputError(f"Expected an option for {group}, got null; set {group}={option}.")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InputError for the first value of another type, or outside its range."""
    for name, kind in SETTINGS.items():
        _check(name, settings[name], kind)


def check_components(node: Any, path: str = "") -> None:
    """Raises InputError for the first argument of a component that it does not have, or of another type than annotated.

    Args:
        node: settings, resolved; those with a `_target_` are arguments of that class or function. Numbers, switches,
            texts and whether something is a component are checked, other types are not.
        path: of the node, dotted.
    """
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    target = str(node.get("_target_", ""))
    parameters = _parameters(target)
    names = [] if any(each.kind is each.VAR_KEYWORD for each in parameters.values()) else list(parameters)
    for key, value in node.items():
        inside = f"{path}.{key}" if path else str(key)
        if names and key not in names and not str(key).startswith("_"):  # `_target_` and the like are Hydra's
            raise InputError(f"Expected no {inside}: {target} has only {', '.join(names)}; set one of these.")
        if key in parameters and (kind := _kind(parameters[key].annotation)):
            _check(inside, value, kind)
        elif key in parameters and _needs_component(target, key, value):
            raise InputError(
                f"Expected a component for {inside}, got {_shown(value)}; leave that setting out, or choose an option "
                "where there is a group of them, as guidance@method.guidance=dps does."
            )
        check_components(value, inside)


def check_samples(settings: Mapping[str, Any], given: Collection[str]) -> None:
    """Raises InputError where samples were asked for that nobody would draw.

    Args:
        settings: all of them.
        given: names of those that somebody set.
    """
    wanted = settings["num_samples"]
    if "num_samples" not in given or wanted == settings["num_particles"]:
        return
    method = pydoc.locate(str(settings["method"].get("_target_")))
    finds_kernel = not hasattr(method, "needs") or is_blind(method)
    if not finds_kernel or not settings.get("pipeline"):
        why = "pipeline=null" if finds_kernel else "a method that finds no kernel"
        raise InputError(f"Expected num_particles with {why}, got num_samples={wanted}; set num_particles={wanted}.")


def _parameters(target: str) -> Mapping[str, inspect.Parameter]:
    """What a class or function takes; nothing where that cannot be told: who builds it will say what is wrong."""
    try:
        return inspect.signature(pydoc.locate(target)).parameters
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return {}


def _kind(annotation: Any) -> Kind | None:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = [_TYPES.get(name) for name in text.split(" | ")]
    if None in kinds:
        return None
    words = " or ".join(dict.fromkeys(kind.words for kind in kinds))
    return Kind(words, lambda value: any(kind.holds(value) for kind in kinds), kinds[0].example)


def _needs_component(target: str, name: str, value: Any) -> bool:
    """Whether an argument of a class or function is annotated with classes of this package, and the value is none."""
    if isinstance(value, dict):
        return False
    try:
        annotation = inspect.signature(pydoc.locate(target), eval_str=True).parameters[name].annotation
    except NameError:  # a name that is imported for type checkers alone
        return False
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if value is None and NoneType in kinds:
        return False
    return all(kind is NoneType or _is_ours(kind) for kind in kinds)


def _is_ours(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__module__.partition(".")[0] == "codiffuse"


def _check(name: str, value: Any, kind: Kind) -> None:
    if not kind.holds(value):
        raise InputError(f"Expected {kind.words} for {name}, got {_shown(value)}; set {name}={kind.example}.")


def _shown(value: Any) -> str:
    """As people write it on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
