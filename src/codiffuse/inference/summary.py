"""A run's rows in a few numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codiffuse.metrics.statistics import bootstrap_ci

SETTINGS_OF_A_ROW = ("seconds", "nfe", "sigma", "step_factor")  # numeric columns that are no metric
FROM_HEADER = ("device", "commit", "versions")


def gain(row: dict[str, Any]) -> float | None:
    """PSNR of the restoration minus PSNR of the measurement in dB, both at their best shift; None without a truth."""
    after, before = row.get("psnr_aligned"), row.get("psnr_measurement_aligned")
    return after - before if _is_finite(after) and _is_finite(before) else None


def summarize(rows: Sequence[dict[str, Any]], header: dict[str, Any]) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        rows: lines of `results.jsonl`. Metrics, time and network calls are means over those that did not fail.
        header: method, experiment, run_id, device, commit and versions of the run; what is absent becomes None.

    Returns:
        The header's values; `n` images, of which `failed`; for each metric, and for the gain, the mean, its 95 %
        bootstrap interval and the number of images that have it.
    """
    ok = [row | {"gain": gain(row)} for row in rows if row["status"] == "ok"]
    columns = {
        name: [row[name] for row in ok if _is_finite(row.get(name))]
        for name in dict.fromkeys(name for row in ok for name in row)
    }
    metrics = {name: _metric(values) for name, values in columns.items() if values and name not in SETTINGS_OF_A_ROW}
    return {
        "method": header.get("method"),
        "experiment": header.get("experiment"),
        "run_id": header.get("run_id"),
        "n": len(rows),
        "failed": len(rows) - len(ok),
        "metrics": metrics,
        "seconds_per_image": _mean(columns.get("seconds")),
        "nfe": _mean(columns.get("nfe")),
    } | {name: header.get(name) for name in FROM_HEADER}


def closing_lines(summary: dict[str, Any], run_dir: Path) -> str:
    """What the command line ends with: how it went, and where the results are."""
    names = {
        "psnr_measurement_aligned": "PSNR before",
        "psnr_aligned": "PSNR after",
        "gain": "gain",
        "kernel_mnc": "kernel match (MNC)",
        "tilt_epe": "tilt error (EPE, px)",
    }
    known = [(label, summary["metrics"].get(key)) for key, label in names.items()]
    numbers = [f"{label} {value['mean']:.2f}" for label, value in known if value and value["n"]]
    restored = f"{summary['n'] - summary['failed']} of {summary['n']} images restored"
    return "\n".join(
        [
            restored + ("; " + ", ".join(numbers) if numbers else ""),
            f"pictures: {run_dir / 'images'}",
            f"report:   {run_dir / 'report.html'}",
        ]
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric(values: list[float]) -> dict[str, Any]:
    mean, lo, hi = bootstrap_ci(values)
    return {"mean": mean, "ci95": [lo, hi], "n": len(values)}


def _mean(values: list[float] | None) -> float | None:
    return statistics.mean(values) if values else None
