"""The folder of a run: pictures and numbers of every image, written so that an interrupted run can go on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codiffuse.data.images import write_png
from codiffuse.data.sources import downscale
from codiffuse.errors import InputError
from codiffuse.inference.fields import tilt_pictures
from codiffuse.inference.files import null_for_nan, to_json, write_bytes, writing_to
from codiffuse.inference.panel import animation, panel
from codiffuse.inference.pictures import (
    KERNEL_SIDE,
    Box,
    kernel_picture,
    left_out_picture,
    residual_picture,
    restart_strip,
    spread_picture,
    to_image,
    windows_picture,
)
from codiffuse.inference.report import write_report
from codiffuse.inference.summary import summarize
from codiffuse.inference.uncertainty import FACTORS, Origin
from codiffuse.metrics.uncertainty import predictive_std

ALWAYS = ("measurement.png", "restored.png", "trace.json", "panel.png")  # of an image that is done
PICTURES = (
    "measurement restored truth mean std residual kernel true_kernel tilt true_tilt restarts windows saturated panel"
).split()
WRITTEN = {"kernel.npy", "tilt.npy", "trace.json", "trace.gif"} | {
    f"{name}{end}" for name in PICTURES for end in (".png", "_preview.jpg")
}  # whatever an image's folder may hold that is ours
PREVIEW_SIDE, PREVIEW_QUALITY = 1600, 90  # larger pictures get a reduced copy, which is what the report shows


@dataclass(frozen=True)
class Outcome:
    """Everything known about one image after its run; tensors on the CPU.

    Attributes:
        id: names the image's folder: safe as a file name.
        row: its line of `results.jsonl`; `row["status"]` is "ok" or "failed: reason". The report also understands
            `trust` (estimated chance in [0, 1] that the restoration is better than the measurement, or None) and
            `flags` (keys of `diagnostics.FLAGS`).
        y: (C, H, W) measurement; None when it could not even be read.
        image: (C, H, W) restored, in [0, 1].
        kernel: (1, h, w) estimated.
        samples: (n, C, H, W) in [0, 1], of which `image` is the mean, in photographs without what one alone shows.
        origin: of the samples: with a kernel that was found, or given, or of a picture taken for sharp.
        std: (C, H, W) standard deviation over the samples, where the samples themselves are not kept.
        residual: (C, H, W) y - A x, signed.
        restart_kernels: (R, h, w), where the runs ended of which one was kept.
        restart_residuals: of each of them, the rms of y - A x in units of sigma; infinite for one that failed.
        windows: (top, left, height, width) in pixels of `y`: what the kernel was estimated from.
        mask: (1, H, W), 1 for the pixels of `y` that count, 0 for those left out as saturated.
        truth: (C, H, W).
        true_kernel: (1, h, w).
        trace: one dict a step: step, alpha_bar, residual (rms of y - A x0).
        frames: (x0 (C, H, W), kernel (1, h, w)) at some steps, for the animation.
        tilt: (2, H, W) in pixels, estimated, where the operator has one.
        true_tilt: (2, H, W) in pixels.
    """

    id: str
    row: dict[str, Any]
    y: Tensor | None = None
    image: Tensor | None = None
    kernel: Tensor | None = None
    samples: Tensor | None = None
    origin: Origin = "found"
    std: Tensor | None = None
    residual: Tensor | None = None
    restart_kernels: Tensor | None = None
    restart_residuals: Sequence[float] = ()
    windows: Sequence[Box] = ()
    mask: Tensor | None = None
    truth: Tensor | None = None
    true_kernel: Tensor | None = None
    trace: Sequence[dict[str, float]] = ()
    frames: Sequence[tuple[Tensor, Tensor]] = ()
    tilt: Tensor | None = None
    true_tilt: Tensor | None = None

    @cached_property
    def spread(self) -> Tensor | None:
        """(C, H, W) calibrated standard deviation of the truth about the image; None when there is a single sample."""
        if self.std is not None or self.samples is None or len(self.samples) < 2:
            return self.std
        return predictive_std(self.samples, FACTORS[self.origin])


class RunFolder:
    """`results.jsonl`, `images/<id>/`, and at the end `summary.json` and `report.html`.

    One process writes to a folder at a time. Files in it that no run writes stay as they are.

    Args:
        root: the folder, made when the first image is written.

    Raises:
        InputError: by every method that writes, where the folder cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._results = root / "results.jsonl"

    def done(self) -> dict[str, dict[str, Any]]:
        """Rows by id of the images that need no further work: they did not fail, and their pictures are there."""
        return {
            name: row
            for name, row in self._rows().items()
            if row["status"] == "ok" and all((self._folder(name) / file).is_file() for file in ALWAYS)
        }

    def write(self, outcome: Outcome) -> None:
        """Writes the files of an image and then its row, so that a row means that the files are complete.

        An image written before is replaced.
        """
        outcome = dataclasses.replace(outcome, row=null_for_nan(outcome.row))
        folder = self._folder(outcome.id)
        with writing_to(self.root):
            _clear(folder)
            self.root.mkdir(parents=True, exist_ok=True)
            if outcome.y is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_files(folder, outcome)
            self._append(outcome.row)

    def finish(self, ids: Sequence[str], header: dict[str, Any]) -> dict[str, Any]:
        """Writes `summary.json` and `report.html`, and orders `results.jsonl`; may be called any number of times.

        Args:
            ids: images of this run, in order. Rows of other images stay in `results.jsonl`, after these.
            header: method, experiment, run_id, device, commit, versions; and settings, a dict that the report shows.

        Returns:
            The summary.
        """
        rows = self._rows()
        ours = [rows[name] for name in ids if name in rows]
        others = [row for name, row in rows.items() if name not in set(ids)]
        summary = summarize(ours, header)
        with writing_to(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            write_bytes(self._results, b"".join(to_json(row) for row in ours + others))
            write_bytes(self.root / "summary.json", to_json(summary, indent=2))
            write_report(self.root, ours, summary, header)
        return summary

    def _folder(self, name: str) -> Path:
        if Path(name).name != name or name == "..":
            raise InputError(f"expected an id that is safe as a file name, got {name!r}; leave out slashes")
        return self.root / "images" / name

    def _rows(self) -> dict[str, dict[str, Any]]:
        """Rows by id; the last row of an id counts."""
        if not self._results.exists():
            return {}
        whole_lines = self._results.read_bytes().split(b"\n")[:-1]
        return {row["id"]: row for row in map(json.loads, whole_lines)}

    def _append(self, row: dict[str, Any]) -> None:
        with open(self._results, "a+b") as results:
            results.seek(0)
            # A program that was killed while it wrote leaves a line without an end.
            results.truncate(results.read().rfind(b"\n") + 1)
            results.write(to_json(row))
            results.flush()
            os.fsync(results.fileno())


def _clear(folder: Path) -> None:
    """Removes what a run wrote of an image, and its folder when nothing else is in it."""
    if not folder.exists():
        return
    for path in list(folder.iterdir()):
        if path.name in WRITTEN or path.suffix == ".partial":  # the latter of a program that was killed
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _presentable(outcome: Outcome) -> Outcome:
    """A failed outcome without what is NaN or infinite and so cannot be drawn."""

    def finite(*parts: Tensor) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in parts)

    found = {name: getattr(outcome, name) for name in ("image", "kernel", "tilt", "samples", "std", "residual")}
    broken = {name: None for name, value in found.items() if value is not None and not finite(value)}
    return dataclasses.replace(outcome, **broken, frames=[frame for frame in outcome.frames if finite(*frame)])


