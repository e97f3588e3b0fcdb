"""Reads whatever picture a person has into a float tensor, and writes PNG files that are either complete or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from codiffuse.data.decoding import decode, decode_file
from codiffuse.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE = 32
MAX_PIXELS = 200_000_000
MAX_FLOAT = 10.0  # a file of floats up to 255 or 65535 is on another scale
NOISY_WHITE, NOISY_PEAK = 1.5, 2.0  # what noise makes of white: nearly always less than the one, always than the other
HIGHLIGHTS = 1e-3  # share of a high dynamic range that is given up to white
# What is measured is not clipped, so noise takes half of what is black below 0, and a hundredth of it below -2.3 sigma.
# Where the darkest hundredth of all pixels is lower than that by more than ringing, or a black that was subtracted,
# explains, or any pixel is lower than noise ever gets, the values have another scale, such as [-1, 1].
DARKEST = 0.01
RINGING = 0.25
STRONGEST_NOISE = 0.2  # sigma; stronger is seldom restored, and may be the texture of a picture on another scale
DARKEST_SIGMAS, LOWEST_SIGMAS = 3, 10


@dataclass(frozen=True)
class Picture:
    """A picture as it was read.

    Attributes:
        pixels: (C, H, W) float32, C = 1 or 3, in [0, 1]; floats keep their values, which noise may carry outside.
        notes: What was done to the file's pixels, in words.
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


def read_picture(path: str | Path, *, min_side: int = MIN_SIDE) -> Picture:
    """Reads a picture file, or a `.npy` array of shape (H, W) or (H, W, 1 | 3 | 4).

    Integers are divided by the largest value of their type. EXIF orientation is applied, transparency is composited
    over white, other colour models become RGB, 8-bit colours with a profile become sRGB, and of several frames the
    first is taken; `notes` tells which.

    Priors know pictures in [0, 1], so floats of high dynamic range are exposed: divided by their 99.9th percentile, and
    what is brighter becomes white. They stay linear, and noise levels are in units of that white.

    Args:
        path: The file. Its content decides the format, except for `.npy`.
        min_side: Smallest height and width accepted, in pixels.

    Raises:
        InputError: The file is missing, damaged, not a picture, too small, or larger than `MAX_PIXELS`; or its floats
            are on another scale.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: expected a picture file, got a folder; name one of the files in it")
    if not os.path.exists(path):
        raise InputError(f"{path}: expected a picture file, but there is no such file; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected a picture, got an empty file; copy or download it again")

    if path.suffix.lower() == ".npy":
        return picture_of(_read_array(path), name=str(path), min_side=min_side)
    with _in_one_line(str(path)):
        array, notes = decode_file(path, lambda height, width: _check_size(str(path), height, width, min_side))
    return _picture(array, notes, str(path))


def picture_of(pixels: np.ndarray | Image.Image, *, name: str = "image", min_side: int = MIN_SIDE) -> Picture:
    """A picture that is in memory, treated like one in a file.

    Args:
        pixels: (H, W) or (H, W, 1 | 3 | 4), uint8, uint16, bool, or float with white at 1; or a picture of Pillow.
        name: What error messages call it.
        min_side: Smallest height and width accepted, in pixels.

    Raises:
        InputError: Another shape, type or scale, too small or too large, masked or infinite pixels, or damaged.
    """
    if not isinstance(pixels, np.ndarray):
        with _in_one_line(name):
            _check_size(name, pixels.height, pixels.width, min_side)
            array, notes = decode(pixels, name)
        return _picture(array, notes, name)
    if np.ma.is_masked(pixels):
        raise InputError(f"{name}: expected a value for every pixel, got a masked array; fill it with `filled`")
    array = np.asarray(pixels)  # what a subclass makes of indices and products is its own affair
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "move the channels to the end" if array.shape[:1] in ((1,), (3,), (4,)) else "select its colours"
        hint = hint if array.ndim == 3 else "give one picture"
        raise InputError(f"{name}: expected an array (H, W) or (H, W, 1 | 3 | 4), got {array.shape}; {hint}")
    _check_size(name, *array.shape[:2], min_side)
    return _picture(array, [], name)


def write_png(path: str | Path, pixels: Tensor, bits: int = 8) -> None:
    """Writes a PNG file: the whole of it, or nothing if the program ends on the way.

    Args:
        path: The file, replaced when it exists; its folder must exist.
        pixels: (C, H, W) with C = 1 or 3, or (H, W); clipped to [0, 1] and rounded to the nearest level.
        bits: 8, or 16 for a single channel.

    Raises:
        InputError: Wrong shape or bit depth, or values that are not finite.
    """
    from PIL import Image

    path = Path(path)
    gray = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[0] == 1)
    if not (gray or (pixels.ndim == 3 and pixels.shape[0] == 3)):
        raise InputError(
            f"{path}: expected pixels (1 | 3, H, W) or (H, W), got {tuple(pixels.shape)}; select one picture"
        )
    if bits != 8 and not (bits == 16 and gray):
        raise InputError(f"{path}: expected 8 bits, or 16 for one channel, got {bits} bits; write `.npy` for more")
    if not torch.isfinite(pixels).all():
        raise InputError(f"{path}: expected finite pixels, got NaN or infinity; a failed picture is not to be written")

    levels = (pixels.detach().cpu().double().clamp(0, 1) * (2**bits - 1)).round().numpy()
    levels = levels.astype(np.uint16 if bits == 16 else np.uint8)
    image = Image.fromarray(levels.reshape(levels.shape[-2:]) if gray else levels.transpose(1, 2, 0))

    # In the same folder, because a rename is atomic only within a file system.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        image.save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _picture(array: np.ndarray, notes: list[str], name: str) -> Picture:
    """What becomes of upright (H, W, 1 | 2 | 3 | 4) values."""
    unit = _unit_scaled(array, name)
    if array.dtype.type is np.uint16:
        notes.append("16 bit")
    unit, alpha = (unit[..., :-1], unit[..., -1:]) if unit.shape[2] in (2, 4) else (unit, None)
    if array.dtype.kind == "f":
        span = f"{unit.min():.3g} to {unit.max():.3g}"
        unit = _exposed(unit, notes)
        if _is_below_black(unit):
            raise InputError(
                f"{name}: expected float values in [0, 1], apart from noise, got {span}; scale them, by (x + 1) / 2 if "
                "they are in [-1, 1]"
            )
    if alpha is not None and not alpha.any():
        raise InputError(f"{name}: expected pixels that can be seen, got transparent ones alone; make them opaque")
    if alpha is not None and (alpha < 1).any():
        unit = alpha * unit + (1 - alpha)
        notes.append("alpha composited over white")
    return Picture(torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1), np.float32)), tuple(notes))


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # a header that promises too much costs no memory
    except Exception as error:
        raise InputError(f"{path}: expected a NumPy array of numbers, got a damaged file ({_line(error)})") from error


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on damaged bytes the decoders raise nearly every type there is
        raise InputError(
            f"{name}: expected a complete PNG, JPEG, TIFF, WebP, BMP or GIF picture, got a file that cannot be decoded "
            f"({_line(error)}); get it again, or convert it to PNG or TIFF"
        ) from error


def _check_size(name: str, height: int, width: int, min_side: int) -> None:
    got = f"got {height} x {width}"
    if min(height, width) < min_side:
        raise InputError(f"{name}: expected at least {min_side} x {min_side} pixels, {got}; give a larger picture")
    if height * width > MAX_PIXELS:
        raise InputError(f"{name}: expected at most {MAX_PIXELS // 10**6} megapixels, {got}; crop or shrink it first")


def _unit_scaled(array: np.ndarray, name: str) -> np.ndarray:
    """float32 with white at 1."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype.type in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype.kind != "f":
        raise InputError(f"{name}: expected uint8, uint16 or float values, got {array.dtype}; save one of these")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        unit = array.astype(np.float32)
    if not np.isfinite(unit).all():
        raise InputError(f"{name}: expected finite values, got NaN or infinity; replace them")
    if np.abs(unit).max() > MAX_FLOAT:
        span = f"{unit.min():g} to {unit.max():g}"
        raise InputError(f"{name}: expected float values with white at 1, got {span}; divide by the value of white")
    return unit


