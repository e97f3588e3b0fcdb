"""The folder of a run: pictures and numbers of every image, written so that an interrupted run can go on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codiffuse.data.images import write_png
from codiffuse.errors import InputError
from codiffuse.inference.files import null_for_nan, to_json, write_bytes
from codiffuse.inference.panel import KERNEL_SIDE, animation, kernel_picture, panel, spread_picture
from codiffuse.inference.report import write_report
from codiffuse.inference.summary import summarize

ALWAYS = ("measurement.png", "restored.png", "trace.json", "panel.png")  # of an image that is done


@dataclass(frozen=True)
class Outcome:
    """Everything known about one image after its run; tensors on the CPU.

    Attributes:
        id: names the image's folder: safe as a file name.
        row: its line of `results.jsonl`; `row["status"]` is "ok" or "failed: reason".
        y: (C, H, W) measurement; None when it could not even be read.
        image: (C, H, W) restored, in [0, 1].
        kernel: (1, h, w) estimated.
        samples: (n, C, H, W) in [0, 1], of which `image` is the mean.
        truth: (C, H, W).
        true_kernel: (1, h, w).
        trace: one dict a step: step, alpha_bar, residual (rms of y - A x0).
        frames: (x0 (C, H, W), kernel (1, h, w)) at some steps, for the animation.
    """

    id: str
    row: dict[str, Any]
    y: Tensor | None = None
    image: Tensor | None = None
    kernel: Tensor | None = None
    samples: Tensor | None = None
    truth: Tensor | None = None
    true_kernel: Tensor | None = None
    trace: Sequence[dict[str, float]] = ()
    frames: Sequence[tuple[Tensor, Tensor]] = ()


class RunFolder:
    """`results.jsonl`, `images/<id>/`, and at the end `summary.json` and `report.html`.

    One process writes to a folder at a time.

    Args:
        root: the folder, made when the first image is written.
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
        if folder.exists():
            shutil.rmtree(folder)
        self.root.mkdir(parents=True, exist_ok=True)
        if outcome.y is not None:
            folder.mkdir(parents=True)
            _write_files(folder, outcome if outcome.row["status"] == "ok" else _presentable(outcome))
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


def _presentable(outcome: Outcome) -> Outcome:
    """A failed outcome without what is NaN or infinite and so cannot be drawn."""

    def finite(*parts: Tensor) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in parts)

    found = {name: getattr(outcome, name) for name in ("image", "kernel", "samples")}
    broken = {name: None for name, value in found.items() if value is not None and not finite(value)}
    return dataclasses.replace(outcome, **broken, frames=[frame for frame in outcome.frames if finite(*frame)])


def _write_files(folder: Path, outcome: Outcome) -> None:
    """Writes `panel.png` last; draws what there is."""
    pictures = {"measurement": outcome.y, "restored": outcome.image, "truth": outcome.truth}
    if outcome.samples is not None and len(outcome.samples) > 1:
        pictures |= {"mean": outcome.samples.mean(0), "std": spread_picture(outcome.samples)}
    for name, kernel in (("kernel", outcome.kernel), ("true_kernel", outcome.true_kernel)):
        if kernel is not None:
            pictures[name] = kernel_picture(kernel, KERNEL_SIDE)
    for name, pixels in pictures.items():
        if pixels is not None:
            write_png(folder / f"{name}.png", pixels)

    if outcome.kernel is not None:
        array = io.BytesIO()
        np.save(array, outcome.kernel[0].numpy().astype(np.float32))
        write_bytes(folder / "kernel.npy", array.getvalue())
    write_bytes(folder / "trace.json", to_json(outcome.trace))
    if outcome.frames:
        write_bytes(folder / "trace.gif", animation(outcome.frames))
    write_png(folder / "panel.png", panel(outcome))