def write_files(folder: Path, outcome: Outcome) -> None:
    """Writes the files of one image into a folder that exists, `panel.png` last; of a failed one what can be drawn."""
    if outcome.row["status"] != "ok":
        outcome = _presentable(outcome)
    for name, pixels in (_pictures(outcome) | _drawings(outcome)).items():
        write_png(folder / f"{name}.png", pixels)
        if max(pixels.shape[-2:]) > PREVIEW_SIDE:
            write_bytes(folder / f"{name}_preview.jpg", _jpeg(downscale(pixels, PREVIEW_SIDE)))
    if outcome.kernel is not None:
        write_bytes(folder / "kernel.npy", _npy(outcome.kernel[0]))
    if outcome.tilt is not None:
        write_bytes(folder / "tilt.npy", _npy(outcome.tilt))
    write_bytes(folder / "trace.json", to_json(outcome.trace))
    if outcome.frames:
        write_bytes(folder / "trace.gif", animation(outcome.frames))
    write_png(folder / "panel.png", panel(outcome))


def _pictures(outcome: Outcome) -> dict[str, Tensor]:
    """What has a pixel for each pixel of the measurement or of the image."""
    pictures = {"measurement": outcome.y, "restored": outcome.image, "truth": outcome.truth}
    if outcome.spread is not None:
        mean = outcome.image if outcome.samples is None else outcome.samples.mean(0)
        pictures |= {"mean": mean, "std": spread_picture(outcome.spread)}
    if outcome.residual is not None:
        pictures["residual"] = residual_picture(outcome.residual, outcome.row["sigma"])
    return {name: pixels for name, pixels in pictures.items() if pixels is not None}


def _drawings(outcome: Outcome) -> dict[str, Tensor]:
    """Small pictures that explain."""
    drawings = {}
    for name, kernel in (("kernel", outcome.kernel), ("true_kernel", outcome.true_kernel)):
        if kernel is not None:
            drawings[name] = kernel_picture(kernel, KERNEL_SIDE)
    drawings |= tilt_pictures({"tilt": outcome.tilt, "true_tilt": outcome.true_tilt}, KERNEL_SIDE)
    if outcome.restart_kernels is not None and len(outcome.restart_kernels) > 1:
        drawings["restarts"] = restart_strip(outcome.restart_kernels, outcome.restart_residuals)
    if outcome.windows:
        drawings["windows"] = windows_picture(outcome.y, outcome.windows)
    if outcome.mask is not None and bool((outcome.mask == 0).any()):
        drawings["saturated"] = left_out_picture(outcome.y, outcome.mask)
    return drawings


def _npy(values: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, values.numpy().astype(np.float32))
    return file.getvalue()


def _jpeg(pixels: Tensor) -> bytes:
    file = io.BytesIO()
    to_image(pixels).save(file, "JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()
