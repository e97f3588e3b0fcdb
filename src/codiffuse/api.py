"""One picture from Python: `restore` does what the command line does, with the same settings and the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from codiffuse.data.images import Picture, picture_of
from codiffuse.data.sources import Source
from codiffuse.errors import InputError
from codiffuse.inference.files import null_for_nan
from codiffuse.inference.writers import Outcome, write_files
from codiffuse.methods.base import Callback
from codiffuse.priors import zoo

if TYPE_CHECKING:
    from PIL import Image

ARRAY_ID = "image"  # of a picture that has no file; the id of a file is its name
KEPT_PRIORS = 8


@dataclass(frozen=True, eq=False)
class Restored:
    """What `restore` found.

    Arrays are float32. Where the picture given had no axis of channels, or was a gray file, the axis `C` is absent.

    Attributes:
        image: `(H, W, C)` in [0, 1], the restoration: the mean of the samples.
        kernel: `(h, w)`, the blur that was found: non-negative, sums to one, centre at `(h // 2, w // 2)`.
        std: `(H, W)` calibrated standard deviation of the truth about `image`, from the samples, mean of the channels;
            `None` for one sample.
        samples: `(n, H, W, C)` in [0, 1]; `None` where the method does not keep them.
        sigma: noise level that was used in the end, in [0, 1] units.
        status: `ok`, or `failed: reason`.
        trust: in [0, 1], estimated chance that the restoration is better than the picture given; `None` if unknown.
        flags: what speaks against it: keys of `codiffuse.inference.diagnostics.FLAGS`.
        residual: rms of what picture and kernel leave unexplained, in units of the picture's noise level,
            `row["sigma"]`; near 1 when the model fits. Not of `sigma`, which is raised for what is left unexplained.
            Pixels that were left out as saturated do not count; `None` of a failed restoration.
        seconds: time of the method.
        row: the line that a run writes to `results.jsonl`.
        notes: what was done to the picture on reading, in words.
    """

    image: np.ndarray = field(repr=False)
    kernel: np.ndarray = field(repr=False)
    std: np.ndarray | None = field(repr=False)
    samples: np.ndarray | None = field(repr=False)
    sigma: float
    status: str
    trust: float | None
    flags: tuple[str, ...]
    residual: float | None
    seconds: float
    row: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...]
    _outcome: Outcome = field(repr=False)

    def pil(self) -> Image.Image:
        """The restoration as a picture of Pillow, gray or sRGB, in 8 bits: the same as `restored.png`."""
        from PIL import Image

        image = self.image[..., 0] if self.image.shape[2:] == (1,) else self.image
        return Image.fromarray(np.rint(np.nan_to_num(image.astype(np.float64)).clip(0, 1) * 255).astype(np.uint8))

    def save(self, folder: str | Path) -> Path:
        """Writes the files that a run leaves of an image (restored.png, kernel.npy, panel.png ...).

        Args:
            folder: made if needed; files of the same names in it are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, self._outcome)
        return folder


def restore(
    image: str | Path | Image.Image | np.ndarray | Tensor,
    method: str = "fast_em",
    *,
    sigma: float | str | None = None,
    kernel_size: int | str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    callback: Callback | None = None,
    overrides: Sequence[str] | None = (),
    **settings: Any,
) -> Restored:
    """Restores one picture and finds the blur that made it.

    Settings that are left out are those of `conf/infer.yaml`. Seed and settings being equal, the result is that of the
    command line for the same file. Priors are kept between calls, so the first call takes longest.

    Args:
        image: A file, or whatever `input=` names one picture by; a picture of Pillow; an array `(H, W)` or
            `(H, W, 1 | 3 | 4)`; or a tensor `(H, W)` or `(1 | 3 | 4, H, W)`. Arrays and tensors hold uint8, uint16, or
            floats with white at 1.
        method: One of `conf/method`.
        sigma: Noise level in [0, 1] units, or a fraction such as "5/255"; None estimates it. This and other numbers may
            be scalars of NumPy or torch.
        kernel_size: Side of the unknown kernel, px, or "auto".
        num_samples: Restorations with the kernel found; their mean is the result, their spread the uncertainty. Without
            a `pipeline`, and with a method that finds no kernel, these are `num_particles`.
        seed: Of all random numbers.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, or `bfloat16` inside the network.
        callback: Called after each step with a `codiffuse.methods.base.StepInfo`.
        overrides: Settings inside components as the command line has them: `["method.coarse.num_refinements=2"]`.
        **settings: Other settings of `conf/infer.yaml`, and options of its groups, such as `boundary="circular"` or
            `pipeline=None`; None is null in YAML.

    Raises:
        InputError: A picture that cannot be used, or settings that cannot: one line with what was expected.

    Example:
        >>> restored = codiffuse.restore("photo.jpg", num_samples=4)  # doctest: +SKIP
        >>> restored.pil().save("sharp.png")  # doctest: +SKIP
    """
    from codiffuse import cli

    overrides = () if overrides is None else overrides
    if "input" in settings or isinstance(overrides, str) or not all(isinstance(each, str) for each in overrides):
        raise InputError("Expected the picture as first argument and a list of overrides, got others; see its help.")
    if callback is not None and not callable(callback):
        raise InputError(
            f"Expected a function of a StepInfo as callback, got {type(callback).__name__}; give one or None."
        )
    picture, keep_channels = _picture(image)
    values = {"method": method, "input": ARRAY_ID if picture else str(image)}
    values |= {"seed": seed, "device": device, "precision": precision}
    given = {"kernel_size": kernel_size, "sigma": sigma, "num_samples": num_samples}
    values |= {name: value for name, value in given.items() if value is not None}
    plain, method = cli.compose_infer(values | settings, overrides)
    with cli.input_errors(), _threads(plain["threads"]):
        source = cli.measurements(plain, Source(ARRAY_ID, None, lambda: picture) if picture else None)
        if len(source.ids) != 1:
            raise InputError(f"Expected one picture, got {len(source.ids)} in {image}; restore them one by one.")
        sample = source.load(0)
        restorer = cli.restorer_of(_with_kept_priors(plain), method)
        [outcome] = restorer([sample], callback=callback)
    if outcome.image is None:
        raise InputError(outcome.row["status"].removeprefix("failed: "))
    return _restored(outcome, sample.notes, keep_channels)


