"""The settings that a run folder was made with: kept in it, and compared when the run is continued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codiffuse.data.sources import file_hash
from codiffuse.errors import InputError
from codiffuse.inference.files import write_bytes, writing_to
from codiffuse.priors import zoo

# Settings that change how a run is carried out, not what it computes: they may differ when it is continued.
HOW_NOT_WHAT = ("device", "batch_size", "threads", "limit", "lpips", "animate", "run_id", "resume")
NAMES = ("config.yaml", "images", "results.jsonl", "summary.json", "report.html")  # what a run writes in its folder
MARK = "run_id"  # a setting by which a `config.yaml` is known as that of a run


def keep_settings(root: Path, settings: dict[str, Any]) -> None:
    """Makes `root` the folder of a run with these settings, or finds that it is one already.

    Args:
        root: the folder; made if needed, with `config.yaml` and an empty `results.jsonl`.
        settings: all of `infer.yaml`, resolved.

    Raises:
        InputError: `root` holds files of a run's names that are of no run, or results that were made with other
            settings, or cannot be written to. Nothing in it has been changed then.
    """
    import yaml

    with writing_to(root):
        path, results = root / "config.yaml", root / "results.jsonl"
        before = _read(path)
        _refuse_foreign(root, before)
        if before and results.stat().st_size:
            differing = _differing(_what(before), _what(settings))
            if differing:
                raise InputError(
                    f"Expected the settings that {root} was made with, got others for {', '.join(differing)}; "
                    "choose another run_id, or remove the folder."
                )
        root.mkdir(parents=True, exist_ok=True)
        results.touch()  # first, because by it the folder is known as ours
        write_bytes(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())


def prior_hashes(settings: dict[str, Any]) -> dict[str, str]:
    """By the name of each prior that a run uses, hashes of its files: of `config.yaml` and of the weights."""
    used = {group: value for group, value in settings.items() if group != "prior"}  # components repeat theirs of it
    found = {name: zoo.find(name) for name in sorted({str(name) for name in _zoo_names(used)})}
    return {name: " ".join(str(file_hash(file)) for file in zoo.files(source)) for name, source in found.items()}


def _zoo_names(settings: Any) -> Iterator[Any]:
    if isinstance(settings, list):
        for item in settings:
            yield from _zoo_names(item)
    elif isinstance(settings, dict):
        if settings.get("_target_") == f"{zoo.__name__}.{zoo.load.__name__}" and "name" in settings:
            yield settings["name"]
        for item in settings.values():
            yield from _zoo_names(item)


def _refuse_foreign(root: Path, before: dict[str, Any]) -> None:
    """Somebody's own files may have the names of ours; they are neither replaced nor taken for results."""
    found = [name for name in NAMES if (root / name).exists()]
    results = root / "results.jsonl"
    is_ours = results.is_file() and (MARK in before or ("config.yaml" not in found and not results.stat().st_size))
    if found and not is_ours:
        raise InputError(
            f"Expected a new folder, or the folder of a run, got {root} with {', '.join(found)} of something else; "
            "set hydra.run.dir= to another folder."
        )


def _read(path: Path) -> dict[str, Any]:
    """The settings in a file; none where it holds something else."""
    import yaml

    if not path.exists():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _what(settings: Any) -> Any:
    """Settings without those that only say how; components repeat some of these."""
    if isinstance(settings, dict):
        return {key: _what(value) for key, value in settings.items() if key not in HOW_NOT_WHAT}
    return settings


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
