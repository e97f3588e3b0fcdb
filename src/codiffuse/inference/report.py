"""The report page of a run: one HTML file that opens offline and shows the pictures of `images/` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from codiffuse.inference.cards import card, is_feature, label, ordered, table, text
from codiffuse.inference.charts import gain_bars
from codiffuse.inference.files import write_bytes
from codiffuse.inference.summary import gain
from codiffuse.inference.verdict import percent, verdict

MIN_BARS = 4  # fewer gains are read faster from their cards


def write_report(root: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any], header: dict[str, Any]) -> None:
    """Writes `root/report.html`.

    Args:
        root: the run's folder, with `images/<id>/`; pictures that are not there are left out.
        rows: lines of `results.jsonl`, in the order of the page; failed ones are moved to the front.
        summary: as `summarize` makes it.
        header: its `settings`, a dict, are shown as a table.
    """
    failed_first = sorted(rows, key=lambda row: row["status"] == "ok")
    anchors = [f"image-{number}" for number in range(1, len(rows) + 1)]
    title = f"{summary['method']}: {summary['n']} image{'s' * (summary['n'] != 1)}"
    subtitle = " · ".join(str(summary[name]) for name in ("experiment", "run_id") if summary[name])
    template = Template(_resource("report.html"))
    page = template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        style=_resource("report.css"),
        tiles=_tiles(summary, rows),
        gains=_gains(failed_first, anchors, summary),
        tables=_tables(summary, header.get("settings") or {}),
        cards="\n".join(card(root, row, anchor) for row, anchor in zip(failed_first, anchors, strict=True)),
        provenance=escape(_provenance(summary)),
    )
    write_bytes(root / "report.html", page.encode())


def _resource(name: str) -> str:
    return files("codiffuse.inference").joinpath(name).read_text(encoding="utf-8")


def _tiles(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The numbers that most readers come for."""
    metrics, seconds, calls = summary["metrics"], summary["seconds_per_image"], summary["nfe"]
    notes = {
        "gain": "in PSNR, at the best shift",
        "psnr_aligned": "at the best shift",
        "kernel_mnc": "of the estimated and the true kernel",
        "tilt_epe": f"{_mean('tilt_epe_zero', metrics)} for no tilt at all",
    }
    tiles = [
        _tile(label(name), text(name, metrics[name]["mean"]), note, _interval(name, metrics[name]))
        for name, note in notes.items()
        if name in metrics
    ]
    tiles.extend(_trust_tile(rows))
    if seconds is not None:
        effort = f"{text('nfe', calls)} network calls" if calls is not None else ""
        tiles.append(_tile("Time an image", text("seconds", seconds), effort, f"on {summary['device']}"))
    tiles.append(_tile("Failed", f"{summary['failed']} of {summary['n']}", "listed first" if summary["failed"] else ""))
    return "\n".join(tiles)


def _trust_tile(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the images that were judged can be trusted; nothing when none was."""
    judged = [row for row in rows if row.get("trust") is not None]
    found = [verdict(row["trust"], row.get("flags") or ()).level for row in judged]
    if len(judged) < 2:
        return [
            _tile("Trust", level, f"{percent(row['trust'])} chance of a better picture")
            for level, row in zip(found, judged, strict=True)
        ]
    others = (f"{found.count(level)} {level}" for level in ("doubtful", "low") if level in found)
    return [_tile("High trust", f"{found.count('high')} of {len(judged)}", *others)]


def _tile(name: str, value: str, *notes: str) -> str:
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes if note)
    return f'<div class="tile"><h2>{escape(name)}</h2><strong>{escape(value)}</strong>{lines}</div>'


def _mean(name: str, metrics: dict[str, Any]) -> str:
    return text(name, metrics[name]["mean"]) if name in metrics else ""


def _interval(name: str, metric: dict[str, Any]) -> str:
    lo, hi = (text(name, bound) for bound in metric["ci95"])
    return f"95 % interval {lo} to {hi}" if metric["n"] > 1 else "a single image"


def _gains(rows: Sequence[dict[str, Any]], anchors: Sequence[str], summary: dict[str, Any]) -> str:
    pairs = zip(rows, anchors, strict=True)
    gains = [(row["id"], anchor, gain(row)) for row, anchor in pairs if row["status"] == "ok" and gain(row) is not None]
    if len(gains) < MIN_BARS:
        return ""
    chart = gain_bars(gains, summary["metrics"]["gain"]["mean"])
    note = "A bar below zero: worse than the measurement. Select a bar to see its image."
    return f'<section><h2>Gain of each image</h2>{chart}<p class="quiet">{note}</p></section>'


def _tables(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    numbers = {
        name: (label(name), name, f"{text(name, metric['mean'])} ({_interval(name, metric)}; n = {metric['n']})")
        for name, metric in ((name, summary["metrics"][name]) for name in ordered(summary["metrics"]))
    }
    tables = [
        ("All numbers: mean over the images", [line for name, line in numbers.items() if not is_feature(name)]),
        ("Diagnostics: mean over the images", [line for name, line in numbers.items() if is_feature(name)]),
        ("Settings", [(name, name, str(value)) for name, value in settings.items()]),
    ]
    return "\n".join(
        f'<details class="table"><summary>{name}</summary>{table(lines)}</details>' for name, lines in tables if lines
    )


def _provenance(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (summary["versions"] or {}).items())
    parts = (summary["device"], summary["commit"] and f"commit {summary['commit']}", versions)
    return " · ".join(part for part in parts if part)