def load_prior(
    name: str | Path, kind: str | None = None, device: str | torch.device = "cpu", precision: str = "float32"
) -> nn.Module:
    """`codiffuse.priors.zoo.load`, which it does once for each prior, device and precision until the files change."""
    source = zoo.find(name).absolute()
    files = tuple((path.name, path.stat().st_mtime_ns) for path in zoo.files(source) if path.exists())
    return _loaded(source, files, kind, str(device), precision)


@lru_cache(maxsize=KEPT_PRIORS)
def _loaded(source: Path, files: tuple, kind: str | None, device: str, precision: str) -> nn.Module:
    return zoo.load(source, kind, device, precision)


def _with_kept_priors(node: Any) -> Any:
    """The same settings, but priors come from `load_prior`."""
    if isinstance(node, list):
        return [_with_kept_priors(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_kept_priors(value) for key, value in node.items()}
    if node.get("_target_") == f"{zoo.load.__module__}.{zoo.load.__name__}":
        node["_target_"] = f"{load_prior.__module__}.{load_prior.__name__}"
    return node


def _picture(image: Any) -> tuple[Picture | None, bool]:
    """The picture in memory, or None for what is to be read; and whether a single channel has an axis."""
    if isinstance(image, str | Path):
        return None, False
    if isinstance(image, Tensor):
        image = _array(image)
    if isinstance(image, np.ndarray):
        return picture_of(image, name=ARRAY_ID), image.ndim == 3
    from PIL import Image

    if isinstance(image, Image.Image):
        return picture_of(image, name=ARRAY_ID), False
    got = type(image).__name__
    raise InputError(f"image: expected a path, a picture of Pillow, a NumPy array or a tensor, got {got}; give one")


def _array(image: Tensor) -> np.ndarray:
    """`(H, W)` or `(C, H, W)` -> `(H, W)` or `(H, W, C)`."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and len(image) not in (1, 3, 4)):
        hint = "move the channels first" if image.shape[2:] in ((1,), (3,), (4,)) else "select its colours"
        hint, got = hint if image.ndim == 3 else "give one picture", tuple(image.shape)
        raise InputError(f"image: expected a tensor (H, W) or (1 | 3 | 4, H, W), got {got}; {hint}")
    try:
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image
        return (image.movedim(0, -1) if image.ndim == 3 else image).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, without data, of a type that NumPy lacks
        got = f"{image.layout}, {image.dtype} on {image.device}"
        raise InputError(f"image: expected a dense tensor of uint8, uint16 or floats, got {got}; convert it") from error


def _restored(outcome: Outcome, notes: tuple[str, ...], keep_channels: bool) -> Restored:
    row = null_for_nan(outcome.row)

    def array(tensor: Tensor) -> np.ndarray:
        """`(..., C, H, W)` -> `(..., H, W, C)`, or `(..., H, W)` for gray."""
        values = tensor.movedim(-3, -1).float().numpy()
        return np.ascontiguousarray(values[..., 0] if values.shape[-1] == 1 and not keep_channels else values)

    return Restored(
        image=array(outcome.image),
        kernel=outcome.kernel[0].float().numpy(),
        std=None if outcome.spread is None else outcome.spread.mean(0).float().numpy(),
        samples=None if outcome.samples is None else array(outcome.samples),
        sigma=row.get("sigma_used", row["sigma"]),
        status=row["status"],
        trust=row.get("trust"),
        flags=tuple(row.get("flags") or ()),
        residual=None if outcome.residual is None else _rms(outcome.residual, outcome.mask) / row["sigma"],
        seconds=row["seconds"],
        row=row,
        notes=notes,
        _outcome=outcome,
    )


def _rms(residual: Tensor, mask: Tensor | None) -> float:
    """Root mean square of `(C, H, W)` over the pixels that count."""
    square = residual.square().mean(0)
    return math.sqrt(square.mean() if mask is None else square[mask[0] > 0].mean().nan_to_num(0.0))


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Gives torch a number of threads on the CPU for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
