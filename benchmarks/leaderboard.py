"""Collects finished benchmark runs into `results/leaderboard.csv`: one row a method, seeds pooled.

    python -m benchmarks.leaderboard outputs/infer/bsd100_motion/*

Rows of other methods or settings stay in the table. Intervals are 95 % bootstrap intervals over images, each with its
mean over seeds. A run counts for the row of its method and settings; the seed alone may differ.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codiffuse.errors import InputError
from codiffuse.inference.summary import gain
from codiffuse.metrics.statistics import bootstrap_ci

PROTOCOL = ("experiment_name", "crop", "kernel_size", "sigma", "boundary", "num_particles", "precision")
NOT_COMPARED = ("run_id", "limit", "device", "threads", "batch_size", "lpips", "animate")
TARGET = Path(__file__).parents[1] / "results" / "leaderboard.csv"


def main() -> int:
    runs = [run for folder in map(Path, sys.argv[1:]) if (run := read_run(folder))]
    if not runs:
        print(__doc__, file=sys.stderr)
        return 2
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["summary"]["method"], json.dumps(without_seed(run["config"]), sort_keys=True)].append(run)
    rows = [row_of(found) for _, found in sorted(groups.items())]
    TARGET.parent.mkdir(exist_ok=True)
    replaced = {key_of(row) for row in rows}
    kept = [row for row in read_table() if key_of(row) not in replaced]
    with TARGET.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=key_of))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in ("device", "commit")))
    return 0


def read_table() -> list[dict[str, str]]:
    """The rows of the table as it is."""
    if not TARGET.exists():
        return []
    with TARGET.open(newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells the rows of the table apart."""
    return tuple(str(row[name]) for name in ("benchmark", "method", *PROTOCOL[1:]))


def read_run(folder: Path) -> dict[str, Any] | None:
    """Settings, rows and summary of a finished run folder, else `None`."""
    import yaml

    if not (folder / "summary.json").is_file():
        return None
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {
        "config": yaml.safe_load((folder / "config.yaml").read_text()),
        "rows": [json.loads(line) for line in lines],
        "summary": json.loads((folder / "summary.json").read_text()),
    }


def read_runs(folders: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Finished runs of one method and one set of data, of which the seeds alone differ.

    Raises:
        InputError: a folder without a finished run, or runs that differ otherwise or not at all.
    """
    read = [(folder, run) for folder in folders if (run := read_run(folder))]
    if len(read) < len(folders) or not read:
        raise InputError(f"Expected finished runs, got {len(folders) - len(read)} folders without a summary.json.")
    settings = {(run["summary"]["method"], json.dumps(without_seed(run["config"]), sort_keys=True)) for _, run in read}
    if len(settings) > 1 or len({run["config"]["seed"] for _, run in read}) < len(read):
        raise InputError("Expected runs of one method and one set of data, each of another seed, got others.")
    return read


def without_seed(settings: Any) -> Any:
    """Settings that runs of one row share; components repeat some of them."""
    if isinstance(settings, dict):
        return {key: without_seed(value) for key, value in settings.items() if key not in ("seed", *NOT_COMPARED)}
    return settings


def row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table."""
    settings = {key: runs[0]["config"].get(key) for key in PROTOCOL}
    rows = [row for run in runs for row in run["rows"]]
    summary = runs[0]["summary"]
    means = {name: per_image(rows, name) for name in ("psnr_aligned", "ssim", "lpips", "kernel_mnc", "reblur")}
    means["gain"] = per_image([{**row, "gain": gain(row)} for row in rows], "gain")
    intervals = {name: bootstrap_ci(values) for name, values in means.items()}
    seconds = [row["seconds"] for row in rows if row["status"] == "ok"]
    return {
        "benchmark": settings["experiment_name"],
        "method": summary["method"],
        **{key: value for key, value in settings.items() if key != "experiment_name"},
        "n": len(means["gain"]),
        "seeds": len({run["config"]["seed"] for run in runs}),
        "failed": sum(row["status"] != "ok" for row in rows),
        **{name: f"{interval.mean:.4g}" for name, interval in intervals.items()},
        "gain_ci95": f"{intervals['gain'].lo:.2f} .. {intervals['gain'].hi:.2f}",
        "seconds_per_image": f"{sum(seconds) / max(len(seconds), 1):.1f}",
        "nfe": summary["nfe"],
        "device": summary["device"],
        "commit": summary["commit"],
    }


def per_image(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Mean over seeds of one number, for each image that has it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.get(name) is not None:
            values[row["id"]].append(row[name])
    return [sum(found) / len(found) for found in values.values()]


def by_image(names: Sequence[str], values: Sequence[float | None]) -> list[float]:
    """Mean over seeds, for each image in order of its first kernel."""
    return per_image([{"id": name, "value": value} for name, value in zip(names, values, strict=True)], "value")


if __name__ == "__main__":
    sys.exit(main())
