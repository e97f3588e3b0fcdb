"""The card of one image on the report page: verdict, pictures, kernels, numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from codiffuse.data.decoding import size_of
from codiffuse.inference.charts import residual_curve
from codiffuse.inference.pictures import RESIDUAL_SIGMAS, STRIP_COLUMNS, WHITE_SPREAD
from codiffuse.inference.summary import gain
from codiffuse.inference.verdict import percent, verdict

# Pictures below the large ones: file, caption.
CHECKS = {
    "truth": "Truth",
    "std": f"Uncertainty: standard deviation of the truth about the restoration, white = {WHITE_SPREAD}",
    "residual": "What the restoration leaves unexplained: gray = nothing, black and white = "
    f"{RESIDUAL_SIGMAS} noise levels. Shapes of the scene in it are a bad sign.",
    "windows": "The parts of the measurement that the kernel was estimated from",
    "saturated": "Pixels left out because they are clipped (orange)",
}
# The same for the tilt of an operator that has one.
TILTS = {
    "tilt": "Estimated tilt: where each part of the picture was moved from. Arrows are enlarged, full colour is the "
    "length at the wheel, and a shift of the whole is left out.",
    "true_tilt": "True tilt",
}
DOWNLOADS = "restored.png measurement.png std.png residual.png panel.png kernel.npy tilt.npy trace.json".split()

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
    "kernel_std": ("Width of the kernel (rms)", "{:.2f} px"),
    "kernel_std_true": ("Width of the true kernel (rms)", "{:.2f} px"),
    "tilt_epe": ("Tilt error (EPE, 0 is best)", "{:.3f} px"),
    "tilt_epe_zero": ("Tilt error of no tilt at all", "{:.3f} px"),
    "reblur": ("Residual beyond the noise (0 is best)", "{:+.2e}"),
    "trust": ("Chance of a better picture (estimated)", "{}"),
    "sigma": ("Noise level (white is 1)", "{:.4f}"),
    "sigma_used": ("Noise level that the last step assumed", "{:.4f}"),
    "nfe": ("Network calls", "{:.0f}"),
    "seconds": ("Time", "{:.1f} s"),
    "feature_residual_ratio": ("Residual over the noise level (1 is best)", "{:.2f}"),
    "feature_residual_correlation": ("Structure in the residual (0 is best)", "{:.3f}"),
    "feature_unexplained": ("Residual over the noise, or what every photograph leaves (1 at most)", "{:.2f}"),
    "feature_structure": ("Structure in it on that scale (0 is best)", "{:.3f}"),
    "feature_restart_agreement": ("Match of the runs' kernels with each other (1 is best)", "{:.2f}"),
    "feature_restart_support": ("Match of the kept kernel with those of the runs (1 is best)", "{:.2f}"),
    "feature_window_agreement": ("Match of the kernels of different parts (1 is best)", "{:.2f}"),
    "feature_border_mass": ("Share of the kernel at its border (0 is best)", "{:.3f}"),
    "feature_kernel_spread": ("Distance of the kernel's mass from its centre, px", "{:.2f}"),
    "feature_relative_spread": ("The same over what the measurement's spectrum suggests (1 expected)", "{:.2f}"),
    "feature_remaining_spread": ("Radius of the blur that the result's spectrum suggests, px (2 at most)", "{:.2f}"),
    "feature_kernel_pixels": ("Pixels that the kernel is spread over", "{:.1f}"),
    "feature_texture": ("Texture of the measurement beyond its noise", "{:.3f}"),
    "feature_sharpening": ("Gradients, restoration over measurement (1 is no change)", "{:.2f}"),
    "feature_sparsity_before": ("Gradients of the measurement, mean over rms (blur raises it)", "{:.3f}"),
    "feature_sparsity_after": ("Gradients of the restoration, mean over rms", "{:.3f}"),
    "feature_clipped_share": ("Share of pixels cut off at black or white", "{:.3f}"),
}


def card(root: Path, row: dict[str, Any], anchor: str) -> str:
    """All there is to see of one image, as an `<article>`.

    Args:
        root: the run's folder, with `images/<id>/`; pictures that are not there are left out.
        row: its line of `results.jsonl`.
        anchor: the element's id.
    """
    pictures = _Pictures(root, row["id"])
    failed = row["status"] != "ok"
    reason = f'<p class="reason">{escape(row["status"])}</p>' if failed else ""
    numbers = {name: value for name, value in (row | {"gain": gain(row)}).items() if isinstance(value, int | float)}
    estimated = "No blur was assumed" if "sharp" in (row.get("flags") or ()) else "Estimated kernel"
    kernels = pictures.figure("kernel", estimated) + pictures.figure("true_kernel", "True kernel")
    tilts = "".join(pictures.figure(name, caption) for name, caption in TILTS.items())
    beside = [
        _div("kernels", kernels),
        _div("kernels tilts", tilts),
        pictures.restarts(row.get("restart_matches") or ()),
        pictures.animation(),
    ]
    checks = [pictures.figure(name, caption) for name, caption in CHECKS.items()]
    facts = [
        pictures.residual_curve(row.get("sigma")),
        _div("numbers", _numbers(numbers, features=False), _folded(_numbers(numbers, features=True))),
    ]
    parts = [
        f"<h3>{escape(row['id'])}</h3>{reason}{verdict_block(row)}{_line(row, pictures)}{_notes(row)}",
        _div("main", pictures.compare(), _div("beside", *beside)),
        _div("checks", *checks),
        _div("facts", *facts),
        pictures.links(),
    ]
    return f'<article class="card{" failed" * failed}" id="{anchor}">{"".join(parts)}</article>'


def verdict_block(row: dict[str, Any]) -> str:
    """How far to trust an image and why, in words; empty when nobody judged it."""
    found = verdict(row.get("trust"), row.get("flags") or ())
    trust = f"<p><strong>Trust: {found.level}.</strong> {escape(found.advice)}</p>" if found.level else ""
    reasons = "".join(f"<li>{escape(sentence)}</li>" for sentence in found.reasons)
    return _div(f"verdict {found.level}".strip(), trust, f"<ul>{reasons}</ul>" if reasons else "")


def table(lines: Iterable[tuple[str, str, str]]) -> str:
    """A table of (label, raw name, value)."""
    cells = "".join(
        f'<tr><th scope="row" title="{escape(raw)}">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, raw, value in lines
    )
    return f"<table>{cells}</table>" if cells else ""


def ordered(names: Iterable[str]) -> list[str]:
    """Known columns in the order of `COLUMNS`, then the others."""
    return sorted(names, key=lambda name: [*COLUMNS, name].index(name))


def is_feature(name: str) -> bool:
    """Whether a column is one of the numbers behind trust and flags, which few readers want to see."""
    return name.startswith("feature_")


def label(name: str) -> str:
    """What a person calls a column."""
    return COLUMNS[name][0] if name in COLUMNS else name.replace("_", " ")


def text(name: str, value: float) -> str:
    """A value of a column as it is printed."""
    if name == "seconds" and value >= 120:
        return f"{value / 60:.0f} min"
    value = percent(value) if name == "trust" else value
    return COLUMNS.get(name, ("", "{:.4g}"))[1].format(value)


def _line(row: dict[str, Any], pictures: _Pictures) -> str:
    """Size, method, noise and time in one line."""
    size = pictures.size("measurement.png") if "measurement.png" in pictures.files else None
    parts = [
        size and f"{size[0]} x {size[1]} px",
        row.get("method"),
        row.get("sigma") is not None and f"noise {255 * row['sigma']:.1f} of 255",
        row.get("seconds") is not None and text("seconds", row["seconds"]),
    ]
    return f'<p class="quiet">{escape(" · ".join(part for part in parts if part))}</p>'


def _notes(row: dict[str, Any]) -> str:
    """What was done to the picture on reading."""
    return f'<p class="quiet">On reading: {escape("; ".join(row["notes"]))}</p>' if row.get("notes") else ""


def _numbers(numbers: dict[str, float], *, features: bool) -> str:
    names = [name for name in ordered(numbers) if is_feature(name) == features]
    return table((label(name), name, text(name, numbers[name])) for name in names)


def _folded(content: str) -> str:
    return f"<details><summary>Diagnostics</summary>{content}</details>" if content else ""


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

    def shown(self, name: str) -> str:
        """The file to show: the reduced copy of a large picture."""
        preview = f"{name}_preview.jpg"
        return preview if preview in self.files else f"{name}.png"

    def size(self, file: str) -> tuple[int, int]:
        """(width, height)."""
        return size_of(self.folder / file)

    def img(self, file: str, alt: str, style: str = "") -> str:
        width, height = self.size(file)
        named = f' class="{style}"' if style else ""
        return (
            f'<img{named} src="{self.url(file)}" width="{width}" height="{height}" loading="lazy" '
            f'alt="{escape(self.id)}: {escape(alt)}">'
        )

    def figure(self, name: str, caption: str) -> str:
        if f"{name}.png" not in self.files:
            return ""
        img = f'<a href="{self.url(name + ".png")}">{self.img(self.shown(name), caption)}</a>'
        return f'<figure class="{name}">{img}<figcaption>{escape(caption)}</figcaption></figure>'

    def compare(self) -> str:
        """Measurement and restoration under one slider, or side by side where they differ in size."""
        both = {"measurement.png", "restored.png"} <= self.files
        if not both or self.size("measurement.png") != self.size("restored.png"):
            return self.figure("measurement", "Measurement") + self.figure("restored", "Restoration")
        after, before = self.shown("restored"), self.shown("measurement")
        width, height = self.size(after)
        return (
            f'<figure class="before-after" style="--ratio: {width / height:.4f}; --width: {width}px">'
            '<div class="compare" style="--cut: 50%">'
            f"{self.img(after, 'restoration')}{self.img(before, 'measurement', 'before')}"
            '<span class="name-before">measurement</span><span class="name-after">restoration</span>'
            '<input type="range" min="0" max="100" value="50" autocomplete="off" '
            f'aria-label="{escape(self.id)}: percentage that shows the measurement">'
            "</div><figcaption>Drag across the picture to compare</figcaption></figure>"
        )

    def restarts(self, matches: Sequence[float | None]) -> str:
        """The kernels of all runs, and under each how well it matches the one that was kept."""
        if "restarts.png" not in self.files:
            return ""
        caption, words = "Kernels of all runs: what they agree on was refined. Alike is a good sign.", ""
        if matches:
            caption += " Match: with the kernel that was kept; 1 is best."
            found = ("" if value is None else f"match {value:.2f}".replace(" 0.", " .") for value in matches)
            words = f"<ol>{''.join(f'<li>{text}</li>' for text in found)}</ol>"
        columns = min(STRIP_COLUMNS, len(matches) or STRIP_COLUMNS)
        return (
            f'<figure class="restarts" style="--columns: {columns}"><div class="strip">'
            f'<a href="{self.url("restarts.png")}">{self.img("restarts.png", caption)}</a>{words}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def animation(self) -> str:
        if "trace.gif" not in self.files:
            return ""
        img = self.img("trace.gif", "image and kernel over the steps")
        return f'<figure class="animation">{img}<figcaption>Image and kernel over the steps</figcaption></figure>'

    def residual_curve(self, sigma: float | None) -> str:
        if "trace.json" not in self.files:
            return ""
        trace = json.loads((self.folder / "trace.json").read_bytes())
        curve = residual_curve(trace, sigma, f"{self.id}: residual over the steps")
        caption = (
            "How far the restoration, blurred again, is from the measurement (rms; "
            "at a lower resolution, where there is less noise, raised in proportion)"
        )
        return f'<figure class="curve-of-steps">{curve}<figcaption>{caption}</figcaption></figure>' if curve else ""

    def links(self) -> str:
        """The files at full size."""
        links = " · ".join(f'<a href="{self.url(name)}">{name}</a>' for name in DOWNLOADS if name in self.files)
        return f'<p class="links">Files at full size: {links}</p>' if links else ""
