"""Reads whatever picture a person has into a float tensor, and writes PNG files that are either complete or absent."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from codiffuse.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE = 32
MAX_PIXELS = 200_000_000
MAX_FLOAT = 10.0  # noise leaves [0, 1] by a little; a file of floats up to 255 or 65535 is on another scale

# Tags of EXIF and TIFF.
ORIENTATION = 274  # how the camera was held, 1 (upright) to 8
BITS_PER_SAMPLE = 258
PLANAR_CONFIGURATION = 284  # 2: one colour after the other

# What undoes each orientation: the axes to flip, after a transposition for the four that swap the sides.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # gray, and the only modes of Pillow beyond 8 bits

# Of a 16-bit colour sample Pillow reads the high byte alone. The raw mode of the other byte order reads the low one.
_NON_NATIVE = "B" if sys.byteorder == "little" else "L"
_LOW_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", _NON_NATIVE))
}


@dataclass(frozen=True)
class Picture:
    """A picture as it was read.

    Attributes:
        pixels: (C, H, W) float32, C = 1 or 3, in [0, 1]; a float file keeps its values, which noise may carry outside.
        notes: What was done to the file's pixels, in words.
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


def read_picture(path: str | Path, *, min_side: int = MIN_SIDE) -> Picture:
    """Reads a picture file, or a `.npy` array of shape (H, W) or (H, W, 1 | 3 | 4).

    Integers are divided by the largest value of their type. EXIF orientation is applied, transparency is composited
    over white, other colour models become RGB, and of several frames the first is taken; `notes` tells which.

    Args:
        path: The file. Its content decides the format, except for `.npy`.
        min_side: Smallest height and width accepted, in pixels.

    Raises:
        InputError: The file is missing, damaged, not a picture, too small, or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: expected a picture file, got a folder; name one of the files in it")
    if not os.path.exists(path):
        raise InputError(f"{path}: expected a picture file, but there is no such file; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected a picture, got an empty file; copy or download it again")

    read = _read_array if path.suffix.lower() == ".npy" else _read_image
    array, notes = read(path, min_side)
    unit = _unit_scaled(array, path)
    if array.dtype.type is np.uint16:
        notes.append("16 bit")
    if unit.shape[2] in (2, 4):
        unit, alpha = unit[..., :-1], unit[..., -1:]
        if (alpha < 1).any():
            unit = alpha * unit + (1 - alpha)
            notes.append("alpha composited over white")
    return Picture(torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1))), tuple(notes))


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


def _read_array(path: Path, min_side: int) -> tuple[np.ndarray, list[str]]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # a header that promises too much costs no memory
    except Exception as error:
        raise InputError(f"{path}: expected a NumPy array of numbers, got a damaged file ({_line(error)})") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "move the channels to the end" if array.shape[:1] in ((1,), (3,), (4,)) else "save one picture a file"
        raise InputError(f"{path}: expected an array (H, W) or (H, W, 1 | 3 | 4), got {array.shape}; {hint}")
    _check_size(path, *array.shape[:2], min_side)
    return array, []


def _read_image(path: Path, min_side: int) -> tuple[np.ndarray, list[str]]:
    try:
        with _opened(path) as image:
            _check_size(path, image.height, image.width, min_side)
            return _decoded(image, path)
    except InputError:
        raise
    except Exception as error:  # on damaged bytes the decoders raise nearly every type there is
        raise InputError(
            f"{path}: expected a complete PNG, JPEG, TIFF, WebP, BMP or GIF picture, got a file that cannot be decoded "
            f"({_line(error)}); get it again, or convert it to PNG"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Pillow warns from 89 and refuses from 179 megapixels; `_check_size` has the say here."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(path: Path, height: int, width: int, min_side: int) -> None:
    got = f"got {height} x {width}"
    if min(height, width) < min_side:
        raise InputError(f"{path}: expected at least {min_side} x {min_side} pixels, {got}; give a larger picture")
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: expected at most {MAX_PIXELS // 10**6} megapixels, {got}; crop or shrink it first")


def _decoded(image: Image.Image, path: Path) -> tuple[np.ndarray, list[str]]:
    """Upright (H, W, 1 | 2 | 3 | 4) values in the file's own number type, and the notes."""
    frames = getattr(image, "n_frames", 1)
    notes = [f"first of {frames} frames"] if frames > 1 else []

    raw_mode = _raw_mode(image, path)  # before getexif(), which may load the image and so drop it
    orientation = image.getexif().get(ORIENTATION)
    array = _pillow_values(image, notes)
    if raw_mode in _LOW_BYTE:
        array = array.astype(np.uint16) << 8 | _low_bytes(path)
    elif ";16" in raw_mode and image.mode not in _DEEP_MODES:
        notes.append("8 of 16 bits read")
    if orientation in _FLIPS:
        notes.append(f"EXIF orientation {orientation} applied")
    # Asked again, because Pillow turns a TIFF by itself while loading it and then forgets the tag.
    return _upright(np.atleast_3d(array), image.getexif().get(ORIENTATION)), notes


