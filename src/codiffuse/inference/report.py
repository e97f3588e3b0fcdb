"""The report page of a run: one HTML file that opens offline and shows the pictures of `images/` beside it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from codiffuse.inference.charts import gain_bars, residual_curve
from codiffuse.inference.files import write_bytes
from codiffuse.inference.panel import WHITE_SPREAD
from codiffuse.inference.summary import gain

# Columns of a row in the order of the page: what a person calls them, and how a value is printed.
COLUMNS = {
    "gain": ("Gain over the measurement", "{:+.2f} dB"),
    "psnr_aligned": ("PSNR of the restoration", "{:.2f} dB"),
    "psnr_measurement_aligned": ("PSNR of the measurement", "{:.2f} dB"),
    "psnr": ("PSNR of the restoration, no shift allowed", "{:.2f} dB"),
    "psnr_measurement": ("PSNR of the measurement, no shift allowed", "{:.2f} dB"),
    "ssim": ("Structure kept (SSIM, 1 is best)", "{:.3f}"),
    "lpips": ("Perceived difference (LPIPS, 0 is best)", "{:.3f}"),
    "kernel_mnc": ("Kernel match (MNC, 1 is best)", "{:.3f}"),
    "kernel_mse": ("Kernel error (MSE, 0 is best)", "{:.2e}"),
    "reblur": ("Residual beyond the noise (0 is best)", "{:+.2e}"),
    "sigma": ("Noise level (white is 1)", "{:.4f}"),
    "nfe": ("Network calls", "{:g}"),
    "seconds": ("Time", "{:.1f} s"),
}
MIN_BARS = 4  # fewer gains are read faster from their cards


def write_report(root: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any], header: dict[str, Any]) -> None:
    """Writes `root/report.html`.

    Args:
        root: the run's folder, with `images/<id>/`; pictures that are not there are left out.
        rows: lines of `results.jsonl`, in the order of the page; failed ones are moved to the front.
        summary: as `summarize` makes it.
        header: its `settings`, a dict, are shown as a table.
    """
    ordered = sorted(rows, key=lambda row: row["status"] == "ok")
    anchors = [f"image-{number}" for number in range(1, len(ordered) + 1)]
    title = f"{summary['method']}: {summary['n']} image{'s' * (summary['n'] != 1)}"
    subtitle = " · ".join(str(summary[name]) for name in ("experiment", "run_id") if summary[name])
    template = Template(_resource("report.html"))
    page = template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        style=_resource("report.css"),
        tiles=_tiles(summary),
        gains=_gains(ordered, anchors, summary),
        tables=_tables(summary, header.get("settings") or {}),
        cards="\n".join(_card(root, row, anchor) for row, anchor in zip(ordered, anchors, strict=True)),
        provenance=escape(_provenance(summary)),
    )
    write_bytes(root / "report.html", page.encode())


def _resource(name: str) -> str:
    return files("codiffuse.inference").joinpath(name).read_text(encoding="utf-8")


def _tiles(summary: dict[str, Any]) -> str:
    """The numbers that most readers come for."""
    metrics, seconds, calls = summary["metrics"], summary["seconds_per_image"], summary["nfe"]
    notes = {
        "gain": "in PSNR, at the best shift",
        "psnr_aligned": "at the best shift",
        "kernel_mnc": "of the estimated and the true kernel",
    }
    tiles = [
        _tile(_label(name), _text(name, metrics[name]["mean"]), note, _interval(name, metrics[name]))
        for name, note in notes.items()
        if name in metrics
    ]
    if seconds is not None:
        effort = f"{calls:g} network calls" if calls is not None else ""
        tiles.append(_tile("Time an image", _text("seconds", seconds), effort, f"on {summary['device']}"))
    tiles.append(_tile("Failed", f"{summary['failed']} of {summary['n']}", "listed first" if summary["failed"] else ""))
    return "\n".join(tiles)


def _tile(name: str, value: str, *notes: str) -> str:
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes if note)
    return f'<div class="tile"><h2>{escape(name)}</h2><strong>{escape(value)}</strong>{lines}</div>'


def _interval(name: str, metric: dict[str, Any]) -> str:
    lo, hi = (_text(name, bound) for bound in metric["ci95"])
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
    numbers = [
        (_label(name), name, f"{_text(name, metric['mean'])} ({_interval(name, metric)}; n = {metric['n']})")
        for name, metric in ((name, summary["metrics"][name]) for name in _ordered(summary["metrics"]))
    ]
    values = [(name, name, str(value)) for name, value in settings.items()]
    tables = [("All numbers: mean over the images", numbers), ("Settings", values)]
    return "\n".join(
        f'<details class="table"><summary>{name}</summary>{_table(lines)}</details>' for name, lines in tables if lines
    )


def _table(lines: Iterable[tuple[str, str, str]]) -> str:
    """A table of (label, raw name, value)."""
    cells = "".join(
        f'<tr><th scope="row" title="{escape(raw)}">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, raw, value in lines
    )
    return f"<table>{cells}</table>" if cells else ""


def _card(root: Path, row: dict[str, Any], anchor: str) -> str:
    """All there is to see of one image."""
    pictures = _Pictures(root, row["id"])
    failed = row["status"] != "ok"
    reason = f'<p class="reason">{escape(row["status"])}</p>' if failed else ""
    numbers = {name: value for name, value in (row | {"gain": gain(row)}).items() if isinstance(value, int | float)}
    shown = [
        pictures.compare(),
        pictures.figure("truth", "Truth"),
        pictures.figure("std", f"Where the samples disagree: standard deviation, white = {WHITE_SPREAD}"),
    ]
    kernels = pictures.figure("kernel", "Estimated kernel") + pictures.figure("true_kernel", "True kernel")
    facts = [
        _div("kernels", kernels),
        pictures.residual(row.get("sigma")),
        _div("numbers", _table((_label(name), name, _text(name, numbers[name])) for name in _ordered(numbers))),
    ]
    return (
        f'<article class="card{" failed" * failed}" id="{anchor}"><h3>{escape(row["id"])}</h3>{reason}'
        f"{_div('pictures', *shown)}{_div('facts', *facts)}{pictures.animation()}{pictures.links()}</article>"
    )


def _div(style: str, *content: str) -> str:
    return f'<div class="{style}">{"".join(content)}</div>' if any(content) else ""


class _Pictures:
    """The files of one image as HTML; what is not there is an empty text."""

    def __init__(self, root: Path, name: str) -> None:
        self.id = name
        self.folder = root / "images" / name
        self.files = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def url(self, file: str) -> str:
        return quote(f"images/{self.id}/{file}")

    def size(self, name: str) -> tuple[int, int]:
        """(width, height), which stand at bytes 16 to 23 of a PNG file."""
        with open(self.folder / f"{name}.png", "rb") as file:
            return struct.unpack(">II", file.read(24)[16:])

    def img(self, name: str, alt: str, style: str = "") -> str:
        width, height = self.size(name)
        return (
            f'<img class="{style}" src="{self.url(name + ".png")}" width="{width}" height="{height}" loading="lazy" '
            f'alt="{escape(self.id)}: {escape(alt)}">'
        )

    def figure(self, name: str, caption: str) -> str:
        if f"{name}.png" not in self.files:
            return ""
        return f"<figure>{self.img(name, caption)}<figcaption>{escape(caption)}</figcaption></figure>"

    def compare(self) -> str:
        """Measurement and restoration under one slider, or side by side where they differ in size."""
        both = {"measurement.png", "restored.png"} <= self.files
        if not both or self.size("measurement") != self.size("restored"):
            return self.figure("measurement", "Measurement") + self.figure("restored", "Restoration")
        return (
            '<figure><div class="compare" style="--cut: 50%">'
            f"{self.img('restored', 'restoration')}{self.img('measurement', 'measurement', 'before')}"
            '<span class="name-before">measurement</span><span class="name-after">restoration</span>'
            '<input type="range" min="0" max="100" value="50" autocomplete="off" '
            f'aria-label="{escape(self.id)}: percentage that shows the measurement">'
            "</div><figcaption>Drag across the picture to compare</figcaption></figure>"
        )

    def residual(self, sigma: float | None) -> str:
        if "trace.json" not in self.files:
            return ""
        trace = json.loads((self.folder / "trace.json").read_bytes())
        curve = residual_curve(trace, sigma, f"{self.id}: residual over the steps")
        caption = "How far the restoration, blurred again, is from the measurement (rms)"
        return f'<figure class="residual">{curve}<figcaption>{caption}</figcaption></figure>' if curve else ""

    def animation(self) -> str:
        if "trace.gif" not in self.files:
            return ""
        alt = f"{escape(self.id)}: image and kernel over the steps"
        img = f'<img src="{self.url("trace.gif")}" loading="lazy" alt="{alt}">'
        return f"<details><summary>Watch the run</summary>{img}</details>"

    def links(self) -> str:
        names = [name for name in ("panel.png", "kernel.npy", "trace.json") if name in self.files]
        links = " · ".join(f'<a href="{self.url(name)}">{name}</a>' for name in names)
        return f'<p class="links">{links}</p>' if links else ""


def _ordered(names: Iterable[str]) -> list[str]:
    """Known columns in the order of `COLUMNS`, then the others."""
    return sorted(names, key=lambda name: [*COLUMNS, name].index(name))


def _label(name: str) -> str:
    return COLUMNS[name][0] if name in COLUMNS else name.replace("_", " ")


def _text(name: str, value: float) -> str:
    return COLUMNS.get(name, ("", "{:.4g}"))[1].format(value)


def _provenance(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (summary["versions"] or {}).items())
    parts = (summary["device"], summary["commit"] and f"commit {summary['commit']}", versions)
    return " · ".join(part for part in parts if part)
