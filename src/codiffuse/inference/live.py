"""One restoration as changes of a page: what the demo shows before, during and after it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from codiffuse.data.decoding import size_of
from codiffuse.data.sources import downscale, sources
from codiffuse.errors import InputError
from codiffuse.inference.cards import verdict_block
from codiffuse.inference.pictures import KERNEL_SIDE, kernel_picture, to_image
from codiffuse.inference.provenance import header, resolve_device
from codiffuse.inference.report import write_report
from codiffuse.inference.summary import summarize
from codiffuse.inference.watch import LOOK_SECONDS, Look, watch

CPU_SECONDS, CPU_SECONDS_A_PIXEL = 120, 2.5e-4  # of one core: for the kernel; and for each sample of the picture
WORTH_A_NOTE_S = 300
NOTHING = {"verdict": "", "result": None, "spread": None, "restored": None, "kernel_file": None, "report": None}


@dataclass(frozen=True)
class Choices:
    """What a person set on the page.

    Attributes:
        method: key of `METHODS`.
        kernel_size: px; None finds it.
        noise: level in steps of 255; None estimates it.
        num_samples: of the posterior.
        longest_side: px, to which the photograph is reduced first; None keeps its size.
    """

    method: str = "fast_em"
    kernel_size: int | None = None
    noise: float | None = None
    num_samples: int = 4
    longest_side: int | None = None


def updates(
    path: str | None,
    choices: Choices,
    restore: Callable[..., Any],
    cancelled: threading.Event,
    folder: Path,
    interval: float = LOOK_SECONDS,
) -> Iterator[dict[str, Any]]:
    """One restoration as changes of the page.

    Args:
        path: of the photograph; None when there is none yet.
        choices: what the person set.
        restore: `codiffuse.restore`.
        cancelled: set it to stop.
        folder: where the results go; what lies there is replaced.
        interval: least time between two changes, s.

    Yields:
        New values by name of the page's parts, and whether the run goes on (`running`).
    """
    yield NOTHING | {"status": "Reading the photograph …", "estimate": None, "kernel": None, "running": True}
    try:
        if path is None:
            raise InputError("Expected a photograph, got none; drop one on the field above.")
        (source,) = sources(path)
        pixels = source.load().pixels
        y = downscale(pixels, choices.longest_side or max(pixels.shape))
        # A file as it is, so that the numbers are those of the command line.
        image = path if y is pixels else y.permute(1, 2, 0).squeeze(-1).numpy()
        restored = None
        for news in watch(restore, image, y, cancelled, interval=interval, **_arguments(choices)):
            if isinstance(news, Look):
                yield _seen(news, choices.num_samples)
            else:
                restored = news
    except InputError as error:
        yield {"status": f"<strong>Not restored.</strong> {escape(str(error))}", "running": False}
        return
    except Exception:
        yield {"status": "<strong>Not restored.</strong> This is a bug; the terminal tells more.", "running": False}
        raise
    if restored is None:
        yield {"status": "Stopped.", "running": False}
        return
    if restored.status != "ok":
        yield {"status": f"<strong>Not restored.</strong> {escape(restored.status)}", "running": False}
        return
    yield {"status": "Writing the files …", "running": True}
    yield _found(restored, restored.row | {"id": source.id}, choices, folder) | {"running": False}


def time_note(path: str | None, num_samples: int, longest_side: int | None) -> str:
    """What to expect of a large photograph before it is started; empty for small ones."""
    if path is None:
        return ""
    try:
        width, height = size_of(Path(path))
    except Exception:  # on damaged bytes the decoders raise nearly every type there is; whoever starts it is told why
        return ""
    scale = min(1.0, (longest_side or max(width, height)) / max(width, height))
    pixels = width * height * scale**2
    seconds = CPU_SECONDS + CPU_SECONDS_A_PIXEL * pixels * num_samples
    if seconds < WORTH_A_NOTE_S:
        return ""
    size = f"{pixels / 1e6:.1f} megapixels, {num_samples} sample" + "s" * (num_samples > 1)
    return (
        f"**{size}: expect about {_duration(seconds)} on one CPU core**, much less on a GPU. "
        "For a first try choose a smaller longest side, or a single sample."
    )


def _arguments(choices: Choices) -> dict[str, Any]:
    """`choices` as arguments of `restore`; what was left open is left out."""
    given = {
        "method": choices.method,
        "kernel_size": choices.kernel_size,
        "sigma": None if choices.noise is None else choices.noise / 255,
        "num_samples": choices.num_samples,
    }
    return {name: value for name, value in given.items() if value is not None}


def _seen(look: Look, num_samples: int) -> dict[str, Any]:
    """A look as changes of the page."""
    residual = "" if look.residual is None else f" · residual {255 * look.residual:.1f} of 255"
    bar = f'<progress max="{look.total}" value="{look.number}" style="width: 100%"></progress>'
    return {
        "status": f"{bar}<br>Step {look.number} of {look.total} · {_stage(look, num_samples)}{residual}",
        "estimate": _array(look.image),
        "kernel": _array(kernel_picture(look.kernel, KERNEL_SIDE)),
        "running": True,
    }


def _stage(look: Look, num_samples: int) -> str:
    """What is being done, or how long it still takes: known once all steps to come are of the size of the last ones."""
    if not (look.tile or (look.whole and look.samples == num_samples)):
        return "finding the kernel"
    if look.step_seconds is None:
        return "restoring the picture"
    return f"about {_duration(look.step_seconds * (look.total - look.number))} left"


def _found(restored: Any, row: dict[str, Any], choices: Choices, folder: Path) -> dict[str, Any]:
    """Writes the files and the report of a result; returns it as changes of the page."""
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "report"
    pictures = restored.save(root / "images" / row["id"])
    about = header(
        str(resolve_device("auto")), method=choices.method, experiment=None, run_id=row["id"], settings=asdict(choices)
    )
    write_report(root, [row], summarize([row], about), about)
    residual = "" if restored.residual is None else f" · residual {restored.residual:.2f} noise levels"
    noise = f"noise level {255 * row['sigma']:.1f} of 255"  # the unit of the residual
    return {
        "status": f"Restored in {_duration(restored.seconds)} · {noise}{residual}",
        "verdict": verdict_block(row),
        "result": (_shown(pictures, "measurement"), _shown(pictures, "restored")),
        "estimate": _shown(pictures, "restored"),
        "kernel": str(pictures / "kernel.png"),
        "spread": None if restored.std is None else _shown(pictures, "std"),
        "restored": str(pictures / "restored.png"),
        "kernel_file": str(pictures / "kernel.npy"),
        "report": shutil.make_archive(str(folder / f"{row['id']}-report"), "zip", root),
    }


def _shown(pictures: Path, name: str) -> str:
    """The reduced copy of a large picture, else the picture."""
    preview = pictures / f"{name}_preview.jpg"
    return str(preview if preview.exists() else pictures / f"{name}.png")


def _array(pixels: Tensor) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(to_image(pixels))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