def _raw_mode(image: Image.Image, path: Path) -> str:
    """How Pillow unpacks the samples of a PNG or TIFF file; empty for the others, of which colour is read in 8 bits."""
    if image.format == "PNG":
        return image.tile[0].args
    if image.format != "TIFF":
        return ""
    if image.tag_v2.get(PLANAR_CONFIGURATION) == 2 and max(image.tag_v2[BITS_PER_SAMPLE]) > 8:  # Pillow reads noise
        raise InputError(f"{path}: expected interleaved colours in a 16-bit TIFF, got separate planes; save it so")
    return image.tile[0].args[0]


def _low_bytes(path: Path) -> np.ndarray:
    """(H, W, 3 | 4) low bytes of 16-bit samples."""

    def low(args: str | tuple) -> str | tuple:
        return _LOW_BYTE[args] if isinstance(args, str) else (_LOW_BYTE[args[0]], *args[1:])

    with _opened(path) as image:
        image.tile = [tile._replace(args=low(tile.args)) for tile in image.tile]
        return np.asarray(image)


def _pillow_values(image: Image.Image, notes: list[str]) -> np.ndarray:
    """(H, W) or (H, W, 2 | 3 | 4) values of an image that Pillow decodes."""
    if image.mode in _DEEP_MODES:
        array = np.asarray(image)
        # Mode I is 32 bits wide, but what it holds of a 16-bit PGM is on the 16-bit scale.
        fits = array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535
        return array.astype(np.uint16) if fits else array

    if image.mode in ("P", "PA"):
        notes.append("palette expanded")
    elif image.mode == "1":
        notes.append("1 bit")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{image.mode} converted")

    if image.mode == "LAB":
        return np.asarray(_lab_to_rgb(image))
    colours = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return np.asarray(image.convert(colours + "A" * image.has_transparency_data))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))


def _upright(array: np.ndarray, orientation: int | None) -> np.ndarray:
    """Undoes the EXIF orientation of an (H, W, C) array."""
    if orientation not in _FLIPS:
        return array
    return np.flip(array.swapaxes(0, 1) if orientation >= 5 else array, _FLIPS[orientation])


def _unit_scaled(array: np.ndarray, path: Path) -> np.ndarray:
    """float32 with white at 1."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype.type in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype.kind != "f":
        raise InputError(f"{path}: expected uint8, uint16 or float values, got {array.dtype}; save one of these")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        unit = array.astype(np.float32)
    if not np.isfinite(unit).all():
        raise InputError(f"{path}: expected finite values, got NaN or infinity; replace them")
    if np.abs(unit).max() > MAX_FLOAT:
        span = f"{unit.min():g} to {unit.max():g}"
        raise InputError(f"{path}: expected float values with white at 1, got {span}; divide by the value of white")
    return unit


def _line(error: Exception) -> str:
    """An error of a library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