def _exposed(unit: np.ndarray, notes: list[str]) -> np.ndarray:
    """Floats of high dynamic range with white where a camera would put it; others as they are."""
    if unit.max() <= NOISY_WHITE:
        return unit
    some = unit.reshape(-1)[:: 1 + unit.size // 10**6]
    white = max(1.0, float(np.quantile(some, 1 - HIGHLIGHTS)))
    if white <= NOISY_WHITE and unit.max() <= NOISY_PEAK:
        return unit
    notes.append(f"float values up to {unit.max():.3g}: divided by {white:.3g}, and what is brighter made white")
    return np.minimum(unit / np.float32(white), 1)


def _is_below_black(unit: np.ndarray) -> bool:
    """Whether values (H, W, C) with white at 1 are lower than noise makes black."""
    if unit.min() >= -RINGING:
        return False
    some = unit[:: 1 + unit.size // 10**6]
    # Most neighbours differ by noise alone; that of two pixels has sqrt(2) sigma, and a median of 0.6745 of that.
    sigma = min(float(np.median(np.abs(np.diff(some, axis=1)))) / (0.6745 * 2**0.5), STRONGEST_NOISE)
    darkest = float(np.quantile(some, DARKEST))
    return darkest < -RINGING - DARKEST_SIGMAS * sigma or unit.min() < -LOWEST_SIGMAS * STRONGEST_NOISE


def _line(error: Exception) -> str:
    """An error of a library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
