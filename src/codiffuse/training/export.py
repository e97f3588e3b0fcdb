"""From a training checkpoint to a zoo folder."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

from codiffuse.errors import InputError
from codiffuse.priors import zoo


def export(checkpoint: Path, name: str, card: Path | None = None) -> Path:
    """Write the averaged weights of a checkpoint as a zoo folder.

    Args:
        checkpoint: `.ckpt` written by `train.py`.
        name: of the entry below the first zoo folder (`CODIFFUSE_ZOO`, else the package's), or a path.
        card: file with the model card; by default one is made from what the run folder tells.

    Returns:
        The folder.

    Raises:
        InputError: the checkpoint is not one of this project's, or the card is missing.
    """
    if not checkpoint.is_file():
        raise InputError(f"Expected a checkpoint at {checkpoint}, found none; they lie in a run's checkpoints folder.")
    if not zipfile.is_zipfile(checkpoint):
        raise InputError(f"Expected a checkpoint written by train.py at {checkpoint}, got a damaged or other file.")
    spec, weights, hyper = zoo.checkpoint_spec_and_weights(checkpoint)
    folder = Path(name) if "/" in name else zoo.zoo_dirs()[0] / name
    if card is not None and not card.is_file():
        raise InputError(f"Expected a model card at {card}, found none; leave --card out to have one made.")
    text = card.read_text() if card else model_card(folder.name, spec, hyper, checkpoint.parent.parent)
    zoo.save(folder, spec, weights, text)
    return folder


def model_card(name: str, spec: dict[str, Any], hyper: dict[str, Any], run_dir: Path) -> str:
    """A card with what is known: the network, the data and trainer settings, the last validation numbers."""
    import yaml

    config_path = run_dir / "config.yaml"
    config = yaml.safe_load(config_path.read_text()) if config_path.is_file() else {}
    size = zoo.count_parameters(zoo.build(spec))
    shown = {key: config[key] for key in ("data", "trainer", "ema_decay", "seed") if key in config}
    if "root" in shown.get("data", {}):
        shown["data"]["root"] = Path(shown["data"]["root"]).name  # where it lay on that machine is nobody's business
    shown["optimisation"] = {key: value for key, value in hyper.items() if key not in ("spec", "global_step")}
    lines = [
        f"# {name}",
        "",
        f"{spec['kind'].replace('_', ' ').capitalize()}, {size / 1e6:.2f} M weights, averaged, stored as float16; "
        f"{hyper['global_step']} training steps.",
        "",
        *(f"- {key}: {value}" for key, value in (config.get("card") or {}).items()),
        *training_parts(run_dir),
        "",
        "## Validation",
        "",
        *(f"- {key}: {value:.4g} (step {step})" for key, (step, value) in last_validation(run_dir).items()),
        "",
        "## Network",
        "",
        "```yaml",
        yaml.safe_dump(spec, sort_keys=False).strip(),
        "```",
        "",
        "## Training",
        "",
        "```yaml",
        yaml.safe_dump(shown, sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def training_parts(run_dir: Path) -> list[str]:
    """Device and time of each part of a run, as lines of a card."""
    path = run_dir / "parts.jsonl"
    parts = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [
        f"- trained until step {part['until_step']}: {part['seconds'] / 60:.0f} minutes, {part['device']}, "
        f"{part['precision']}"
        for part in parts
    ]


def last_validation(run_dir: Path) -> dict[str, tuple[int, float]]:
    """Step and newest value of every `val/` column in a run's `metrics*.csv`."""
    values: dict[str, tuple[int, float]] = {}
    for path in run_dir.glob("metrics*.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key.startswith("val/") and value and int(row["step"]) >= values.get(key, (-1, 0.0))[0]:
                        values[key] = (int(row["step"]), float(value))
    return values
